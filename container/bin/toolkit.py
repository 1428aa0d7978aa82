"""Runs sagemaker-training's `train` with the image's entry script, so that SIGTERM ends the training alone.

What a job that is started by hand lacks of SageMaker, it gets here.
"""

from __future__ import annotations

import contextlib
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
    if PROGRAM.lower() in settings(base, "hyperparameters"):
        os.environ.pop(PROGRAM, None)
    elif program and source and Path(source).is_dir() and not (base / "code" / program).exists():
        (base / "code").mkdir(exist_ok=True)
        for path in Path(source).iterdir():  # Each for itself: copytree would want to own the folder that is there.
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, base / "code" / path.name)


def complete(base: Path) -> None:
    """Writes the settings that are not there, as SageMaker would; where that cannot be, the toolkit tells.

    The toolkit looks a host's name up for fifteen minutes. A job's only host needs nobody to find it, and where it has
    no network, or another name than SageMaker gave it, nobody does.
    """
    folders = sorted(path for path in (base / "input" / "data").glob("[!.]*") if path.is_dir())
    defaults: dict[str, dict[str, object]] = {
        "hyperparameters": {},
        "inputdataconfig": {folder.name: {"TrainingInputMode": "File"} for folder in folders},
        "resourceconfig": {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "eth0"},
    }
    for name, content in defaults.items():
        file = base / "input" / "config" / f"{name}.json"
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_text(json.dumps(content), encoding="utf-8")
    hosts = settings(base, "resourceconfig").get("hosts")
    if isinstance(hosts, list) and len(hosts) == 1:
        os.environ.setdefault("SM_STUDIO_LOCAL_MODE", "true")


def settings(base: Path, name: str) -> dict[str, object]:
    """Returns what SageMaker tells the job in a file; what is wrong with it, the toolkit tells."""
    try:
        given = json.loads((base / "input" / "config" / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return given if isinstance(given, dict) else {}


if __name__ == "__main__":
    for awaited in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(awaited, heed)
    ml = Path(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml")
    complete(ml)
    place_entry_script(ml)
    from sagemaker_training import trainer

    try:
        trainer.train()  # It exits by itself.
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
