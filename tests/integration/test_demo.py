"""The demonstration, whole: the real EfficientNet-Lite0 on real photos, each from its PyPI wheel."""

from __future__ import annotations

import subprocess
import sys


def test_demo_beats_raw_pixels_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "tf_finetune.cli", "demo", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    accuracy, baseline = (float(word.rstrip(";")) for word in said.split() if word.startswith(("0.", "1.0")))
    assert accuracy >= 0.95
    assert baseline < accuracy
    assert (tmp_path / "demo" / "output" / "model.tar.gz").is_file()
    assert str(tmp_path / "demo" / "output" / "data" / "report.html") in said
    assert "tf-finetune train --training FOLDER" in said
