"""Two logical CPU devices, so that replicas are tested in-process, and tiny SavedModels that all tests here share."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests import builders
from tf_finetune import devices  # Before TensorFlow: it keeps its start-up noise back.

import tensorflow as tf  # isort: skip

from tf_finetune import export  # isort: skip
from tf_finetune.pipeline import proof  # isort: skip
from tf_finetune.report import page  # isort: skip

CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def one() -> tf.distribute.Strategy:
    """One replica."""
    return devices.strategy(1)


@pytest.fixture(scope="session")
def two() -> tf.distribute.Strategy:
    """Two replicas on the logical CPU devices."""
    return devices.strategy(2)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the SavedModels that tests share; they only read them."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="session")
def mean_backbone(saved: Path) -> Path:
    return builders.save_mean_backbone(saved / "mean")


@pytest.fixture(scope="session")
def affine_backbone(saved: Path) -> Path:
    """Its penalty is 0.1 x the square of its weight."""
    return builders.save_affine_backbone(saved / "affine", penalty=0.1)


@pytest.fixture(scope="session")
def batch_norm_backbone(saved: Path) -> Path:
    return builders.save_batch_norm_backbone(saved / "batch_norm")


@pytest.fixture(scope="session")
def convolution_backbone(saved: Path) -> Path:
    return builders.save_convolution_backbone(saved / "convolution")


@pytest.fixture(scope="session")
def statistics_backbone(saved: Path) -> Path:
    return builders.save_statistics_backbone(saved / "statistics")


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs write an empty archive, unproved, and an empty page: most of a small job's seconds."""

    def export_nothing(process: object, staged: Path, *rest: object) -> dict:
        (staged / "model.tar.gz").touch()
        return {"examples": 0, "largest_difference": 0.0, "accelerator_difference": None}

    monkeypatch.setattr(proof, "export_and_prove", export_nothing)
    monkeypatch.setattr(export, "fresh_process", contextlib.nullcontext)
    monkeypatch.setattr(page, "render", lambda *given: "")


@pytest.fixture(scope="session")
def bert_pair(saved: Path) -> tuple[Path, Path]:
    """The folders of an encoder whose features tell the classes of test_bert, and of its preprocessing."""
    return builders.save_bert_pair(saved / "bert", seed=1)


@pytest.fixture(scope="session")
def halves_backbone(saved: Path) -> Path:
    return builders.save_halves_backbone(saved / "halves")
