"""Two logical CPU devices, so that replicas are tested in-process, and tiny SavedModels that all tests here share."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests import builders, s3_servers
from tests.needs import NEEDS_TEXT
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
    pytest.importorskip("tensorflow_text", reason=NEEDS_TEXT.kwargs["reason"])
    return builders.save_bert_pair(saved / "bert", seed=1)


@pytest.fixture(scope="session")
def halves_backbone(saved: Path) -> Path:
    return builders.save_halves_backbone(saved / "halves")


@pytest.fixture(scope="session")
def moto():
    """The address of moto's server, which speaks S3 over HTTP."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def store(moto, monkeypatch):
    """A boto3 client of moto, and a fresh bucket in it; ours are pointed to moto too."""
    import boto3
    from moto.s3.models import s3_backends

    s3_servers.set_variables(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    service = boto3.client("s3", endpoint_url=moto)
    service.create_bucket(Bucket="bucket")
    yield service
    s3_backends.reset()


@pytest.fixture
def proxy(moto, store, monkeypatch):
    """Starts a proxy before moto; `harm` takes the number of a request, the request and moto's answer to it."""
    with contextlib.ExitStack() as stack:

        def start(harm=lambda number, request, answer: answer):
            def answer(number, request, body):
                return harm(number, request, s3_servers.forwarded(moto, request, body))

            server = stack.enter_context(s3_servers.running(answer))
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            return server

        yield start
