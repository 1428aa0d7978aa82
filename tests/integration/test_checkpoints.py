"""A training that was interrupted goes on at the exact step, and ends with the bits of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_finetune
from tests import builders
from tf_finetune.training.checkpoints import Keeper

WHOLE = {"train_only_top_layer": False, "epochs": 3, "batch_size": 4, "learning_rate": 0.01, "dropout_rate": 0.3}
WHOLE |= {"optimizer": "adam", "schedule": "cosine", "augmentation": True, "image_size": 16, "checkpoint_seconds": 1}
PROGRAM = f"""
import json, signal, sys
{builders.SIGNAL_AFTER}
photos, backbone, output, kept, killed_at, given = sys.argv[1:]
signal_after(int(killed_at), signal.SIGKILL)
import tf_finetune
tf_finetune.train(photos, output, "job", backbone=backbone, checkpoints=kept, cache_dir="none", **json.loads(given))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return builders.write_class_folders(tmp_path_factory.mktemp("data") / "photos", per_class=8, size=16)


def run(photos: Path, backbone: Path, folder: Path, killed_at: int = 0, **given) -> int:
    """Trains in a process of its own, which is killed after a step, and returns its exit code."""
    words = [str(photos), str(backbone), str(folder / "out"), str(folder / "kept"), str(killed_at)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, json.dumps({**WHOLE, **given})], capture_output=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-2000:]
    return done.returncode


def bits(folder: Path) -> tuple[list[bytes], bytes, list[dict]]:
    """Returns all variables of a job's archive, its predictions and its history."""
    from tf_finetune import archive

    place = folder / "out" / "job" / "output"
    archive.unpack(place / "model.tar.gz", folder / f"unpacked-{time.monotonic_ns()}")
    (newest,) = sorted(folder.glob("unpacked-*"))[-1:]
    reader = tf.train.load_checkpoint(str(newest / "1" / "variables" / "variables"))
    names = sorted(name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name)
    history = json.loads((place / "data" / "report.json").read_text())["history"]
    return (
        [np.asarray(reader.get_tensor(name)).tobytes() for name in names],
        (place / "data" / "predictions.csv").read_bytes(),
        history,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photos, batch_norm_backbone):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(photos, batch_norm_backbone, folder) == 0
    return bits(folder)


def checkpoints_in(folder: Path) -> list[Path]:
    return sorted((folder / "kept").glob("training-*/step-*.npz"))


@pytest.mark.parametrize("step", [2, 6, 11], ids=["first epoch", "after an epoch", "last epoch"])
def test_a_job_that_was_killed_at_a_step_ends_with_the_same_bits(
    tmp_path, photos, batch_norm_backbone, undisturbed, step
):
    assert run(photos, batch_norm_backbone, tmp_path, step) == -signal.SIGKILL
    assert checkpoints_in(tmp_path)[-1].name == f"step-{step - 1:09}.npz"
    assert not (tmp_path / "out" / "job" / "output").exists()
    assert run(photos, batch_norm_backbone, tmp_path) == 0
    assert bits(tmp_path) == undisturbed


def test_a_job_that_is_killed_again_and_again_ends_with_the_same_bits(
    tmp_path, photos, batch_norm_backbone, undisturbed
):
    for _ in range(3):
        assert run(photos, batch_norm_backbone, tmp_path, 4) == -signal.SIGKILL
    assert run(photos, batch_norm_backbone, tmp_path) == 0
    assert bits(tmp_path) == undisturbed
    assert len(checkpoints_in(tmp_path)) == 2


@pytest.mark.soak
def test_jobs_that_are_killed_at_twenty_random_steps_end_with_the_same_bits(
    tmp_path, photos, batch_norm_backbone, undisturbed
):
    generator = np.random.default_rng()
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        assert run(photos, batch_norm_backbone, folder, int(generator.integers(2, 12))) == -signal.SIGKILL
        assert run(photos, batch_norm_backbone, folder) == 0
        assert bits(folder) == undisturbed


def test_a_changed_job_never_goes_on_from_a_stale_checkpoint(tmp_path, photos, convolution_backbone, caplog):
    def train(**given) -> dict:
        place = {"checkpoints": tmp_path / "kept", "cache_dir": "none", "backbone": str(convolution_backbone)}
        return tf_finetune.train(photos, tmp_path / "out", "job", **{**WHOLE, **place, **given})

    with caplog.at_level("INFO", "tf_finetune"):
        train(max_seconds=1)
        caplog.clear()
        record = train(learning_rate=0.02)
    assert "of another job (data, settings or code): training starts anew" in caplog.text
    assert "going on at step" not in caplog.text
    assert len(record["history"]) == 3
    with caplog.at_level("INFO", "tf_finetune"):
        caplog.clear()
        again = train(learning_rate=0.02)
    assert "going on at step" in caplog.text
    assert again["history"] == record["history"]
    assert len(list((tmp_path / "kept").glob("training-*"))) == 1


def test_the_best_model_so_far_is_on_disk_and_answers(tmp_path, photos, batch_norm_backbone):
    assert run(photos, batch_norm_backbone, tmp_path, 12) == -signal.SIGKILL
    model = tf_finetune.load(tmp_path / "kept" / "best")
    assert len(model.predict(sorted(photos.rglob("*.png"))[:3])) == 3
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.name.startswith(".")] == []


def test_sigterm_saves_and_leaves_a_valid_model(tmp_path, photos, batch_norm_backbone, undisturbed):
    command = [sys.executable, "-m", "tf_finetune.cli", "train", "--training", str(photos), "--cache-dir", "none"]
    command += ["--backbone", str(batch_norm_backbone), "--output", str(tmp_path / "out"), "--model-name", "job"]
    command += ["--checkpoints", str(tmp_path / "kept")]
    long = {**WHOLE, "epochs": 4000}
    command += [word for name, value in long.items() for word in (f"--{name}", str(value))]
    code, out, rest = builders.terminated(command, "epoch 3/")
    assert code == 0, rest
    assert "the process was asked to end (SIGTERM)" in rest
    report = json.loads((tmp_path / "out/job/output/data/report.json").read_text())
    assert 3 <= len(report["history"]) < 4000
    assert "SIGTERM" in report["ended_early"]
    assert "archive:" in out
    assert checkpoints_in(tmp_path)


def test_max_seconds_ends_the_training_in_time(tmp_path, photos, batch_norm_backbone):
    given = {**WHOLE, "epochs": 100_000, "max_seconds": 2, "cache_dir": "none"}
    record = tf_finetune.train(photos, tmp_path / "out", "job", backbone=str(batch_norm_backbone), **given)
    assert 1 <= len(record["history"]) < 100_000
    assert record["ended_early"] == "max_seconds=2 have passed"
    assert Path(record["job"]["model_artifact"]).is_file()


# The keeper.


def saved(keeper: Keeper, step: int) -> None:
    keeper.save(step, {"step": step}, {"weights": [np.full(3, step, np.float32), np.arange(2)], "kept": []})


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    keeper = Keeper(tmp_path, "ab" * 32)
    weights = [np.random.default_rng(0).normal(size=[4, 5]).astype(np.float32), np.array(7, np.int64)]
    keeper.save(3, {"x": 0.1, "least": float("-inf")}, {"weights": weights})
    found = Keeper(tmp_path, "ab" * 32).latest()
    assert found.state == {"x": 0.1, "least": float("-inf")}
    for one, other in zip(found.arrays["weights"], weights, strict=True):
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())
    assert Keeper(tmp_path, "cd" * 32).latest() is None
    assert Keeper(None, "").latest() is None


def test_many_arrays_keep_their_order(tmp_path):
    keeper = Keeper(tmp_path, "ab" * 32)
    keeper.save(1, {}, {"weights": [np.array(number) for number in range(123)]})
    assert [int(one) for one in keeper.latest().arrays["weights"]] == list(range(123))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None], ids=["empty", "cut at once", "cut in half"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    keeper = Keeper(tmp_path, "ab" * 32)
    saved(keeper, 1)
    saved(keeper, 2)
    newest = sorted(keeper.place.glob("*.npz"))[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert keeper.latest().state == {"step": 1}


def test_few_are_kept_and_what_a_killed_process_was_writing_goes(tmp_path):
    keeper = Keeper(tmp_path, "ab" * 32)
    saved(keeper, 1)
    (keeper.place / ".writing-x").touch()
    (tmp_path / f"training-{'c' * 16}").mkdir()
    (tmp_path / "features-algo-1").mkdir()
    for step in (2, 3):
        saved(keeper, step)
    assert sorted(file.name for file in keeper.place.iterdir()) == ["step-000000002.npz", "step-000000003.npz"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features-algo-1", keeper.place.name]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    keeper = Keeper(tmp_path / "file", "ab" * 32)
    saved(keeper, 1)
    assert "Training goes on" in caplog.text


def test_a_checkpoint_is_due_after_its_seconds(tmp_path):
    keeper = Keeper(tmp_path, "ab" * 32, seconds=0.2)
    assert not keeper.is_due()
    time.sleep(0.25)
    assert keeper.is_due()
    saved(keeper, 1)
    assert not keeper.is_due()
    assert not Keeper(None, "", seconds=0).is_due()
