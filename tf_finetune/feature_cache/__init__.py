"""Features on disk: computed once, found again by what they were computed from.

There is a space for each way of computing features (backbone, preprocessing, precision); `space` has its insides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tf_finetune.errors import UsageError

log = logging.getLogger(__name__)

DEFAULT_GIB = 10.0
GIB_VARIABLE = "TF_FINETUNE_CACHE_GIB"
STALE_SECONDS = 24 * 3600  # What was being written so long ago was left by a process that was killed.
ABOUT, ASIDE = "about.json", ".writing-"
SPACE_NAME = re.compile(r"[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where features are kept between jobs.

    Attributes:
        folder: Of all spaces; None keeps nothing.
        limit: Bytes of all shards together; the least recently used go first. None for no limit.
    """

    folder: Path | None
    limit: int | None = None


def place(
    cache_dir: str | os.PathLike[str] | None,
    checkpoints: Path | None,
    cache: Path,
    environ: Mapping[str, str] = os.environ,
) -> Place:
    """Returns where features are kept: where the user says, else beside the checkpoints, else in the cache folder.

    Args:
        cache_dir: The user's word: a folder, or "none".
        checkpoints: SageMaker's folder for this host, which it copies to S3; nothing is ever removed from it, as that
            would remove it there too. None where there is no such folder.
        cache: The cache folder, of which `features` is taken.
        environ: TF_FINETUNE_CACHE, where it is set, goes before the checkpoints; TF_FINETUNE_CACHE_GIB is the limit.

    Raises:
        UsageError: The limit is no number of 0 or more, or the place is no folder.
    """
    limit = _limit(environ)
    given = str(cache_dir or "")
    if given.lower() == "none":
        return Place(None)
    if given:
        folder = Path(given).expanduser()
        if "://" in given or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"--cache-dir: expected a folder on this machine, or none; received {given}.")
        return Place(folder.absolute(), limit)
    if checkpoints is not None and not environ.get("TF_FINETUNE_CACHE"):
        return Place(checkpoints, None)
    return Place(cache / "features", limit)


def _limit(environ: Mapping[str, str]) -> int:
    """Returns the most bytes that all shards may have together."""
    given = environ.get(GIB_VARIABLE) or str(DEFAULT_GIB)
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 2**40:
        raise UsageError(f"{GIB_VARIABLE}: expected a number of GiB of 0 or more; received {given!r}.")
    return int(limit * 2**30)


def evict(place: Place) -> int:
    """Removes the least recently used shards beyond the limit, and what killed processes left; returns their number."""
    if place.folder is None or place.limit is None:
        return 0
    spaces = _spaces(place)
    for file in (file for space in spaces for file in space.glob(f"{ASIDE}*")):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink()
    held = sorted((shard for space in spaces for shard in _shards(space)), reverse=True)
    kept, removed = 0, 0
    for _, size, file in held:
        kept += size
        if kept > place.limit:
            with contextlib.suppress(OSError):
                file.unlink()
                removed += 1
    if removed:
        log.info("the feature cache %s was full: %d of its oldest shards were removed", place.folder, removed)
    return removed


def listing(place: Place) -> list[dict[str, Any]]:
    """Returns a record for each space that holds any: its folder's name, about, examples, bytes, and last_used in
    seconds since 1970.
    """
    spaces = []
    for folder in _spaces(place):
        held = list(_shards(folder))
        if not held:  # All were evicted.
            continue
        about: Any = {}
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        spaces.append(
            {
                "name": folder.name,
                "about": about,
                "examples": sum(_count(file) for _, _, file in held),
                "bytes": sum(size for _, size, _ in held),
                "last_used": max((used for used, _, _ in held), default=None),
            }
        )
    return spaces


def clear(place: Place) -> int:
    """Removes all features and returns how many bytes they had; what else lies in the folder stays."""
    freed = 0
    for folder in _spaces(place):
        freed += sum(size for _, size, _ in _shards(folder))
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise UsageError(f"{folder} cannot be removed: {error.strerror}. Remove it by hand.") from None
    return freed


def _count(file: Path) -> int:
    from tf_finetune.feature_cache.space import opened  # It needs NumPy, which takes its time.

    shard = opened(file, None, remove=False)
    return 0 if shard is None else len(shard.keys)


def _spaces(place: Place) -> list[Path]:
    """Returns the folders of all spaces; a user's own folder may hold other things, which are let be."""
    try:
        inside = sorted(place.folder.iterdir()) if place.folder else []
    except OSError:  # There is none, or it may not be looked into.
        return []
    return [folder for folder in inside if SPACE_NAME.fullmatch(folder.name) and (folder / ABOUT).is_file()]


def _shards(space: Path) -> Iterator[tuple[float, int, Path]]:
    """Gives when each shard of a space was last used, its bytes and its path."""
    for file in space.glob("*.npy"):
        with contextlib.suppress(OSError):
            state = file.stat()
            yield state.st_mtime, state.st_size, file
