"""The features of one way of computing them, on disk.

A space is a folder. It holds shards: files of two NumPy arrays, of about SHARD_BYTES at most, each named by the SHA-256
of its content, so that a damaged one is known by its name. A shard is written aside, renamed when whole and never
changed, so any number of processes can share a space, and one that is killed leaves it valid.

Dimension letters: D features, N examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tf_finetune.feature_cache import ABOUT, ASIDE, Place

log = logging.getLogger(__name__)

SHARD_BYTES = 4 * 2**20
KEY_BYTES = 32
VERDICT = "verdict-"


class Space:
    """The features of one way of computing them, on disk.

    Args:
        place: Where spaces are.
        about: What identifies the way; anything that JSON can hold.
        shown: What people are told of it besides.
    """

    def __init__(self, place: Place, about: Mapping[str, Any], shown: str = "") -> None:
        self.about = json.dumps(about, sort_keys=True, indent=2)
        self.shown = json.dumps({"shown": shown, **about}, indent=2)
        name = hashlib.sha256(self.about.encode()).hexdigest()[:32]
        self.folder = place.folder / name if place.folder else None
        self.writable = self.folder is not None

    def read(self, keys: Sequence[bytes], size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is known of some examples.

        Args:
            keys: What identifies each of N examples, KEY_BYTES each.
            size: D.

        Returns:
            Features, float32 [N, D], whose rows mean nothing where they are not known; and bool [N], whether they are.
        """
        rows, known = np.empty([len(keys), size], np.float32), np.zeros(len(keys), bool)
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        for file in self._shards():
            if not places:
                break
            shard = opened(file, size)
            if shard is None:
                continue
            held = [(row, key) for row, key in enumerate(_split(shard.keys)) if key in places]
            if not held or not _is_sound(file):
                continue
            for row, key in held:
                wanted = places.pop(key, [])
                rows[wanted] = shard.features[row]
                known[wanted] = True
            with contextlib.suppress(OSError):
                os.utime(file)  # What was used last goes last.
        return rows, known

    def write(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keeps the features of some examples; a disk that refuses them costs a warning, and nothing else.

        Args:
            keys: What identifies each of N examples, KEY_BYTES each.
            rows: float32 [N, D].
        """
        if not self.writable or not len(keys):
            return
        content = io.BytesIO()
        for array in (np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES), rows.astype("<f4", copy=False)):
            np.save(content, array, allow_pickle=False)
        name = hashlib.sha256(content.getbuffer()).hexdigest()
        self._put(f"{name}.npy", content.getvalue())

    def verdicts(self) -> list[dict[str, Any]]:
        """Returns what checks of this way found, as `keep_verdict` was given it."""
        found = []
        for file in sorted(self.folder.glob(f"{VERDICT}*.json")) if self.folder else []:
            with contextlib.suppress(OSError):
                text = file.read_bytes()
                if file.name == _verdict_name(text):  # Else it was altered.
                    found.append(json.loads(text))
        return found

    def keep_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Keeps what a check of this way found."""
        text = json.dumps(verdict, sort_keys=True, indent=2).encode()
        self._put(_verdict_name(text), text)

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.npy")) if self.folder else []

    def _put(self, name: str, content: bytes) -> None:
        if not self.writable or self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ABOUT).is_file():
                _write(self.folder / ABOUT, self.shown.encode())
            _write(self.folder / name, content)
        except OSError as error:
            self.writable = False
            log.warning(
                "features cannot be kept in %s: %s. Training goes on without; --cache-dir PLACE keeps them elsewhere.",
                self.folder.parent,
                error.strerror or error,
            )


def _verdict_name(text: bytes) -> str:
    return f"{VERDICT}{hashlib.sha256(text).hexdigest()[:16]}.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard as memory maps; the keys come first in the file, so that looking for one touches no features.

    Attributes:
        keys: uint8 [N, KEY_BYTES].
        features: float32 [N, D].
    """

    keys: np.ndarray
    features: np.ndarray


def opened(file: Path, size: int | None, remove: bool = True) -> Shard | None:
    """Returns a shard, or None, and removes the file, where it is cut off or no shard of this size."""
    try:
        with file.open("rb") as stream:
            shard = Shard(_mapped(stream, "|u1"), _mapped(stream, "<f4"))
        same = shard.keys.shape == (len(shard.features), KEY_BYTES)
        if same and shard.features.ndim == 2 and size in (None, shard.features.shape[1]):
            return shard
    except OSError:  # Another process has removed it, or it cannot be read just now.
        return None
    except Exception as error:  # A damaged header can make NumPy's parser raise nearly anything.
        log.debug("%s: %s", file, error)
    if remove:
        _discard(file)
    return None


def _mapped(stream: BinaryIO, dtype: str) -> np.ndarray:
    """Returns the array that begins here in NumPy's format, mapped, and goes on to its end.

    Raises:
        ValueError: There is none, it has another type, or it is cut off.
    """
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of the format")
    shape, _, found = np.lib.format.read_array_header_1_0(stream)
    if found != np.dtype(dtype):
        raise ValueError(f"numbers of type {found}")
    start = stream.tell()
    array = np.memmap(stream, found, "r", start, shape)  # It refuses what is longer than the file.
    stream.seek(start + array.nbytes)
    return array


def _split(keys: np.ndarray) -> list[bytes]:
    joined = keys.tobytes()
    return [joined[first : first + KEY_BYTES] for first in range(0, len(joined), KEY_BYTES)]


def _is_sound(file: Path) -> bool:
    """Returns whether a shard holds what its name says, and removes it if not."""
    try:
        digest = hashlib.sha256(file.read_bytes())  # Some MiB, as SHARD_BYTES says.
    except OSError:
        return False
    if digest.hexdigest() == file.stem:
        return True
    _discard(file)
    return False


def _discard(file: Path) -> None:
    log.warning("%s is damaged: its features are computed anew", file)
    with contextlib.suppress(OSError):
        file.unlink()


def _write(file: Path, content: bytes) -> None:
    aside = file.with_name(f"{ASIDE}{uuid.uuid4().hex}")
    try:
        aside.write_bytes(content)
        aside.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
