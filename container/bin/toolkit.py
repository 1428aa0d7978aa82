"""Runs sagemaker-training's `train` with the image's entry script, and so that SIGTERM ends the training alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType

PROGRAM, SUBMIT_DIRECTORY = "SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY"
LOOKS = 2
ENDED_BY_SIGTERM = 128 + signal.SIGTERM


_idle: list[float] = []  # When there was no child, in a row, since SIGTERM came.


def heed(number: int, frame: FrameType | None) -> None:
    """Leaves SIGTERM to the training process, a child that has got it too; without one, ends.

    The toolkit has no handler of its own: the signal would end it at once, and the container with it, while the
    training process still saves what it has. It has children before that too, for moments; and when the training has
    ended, it needs a moment for itself: hence two looks, a second apart.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        _idle.clear()
    except ChildProcessError:
        _idle.append(time.monotonic())
    if len(_idle) == LOOKS:
        os._exit(ENDED_BY_SIGTERM)
    signal.setitimer(signal.ITIMER_REAL, 1)


def place_entry_script(base: Path) -> None:
    """Has the toolkit run the image's script, unless the job brings one.

    The toolkit documents both variables, but takes code only from the hyperparameters or from the tree itself, and
    its variable for the program goes before the job's hyperparameter (5.1.4).
    """
    program, source = os.environ.get(PROGRAM), os.environ.get(SUBMIT_DIRECTORY)
    if PROGRAM.lower() in hyperparameters(base):
        os.environ.pop(PROGRAM, None)
    elif program and source and Path(source).is_dir() and not (base / "code" / program).exists():
        shutil.copytree(source, base / "code", dirs_exist_ok=True)


def hyperparameters(base: Path) -> dict[str, object]:
    """Returns the job's hyperparameters; what is wrong with their file, the toolkit tells."""
    try:
        given = json.loads((base / "input" / "config" / "hyperparameters.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return given if isinstance(given, dict) else {}


if __name__ == "__main__":
    for awaited in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(awaited, heed)
    place_entry_script(Path(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml"))
    from sagemaker_training import trainer

    try:
        trainer.train()  # It exits by itself.
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
