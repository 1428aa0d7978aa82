"""The cache folder, and folders that are written aside and appear when they are whole."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from tf_finetune.errors import UsageError

log = logging.getLogger(__name__)

OFFLINE = "TF_FINETUNE_OFFLINE"
WHOLE = ".whole"  # Written last into a cached folder: without it the folder is made anew.


def cache_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Returns where backbones and features are kept between jobs; the folder may not exist yet.

    TF_FINETUNE_CACHE names it, else the habit of the platform (as `sys.platform` has it) decides.

    >>> cache_folder({"TF_FINETUNE_CACHE": "/mnt/cache"}, "linux").as_posix()
    '/mnt/cache'
    """
    if environ.get("TF_FINETUNE_CACHE"):
        return Path(environ["TF_FINETUNE_CACHE"]).expanduser()
    if platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        given = Path(environ.get("XDG_CACHE_HOME", ""))
        base = given if given.is_absolute() else Path.home() / ".cache"  # As the XDG specification has it.
    return base / "tf_finetune"


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether TF_FINETUNE_OFFLINE forbids asking the network for anything.

    >>> is_offline({"TF_FINETUNE_OFFLINE": "1"}), is_offline({"TF_FINETUNE_OFFLINE": "0"}), is_offline({})
    (True, False, False)
    """
    return environ.get(OFFLINE, "").strip().lower() not in {"", "0", "false", "no", "off"}


def expanded(handle: str) -> str:
    """Returns a handle with a leading ~ replaced, or as it is where it can be no path."""
    try:
        return os.path.expanduser(handle)
    except ValueError:  # It holds a NUL byte or half a surrogate.
        return handle


def redacted(text: str) -> str:
    """Returns the text without the credentials and query values of the URLs in it.

    >>> redacted("see https://me:secret@host/a?token=abc")
    'see https://***@host/a?token=***'
    """
    text = re.sub(r"://[^/\s]*@", "://***@", text)
    return re.sub(r"([?&][^=&\s]+=)[^&\s]+", r"\1***", text)


def is_whole(folder: Path) -> bool:
    """Returns whether `written_aside` finished this folder."""
    return (folder / WHOLE).is_file()


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `folder` if the block ends well, and vanishes if not.

    Of several processes that make the same folder at once the first one wins, and the others use its work.
    """
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    make(aside)
    try:
        yield aside
        (aside / WHOLE).touch()
        _put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path) -> None:
    if folder.exists() and not is_whole(folder):
        log.warning("%s is incomplete and is made anew", folder)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder.rename(aside.with_name(f"{aside.name}.broken")), ignore_errors=True)
    try:
        aside.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise
        log.info("Another process was faster: using its %s", folder)


def make(folder: Path) -> None:
    """Makes a folder of the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The cache folder {folder.parent} cannot be written: {error.strerror}. "
            "Set TF_FINETUNE_CACHE to a folder that can be written."
        ) from error


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
