"""What is known of a fetched folder: which objects there were, and which of them lie in it, as fetched.

An SQLite file in the folder `.NAME.s3` beside the folder NAME: so the listing of any number of objects needs no
memory, and what a killed process had is not lost. The same place holds files that are still being written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tf_finetune.errors import UsageError
from tf_finetune.s3.locations import Location

log = logging.getLogger(__name__)

FORMAT = 1
BLOCK = 4096  # Bytes: what a file takes on a disk is a multiple of it.
PAGE = 1000  # Rows read at once.

# here: the ETag of the local file; written: its time of change in ns; wanted: whether it is to be fetched.
_SCHEMA = f"""
CREATE TABLE objects (path TEXT PRIMARY KEY, size INTEGER, etag TEXT, listed INTEGER,
                      here TEXT, written INTEGER, wanted INTEGER) WITHOUT ROWID;
CREATE TABLE folders (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pieces (path TEXT, etag TEXT, start INTEGER, PRIMARY KEY (path, etag, start)) WITHOUT ROWID;
CREATE TABLE about (location TEXT);
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True)
class Entry:
    """One object.

    Attributes:
        path: Its key without the prefix: the path below the folder, with slashes.
        size: Bytes.
        etag: As S3 gives it, with its quotes.
    """

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Held:
    """An open manifest.

    Attributes:
        database: Used by the thread that opened it.
        folder: The folder that mirrors the prefix.
        partial: Where files are written aside; on the same disk.
    """

    database: sqlite3.Connection
    folder: Path
    partial: Path


@contextlib.contextmanager
def opened(folder: Path, where: Location) -> Iterator[Held]:
    """Gives the manifest of a folder, which no other process has until the block ends; both are made where missing.

    Raises:
        UsageError: The folder holds something else than an earlier fetch of this location, or cannot be written.
    """
    folder = folder.absolute()
    place = folder.with_name(f".{folder.name}.s3")
    try:
        if not place.is_dir() and folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds something else than an earlier copy of {where}. Give another folder.")
        for made in (place / "partial", folder):
            made.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}. Give another folder.") from error
    try:
        _lock(descriptor, where)
        database = _database(place / "manifest.sqlite")
        try:
            _check_location(database, folder, where)
            yield Held(database, folder, place / "partial")
            database.commit()
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # What was fetched until now is fetched.
                database.commit()
            raise
        finally:
            database.close()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, where: Location) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process fetches %s: waiting for it", where)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _database(file: Path) -> sqlite3.Connection:
    """Returns the database, made anew where it is of another version or damaged: then all is fetched again."""
    for is_last in (False, True):
        database = sqlite3.connect(file)
        try:
            database.execute("PRAGMA synchronous = OFF")  # Killing a process cannot hurt; losing power may, and shows.
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                database.executescript(_SCHEMA)
            if version in {0, FORMAT}:
                return database
        except sqlite3.DatabaseError:
            if is_last:
                raise
        database.close()
        log.warning("%s cannot be used, so everything is fetched again", file)
        file.unlink()
    raise AssertionError("a new database is of the version that it was made with")


def _check_location(database: sqlite3.Connection, folder: Path, where: Location) -> None:
    told = Location(where.bucket, where.key.rstrip("/"))
    row = database.execute("SELECT location FROM about").fetchone()
    if row is None:
        database.execute("INSERT INTO about VALUES (?)", (str(told),))
    elif row[0] != str(told):
        raise UsageError(f"{folder} is a copy of {row[0]}. Give another folder for {where}.")


def note_listing(held: Held, entries: Iterable[Entry]) -> int:
    """Notes the objects that there are now, and forgets all others; returns their number."""
    database = held.database
    database.executescript("DELETE FROM folders; UPDATE objects SET listed = 0")
    count, last = 0, ""
    for entry in entries:
        count += 1
        database.execute(
            "INSERT INTO objects VALUES (?, ?, ?, 1, NULL, NULL, 1) ON CONFLICT (path) DO UPDATE "
            "SET size = excluded.size, etag = excluded.etag, listed = 1, wanted = 1",
            (entry.path, entry.size, entry.etag),
        )
        above = entry.path.rpartition("/")[0]
        if above != last:  # Listings are mostly in order, so this is seldom.
            parts = above.split("/")
            paths = (("/".join(parts[:end]),) for end in range(1, len(parts) + 1))
            database.executemany("INSERT OR IGNORE INTO folders VALUES (?)", paths)
            last = above
    # Tools that imitate folders put an empty object where the folder is.
    database.execute("DELETE FROM objects WHERE size = 0 AND path IN (SELECT path FROM folders)")
    database.execute("DELETE FROM objects WHERE listed = 0")
    database.commit()
    return count


def both_file_and_folder(held: Held) -> list[str]:
    """Returns some of the paths that are an object and have objects below them."""
    found = held.database.execute("SELECT path FROM objects WHERE path IN (SELECT path FROM folders) LIMIT 100")
    return [path for (path,) in found]


def compare(held: Held) -> int:
    """Marks what lies in the folder as fetched, and removes what is no object; returns how many were removed."""
    removed = 0
    for file, path in _files(held.folder, ""):
        status = file.stat(follow_symlinks=False)
        row = None
        with contextlib.suppress(UnicodeEncodeError):  # A name that no key can have.
            row = held.database.execute(
                "SELECT here IS etag AND size = ? AND written = ? FROM objects WHERE path = ?",
                (status.st_size, status.st_mtime_ns, path),
            ).fetchone()
        if row is None:
            os.unlink(file.path)
            removed += 1
        elif row[0]:
            held.database.execute("UPDATE objects SET wanted = 0 WHERE path = ?", (path,))
    held.database.commit()
    return removed


def _files(folder: Path, above: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yields all files below a folder with their relative paths; folders that are left empty are removed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{above}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{path}/")
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)
            else:
                yield entry, path


def wanted(held: Held) -> tuple[int, int]:
    """Returns how many objects are to be fetched, and the bytes that they take on a disk."""
    row = held.database.execute(
        "SELECT COUNT(*), COALESCE(SUM((size + ?1 - 1) / ?1 * ?1), 0) FROM objects WHERE wanted", (BLOCK,)
    ).fetchone()
    return row[0], row[1]


def wanted_entries(held: Held) -> Iterator[Entry]:
    """Yields what is to be fetched, in order; the manifest may be written to meanwhile."""
    last = ""
    while True:
        rows = held.database.execute(
            "SELECT path, size, etag FROM objects WHERE wanted AND path > ? ORDER BY path LIMIT ?", (last, PAGE)
        ).fetchall()
        yield from (Entry(*row) for row in rows)
        if len(rows) < PAGE:
            return
        last = rows[-1][0]


def pieces_of(held: Held, entry: Entry) -> set[int]:
    """Returns where the pieces of a large object begin that an earlier process has written."""
    found = held.database.execute("SELECT start FROM pieces WHERE path = ? AND etag = ?", (entry.path, entry.etag))
    return {start for (start,) in found}


def note_piece(held: Held, path: str, etag: str, start: int) -> None:
    """Notes that one piece of a large object is written, in a file that is not whole yet."""
    held.database.execute("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?)", (path, etag, start))
    held.database.commit()


def note_file(held: Held, path: str, etag: str, written: int) -> None:
    """Notes that a file lies in the folder, whole; it is on the disk with the next commit."""
    held.database.execute(
        "UPDATE objects SET here = ?, written = ?, wanted = 0 WHERE path = ? AND etag = ?", (etag, written, path, etag)
    )
    held.database.execute("DELETE FROM pieces WHERE path = ?", (path,))
