"""Two logical CPU devices, so that replicas are tested in-process, and tiny SavedModels that all tests here share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import builders
from tf_finetune import devices  # Before TensorFlow: it keeps its start-up noise back.

import tensorflow as tf  # isort: skip

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


@pytest.fixture(scope="session")
def halves_backbone(saved: Path) -> Path:
    return builders.save_halves_backbone(saved / "halves")
