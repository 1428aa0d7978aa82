"""What was fetched, noted beside it: where it came from, and by SHA-256 what it is."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from tf_finetune.storage import models, places
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import Handle

log = logging.getLogger(__name__)

FILE, MODEL = "lock.json", "model"


@dataclass(frozen=True)
class Fetched:
    """A SavedModel that has just come.

    Attributes:
        folder: It, or the folder that holds it.
        place: Where it came from: a URL, an s3:// location or a path, without credentials.
        archive_sha256: That of the tarball it came in; None where it came as files.
    """

    folder: Path
    place: str
    archive_sha256: str | None = None


@dataclass(frozen=True)
class Lock:
    """A SavedModel in the cache.

    Attributes:
        handle: What was asked for, without credentials.
        place: Where it came from.
        sha256: Of the SavedModel's files, as `models.content_of` has it; however they were packed, it is the same.
        archive_sha256: That of the tarball it came in, if it came in one.
        bytes: The size of its files.
        fetched: When, in UTC.
        folder: The SavedModel, relative to the lock's folder, or a full path where it lies elsewhere.
        whole: Likewise the folder of all that came with it, which an earlier result has beside its SavedModel.
    """

    handle: str
    place: str
    sha256: str
    archive_sha256: str | None
    bytes: int
    fetched: str
    folder: str
    whole: str = MODEL


def of(handle: Handle, fetched: Fetched, folder: Path) -> Lock:
    """Returns the lock of what has come, whose SavedModel's folder is given.

    Raises:
        FetchError: It is not the content that the handle demands.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    size = sum(file.stat().st_size for file in models.files_of(folder))
    content = models.content_of(folder)
    lock = Lock(
        handle=handle.shown,
        place=places.redacted(fetched.place),
        sha256=content,
        archive_sha256=fetched.archive_sha256,
        bytes=size,
        fetched=now,
        folder=str(folder),
        whole=str(fetched.folder),
    )
    check(handle, lock)
    return lock


def check(handle: Handle, lock: Lock) -> None:
    """Raises FetchError where the content is not what the handle demands by #sha256=."""
    if handle.sha256 not in {None, lock.sha256, lock.archive_sha256}:
        received = f"{lock.sha256} (its archive: {lock.archive_sha256})" if lock.archive_sha256 else lock.sha256
        raise FetchError(f"its content is not that of #sha256={handle.sha256}; received {received}", is_foreign=True)


def write(lock: Lock, entry: Path) -> None:
    """Writes the lock of an entry of the cache."""
    text = json.dumps(dataclasses.asdict(lock), indent=2) + "\n"
    (entry / FILE).write_text(text, encoding="utf-8")


def read(entry: Path) -> tuple[Lock, Path]:
    """Returns the lock of an entry, with full paths, and its SavedModel, unchecked."""
    lock = Lock(**json.loads((entry / FILE).read_text(encoding="utf-8")))
    folder, whole = entry / lock.folder, entry / lock.whole
    return dataclasses.replace(lock, folder=str(folder), whole=str(whole)), folder


def held(entry: Path) -> tuple[Lock, Path] | None:
    """Returns the lock of an entry and its SavedModel, if all is as it was fetched; else None.

    An entry that was changed or half deleted is marked, so that it will be replaced.
    """
    if not places.is_whole(entry):
        return None
    try:
        lock, folder = read(entry)
        if models.content_of(folder) == lock.sha256:
            return lock, folder
    except (OSError, ValueError, TypeError):
        pass
    log.warning("%s is not as it was fetched, and is fetched anew", entry)
    (entry / places.WHOLE).unlink(missing_ok=True)
    return None
