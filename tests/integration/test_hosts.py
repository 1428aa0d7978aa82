"""Jobs on several hosts, which are processes on loopback: the same result as in one, and one end for all."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_finetune
from tests import builders, several
from tf_finetune import archive, devices, pipeline
from tf_finetune.errors import UsageError
from tf_finetune.hosts import Cluster

TOLERANCE = 1e-4
WITHIN = 60  # Seconds in which all hosts end when one is lost.
WHOLE = {"train_only_top_layer": False, "epochs": 3, "batch_size": 5, "learning_rate": 0.01, "dropout_rate": 0.3}
WHOLE |= {"augmentation": True, "image_size": 16, "checkpoint_seconds": 1, "calibrate": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return builders.write_class_folders(tmp_path_factory.mktemp("data") / "photos", per_class=11, size=16)


def arguments(photos: Path, backbone: Path, folder: Path, *more: str, **settings) -> list[str]:
    words = ["train", "--training", photos, "--backbone", backbone, "--output", folder / "out", "--model-name", "job"]
    words += ["--cache-dir", "none", "--checkpoints", folder / "kept", *more]
    for name, value in settings.items():
        words += [f"--{name}", value]
    return list(map(str, words))


def results(folder: Path) -> tuple[dict, np.ndarray, dict[str, np.ndarray]]:
    """Returns a job's report, its probabilities of validation, and the weights of its archive."""
    place = folder / "out" / "job" / "output"
    report = json.loads((place / "data" / "report.json").read_text())
    rows = list(csv.reader((place / "data" / "predictions.csv").open()))[1:]
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    archive.unpack(place / "model.tar.gz", folder / "unpacked")
    reader = tf.train.load_checkpoint(str(folder / "unpacked" / "1" / "variables" / "variables"))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    weights = {name: reader.get_tensor(name) for name in names}
    return report, np.array([[float(value) for value in row[3:]] for row in rows]), weights


def check_alike(one: Path, other: Path) -> None:
    """Compares the results of two jobs, of which the first ran on one host."""
    (report, answers, weights), (report_2, answers_2, weights_2) = results(one), results(other)
    assert answers.shape == answers_2.shape
    assert np.abs(answers - answers_2).max() <= TOLERANCE
    assert weights.keys() == weights_2.keys()
    assert sum(value.size for value in weights.values()) > 3
    for name, value in weights.items():
        np.testing.assert_allclose(weights_2[name], value, atol=TOLERANCE)
    for epoch, epoch_2 in zip(report["history"], report_2["history"], strict=True):
        for figure in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert abs(epoch[figure] - epoch_2[figure]) <= TOLERANCE, (figure, epoch, epoch_2)
    for count in ("examples", "backbone_calls", "gate_calls", "best_epoch"):
        assert report[count] == report_2[count]


def test_three_hosts_of_two_devices_train_a_whole_network_as_one_does_and_end_together_when_one_is_lost(
    photos, convolution_backbone, tmp_path
):
    alone = tmp_path / "alone"
    tf_finetune.train(
        photos, alone / "out", "job", backbone=convolution_backbone, cache_dir="none", replicas=1, **WHOLE
    )
    bases = [tmp_path / name for name in ("base-1", "base-2", "base-3")]
    for base in bases:
        (base / "input" / "config").mkdir(parents=True)
    given = arguments(photos, convolution_backbone, tmp_path, **WHOLE)

    first = several.run(given, 3, several.Signal(host=2, number=signal.SIGKILL, step=4), bases, several.OF_TWO_DEVICES)

    killed = first[2].seconds
    assert [end.code for end in first] == [1, 1, -signal.SIGKILL], several.told(first)
    assert not (tmp_path / "out").exists()
    for end, base in zip(first[:2], bases, strict=False):
        assert end.seconds - killed < WITHIN
        assert end.said.count("was lost") == 1
        assert "host 3 of 3, was lost" in end.said.splitlines()[-1]
        assert "Traceback" not in end.said
        assert "host 3 of 3, was lost" in (base / "output" / "failure").read_text()

    again = several.run(given, 3, setup=several.OF_TWO_DEVICES)

    assert [end.code for end in again] == [0, 0, 0], several.told(again)
    assert "training on 6 devices of 3 hosts" in again[0].said
    assert "going on at step" in again[0].said
    check_alike(alone, tmp_path)


def test_a_job_of_two_hosts_goes_on_where_it_was_when_the_first_was_lost_or_the_other_asked_to_end(photos, tmp_path):
    backbone = builders.save_moving_mean_backbone(tmp_path / "moving")
    settings = {**WHOLE, "optimizer": "sgd"}
    alone = tmp_path / "alone"
    tf_finetune.train(photos, alone / "out", "job", backbone=backbone, cache_dir="none", replicas=2, **settings)
    given = arguments(photos, backbone, tmp_path, **settings)

    lost = several.run(given, 2, several.Signal(host=0, number=signal.SIGKILL, step=3))

    assert [end.code for end in lost] == [-signal.SIGKILL, 1], several.told(lost)
    assert lost[1].seconds - lost[0].seconds < WITHIN
    assert "host 1 of 2, was lost" in lost[1].said.splitlines()[-1]

    asked = several.run(given, 2, several.Signal(host=1, number=signal.SIGTERM, step=4))

    assert [end.code for end in asked] == [0, 0], several.told(asked)
    report = results(tmp_path)[0]
    assert "SIGTERM" in report["ended_early"]
    assert len(report["history"]) == 2
    call = {"training": photos, "output": tmp_path / "out", "model_name": "job", "checkpoints": tmp_path / "kept"}
    call = {name: str(value) for name, value in {**call, "backbone": backbone, "cache_dir": "none"}.items()}
    last = several.run([json.dumps({**call, **settings})], 2, program=several.CALL)

    assert [end.code for end in last] == [0, 0], several.told(last)
    assert "going on at step" in last[0].said
    artifact = tmp_path / "out" / "job" / "output" / "model.tar.gz"
    assert all(f"report of {artifact}" in end.said for end in last)
    check_alike(alone, tmp_path)


def test_python_has_from_sagemaker_what_the_command_has(photos, mean_backbone, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    places = {"SAGEMAKER_BASE_DIR": tmp_path, "SM_MODEL_DIR": tmp_path / "m", "SM_OUTPUT_DATA_DIR": tmp_path / "d"}
    for name, value in {**places, "TRAINING_JOB_NAME": "job-1", "TRAINING_JOB_ARN": "arn:1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TF_FINETUNE_CACHE")
    monkeypatch.setattr(pipeline, "run", lambda planned: planned)
    planned = tf_finetune.train(photos, backbone=mean_backbone)
    assert (planned.destination.model_dir, planned.destination.data) == (tmp_path / "m", tmp_path / "d")
    assert (planned.name, planned.arn, planned.cluster) == ("job-1", "arn:1", None)
    assert planned.checkpoints == tmp_path / "checkpoints"
    assert planned.feature_cache.folder == tmp_path / "checkpoints" / "features-localhost"
    monkeypatch.setenv("TF_CONFIG", several.tf_config(["a:1", "b:1"], 1))
    assert tf_finetune.train(photos, tmp_path / "out", backbone=mean_backbone).cluster.names == ("a", "b")


def test_a_process_in_which_tensorflow_runs_already_cannot_be_one_of_several_hosts():
    tf.constant(1)
    with pytest.raises(UsageError, match="TensorFlow already runs in this process.*before anything else of TensorFlow"):
        devices.over_hosts(Cluster(tuple(several.free_addresses(2)), 0))
