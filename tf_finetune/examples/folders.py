"""Labelled photos from class folders.

A class folder is any folder directly below the channel; every photo in it or below it is an example of that class.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tf_finetune.errors import DataError, UsageError, listed
from tf_finetune.examples.records import TRAINING, Example, Examples, check_known, counted

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# TensorFlow decodes the first line's; Pillow converts TIFF and AVIF.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"}) | frozenset(
    {".tif", ".tiff", ".avif"}
)
# Photos by their names, as phones take them, that nothing here decodes: an inspection says so.
FOREIGN_SUFFIXES = frozenset({".heic", ".heif"})
METADATA_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
METADATA_FOLDERS = frozenset({"__macosx", "@eadir", "$recycle.bin"})


def read(channel: Path, class_names: Sequence[str] | None = None, name: str = TRAINING) -> Examples:
    """Returns the photos of a channel, labelled by the folder they are in.

    Args:
        channel: Holds one folder per class.
        class_names: The training classes, when another channel is read against them; else the alphabetical order of
            this channel's folders becomes the order of the classes.
        name: What to call the channel in messages.

    Raises:
        UsageError: The channel is missing or is no folder.
        DataError: There are no class folders, fewer than two, one without photos, or one unknown to training.
    """
    class_names, found = find(channel, class_names, name)
    digests = over_files([one.path for one in found], _digest)
    return Examples(class_names, ordered(Example(*one, digest) for one, digest in zip(found, digests, strict=True)))


class Found(NamedTuple):
    """A photo that has not been read yet: the first fields of an Example."""

    id: str
    label: int
    path: Path


def find(
    channel: Path,
    class_names: Sequence[str] | None = None,
    name: str = TRAINING,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    others: list[Path] | None = None,
) -> tuple[tuple[str, ...], list[Found]]:
    """Returns the class names and the photos of a channel, by their names; none of them is read.

    Args:
        channel, class_names, name: As in `read`.
        suffixes: What photos' names end with.
        others: Receives the files of other names; without it they are logged.

    Raises:
        FinetuneError: As in `read`.
    """
    if class_names is None:
        folders = training_classes(channel)
        class_names = tuple(sorted(folders))
    else:
        folders = check_classes(channel, class_names, name)
    if name == TRAINING:
        check_filled(channel, folders, suffixes)
    _tell_loose_photos(channel)
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    found = [
        Found(path.relative_to(channel).as_posix(), labels[folder], path)
        for folder in sorted(folders)
        for path in photos(folders[folder], suffixes, others)
    ]
    if not found:
        raise DataError(f"{name} channel {channel} holds no photos. Expected {_suffixes()} files in class folders.")
    return tuple(class_names), found


def ordered(items: Iterable[Example]) -> tuple[Example, ...]:
    """Returns examples in the order that Examples have: by digest, then by id."""
    return tuple(sorted(items, key=lambda example: (example.digest, example.id)))


def over_files(paths: Sequence[Path], action: Callable[[Path], Result]) -> list[Result]:
    """Returns what an action gives for each file, in their order.

    Reading, hashing and decoding release the interpreter, so threads help.
    """
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(action, paths))


def _digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Mend or remove the file.") from None


def class_folders(channel: Path, name: str = TRAINING) -> dict[str, Path]:
    """Returns the class folders of a channel by name; hidden and system folders are no classes.

    Raises:
        UsageError: The channel is missing or is no folder.
        DataError: It has no class folder.
    """
    if not channel.is_dir():
        what = "is a file" if channel.exists() else "does not exist"
        raise UsageError(f"{name} channel {channel} {what}. Expected a folder that holds one folder per class.")
    entries = sorted(channel.iterdir())
    folders = {entry.name: entry for entry in entries if entry.is_dir() and not _is_metadata_folder(entry.name)}
    if not folders:
        files = sum(entry.is_file() for entry in entries)
        raise DataError(
            f"{name} channel {channel} has no class folders. Expected one folder per class that holds {_suffixes()} "
            f"files, such as {channel.name}/roses/1.jpg. Received: {counted(files, 'file')}, no folders."
        )
    strange = [repr(folder) for folder in folders if not _is_unicode(folder)]
    if strange:
        raise DataError(
            f"{name} channel {channel} has class folders whose names are not UTF-8: {listed(strange)}. Rename them."
        )
    return folders


def training_classes(channel: Path) -> dict[str, Path]:
    """Returns the class folders of the training channel by name.

    Raises:
        DataError: There are fewer than two.
    """
    folders = class_folders(channel)
    if len(folders) < 2:
        raise DataError(
            f"{channel} has one class folder only: {next(iter(folders))}. Expected at least 2, one folder per class."
        )
    return folders


def check_classes(channel: Path, class_names: Sequence[str], name: str) -> dict[str, Path]:
    """Returns the class folders of a channel that is read against the training classes.

    Raises:
        DataError: One of them is unknown to training.
    """
    folders = class_folders(channel, name)
    check_known(folders, class_names, name, channel)
    return folders


def _tell_loose_photos(channel: Path) -> None:
    files = sorted(entry.name for entry in channel.iterdir() if entry.is_file())
    loose = [name for name in files if _is_photo(name) and not name.startswith(".")]
    if loose:
        log.warning(
            "%s: %s beside the class folders left out: %s", channel, counted(len(loose), "photo"), listed(loose)
        )


def check_filled(channel: Path, folders: Mapping[str, Path], suffixes: Collection[str] = IMAGE_SUFFIXES) -> None:
    """Looks for one photo in each class folder.

    Raises:
        DataError: Names those without.
    """
    empty = [name for name, path in folders.items() if next(_walk(path, suffixes), None) is None]
    if empty:
        raise DataError(
            f"{counted(len(empty), 'class folder')} of {channel} without photos: {listed(empty)}. "
            f"Expected at least one {_suffixes()} file in each; remove the folder or add photos."
        )


def check_any(folder: Path) -> None:
    """Looks for a photo in a folder or below it.

    Raises:
        DataError: There is none.
    """
    if next(_walk(folder), None) is None:
        raise DataError(f"{folder} holds no photos. Expected {_suffixes()} files in it.")


def photos(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES, others: list[Path] | None = None) -> list[Path]:
    """Returns the photos in a folder and below it, by suffix, in the order of their paths; others as in `find`."""
    rest: list[Path] = []
    found = list(_walk(folder, suffixes, rest))
    if others is not None:
        others += rest
    elif rest:
        names = listed(path.name for path in rest)
        log.warning("%s: %s left out, not %s: %s", folder, counted(len(rest), "file"), _suffixes(), names)
    return found


def _walk(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES, others: list[Path] | None = None) -> Iterator[Path]:
    """Yields the photos in a folder and below it; other files are added to `others`."""
    seen: set[str] = set()  # Links are followed, so a link to a folder above would otherwise never end.
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _is_metadata_folder(name))
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        for name in sorted(files):
            if name.startswith(".") or name.lower() in METADATA_FILES:
                continue
            if _is_photo(name, suffixes):
                yield Path(place, name)
            elif others is not None:
                others.append(Path(place, name))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}. Mend or remove the folder.")


def _is_unicode(name: str) -> bool:
    try:
        return bool(name.encode("utf-8"))
    except UnicodeEncodeError:  # Bytes of another encoding, which Python carries as lone surrogates.
        return False


def _is_photo(name: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def _is_metadata_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in METADATA_FOLDERS


def _suffixes() -> str:
    return ".jpg, .png, .bmp, .gif or .webp"
