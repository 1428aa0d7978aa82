"""TF_FINETUNE_MIRROR: a place that is asked for every remote handle before the network is.

It is a folder, or an http(s):// or s3:// place. What a handle names lies below it under the handle without its scheme
and query, as a SavedModel's folder (not on http) or as a tarball of it:

    MIRROR/tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5.tar.gz
    MIRROR/kaggle.com/models/google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2/saved_model.pb
    MIRROR/bucket/models/encoder.tar.gz
"""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from tf_finetune.errors import UsageError
from tf_finetune.storage import buckets, downloads, places
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import ARCHIVE_SUFFIXES, Handle, is_archive
from tf_finetune.storage.locks import Fetched

VARIABLE = "TF_FINETUNE_MIRROR"


def place(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the mirror, or None where there is none.

    Raises:
        UsageError: It is neither a folder that is there nor an http(s):// or s3:// place.
    """
    given = environ.get(VARIABLE, "").strip()
    if given and not is_remote(given) and not os.path.isdir(places.expanded(given)):
        raise UsageError(
            f"{VARIABLE}={places.redacted(given)[:200]}: expected a folder, or an http(s):// or s3:// place; received "
            "no such folder. Mount or make it, or unset the variable."
        )
    return given.rstrip("/") or None


def is_remote(mirror: str) -> bool:
    """Returns whether asking the mirror is asking a network."""
    return mirror.lower().startswith(("http://", "https://", "s3://"))


def fetch(mirror: str, handle: Handle, aside: Path) -> Fetched:
    """Takes what a handle names from the mirror; a local mirror's folder is used where it lies.

    Raises:
        FetchError: The mirror does not have it, among others.
    """
    if ".." in handle.name.split("/"):
        raise FetchError("it has none whose name leads elsewhere")
    if mirror.lower().startswith("s3://"):
        return _from_bucket(mirror, handle, aside)
    if is_remote(mirror):
        return _from_server(mirror, handle, aside)
    return _from_folder(Path(places.expanded(mirror)), handle, aside)


def _archives(name: str) -> list[str]:
    return [name] if is_archive(name) else [name + suffix for suffix in ARCHIVE_SUFFIXES]


def _from_folder(mirror: Path, handle: Handle, aside: Path) -> Fetched:
    for name in _archives(handle.name):
        file = mirror / name
        if file.is_file():
            return downloads.unpacked(file, str(file), aside)
    folder = mirror.absolute() / handle.name
    if folder.is_dir():
        return downloads.brought(folder, str(folder), aside)
    raise FetchError(f"it has neither a folder {handle.name} nor {_archives(handle.name)[0]}")


def _from_server(mirror: str, handle: Handle, aside: Path) -> Fetched:
    names = _archives(handle.name)
    for name in names:
        try:
            return downloads.fetch_url(f"{mirror}/{urllib.parse.quote(name, safe='/:%')}", aside)
        except urllib.error.HTTPError as error:
            if error.code not in {403, 404} or name == names[-1]:
                raise
    raise AssertionError(names)  # There is always one.


def _from_bucket(mirror: str, handle: Handle, aside: Path) -> Fetched:
    names = [_archives(handle.name)[0]] + ([] if is_archive(handle.name) else [f"{handle.name}/"])
    for name in names:
        try:
            return buckets.fetch_location(f"{mirror}/{name}", aside)
        except FetchError as error:
            if error.is_foreign or name == names[-1]:
                raise
    raise AssertionError(names)  # There is always one.
