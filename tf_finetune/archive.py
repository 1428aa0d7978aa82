"""Packs folders into tarballs, the same bytes every time, and unpacks the tarballs of others without trusting them."""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import json
import os
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, cast

from tf_finetune.errors import ExportError

# Float weights hardly compress: level 6 makes those of EfficientNet-Lite0 (17.4 MB) 0.3 % smaller in 1.2 times the
# time, and a MobileNet whose weights came from 8 bits (0.36 MB) 17 % smaller in four times the time.
COMPRESSION_LEVEL = 1
MAX_BYTES = 20 * 2**30
MAX_MEMBERS = 100_000
NAME_LIMIT = 1024  # Bytes of a member's name.
PART_LIMIT = 255  # Bytes between two slashes: what the usual file systems hold.
DEPTH_LIMIT = 64  # Folders within folders.
DESCRIPTION = "tf_finetune.json"  # The file of a model's archive that says what it is.
FORMATS = (1,)  # Of that file, as far as they can be read.
TASKS = ("image", "text")

_CHUNK = 1 << 16  # Bytes. Also the longest header that is read, for headers go into memory whole.
_DESCRIPTION_LIMIT = 1 << 20  # Bytes.
_SHOWN = 100  # Characters of a name in a message.
_GZIP_MAGIC = b"\x1f\x8b"
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError, gzip.BadGzipFile)


class _RefusedError(Exception):
    """What is wrong with an archive, as a clause that follows its path."""


def pack(folder: Path, archive: Path) -> None:
    """Writes a folder's content as a gzipped tarball, whose bytes depend on names and content only.

    Modification times, owners, permissions and the order of files on the disk leave no trace. The archive is written
    aside and renamed when whole.

    Args:
        folder: Its content becomes the archive's content; the folder's own name does not appear.
        archive: The .tar.gz to write or replace; it must not lie in `folder`. Missing folders above it are made.

    Raises:
        ExportError: The folder holds something else than files and folders, or the disk does not cooperate.
    """
    aside = archive.with_name(f".{archive.name}.{uuid.uuid4().hex}")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with (
            aside.open("wb") as raw,
            gzip.GzipFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as stream,
            tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar,
        ):
            for path in _content(folder):
                _add(tar, path, path.relative_to(folder).as_posix())
        aside.replace(archive)
    except OSError as error:
        raise ExportError(
            f"{folder} could not be packed into {archive}: {error.strerror or error}. "
            "Expected a readable folder and a place with enough room. Free some, or write elsewhere."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _content(folder: Path) -> list[Path]:
    """Returns everything below the folder, each folder before what it holds."""
    paths: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        paths += [Path(place, name) for name in folders + files]
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ExportError(f"{path} is a link or a special file. Expected files and folders. Copy what it names.")
    return sorted(paths, key=lambda path: path.parts)


def _raise(error: OSError) -> None:
    raise error


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)  # Its defaults: time 0, owner 0, no owner names.
    if path.is_dir():
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
        return
    with path.open("rb") as stream:
        member.size, member.mode = os.fstat(stream.fileno()).st_size, 0o644
        tar.addfile(member, stream)


def unpack(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> None:
    """Unpacks a tarball that nobody vouches for, whole or not at all.

    Only files and folders come out, with the usual permissions and the present time; they cannot land outside
    `folder` nor replace one another. Any other member refuses the whole archive.

    Args:
        archive: A .tar.gz, .tgz or .tar; what it is, is read from its bytes, not from its name.
        folder: Where its content comes to lie; must be absent or empty.
        max_bytes: The most that it may unpack to, its headers included. Counted as it is read.
        max_members: The most files and folders it may have.

    Raises:
        ExportError: It cannot be read, is damaged or unsafe, or `folder` cannot take it.
    """
    folder = Path(os.path.abspath(folder))
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        with _explained(archive, folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ExportError(
                    f"{archive} cannot be unpacked: expected no or an empty folder at {folder}. Remove it."
                )
            aside.mkdir(parents=True)
            with archive.open("rb") as raw:
                stream = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(_GZIP_MAGIC) else raw
                _unpack(_Reader(cast(BinaryIO, stream), max_bytes), aside, max_members)
            if folder.exists():
                folder.rmdir()
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _explained(archive: Path, folder: Path) -> Iterator[None]:
    """Turns what goes wrong while unpacking into an ExportError that says what to do."""
    try:
        yield
    except _RefusedError as error:
        raise ExportError(
            f"{archive} {error}. Expected a tarball of plain files and folders, such as `tar -czf model.tar.gz -C "
            "FOLDER .` makes. Fetch or pack it anew, and do not use it if you do not know who made it."
        ) from error
    except _UNREADABLE as error:
        raise ExportError(
            f"{archive} is no tarball, is cut short or is damaged ({str(error)[:200] or type(error).__name__}). "
            "Expected a whole .tar.gz, .tgz or .tar. Fetch or pack it anew."
        ) from error
    except OSError as error:
        raise ExportError(
            f"{archive} could not be unpacked into {folder}: {error.strerror or error}. "
            "Expected a readable .tar.gz, .tgz or .tar and a folder with enough room. Check both."
        ) from error


class _Reader:
    """The forward-only file object through which tarfile reads, so that no header can make it read much or for ever.

    Attributes:
        last: What the latest read returned.
    """

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self.last = b""
        self._stream, self._max_bytes, self._position = stream, max_bytes, 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise _RefusedError(f"has a header of {size:,} bytes; at most {_CHUNK:,} are read")
        self.last = self._stream.read(size)
        self._position += len(self.last)
        if self._position > self._max_bytes:
            raise _RefusedError(f"unpacks to more than the {self._max_bytes:,} bytes allowed")
        return self.last

    def seek(self, position: int) -> int:
        if position < self._position:
            raise _RefusedError("has a header that points backwards")
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position


def _unpack(reader: _Reader, folder: Path, max_members: int) -> None:
    for count, (tar, member) in enumerate(_members(reader), start=1):
        if count > max_members:
            raise _RefusedError(f"has more than the {max_members:,} members allowed")
        path = folder.joinpath(*_parts(member))
        try:
            (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
            if not member.isdir():
                _write(tar, member, path)
        except (FileExistsError, NotADirectoryError):  # The file system decides what is the same name.
            raise _RefusedError(f"has the name {_shown(member)} twice") from None
    # tarfile also stops, without a word, at a damaged header and where the file happens to end.
    if reader.last != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while reader.read(_CHUNK):  # gzip compares its checksum at the very end.
        pass


def _members(reader: _Reader) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    tar = tarfile.TarFile(fileobj=cast(BinaryIO, reader), mode="r", encoding="utf-8")
    while member := tar.next():
        yield tar, member
        tar.members.clear()  # type: ignore[attr-defined]  # It would keep every header it has seen.
        tar.pax_headers = {}


def _parts(member: tarfile.TarInfo) -> list[str]:
    """Returns the folders and the file name of a member that may be written; refuses all others."""
    name = member.name
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise _RefusedError(f"holds a link, device, pipe or sparse file, {_shown(member)}")
    if member.size < 0:
        raise _RefusedError(f"has a header with a negative size, {_shown(member)}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or PureWindowsPath(name).drive:
        raise _RefusedError(f"holds {_shown(member)}, which lies outside the folder it is unpacked into")
    encoded = [part.encode("utf-8", "surrogateescape") for part in parts]
    longest = max(map(len, encoded), default=0)
    if longest > PART_LIMIT or len(parts) > DEPTH_LIMIT or sum(map(len, encoded)) + len(parts) > NAME_LIMIT:
        raise _RefusedError(f"holds a name that is too long, {_shown(member)}")
    if "\0" in name or not (parts or member.isdir()):
        raise _RefusedError(f"holds a file without a proper name, {_shown(member)}")
    return parts


def _shown(member: tarfile.TarInfo) -> str:
    return repr(member.name[:_SHOWN] + "…" * (len(member.name) > _SHOWN))


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # It is a file.
    with source, path.open("xb") as target:
        shutil.copyfileobj(source, target, _CHUNK)


def task_of(archive: Path | str) -> str:
    """Returns the task of a model's archive, or of the folder that it was unpacked to: "image" or "text".

    Raises:
        ExportError: It is no archive of ours.
    """
    why, way_out = f"its {DESCRIPTION} is missing or broken", ""
    try:
        task = json.loads(_description(Path(archive)))["task"]
        if task in TASKS:
            return task
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
        why, way_out = "it is no tarball, is cut short or is damaged", " Fetch it anew."
    except StopIteration:  # There is no such file.
        way_out = " A model of SageMaker JumpStart's is gone on from by `tf-finetune train --model`."
    except (OSError, KeyError, TypeError, _RefusedError, *_UNREADABLE):
        pass
    raise ExportError(
        f"{archive} holds no model of tf_finetune: {why}. Expected a model.tar.gz, or the folder that it was unpacked "
        f"to.{way_out}"
    )


def survey(place: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Returns the files of an archive, or of a folder and the folders in it, by their names with forward slashes.

    Args:
        place: The archive or the folder.
        wanted: Asked of each name; those files come with the beginning of their content, the others with none.

    Raises:
        ExportError: It cannot be read, is damaged, or is unsafe to unpack.
    """
    with _explained(place, place.parent):
        return {name: read() if wanted(name) else b"" for name, read in _files(place)}


def _description(place: Path) -> bytes:
    """Returns the beginning of the file that describes a model, read with the same limits as in unpacking."""
    return next(read() for name, read in _files(place) if name == DESCRIPTION)


def _files(place: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Gives each file's name, and what reads its beginning until the next is asked for."""
    if place.is_dir():
        for path in sorted([*place.glob("*"), *place.glob("*/*")]):
            if path.is_file():
                yield path.relative_to(place).as_posix(), functools.partial(_beginning, path.open, "rb")
        return
    with place.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(_GZIP_MAGIC) else raw
        for tar, member in itertools.islice(_members(_Reader(cast(BinaryIO, stream), MAX_BYTES)), MAX_MEMBERS):
            if member.isreg():
                yield "/".join(_parts(member)), functools.partial(_beginning, tar.extractfile, member)


def _beginning(opened: Callable[..., Any], *arguments: Any) -> bytes:
    with opened(*arguments) as source:
        return b"".join(source.read(_CHUNK) for _ in range(_DESCRIPTION_LIMIT // _CHUNK))
