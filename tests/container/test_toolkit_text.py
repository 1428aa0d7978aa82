"""Training on texts as SageMaker's toolkit starts it: a channel with data.csv."""

from __future__ import annotations

import json

import pytest

from tests import builders
from tests.container import toolkit
from tests.container.test_toolkit import MODEL, OUTPUT, failure_of, needs_toolkit, report_of

SETTINGS = {"epochs": 3, "optimizer": "adamw", "learning_rate": 0.25, "batch_size": 8, "train_only_top_layer": True}


@pytest.fixture(scope="module")
def rows():
    return builders.texts_by_length(40, ("1", "2"))


@pytest.fixture(scope="module")
def job(tmp_path_factory, rows):
    """A job of SDK 2's TensorFlow estimator, with a channel of texts for each part."""
    place = tmp_path_factory.mktemp("texts")
    backbone = builders.save_length_backbone(place / "length")
    training = builders.write_csv(place / "training", rows, newline="\r\n")
    (training / "labels.txt").write_text("short\nlong\n")
    channels = {
        "training": training,
        "validation": builders.write_csv(place / "validation", rows[:10], "data.csv.gz"),
        "test": builders.write_csv(place / "test", rows[:6], "test.csv"),
        "model": backbone,
    }
    values = {**SETTINGS, "sagemaker_program": "finetune.py"}
    base = toolkit.prepare(place / "ml", channels, toolkit.as_framework_estimator(values))
    (base / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    return base, toolkit.run_toolkit(base, TRAINING_JOB_NAME="texts")


@needs_toolkit
def test_a_text_channel_leaves_the_archive_the_report_and_nothing_else(job):
    base, done = job
    assert done.returncode == 0, done.stdout
    assert toolkit.files_below(base / "model") == MODEL
    assert toolkit.files_below(base / "output") == OUTPUT | {"success"}
    description = json.loads((base / "model" / "tf_finetune.json").read_text())
    assert (description["task"], description["signature"]["input"]) == ("text", "text_inputs")
    assert json.loads((base / "model" / "labels_info.json").read_text()) == {"labels": ["short", "long"]}


@needs_toolkit
def test_all_channels_of_texts_and_the_settings_arrive(job):
    report = report_of(job[0])
    assert report["task"] == "text"
    assert report["examples"] == {"training": 40, "validation": 10, "test": 6}
    assert report["metrics"]["validation"]["accuracy"] == report["metrics"]["test"]["accuracy"] == 1.0
    assert {name: report["hyperparameters"][name] for name in SETTINGS} == SETTINGS
    assert report["hyperparameters"]["warmup_steps_fraction"] == 0.1
    assert report["backbone"] == str(job[0] / "input" / "data" / "model")


@needs_toolkit
def test_settings_for_photos_fail_a_job_of_texts_with_one_reason(tmp_path, rows):
    data = builders.write_csv(tmp_path / "training", rows)
    values = {"augmentation": "True", "image_size": 64, "sagemaker_program": "finetune.py"}
    base = toolkit.prepare(tmp_path / "ml", {"training": data}, toolkit.as_framework_estimator(values))
    (base / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    assert toolkit.run_toolkit(base).returncode == 1
    for name in ("augmentation", "image_size"):
        assert f"{name}: it is for photos only, and the training channel holds texts" in failure_of(base)


@needs_toolkit
def test_a_wrong_file_is_the_reason_of_the_failure(tmp_path):
    data = builders.write_files(tmp_path / "training", {"data.csv": b"1,a\n2,b\n1,caf\xe9\n"})
    base = toolkit.prepare(tmp_path / "ml", {"training": data}, {"sagemaker_program": "finetune.py"})
    (base / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    done = toolkit.run_toolkit(base)
    assert done.returncode == 1
    assert "training/data.csv:3 (it is not UTF-8)" in failure_of(base)
    assert f"tf-finetune: {failure_of(base)}" in done.stdout
    assert toolkit.files_below(base / "model") == set()
