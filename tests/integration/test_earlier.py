"""Going on from an earlier result: its backbone, its head, its classes, and what the report says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tf_finetune
from tests import builders
from tf_finetune import archive
from tf_finetune.errors import FinetuneError

COLOURS = {**builders.COLOURS, "white": (250, 250, 250)}
PLAIN = {"image_size": 16, "pixel_range": "0,1", "calibrate": False, "cache_dir": "none"}
GOING_ON = {"calibrate": False, "cache_dir": "none"}


def photos(folder: Path, *names: str, per_class: int = 8, seed: int = 0) -> Path:
    return builders.write_class_folders(folder, per_class, {name: COLOURS[name] for name in names}, seed=seed)


def head_of(place: Path, scratch: Path) -> dict[str, np.ndarray]:
    """Returns each class's kernel and bias in an archive, float32 [D + 1]."""
    import tensorflow as tf

    archive.unpack(place, scratch)
    kernel, bias = (weight.numpy() for weight in tf.saved_model.load(str(scratch / "1")).weights[-2:])
    names = json.loads((scratch / "tf_finetune.json").read_text())["class_names"]
    return {name: np.append(kernel[:, k], bias[k]) for k, name in enumerate(names)}


@pytest.fixture(scope="module")
def first(tmp_path_factory, convolution_backbone) -> Path:
    """The model.tar.gz of a job on three classes of photos."""
    folder = tmp_path_factory.mktemp("first")
    data = photos(folder / "data", "cyan", "magenta", "yellow")
    record = tf_finetune.train(
        training=data, output=folder, model_name="m", backbone=str(convolution_backbone), **PLAIN
    )
    assert record["metrics"]["validation"]["accuracy"] == 1
    assert record["parent_model"] is None and record["earlier"] is None
    return folder / "m" / "output" / "model.tar.gz"


def test_a_new_class_is_fitted_beside_the_old_rows(first, tmp_path):
    data = photos(tmp_path / "data", "cyan", "magenta", "white", "yellow", seed=1)
    record = tf_finetune.train(training=data, model=first.parent, output=tmp_path, model_name="n", **GOING_ON)
    assert record["class_names"] == ["cyan", "magenta", "white", "yellow"]
    assert record["metrics"]["validation"]["accuracy"] == 1
    told = record["earlier"]
    print(json.dumps(told, indent=1), json.dumps(record["parent_model"], indent=1))
    assert told["head"] == "gone on with" and told["added"] == ["white"] and not told["missing"]
