"""Tarballs from http(s) URLs: streamed to the disk, hashed on the way, unpacked with suspicion."""

from __future__ import annotations

import base64
import hashlib
import logging
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tf_finetune import archive
from tf_finetune.storage import failures, models, places
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import Handle
from tf_finetune.storage.locks import Fetched

log = logging.getLogger(__name__)

SPARE = 64 << 20  # Bytes that are left free on the disk.

_BLOCK = 1 << 20


def fetch(handle: Handle, aside: Path) -> Fetched:
    """Fetches the tarball that a URL names, and unpacks it.

    Raises:
        FetchError, OSError, HTTPException, ValueError: As `failures.cause_of` puts into words.
    """
    return fetch_url(handle.text, aside)


def fetch_url(url: str, aside: Path) -> Fetched:
    """Fetches and unpacks a tarball; the environment's proxies and certificates are used.

    Args:
        url: With or without a name and a password, which a mirror's may have.
        aside: Where the archive and what is in it come to lie.
    """
    log.info("Fetching %s", places.redacted(url))
    file = aside / url.partition("?")[0].rpartition("/")[2]
    # Anew each time: `urlopen` keeps the proxies of its first call, and from Python 3.12 on the certificates.
    opener = urllib.request.build_opener()
    with opener.open(_request(url), timeout=failures.TIMEOUT) as answer:
        sha256 = _store(answer, file)
    return unpacked(file, url, aside, sha256)


def unpacked(file: Path, place: str, aside: Path, sha256: str | None = None) -> Fetched:
    """Unpacks a tarball that has come.

    Args:
        file: The tarball.
        place: Where it came from.
        aside: Where what is in it comes to lie.
        sha256: Of the tarball, where it is known.
    """
    sha256 = sha256 or places.sha256(file)
    models.unpack(file, aside / "unpacked")
    return Fetched(aside / "unpacked", place, sha256)


def brought(folder: Path, place: str, aside: Path) -> Fetched:
    """Returns what lies in a folder: itself, or the archive that it stands for, unpacked.

    Args:
        folder: It.
        place: Where it came from.
        aside: Where what is in an archive comes to lie.
    """
    found = models.locate(folder)
    return unpacked(found, place, aside) if found and found.is_file() else Fetched(folder, place)


def _request(url: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"User-Agent": "tf_finetune"})
    if login:  # Which no other host sees that the answer may lead to.
        told = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {told}")
    return request


def _store(answer: Any, file: Path) -> str:
    """Writes the answer's body to a file, and returns its SHA-256."""
    announced = answer.headers.get("Content-Length", "")
    expected = int(announced) if announced.isdecimal() else None
    free = shutil.disk_usage(file.parent).free - SPARE
    if expected is not None and expected > min(archive.MAX_BYTES, free):
        raise FetchError(f"it has {expected:,} bytes, but {min(archive.MAX_BYTES, free):,} are the most that fit here")
    digest, received = hashlib.sha256(), 0
    with file.open("wb") as stream:
        while block := answer.read(_BLOCK):
            received += len(block)
            if received > archive.MAX_BYTES:
                raise FetchError(f"it has more than the {archive.MAX_BYTES:,} bytes allowed")
            stream.write(block)
            digest.update(block)
    if expected is not None and received < expected:
        raise FetchError(f"the answer broke off after {received:,} of {expected:,} bytes")
    return digest.hexdigest()
