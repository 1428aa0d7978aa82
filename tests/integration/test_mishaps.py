"""What goes wrong in the middle of a job: one message each, and nothing left behind."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_finetune
from tests import builders
from tf_finetune import devices, export, results, text_ops
from tf_finetune.backbone import Backbone
from tf_finetune.errors import BackboneError, ExportError, HyperparameterError, TrainingError
from tf_finetune.job import Destination


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return builders.write_class_folders(tmp_path_factory.mktemp("data") / "photos", per_class=6)


def test_weights_spoilt_by_the_very_last_step_stop_the_job(tmp_path, photos, mean_backbone):
    settings = {"backbone": str(mean_backbone), "optimizer": "adam", "epochs": 1, "beta_1": 1.0}
    with pytest.raises(TrainingError, match=r"weights became NaN or infinite in epoch 1\. Lower learning_rate"):
        tf_finetune.train(photos, tmp_path / "out", "job", **settings)
    assert not (tmp_path / "out").exists()


def test_a_missing_epsilon_is_named_as_the_cure(tmp_path, photos, mean_backbone):
    settings = {"backbone": str(mean_backbone), "optimizer": "adam", "epochs": 1, "epsilon": 0, "beta_1": 1.0}
    with pytest.raises(TrainingError, match="Give epsilon its default"):
        tf_finetune.train(photos, tmp_path / "out", "job", **settings)


def test_features_that_are_not_numbers_blame_the_backbone(tmp_path):
    body = Backbone(
        builders.save_reusable(
            tmp_path, lambda images: tf.reduce_mean(images, [1, 2]) / 0.0, spec=tf.TensorSpec([None, None, None, 3])
        )
    )
    passes = builders.make_passes(body)
    source = builders.array_source(*builders.coloured_arrays(4))
    with pytest.raises(BackboneError, match="NaN or infinite features for 4 of 4 examples"):
        passes.features(source)


def test_a_message_raised_while_tracing_is_ours_alone(tmp_path):
    folder = builders.save_reusable(
        tmp_path,
        lambda images: {"a": tf.reduce_mean(images, [1, 2]), "b": tf.reduce_max(images, [1, 2])},
        spec=tf.TensorSpec([None, None, None, 3]),
    )
    with pytest.raises(BackboneError) as raised:
        Backbone(folder).feature_size(8)
    assert str(raised.value).startswith(f"backbone {folder} has 2 outputs: a, b.")
    assert "user code" not in str(raised.value)


def test_photos_too_small_for_the_network_are_told(tmp_path):
    kernel = tf.ones([9, 9, 3, 2])
    folder = builders.save_reusable(
        tmp_path, lambda images: tf.nn.conv2d(images, kernel, 1, "VALID"), spec=tf.TensorSpec([None, None, None, 3])
    )
    with pytest.raises(BackboneError, match=r"cannot take inputs of shape \(1, 8, 8, 3\).*image_size"):
        Backbone(folder).feature_size(8)


def test_three_classes_are_no_binary_mode_even_where_one_is_not_validated(tmp_path, photos, mean_backbone):
    with pytest.raises(HyperparameterError, match="two classes .* received 3: cyan, magenta, yellow"):
        tf_finetune.train(photos, tmp_path / "out", "job", backbone=str(mean_backbone), binary_mode=True)


def test_a_process_has_one_strategy_for_its_devices():
    assert devices.strategy(2) is devices.strategy(2)


def test_dropout_of_a_backbone_that_no_seed_reaches_is_trained_and_told(tmp_path, photos, caplog):
    class Dropping(tf.Module):
        def __init__(self):
            self.weight = tf.Variable([1.0, 2.0, 3.0])

        @tf.function
        def __call__(self, images, training=False):
            features = tf.reduce_mean(images, [1, 2]) * self.weight
            return tf.nn.dropout(features, 0.3) if training else features

    devices.make_deterministic(1, strictly=False)
    tf.random.set_seed(None)  # Or the operation would be saved with the seed of this process.
    module, spec = Dropping(), tf.TensorSpec([None, None, None, 3])
    for training in (True, False):
        module.__call__.get_concrete_function(spec, training=training)
    tf.saved_model.save(module, str(tmp_path / "b"))
    assert text_ops.draws_at_random(tmp_path / "b")
    settings = {"backbone": str(tmp_path / "b"), "train_only_top_layer": False, "epochs": 1}
    with caplog.at_level("WARNING", "tf_finetune"):
        tf_finetune.train(photos, tmp_path / "out", "job", **settings)
    assert "draws random numbers of its own" in caplog.text
    devices.make_deterministic(1)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    destination = Destination(tmp_path / "job" / "output" / "model.tar.gz", None, tmp_path / "job" / "output" / "data")
    with pytest.raises(ExportError, match="no space left"), results.stage(destination) as staged:
        (staged / "model").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not (tmp_path / "job").exists()


def test_what_a_killed_job_left_goes_and_what_a_running_one_writes_stays(tmp_path):
    destination = Destination(tmp_path / "job" / "output" / "model.tar.gz", None, tmp_path / "job" / "output" / "data")
    abandoned = builders.write_files(tmp_path / "job" / ".tf-finetune-old", {"model/1/saved_model.pb": b"half"})
    with results.stage(destination) as running:
        assert not abandoned.exists()
        with results.stage(destination) as staged:
            assert running.exists()
        assert running.exists()
        assert not staged.exists()


def test_the_gate_finds_packages_where_this_process_does(tmp_path, monkeypatch):
    (tmp_path / "tarfile.py").write_text("raise SystemExit('PYTHONPATH counts')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with export.fresh_process() as process, pytest.raises(ExportError, match="PYTHONPATH counts"):
        export.check_parity(process, tmp_path / "model.tar.gz", {"files": []}, np.zeros([0, 2]))


def test_a_job_that_is_stopped_before_its_steps_says_so_and_leaves_nothing(tmp_path, photos, mean_backbone):
    """During the steps SIGTERM is another matter: it leaves the best model so far."""
    command = [sys.executable, "-m", "tf_finetune.cli", "train", "--training", str(photos), "--epochs", "100000"]
    command += ["--backbone", str(mean_backbone), "--output", str(tmp_path / "out"), "--optimizer", "adam"]
    code, _, rest = builders.terminated(command, "data: ")
    assert code == 1
    assert rest.splitlines()[-1] == "tf-finetune: Interrupted."
    assert "Traceback" not in rest
    assert not Path(tmp_path / "out").exists()
