"""What tests are skipped without, and why."""

from __future__ import annotations

import importlib.util

import pytest

NEEDS_TEXT = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_text") is None,
    reason='tensorflow-text is not installed, as in AWS\'s images: pip install "tf_finetune[text]"',
)
NEEDS_HUB = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_hub") is None,
    reason="tensorflow-hub is not installed, as in AWS's images; a job that needs it brings it",
)
