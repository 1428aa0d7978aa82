"""The whole line, from class folders to an archive that answers, on photos whose classes can be told by hand."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import tf_finetune
from tests import builders
from tf_finetune.errors import ExportError

SETTINGS = {"epochs": 4, "learning_rate": 0.5, "optimizer": "sgd", "batch_size": 8}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return builders.save_mean_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return builders.write_class_folders(tmp_path_factory.mktemp("data") / "photos", per_class=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbone, photos):
    output = tmp_path_factory.mktemp("results")
    given = {"test": photos, "backbone": str(backbone), "cache_dir": tmp_path_factory.mktemp("features")}
    record = tf_finetune.train(photos, output, "colours", **given, **SETTINGS)
    return record, output / "colours" / "output"


def test_flat_colours_are_learnt_and_told_by_the_archive(trained, photos):
    record, place = trained
    assert record["metrics"]["validation"]["accuracy"] == 1.0
    model = tf_finetune.load(place / "model.tar.gz")
    assert model.class_names == ("cyan", "magenta", "yellow")
    assert model.task == "image"
    for name in model.class_names:
        answer = model.predict(photos / name / "0.png")[0]
        assert answer["predicted_label"] == name
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_by_default_the_head_is_solved_and_the_history_has_one_entry(tmp_path, backbone, photos):
    record = tf_finetune.train(photos, tmp_path, "solved", backbone=str(backbone), cache_dir="none", epochs=7)
    assert record["metrics"]["validation"]["accuracy"] == 1.0
    (entry,) = record["history"]
    assert (entry["epoch"], record["best_epoch"], entry["learning_rate"]) == (1, 1, None)
    figures = record["metrics"]["validation"]
    assert [entry["val_loss"], entry["val_accuracy"]] == pytest.approx([figures["loss"], figures["accuracy"]])
    assert (record["hyperparameters"]["optimizer"], record["head"]["method"]) == ("auto", "L-BFGS")
    assert record["head"]["l2"] in [tried["l2"] for tried in record["head"]["path"]]
    assert record["warnings"][0].startswith("epochs has no effect: optimizer=auto solves the head")
    assert record["seconds"]["fine_tuning"] == 0 < record["seconds"]["head"]
    model = tf_finetune.load(tmp_path / "solved" / "output" / "model.tar.gz")
    assert model.predict(photos / "magenta" / "3.png")[0]["predicted_label"] == "magenta"


def test_random_colours_do_not_pass_min_accuracy_and_nothing_is_exported(tmp_path, backbone):
    photos = builders.write_class_folders(tmp_path / "photos", per_class=12, random_colours=True)
    with pytest.raises(ExportError, match="min_accuracy=0.9"):
        tf_finetune.train(photos, tmp_path / "out", "colours", backbone=str(backbone), min_accuracy=0.9, **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_report_predictions_and_evaluate_tell_the_same_accuracy_and_loss(trained, photos, tmp_path):
    record, place = trained
    with (place / "data" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = record["class_names"]
    table = np.array([[float(row[name]) for name in names] for row in rows])
    labels = np.array([names.index(row["label"]) for row in rows])
    figures = record["metrics"]["validation"]
    assert len(rows) == record["examples"]["validation"]
    assert [names[k] for k in table.argmax(axis=1)] == [row["predicted_label"] for row in rows]
    assert np.mean(table.argmax(axis=1) == labels) == figures["accuracy"]
    assert -np.log(table[np.arange(len(rows)), labels]).mean() == pytest.approx(figures["loss"], abs=1e-6)
    for row in rows:  # The validation photos alone, as a channel of their own.
        target = tmp_path / "validation" / row["id"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(photos / row["id"])
    command = [
        sys.executable,
        "-m",
        "tf_finetune.cli",
        "evaluate",
        str(place / "model.tar.gz"),
        str(tmp_path / "validation"),
    ]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["examples"] == len(rows)
    assert told["accuracy"] == figures["accuracy"]
    assert told["loss"] == pytest.approx(figures["loss"], abs=1e-6)
    assert told["confusion_matrix"] == figures["confusion_matrix"]


def test_report_json_holds_what_the_contract_says(trained):
    record, place = trained
    written = json.loads((place / "data" / "report.json").read_text())
    assert written == json.loads(json.dumps(record))
    needed = {"task", "backbone", "class_names", "examples", "hyperparameters", "metrics", "history", "seconds"}
    assert needed | {"backbone_calls", "gate_calls", "precision", "feature_cache", "job", "versions"} <= set(written)
    assert set(written["metrics"]) == {"validation", "test"}
    per_part = {"accuracy", "loss", "macro_f1", "per_class", "confusion_matrix", "calibration_error"}
    assert per_part <= set(written["metrics"]["test"])
    epoch = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert [set(entry) for entry in written["history"]] == [epoch] * 4
    stages = {"total", "data", "backbone", "features", "head", "fine_tuning", "evaluation", "export"}
    assert set(written["seconds"]) == stages
    assert written["backbone_calls"] == 36  # Each photo once, though every one is in `test` too.
    assert written["hyperparameters"]["epochs"] == 4
    assert {"parent_model", "name", "arn", "training_seconds", "model_artifact"} <= set(written["job"])
    assert sum(written["examples"][part] for part in ("training", "validation")) == 36


def test_archive_holds_what_the_contract_says(trained):
    with tarfile.open(trained[1] / "model.tar.gz") as archive:
        names = archive.getnames()
        labels = json.load(archive.extractfile("labels_info.json"))
        indices = json.load(archive.extractfile("class_label_to_prediction_index.json"))
        description = json.load(archive.extractfile("tf_finetune.json"))
        assert {member.mtime for member in archive.getmembers()} == {0}
    assert {"1/saved_model.pb", "1/variables/variables.index", "code/inference.py"} <= set(names)
    assert names == sorted(names)
    assert labels == {"labels": ["cyan", "magenta", "yellow"]}
    assert indices == {"cyan": 0, "magenta": 1, "yellow": 2}
    assert description["signature"] == {"name": "serving_default", "input": "bytes_inputs", "output": "probabilities"}


def test_results_stand_alone_without_leftovers(trained):
    place = trained[1]
    assert sorted(path.name for path in place.parent.iterdir()) == ["output"]
    assert sorted(path.name for path in place.iterdir()) == ["data", "model.tar.gz"]
    assert sorted(path.name for path in (place / "data").iterdir()) == [
        "label_errors.csv",
        "predictions.csv",
        "report.html",
        "report.json",
        "split.csv",
    ]


def test_a_later_job_replaces_the_earlier_result_only_when_it_succeeds(tmp_path, backbone, photos):
    first = tf_finetune.train(photos, tmp_path, "job", backbone=str(backbone), **SETTINGS)
    archive = Path(first["job"]["model_artifact"])
    before = archive.read_bytes()
    with pytest.raises(ExportError):  # Nothing learnt in steps this small, and rightly not handed over.
        tf_finetune.train(
            photos,
            tmp_path,
            "job",
            backbone=str(backbone),
            min_accuracy=1.0,
            epochs=1,
            learning_rate=1e-9,
            optimizer="sgd",
        )
    assert archive.read_bytes() == before
    tf_finetune.train(photos, tmp_path, "job", backbone=str(backbone), **{**SETTINGS, "epochs": 1})
    assert archive.read_bytes() != before
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["output"]


def test_same_seed_same_weights_bit_for_bit_whatever_the_files_are_called(trained, tmp_path, backbone, photos):
    renamed = tmp_path / "renamed"
    for file in photos.glob("*/*.png"):
        target = renamed / file.parent.name / f"x{99 - int(file.stem)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    given = {"test": renamed, "backbone": str(backbone), "cache_dir": "none"}
    record = tf_finetune.train(renamed, tmp_path, "again", **given, **SETTINGS)
    first, second = trained[1] / "model.tar.gz", tmp_path / "again" / "output" / "model.tar.gz"
    with tarfile.open(first) as one, tarfile.open(second) as other:
        assert one.getnames() == other.getnames()
        name = "1/variables/variables.data-00000-of-00001"
        assert one.extractfile(name).read() == other.extractfile(name).read()
    assert record["history"] == trained[0]["history"]


def test_classes_of_one_photo_train_without_validation(tmp_path, backbone):
    photos = builders.write_class_folders(tmp_path / "photos", per_class=1)
    record = tf_finetune.train(photos, tmp_path / "out", "single", backbone=str(backbone), **SETTINGS)
    assert record["examples"] == {"training": 3, "validation": 0, "test": 0}
    assert record["metrics"]["validation"] is None
    assert record["parity"]["examples"] == 3
    assert len((tmp_path / "out/single/output/data/predictions.csv").read_text().splitlines()) == 1


def test_replicas_train_to_the_same_report_in_processes_of_their_own(tmp_path, photos):
    backbone = builders.save_affine_backbone(tmp_path / "affine")
    losses = []
    for replicas in ("1", "2"):
        command = [sys.executable, "-m", "tf_finetune.cli", "train", "--training", str(photos), "--replicas", replicas]
        command += ["--backbone", str(backbone), "--train-only-top-layer", "False", "--augmentation", "--epochs", "3"]
        command += ["--learning-rate", "0.05", "--batch-size", "7", "--output", str(tmp_path), "--model-name", replicas]
        command += ["--optimizer", "adam"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / replicas / "output/data/report.json").read_text())
        losses.append([[entry["loss"], entry["val_loss"]] for entry in report["history"]])
    assert report["parity"]["accelerator_difference"] < 1e-5  # Two devices are proved against one.
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    assert losses[0][-1][0] < losses[0][0][0]


@pytest.mark.parametrize("optimizer", ["auto", "adam"])
def test_train_says_nothing_but_its_own_lines(tmp_path, backbone, photos, optimizer):
    command = [sys.executable, "-m", "tf_finetune.cli", "train", "--training", str(photos), "--epochs", "1"]
    command += ["--backbone", str(backbone), "--output", str(tmp_path), "--model-name", "quiet", "--momentum", "0.5"]
    done = subprocess.run([*command, "--optimizer", optimizer], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    told = ["backbone", *(["epochs"] * (optimizer == "auto")), "momentum", "data:", "pixel", "training"]
    told += [*(["the"] * (optimizer == "auto")), "epoch", "calibration:", "proving"]
    assert [line.split(" ")[0] for line in lines] == told
    assert f"momentum has no effect: optimizer is {optimizer}" in done.stderr
    assert ("learning_rate: 0.001" in done.stderr) == (optimizer == "adam")
    for definition in tf_finetune.METRIC_DEFINITIONS:
        assert sum(bool(re.search(definition["Regex"], line)) for line in lines) == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["validation accuracy", "archive", "report"]


def test_gate_process_cannot_import_the_package_and_a_changed_model_fails_it(trained, photos, monkeypatch):
    from tf_finetune import export

    files = [str(photos / "cyan" / "0.png"), str(photos / "yellow" / "1.png")]
    answers = tf_finetune.load(trained[1] / "model.tar.gz").probabilities(files)
    with export.fresh_process() as process:
        assert export.check_parity(process, trained[1] / "model.tar.gz", {"files": files}, answers) < 1e-6
    wrong = answers + [[0.5, 0, 0], [0, 0, 0]]
    with export.fresh_process() as process, pytest.raises(ExportError, match="differs by 0.5"):
        export.check_parity(process, trained[1] / "model.tar.gz", {"files": files}, wrong)
    script = Path(export.__file__).parent / "assets" / "answer.py"
    source = script.read_text().replace("import tensorflow as tf", "import tf_finetune", 1)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: import of tf_finetune halted" in done.stderr


def test_predict_command_answers_one_json_object_a_line(trained, photos, tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    command = [sys.executable, "-m", "tf_finetune.cli", "predict", str(trained[1] / "model.tar.gz")]
    done = subprocess.run([*command, str(photos / "cyan")], capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 12
    assert {answer["predicted_label"] for answer in answers} == {"cyan"}
    assert set(answers[0]) == {"input", "predicted_label", "probabilities"}
    assert done.stderr == ""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    subprocess.run([*command, str(photos / "cyan" / "0.png")], env=environment, capture_output=True, check=True)
    assert not list((tmp_path / "scratch").iterdir())  # What was unpacked there is gone, although the exit is quick.
    (tmp_path / "empty").mkdir()
    for name, message in (("text.jpg", "not a photo that can be decoded"), ("empty", "holds no photos")):
        wrong = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert wrong.returncode == 1
        assert message in wrong.stderr
        assert "Traceback" not in wrong.stderr


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="needs a place that cannot be written")
def test_loading_what_is_no_archive_of_ours_is_one_message(tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(b"not a tarball")
    for place, message in ((tmp_path / "model.tar.gz", "model.tar.gz"), (tmp_path, "holds no model of tf_finetune")):
        with pytest.raises(ExportError, match=message):
            tf_finetune.load(place)
