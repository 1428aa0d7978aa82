"""The demonstrations, whole: real backbones on real photos and texts, each from its PyPI wheel."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.needs import NEEDS_TEXT


@pytest.mark.parametrize(
    ("task", "name", "least"), [("image", "demo", 0.95), pytest.param("text", "demo-text", 0.90, marks=NEEDS_TEXT)]
)
def test_demo_beats_the_simple_way_and_says_how_to_go_on(tmp_path, task, name, least):
    command = [sys.executable, "-m", "tf_finetune.cli", "demo", "--task", task, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    accuracy, baseline = (float(word.rstrip(";")) for word in said.split() if word.startswith(("0.", "1.0")))
    assert accuracy >= least
    assert baseline < accuracy
    assert (tmp_path / name / "output" / "model.tar.gz").is_file()
    assert str(tmp_path / name / "output" / "data" / "report.html") in said
    assert "tf-finetune train --training FOLDER" in said
