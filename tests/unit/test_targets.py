"""Exports for other runtimes, up to where TensorFlow is imported: what is refused, described and proved."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.builders import write_files
from tf_finetune import archive as archives
from tf_finetune import cli, targets
from tf_finetune.errors import ExportError, UsageError
from tf_finetune.targets import description, proof

PHOTOS, TEXTS = json.dumps({"task": "image"}).encode(), json.dumps({"task": "text"}).encode()
DATA = {
    "photos/tf_finetune.json": PHOTOS,
    "photos/old.onnx": b"",
    "odd.json/": b"",
    "texts/tf_finetune.json": TEXTS,
    "file": b"",
    "empty/": b"",
    "good/a/1.jpg": b"1",
    "good/b/2.jpg": b"2",
}
WRONG = [
    ("photos", ["--format"]),
    ("photos --format tflite", ["--format: expected litert or onnx; received 'tflite'"]),
    ("photos --format onnx --int8 --calibration good", ["--int8 is for --format litert only"]),
    ("photos --format litert --int8", ["--int8 needs --calibration CHANNEL"]),
    ("photos --format litert --max-loss 0.1", ["--max-loss is for --int8"]),
    ("photos --format litert --validation good", ["--validation is for --int8"]),
    ("photos --format litert --int8 --calibration good --validation empty", ["empty has no class folders"]),
    ("photos --format litert --int8 --calibration good --max-loss 2", ["--max-loss: expected a number from 0 to 1"]),
    ("photos --format litert --int8 --calibration good --max-loss nan", ["--max-loss: expected a number from 0 to 1"]),
    ("nowhere --format onnx", ["no such file or folder: nowhere"]),
    ("photos --format onnx --calibration nowhere", ["no such file or folder: nowhere"]),
    ("photos --format onnx --calibration empty", ["empty has no class folders"]),
    ("empty --format onnx", ["empty holds no model of tf_finetune"]),
    ("texts --format onnx", ["texts is a model of texts", "ONNX has no operations for them", "tf-finetune serve"]),
    ("texts --format litert", ["LiteRT has no operations for them"]),
    ("photos --format onnx --output empty", ["--output empty is a folder", "such as empty/model.onnx."]),
    ("photos --format onnx --output=", ["--output . is a folder"]),
    ("photos --format onnx --output odd", ["odd.json is there and is no file"]),
    ("photos --format onnx --output photos/old.onnx", ["would replace photos/old.onnx, which belongs to the archive"]),
    ("photos --format onnx --output photos/tf_finetune", ["would replace photos/tf_finetune.json"]),
    ("photos --format onnx --output file/model.onnx", ["file is no folder"]),
    ("photos --format onnx --output s3://bucket/model.onnx", ["expected a file on this machine; received s3:"]),
]
ARCHIVE = {
    "backbone": "some",
    "class_names": ["a", "b c"],
    "preprocessing": {"image_size": 10, "pixel_range": [-1, 1], "interpolation": "bilinear"},
}


@pytest.fixture
def installed(monkeypatch):
    """Every package that a format needs can be found, whether it is there or not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(write_files(tmp_path, DATA))
    return tmp_path


@pytest.mark.parametrize(("words", "parts"), WRONG)
def test_what_cannot_be_exported_is_told_before_tensorflow_is_imported(words, parts, data, installed, capsys):
    before, loaded = sorted(data.rglob("*")), "tensorflow" in sys.modules
    assert cli.main(["export", *words.split()]) == 1
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message
    assert sorted(data.rglob("*")) == before
    assert ("tensorflow" in sys.modules) == loaded


@pytest.mark.parametrize("format", list(targets.FORMATS))
def test_a_missing_package_is_named_with_the_extra_that_brings_it(format, monkeypatch):
    missing = targets.FORMATS[format].needed[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UsageError, match=rf"needs {missing}\. Run: pip install \"tf_finetune\[{format}\]\""):
        targets.check_format(format, False, None)


def test_files_go_beside_the_archive_and_are_named_by_what_they_are(data, installed):
    folder = data.absolute()
    for format, int8, name in (
        ("litert", False, "model.tflite"),
        ("litert", True, "model.int8.tflite"),
        ("onnx", False, "model.onnx"),
    ):
        order = targets.plan("photos", format, None, int8, "good" if int8 else None)
        assert order.output == folder / name


def test_the_description_says_how_pixels_are_made():
    made = description.make(ARCHIVE, antialias_from=2, without_antialias=False)
    assert made["input"]["shape"] == [None, 10, 10, 3] and made["input"]["range"] == [0, 255]
    assert made["output"]["shape"] == [None, 2] and made["class_names"] == ["a", "b c"]
    assert "400 pixels or more" in made["preprocessing"]["antialias"]
    assert "10 x 10" in made["preprocessing"]["3 resize"] and "EXIF" in made["preprocessing"]["2 turn"]
    resize = {"height": 10, "width": 10, "keeps_aspect_ratio": False, "method": "bilinear"}
    assert made["preprocessing"]["resize"] == {**resize, "antialias_from_pixels": 400}
    never = description.make(ARCHIVE, 2, without_antialias=True)["preprocessing"]
    assert "never" in never["antialias"] and never["resize"] == {**resize, "antialias_from_pixels": None}


def test_labels_have_a_line_each():
    assert description.labels({"class_names": ["a", "b\nc", "d e"]}) == "a\nb c\nd e\n"


def test_a_file_that_differs_by_more_than_the_tolerance_is_refused():
    expected = np.array([[0.25, 0.75]], np.float32)
    found = proof.check_parity(expected + np.float32(5e-5), expected, "onnx")
    assert found["examples"] == 1 and found["largest_difference"] == pytest.approx(5e-5, rel=0.01)
    for answered in (expected + np.float32(2e-4), expected * np.nan, expected[:, :1], expected.repeat(2, 0)):
        with pytest.raises(ExportError, match="answers otherwise than the archive"):
            proof.check_parity(answered, expected, "onnx")


def test_int8_may_lose_just_so_much():
    labels = np.array([0, 1, 0, 1])
    expected = np.eye(2, dtype=np.float32)[labels]
    answered = np.eye(2, dtype=np.float32)[[0, 1, 0, 0]]
    found = proof.check_loss(answered, expected, labels, 7, max_loss=0.25)
    assert (found["accuracy_float32"], found["accuracy_int8"], found["loss"]) == (1, 0.75, 0.25)
    assert (found["calibrated_on"], found["measured_on"], found["same_prediction"]) == (7, 4, 0.75)
    with pytest.raises(ExportError, match=r"accuracy 0\.7500 instead of 1\.0000 .* at most 0\.24; received 0\.2500"):
        proof.check_loss(answered, expected, labels, 7, max_loss=0.24)
    assert proof.check_loss(expected, answered, labels, 7, max_loss=0)["loss"] == -0.25


def test_neither_the_archive_nor_a_device_is_replaced(tmp_path, installed):
    """Renaming a file over /dev/null, as root, would take it from the whole machine."""
    archive = tmp_path / "model.tar.gz"
    archives.pack(write_files(tmp_path / "photos", {"tf_finetune.json": PHOTOS}), archive)
    content = archive.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(archive)
    for output, part in (("model.tar.gz", "belongs to the archive"), ("link", "belongs to"), ("pipe", "is no file")):
        with pytest.raises(UsageError, match=part):
            targets.export(archive, "onnx", tmp_path / output)
    assert archive.read_bytes() == content and (tmp_path / "pipe").is_fifo()
