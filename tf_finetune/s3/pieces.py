"""One request's share of a download: a small object, or a piece of a large one, written aside."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_finetune.s3 import client
from tf_finetune.s3.failures import CutShortError
from tf_finetune.s3.manifest import Entry

LARGEST = 8 << 20  # Bytes of one request.
BLOCK = 256 << 10  # Bytes in memory at once, per worker.


@dataclass(frozen=True)
class Piece:
    """A request.

    Attributes:
        entry: The object.
        start: First byte.
        length: Bytes.
        aside: The file that is written to.
        target: What it becomes when whole.
        is_whole: Whether the piece is all of the object.
    """

    entry: Entry
    start: int
    length: int
    aside: Path
    target: Path
    is_whole: bool


def new_aside(partial: Path) -> Path:
    """Returns a name for a file that one request fills."""
    return partial / f"new-{uuid.uuid4().hex}"


def aside_of(partial: Path, entry: Entry) -> Path:
    """Returns the file that the pieces of this version of an object go to, in this process or a later one."""
    return partial / hashlib.sha256(f"{entry.path}\0{entry.etag}\0{entry.size}".encode()).hexdigest()


def clear(partial: Path, kept: Collection[str]) -> None:
    """Removes what earlier processes have left, but for the names to keep."""
    for file in partial.iterdir():
        if file.name not in kept:
            file.unlink()


def prepared(aside: Path, size: int) -> bool:
    """Returns whether an earlier process had begun the file; where not, it is made, at its full length."""
    if aside.is_file() and aside.stat().st_size == size:
        return True
    with aside.open("wb") as stream:
        stream.truncate(size)
    return False


def get(service: Any, bucket: str, prefix: str, piece: Piece, stop: threading.Event) -> Piece:
    """Fetches a piece, and returns it once it is written; a whole object is then also in its place."""
    if piece.is_whole and piece.length > LARGEST:
        _get_by_manager(service, bucket, prefix + piece.entry.path, piece)
    elif piece.length or piece.is_whole:
        client.persistently(lambda: _get_once(service, bucket, prefix + piece.entry.path, piece, stop), stop)
    if piece.is_whole:
        put_in_place(piece)
    return piece


def put_in_place(piece: Piece) -> None:
    """Renames the whole file to where it belongs."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(piece.aside, piece.target)
        return
    piece.target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(piece.aside, piece.target)


def _get_once(service: Any, bucket: str, key: str, piece: Piece, stop: threading.Event) -> None:
    asked = {} if piece.is_whole else {"Range": f"bytes={piece.start}-{piece.start + piece.length - 1}"}
    # If-Match: bytes of another version than the one listed are refused.
    answer = service.get_object(Bucket=bucket, Key=key, IfMatch=piece.entry.etag, **asked)
    body, written = answer["Body"], 0
    with contextlib.closing(body), open(piece.aside, "wb" if piece.is_whole else "r+b") as stream:
        stream.seek(piece.start)
        while block := body.read(min(BLOCK, piece.length + 1)):
            if written + len(block) > piece.length or stop.is_set():
                break
            stream.write(block)
            written += len(block)
    if written != piece.length:
        raise CutShortError(f"{key}: {written:,} of {piece.length:,} bytes")


def _get_by_manager(service: Any, bucket: str, key: str, piece: Piece) -> None:
    """Leaves a large object to AWS's CRT client, which is made for it."""
    with client.transfers(service) as manager:
        manager.download(bucket, key, str(piece.aside), {"IfMatch": piece.entry.etag}).result()
    if piece.aside.stat().st_size != piece.length:
        raise CutShortError(f"{key}: {piece.aside.stat().st_size:,} of {piece.length:,} bytes")
