"""What all tests share: a clean environment, and the real data where it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tf_finetune import storage

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"
FOREIGN = ("SAGEMAKER_BASE_DIR", "TRAINING_JOB_NAME", "TRAINING_JOB_ARN", "TF_FINETUNE_CACHE_GIB")
FOREIGN += ("TF_FINETUNE_MIRROR", "TF_FINETUNE_OFFLINE", "TFHUB_CACHE_DIR", "KAGGLEHUB_CACHE")
FOREIGN += ("SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_MAX_PAYLOAD_IN_MB", "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT")
FOREIGN += ("TF_CONFIG", "TF_FINETUNE_JOIN_SECONDS", "TF_FINETUNE_PORT")


def pytest_make_parametrize_id(val, argname):
    """Names bytes by their argument: processes must collect the same tests, and gzip's bytes have the time in them."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Takes away what SageMaker, or the person at the machine, may have set."""
    for name in os.environ:
        if name.startswith("SM_") or name in FOREIGN:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def package_log():
    """Lets pytest hear the package's log, which the command line keeps to itself once it has run in this process."""
    log = logging.getLogger("tf_finetune")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[Path]:
    """A cache folder of the tests' own, for features, that borrows wheels, backbones and SDKs from the real one.

    It is a variable of the environment, so processes that tests start have it too.
    """
    real, borrowed = storage.cache_folder(), tmp_path_factory.mktemp("cache")
    for name in ("backbones", "wheels", "demo", "sdks"):
        (real / name).mkdir(parents=True, exist_ok=True)
        (borrowed / name).symlink_to(real / name, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TF_FINETUNE_CACHE", str(borrowed))
        yield borrowed


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, texts and SavedModels; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TF_FINETUNE_TEST_DATA", DEFAULT_DATA))
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}; TF_FINETUNE_TEST_DATA says where it is")
    return folder
