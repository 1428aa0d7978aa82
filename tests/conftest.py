"""What all tests share: a clean environment, and the real data where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Takes away what SageMaker, or the person at the machine, may have set."""
    for name in os.environ:
        if name.startswith("SM_") or name in ("SAGEMAKER_BASE_DIR", "TRAINING_JOB_NAME", "TRAINING_JOB_ARN"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, texts and SavedModels; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TF_FINETUNE_TEST_DATA", DEFAULT_DATA))
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}; TF_FINETUNE_TEST_DATA says where it is")
    return folder
