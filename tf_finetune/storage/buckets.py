"""SavedModels in S3: a prefix that is the folder, or an object that is a tarball of it."""

from __future__ import annotations

from pathlib import Path

from tf_finetune.errors import FinetuneError
from tf_finetune.storage import downloads
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import Handle, is_archive
from tf_finetune.storage.locks import Fetched


def fetch(handle: Handle, aside: Path) -> Fetched:
    """Fetches the SavedModel that an s3:// location names."""
    return fetch_location(handle.text, aside)


def fetch_location(location: str, aside: Path) -> Fetched:
    """Fetches a prefix, which is a SavedModel or holds an archive of one, or an archive, which it unpacks.

    Raises:
        FetchError: As S3 has it, or the object is no tarball.
    """
    from tf_finetune import s3  # Only here, for it does not import everywhere.

    try:
        found = s3.fetch(location, aside / "s3" / s3.parse(location).name)
    except FinetuneError as error:
        raise FetchError(str(error).rstrip(".")) from error
    if found.is_dir():
        return downloads.brought(found, location, aside)
    if not is_archive(found.name):
        raise FetchError(f"expected a .tar.gz or the prefix of a SavedModel; received an object named {found.name}")
    return downloads.unpacked(found, location, aside)


def configured_endpoint() -> str:
    """Returns the server of S3 that the variables name; empty for AWS's own."""
    from tf_finetune import s3

    return s3.client.configured_endpoint()
