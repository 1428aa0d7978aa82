"""Entry script for SageMaker's script mode: `tf-finetune train` with the job's channels and hyperparameters."""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    from tf_finetune import cli
except ModuleNotFoundError as missing:
    message = (
        f"Python cannot import {missing.name}. Put the wheel of tf_finetune beside the entry script and name it in "
        "requirements.txt there, or take an image that has it: see README.md beside this script."
    )
    # SageMaker shows this file's text as the reason of the failure; its toolkit would show the exit code only.
    output = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "output")
    if output.is_dir():
        (output / "failure").write_text(message, encoding="utf-8")
    sys.exit(message)

if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
