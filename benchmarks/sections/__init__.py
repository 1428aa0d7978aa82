"""What is measured, section by section: which contenders run side by side, and which figures come of it."""
