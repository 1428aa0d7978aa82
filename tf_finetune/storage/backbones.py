"""A handle becomes the folder of a SavedModel: where it lies, from the cache, from a mirror, or from the network."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

from tf_finetune.errors import BackboneError
from tf_finetune.storage import buckets, downloads, handles, hub, kaggle, locks, mirror, models, places
from tf_finetune.storage.failures import FetchError, cause_of, unfetched
from tf_finetune.storage.handles import ARCHIVE_SUFFIXES, Handle, is_archive
from tf_finetune.storage.locks import Fetched, Lock

log = logging.getLogger(__name__)

REMOTE = Path("backbones", "remote")  # Below the cache folder.

_FORBIDDEN = f"{places.OFFLINE} is set, so no network is asked"

Fetcher = Callable[[Handle, Path], Fetched]
FETCHERS: dict[str, Fetcher] = {
    "archive": downloads.fetch,
    "hub": hub.fetch,
    "kaggle": kaggle.fetch,
    "s3": buckets.fetch,
}


def check_handle(handle: str, task: str | None = None) -> None:
    """Looks at a handle as far as that needs neither the network nor unpacking.

    Args:
        handle: As `resolve_backbone` takes it.
        task: "image" or "text": which packaged backbones an error offers instead; None for all.

    Raises:
        FinetuneError: It can name no backbone: a path that is not there, a folder without a SavedModel, a file that is
            no archive, an unknown scheme, a malformed URL; or nothing that may be asked can have it.
    """
    named = handles.parse(handle)
    if named.kind != "local":
        _check_can_be_had(named, task)
    elif os.path.isdir(places.expanded(named.text)):
        _local_model(Path(places.expanded(named.text)), named)
    else:
        _check_is_archive(named)


def resolve_backbone(handle: str, cache: Path, task: str | None = None) -> Path:
    """Returns the local folder that holds the saved_model.pb which a handle names.

    Nothing is asked of the network for a local handle, nor for one that was resolved before.

    Args:
        handle: A folder or a tarball of a SavedModel; the http(s):// URL of a tarball, or one that tensorflow_hub
            knows; a Kaggle handle or a Kaggle model's URL; an s3:// prefix or tarball. At its end may stand `#sha256=`
            and the SHA-256 that the tarball or the content must have.
        cache: As `cache_folder` returns it; what comes is kept below `cache/backbones`.
        task: "image" or "text": which packaged backbones an error offers instead; None for all.

    Raises:
        FinetuneError: There is no such thing, it holds no SavedModel, or it cannot be fetched.
    """
    named, cache = handles.parse(handle), cache.absolute()
    if named.kind != "local":
        return _remote(named, cache / REMOTE, task)[1]
    path = Path(places.expanded(named.text))
    if os.path.isdir(path):
        folder = _local_model(path, named)
        return _demanded(named, folder, None)
    return _from_archive(path, named, cache / "backbones")


def resolve_whole(handle: str, cache: Path, task: str | None = None) -> Fetched:
    """Returns all that came with the SavedModel which a remote handle names, where `resolve_backbone` has only that.

    Args:
        handle: Names none on this machine.
        cache: As there.
        task: As there.

    Raises:
        FinetuneError: As there.
    """
    lock, _ = _remote(handles.parse(handle), cache.absolute() / REMOTE, task)
    return Fetched(Path(lock.whole), lock.place, lock.archive_sha256)


def _check_can_be_had(handle: Handle, task: str | None) -> None:
    entries = places.cache_folder() / REMOTE
    sources = _sources(handle)
    if any(places.is_whole(_entry(known, entries)) for known in _alike(handle)):
        return
    if all(fetch is None for _, fetch in sources):
        raise unfetched(handle, [told + _FORBIDDEN for told, _ in sources], task)
    if handle.kind == "kaggle" and len(sources) == 1 and not kaggle.is_installed():
        raise unfetched(handle, [kaggle.MISSING], task)


def _local_model(folder: Path, handle: Handle) -> Path:
    try:
        return models.inside(folder)
    except FetchError as error:
        raise BackboneError(
            f"Backbone {handle.shown}: {error}. Give the folder of a TensorFlow SavedModel or a .tar.gz of it."
        ) from error


def _check_is_archive(handle: Handle) -> None:
    path = Path(handle.text)
    if not is_archive(path.name):
        hint = " A .keras file must be exported first: model.export(folder)." if path.suffix == ".keras" else ""
        raise BackboneError(
            f"Backbone {handle.shown}: expected a SavedModel's folder or an archive of it "
            f"({', '.join(ARCHIVE_SUFFIXES)}). Received: a file named {path.name}.{hint}"
        )


def _demanded(handle: Handle, folder: Path, archive_sha256: str | None) -> Path:
    """Returns the folder of a local handle if its content is the one demanded."""
    if handle.sha256 is None:
        return folder
    try:
        locks.of(handle, Fetched(folder, handle.text, archive_sha256), folder)
    except FetchError as error:
        raise BackboneError(f"Backbone {handle.shown}: {error}. Give the right one, or leave #sha256= away.") from error
    return folder


def _from_archive(path: Path, handle: Handle, backbones: Path) -> Path:
    _check_is_archive(handle)
    sha256 = places.sha256(path)
    folder = backbones / sha256
    if not places.is_whole(folder):
        log.info("Unpacking %s", path)
        with places.written_aside(folder) as aside:
            try:
                models.unpack(path, aside)
            except FetchError as error:
                raise BackboneError(f"Backbone {handle.shown}: {error}.") from error
            _local_model(aside, handle)
    return _demanded(handle, _local_model(folder, handle), sha256)


def _remote(handle: Handle, entries: Path, task: str | None) -> tuple[Lock, Path]:
    """Returns lock and SavedModel of a handle that names none on this machine: from the cache, else from elsewhere."""
    for known in _alike(handle):
        found = locks.held(_entry(known, entries))
        if found and handle.sha256 in {None, found[0].sha256, found[0].archive_sha256}:
            lock, folder = found
            log.info("%s: as fetched on %s, sha256 %s, in %s", handle.shown, lock.fetched, lock.sha256, folder)
            return lock, folder
    causes = []
    for told, fetch in _sources(handle):
        if fetch is None:
            causes.append(told + _FORBIDDEN)
            continue
        try:
            return _fetched(handle, fetch, _entry(handle, entries))
        except (FetchError, OSError, HTTPException, ValueError) as error:
            causes.append(told + cause_of(error))
            log.debug("%s", causes[-1], exc_info=True)
        if told:
            log.warning("%s: %s", handle.shown, places.redacted(causes[-1]))
    raise unfetched(handle, causes, task)


def _alike(handle: Handle) -> tuple[Handle, Handle]:
    """Returns the handle, and that of the same place without a demanded content, whose content may be the one."""
    return handle, replace(handle, sha256=None)


def _entry(handle: Handle, entries: Path) -> Path:
    """Returns the folder of the cache for a handle; what it demands belongs to it, and where its S3 is."""
    endpoint = buckets.configured_endpoint() if handle.kind == "s3" else ""
    told = f"{handle.kind} {handle.text} {handle.sha256} {endpoint}"
    return entries / hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _sources(handle: Handle) -> list[tuple[str, Fetcher | None]]:
    """Returns where to ask in turn: what a failure's cause begins with, and what asks; None where that is forbidden."""
    sources: list[tuple[str, Fetcher | None]] = []
    where = mirror.place()
    if where:
        is_forbidden = places.is_offline() and mirror.is_remote(where)
        sources.append((f"the mirror {where}: ", None if is_forbidden else functools.partial(mirror.fetch, where)))
    return [*sources, ("", None if places.is_offline() else FETCHERS[handle.kind])]


def _fetched(handle: Handle, fetch: Fetcher, entry: Path) -> tuple[Lock, Path]:
    """Fetches into an entry of the cache; what lies elsewhere already, as in the user's own hub cache, stays there."""
    with places.written_aside(entry) as aside:
        come = fetch(handle, aside)
        folder = models.inside(come.folder)
        lock = locks.of(handle, come, folder)
        if come.folder.is_relative_to(aside):
            inside = folder.relative_to(come.folder)
            come.folder.rename(aside / locks.MODEL)
            lock = replace(lock, folder=(Path(locks.MODEL) / inside).as_posix(), whole=locks.MODEL)
            _tidy(aside)
        locks.write(lock, aside)
    lock, folder = locks.read(entry)  # Another process may have been faster.
    log.info("%s: fetched from %s, sha256 %s", handle.shown, lock.place, lock.sha256)
    return lock, folder


def _tidy(aside: Path) -> None:
    """Removes what fetching left beside the model."""
    for path in aside.iterdir():
        if path.name != locks.MODEL:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
