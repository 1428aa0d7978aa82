"""The local copies that `mirror` keeps below the cache folder: what there is, and its removal."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from tf_finetune.errors import UsageError


@dataclass(frozen=True)
class Copy:
    """The copy of one location.

    Attributes:
        location: s3://BUCKET/PREFIX.
        folder: Where it lies.
        objects: How many there are of it.
        bytes: Of all.
        last_used: When it was fetched or compared last, in seconds since 1970.
    """

    location: str
    folder: str
    objects: int
    bytes: int
    last_used: float


def listing(cache: Path) -> list[Copy]:
    """Returns the copies below the cache folder, that which was used last first."""
    found = []
    for file in cache.glob("s3/*/.*.s3/manifest.sqlite"):
        folder = file.parent.with_name(file.parent.name[1 : -len(".s3")])
        with contextlib.suppress(sqlite3.Error, OSError, TypeError), contextlib.closing(_read_only(file)) as database:
            (location,) = database.execute("SELECT location FROM about").fetchone()
            count, size = database.execute("SELECT COUNT(*), SUM(size) FROM objects WHERE here IS NOT NULL").fetchone()
            found.append(Copy(location, str(folder), count, size or 0, file.stat().st_mtime))
    return sorted(found, key=lambda one: -one.last_used)


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)


def clear(cache: Path) -> int:
    """Removes all copies and returns how many bytes they had.

    Raises:
        UsageError: One cannot be removed.
    """
    freed = sum(one.bytes for one in listing(cache))
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(cache / "s3")
    except OSError as error:
        raise UsageError(f"{cache / 's3'} cannot be removed: {error.strerror}. Remove it by hand.") from None
    return freed
