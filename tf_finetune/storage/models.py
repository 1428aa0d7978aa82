"""What a folder or an archive must hold to be a backbone, and what its content is by SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tf_finetune import archive
from tf_finetune.errors import ExportError, listed
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import is_archive

SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
ARCHIVE = "model.tar.gz"  # Of a job, among others in the same folder.


def inside(folder: Path) -> Path:
    """Returns the folder of the one SavedModel that a folder is or holds.

    Raises:
        FetchError: It holds none, or several.
    """
    if any((folder / name).is_file() for name in SAVED_MODEL_FILES):
        return folder
    found = sorted({path.parent for name in SAVED_MODEL_FILES for path in folder.glob(f"*/{name}")})
    if len(found) == 1:
        return found[0]
    received = f"several, in {listed(path.name for path in found)}" if found else "none"
    raise FetchError(
        f"expected one saved_model.pb at the top or in one subfolder such as 1/; received: {received}", is_foreign=True
    )


def locate(place: Path) -> Path | None:
    """Returns the archive or the SavedModel's folder that a file, channel or job's output folder stands for, if any."""
    if place.is_file() or _holds_model(place):
        return place
    for folder in (place, place / "output"):
        archives = [file for file in sorted(folder.glob("*")) if is_archive(file.name)]
        named = [file for file in archives if file.name == ARCHIVE]
        if len(named or archives) == 1:
            return (named or archives)[0]
    return None


def unpack(file: Path, folder: Path) -> None:
    """Unpacks an archive that nobody vouches for into a new folder.

    Raises:
        FetchError: It is damaged or unsafe; the message calls the archive by its name alone.
    """
    try:
        archive.unpack(file, folder)
    except ExportError as error:
        told = str(error).replace(str(file), file.name).rstrip(".")
        raise FetchError(f"it cannot be unpacked: {told}", is_foreign=True) from error


def content_of(folder: Path) -> str:
    """Returns the SHA-256 of a SavedModel's files, their names and bytes; where it lies plays no part."""
    digest = hashlib.sha256()
    for file in files_of(folder):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Returns the files that a SavedModel is loaded from, in the order of their names; others may lie beside them."""
    files: list[Path] = []
    for name in (*SAVED_MODEL_FILES, "variables", "assets"):
        path = folder / name
        files += [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    return files


def _holds_model(folder: Path) -> bool:
    return any(folder.glob("saved_model.pb*")) or any(folder.glob("*/saved_model.pb*"))
