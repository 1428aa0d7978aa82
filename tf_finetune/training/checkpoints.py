"""Checkpoints: where a training stands, on disk, so that one that was interrupted goes on at the exact step.

A checkpoint is one NumPy archive, written aside and renamed when whole, in a folder named by the job's fingerprint: a
job with other data, settings or code never goes on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

KEPT = 2  # The newest may be damaged by a disk that lies.
NAME = re.compile(r"step-(\d{9})\.npz")
FOLDER = re.compile(r"training-[0-9a-f]{16}")
ASIDE = ".writing-"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
        state: What JSON holds of it.
        arrays: Lists of arrays by name.
    """

    state: Mapping[str, Any]
    arrays: Mapping[str, Sequence[np.ndarray]]


@dataclasses.dataclass
class Keeper:
    """Where checkpoints of one job go, and when the next is due.

    Attributes:
        folder: Of all jobs; None keeps nothing.
        fingerprint: Of data, settings and code, as `fingerprint` gives it.
        seconds: Between checkpoints within an epoch.
    """

    folder: Path | None = None
    fingerprint: str = ""
    seconds: float = 60.0
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def place(self) -> Path | None:
        """The folder of this job's checkpoints."""
        return self.folder / f"training-{self.fingerprint[:16]}" if self.folder else None

    def is_due(self) -> bool:
        """Returns whether the last checkpoint is older than `seconds`."""
        return self.folder is not None and time.monotonic() - self.saved_at >= self.seconds

    def save(self, step: int, state: Mapping[str, Any], arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Writes a checkpoint; a disk that refuses it costs a warning, and nothing else."""
        if self.place is None:
            return
        self.saved_at = time.monotonic()
        aside = self.place / f"{ASIDE}{uuid.uuid4().hex}"
        named = {f"{name}-{number}": one for name, group in arrays.items() for number, one in enumerate(group)}
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                np.savez(stream, state=text, **named)  # type: ignore[arg-type]
            aside.replace(self.place / f"step-{step:09}.npz")
            self._clear()
        except OSError as error:
            log.warning("no checkpoint in %s: %s. Training goes on.", self.folder, error.strerror or error)
            with contextlib.suppress(OSError):
                aside.unlink()

    def latest(self) -> Saved | None:
        """Returns the newest checkpoint of this job that is whole."""
        for file in reversed(self._files()):
            try:
                with np.load(file, allow_pickle=False) as held:
                    state = json.loads(held["state"].tobytes())
                    arrays: dict[str, list[np.ndarray]] = {}
                    for name in held.files:
                        group = name.rpartition("-")[0]
                        if group:
                            arrays.setdefault(group, []).append(held[name])
                return Saved(state, arrays)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                log.warning("checkpoint %s is damaged and is passed over: %s", file, error)
        others = self._others()
        if others:
            log.info(
                "the checkpoints in %s are of another job (data, settings or code): training starts anew", self.folder
            )
        return None

    def _files(self) -> list[Path]:
        return sorted(file for file in self.place.glob("step-*.npz") if NAME.fullmatch(file.name)) if self.place else []

    def _others(self) -> list[Path]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return [one for one in self.folder.iterdir() if FOLDER.fullmatch(one.name) and one != self.place]

    def _clear(self) -> None:
        """Removes all but the newest, what a killed process was writing, and what other jobs have left."""
        assert self.place is not None
        for file in [*self._files()[:-KEPT], *self.place.glob(f"{ASIDE}*")]:
            with contextlib.suppress(OSError):
                file.unlink()
        for folder in self._others():
            shutil.rmtree(folder, ignore_errors=True)


def fingerprint(about: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a training depends on, with this package's code.

    Args:
        about: Anything that JSON can hold.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
