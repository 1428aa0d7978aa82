"""A prefix or an object of S3 becomes a local folder or file, of which only what changed is transferred again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tf_finetune.errors import DataError, FinetuneError, UsageError, listed
from tf_finetune.s3 import buckets, client, failures, manifest, pieces, pool
from tf_finetune.s3.locations import Location, is_s3, parse, problem_of
from tf_finetune.s3.manifest import Entry, Held
from tf_finetune.s3.pieces import Piece

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
SPARE = 64 << 20  # Bytes that are left free on the disk.
MOST_REFUSED = 1000  # Keys that are remembered for the message.
SECONDS = 1.0  # Between commits: what a killed process may have to fetch again.


def mirror(
    place: str | Location,
    cache: Path,
    region: str | None = None,
    progress: Progress | None = None,
    beside: Sequence[str] = (),
) -> Path:
    """Returns the local copy of a location, kept below the cache folder and brought up to date; see `fetch`.

    The copy is called as the last part of the location is, so a job on it gets the same name.
    """
    where = parse(place)
    return fetch(where, _cached(where, cache), region, progress, beside)


def local(place: str | os.PathLike[str], cache: Path, beside: Sequence[str] = ()) -> str:
    """Returns a place of this machine as it is, or the local copy of a location in S3; see `mirror`."""
    return str(mirror(os.fspath(place), cache, beside=beside)) if is_s3(place) else os.fspath(place)


def _cached(where: Location, cache: Path) -> Path:
    told = f"{client.configured_endpoint()} {where.bucket} {where.prefix}"
    return cache / "s3" / hashlib.sha256(told.encode()).hexdigest()[:16] / where.name


def start_mirror(
    place: str | Location,
    cache: Path,
    region: str | None = None,
    progress: Progress | None = None,
    beside: Sequence[str] = (),
) -> Future[Path]:
    """Begins `mirror` in a thread of its own, and returns at once; the future's result is what `mirror` returns.

    The thread ends with the process, so a job that fails meanwhile need not wait for it.
    """
    where, future = parse(place), Future[Path]()

    def run() -> None:
        try:
            future.set_result(mirror(where, cache, region, progress, beside))
        except BaseException as error:
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, daemon=True, name="tf-finetune-fetch").start()
    return future


def fetch(
    place: str | Location,
    folder: Path,
    region: str | None = None,
    progress: Progress | None = None,
    beside: Sequence[str] = (),
) -> Path:
    """Makes a folder mirror a prefix, and returns it; of the location of one object, returns the file in the folder.

    Files are written aside and renamed when whole. What lies there as it was fetched before is not transferred again;
    what is no longer in S3 is removed. `photos` and `photos/` are the same prefix, and neither is `photos-old/`.

    Args:
        place: s3://bucket/prefix, with or without a final slash, or s3://bucket/key of one object.
        folder: Where to; new, empty, or of an earlier fetch of the same location.
        region: The job's Region, in which the bucket must then be; None for a bucket anywhere.
        progress: Is called with a stage, objects done and objects in all.
        beside: Names of files that belong to a file; of one object's location those that lie beside it come along.

    Raises:
        FinetuneError: What is wrong, in one message: location, credentials, Region, network, disk, keys.
    """
    where = parse(place)
    with client.connected(where, region) as service:
        if region is not None:
            buckets.check(service, where, region)
        single = _single(service, where)
        with manifest.opened(folder, where) as held:
            _list(service, where, [single, *_companions(service, where, beside)] if single else [], held)
            removed = manifest.compare(held)
            _transfer(service, where, single, held, progress)
    if removed:
        log.info("%s: %d files removed that are no longer there", where, removed)
    return folder / single.path if single else folder


def _single(service: Any, where: Location) -> Entry | None:
    """Returns the object of exactly this key, or None where there is none but perhaps a prefix."""
    from botocore.exceptions import ClientError

    if where.is_folder:
        return None
    try:  # The key itself comes first among all that begin with it.
        answer = service.list_objects_v2(Bucket=where.bucket, Prefix=where.key, MaxKeys=1)
    except ClientError as error:
        if failures.code_of(error) not in failures.DENIED:
            raise
        return _readable_object(service, where, error)  # One may be allowed to read an object and not to list.
    found = answer.get("Contents", [])
    if not found or found[0]["Key"] != where.key or found[0]["Size"] == 0:
        return None
    return _checked(Entry(where.name, found[0]["Size"], found[0]["ETag"]), where)


def _companions(service: Any, where: Location, names: Sequence[str]) -> Iterator[Entry]:
    """Yields those objects beside another that are there, as far as the credentials tell."""
    from botocore.exceptions import ClientError

    for name in names:
        with contextlib.suppress(ClientError):
            found = _single(service, Location(where.bucket, where.key[: -len(where.name)] + name))
            if found:
                yield found


def _readable_object(service: Any, where: Location, refusal: Exception) -> Entry:
    from botocore.exceptions import ClientError

    try:
        answer = service.head_object(Bucket=where.bucket, Key=where.key)
    except ClientError:
        raise refusal from None
    return _checked(Entry(where.name, answer["ContentLength"], answer["ETag"]), where)


def _checked(entry: Entry, where: Location) -> Entry:
    problem = problem_of(entry.path)
    if problem:
        raise DataError(f"{where} cannot become a file, for {problem}. Rename the object.")
    return entry


def _list(service: Any, where: Location, known: Sequence[Entry], held: Held) -> None:
    """Notes all objects in the manifest: those that are known, else those below the prefix.

    Raises:
        DataError: There are none, or keys that cannot become files below the folder.
    """
    refused: dict[str, str] = {}

    def entries() -> Iterator[Entry]:
        for entry in known or listing(service, where):
            problem = problem_of(entry.path)
            if problem is None:
                yield entry
            elif len(refused) < MOST_REFUSED:
                refused[entry.path] = problem

    count = manifest.note_listing(held, entries())
    refused.update(dict.fromkeys(manifest.both_file_and_folder(held), "it is both an object and a folder"))
    if refused:
        told = listed(f"{path[:80]!r} ({problem})" for path, problem in refused.items())
        raise DataError(
            f"{where}: keys that cannot become files below a folder: {told}. Rename or remove them, or give a prefix "
            "without them."
        )
    if count == 0:
        raise UsageError(_nothing(service, where))


def listing(service: Any, where: Location) -> Iterator[Entry]:
    """Yields all objects below a prefix, page by page, without the markers of folders, whose keys end with a slash."""
    asked = {"Bucket": where.bucket, "Prefix": where.prefix}
    never = threading.Event()
    page = service.list_objects_v2(**asked)  # A wrong endpoint shows here, and need not be tried for minutes.
    while True:
        for found in page.get("Contents", []):
            path = found["Key"][len(where.prefix) :]
            if not found["Key"].endswith("/"):
                yield Entry(path, found["Size"], found["ETag"])
            elif found["Size"]:
                log.warning("%s is left out: its key ends with a slash, as that of a folder", found["Key"])
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]
        page = client.persistently(lambda: service.list_objects_v2(**asked), never)


def _nothing(service: Any, where: Location) -> str:
    """Returns the message that there is nothing, with what there is one level above."""
    above = where.key.rstrip("/").rpartition("/")[0]
    prefix = f"{above}/" if above else ""
    answer = service.list_objects_v2(Bucket=where.bucket, Prefix=prefix, Delimiter="/", MaxKeys=100)
    names = [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
    names += [found["Key"] for found in answer.get("Contents", [])]
    names = [name[len(prefix) :] for name in names if name not in {prefix, where.prefix}]
    there = f"s3://{where.bucket}/{prefix} holds {listed(names)}" if names else "The bucket has nothing there"
    return f"{where}: there is no object of this key, and none below it. {there}. Check the location."


def _transfer(service: Any, where: Location, single: Entry | None, held: Held, progress: Progress | None) -> None:
    """Brings what is wanted into the folder."""
    count, size = manifest.wanted(held)
    if not count:
        log.info("%s: nothing has changed since it was fetched to %s", where, held.folder)
        return
    free = shutil.disk_usage(held.folder).free
    if size + SPARE > free:
        raise FinetuneError(
            f"{where}: {size:,} bytes are to be fetched, but the disk of {held.folder} has {free:,} free. Free some, "
            "or give another folder: TF_FINETUNE_CACHE moves the cache."
        )
    log.info("%s: fetching %s objects, %s bytes on the disk", where, f"{count:,}", f"{size:,}")
    start = committed = time.monotonic()
    prefix = where.key[: -len(single.path)] if single else where.prefix
    left: dict[str, int] = {}  # Pieces to come of the few large objects under way.
    done = 0

    def get(piece: Piece, stop: threading.Event) -> Piece:
        return pieces.get(service, where.bucket, prefix, piece, stop)

    arriving = pool.results(get, _pieces(held, left, service), client.WORKERS)
    with contextlib.closing(arriving):  # On Ctrl-C the workers are told at once.
        for piece in arriving:
            done += _finish(held, piece, left)
            if time.monotonic() - committed > SECONDS:
                held.database.commit()
                committed = time.monotonic()
            if progress:
                progress("download", done, count)
    log.info("%s: %s objects fetched in %.1f s", where, f"{done:,}", time.monotonic() - start)


def _pieces(held: Held, left: dict[str, int], service: Any) -> Iterator[Piece]:
    """Yields what is to be asked for: small objects whole, large ones in pieces that an earlier process did not get."""
    kept = set()
    for entry in manifest.wanted_entries(held):
        if entry.size > pieces.LARGEST:
            kept.add(pieces.aside_of(held.partial, entry).name)
    pieces.clear(held.partial, kept)
    for entry in manifest.wanted_entries(held):
        target = held.folder / entry.path
        whole = entry.size <= pieces.LARGEST or client.has_crt(service.meta.endpoint_url)
        if whole:
            yield Piece(entry, 0, entry.size, pieces.new_aside(held.partial), target, is_whole=True)
            continue
        aside = pieces.aside_of(held.partial, entry)
        had = manifest.pieces_of(held, entry) if pieces.prepared(aside, entry.size) else set()
        starts = [start for start in range(0, entry.size, pieces.LARGEST) if start not in had]
        left[entry.path] = len(starts)
        for start in starts:
            yield Piece(entry, start, min(pieces.LARGEST, entry.size - start), aside, target, is_whole=False)
        if not starts:  # All was there but the renaming.
            left[entry.path] = 1
            yield Piece(entry, 0, 0, aside, target, is_whole=False)


def _finish(held: Held, piece: Piece, left: dict[str, int]) -> int:
    """Notes a piece that has arrived; returns 1 when its object is whole, else 0."""
    entry = piece.entry
    if not piece.is_whole:
        if piece.length:
            manifest.note_piece(held, entry.path, entry.etag, piece.start)
        left[entry.path] -= 1
        if left[entry.path]:
            return 0
        del left[entry.path]
        pieces.put_in_place(piece)
    manifest.note_file(held, entry.path, entry.etag, piece.target.stat().st_mtime_ns)
    return 1
