"""A local folder or file becomes objects of S3, the model last."""

from __future__ import annotations

import collections
import contextlib
import logging
import mimetypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tf_finetune.errors import UsageError
from tf_finetune.s3 import buckets, client, failures
from tf_finetune.s3.locations import LONGEST_KEY, Location, parse

log = logging.getLogger(__name__)

LAST = "model.tar.gz"  # Whoever finds the model finds the rest of its result too.
LEAD = 200  # Files under way at once.
CHECKSUM = "SHA256"  # Of each part, made here and checked by S3.


def put(
    source: str | os.PathLike[str], place: str | Location, kms_key: str | None = None, region: str | None = None
) -> Location:
    """Uploads a folder's files below a prefix, or one file, and returns the location that it has then.

    Large files go in parts, several files at once, each part with its SHA-256. Objects of the same keys are replaced,
    others stay. A file named model.tar.gz goes last, when all others are there.

    Args:
        source: A folder or a file.
        place: The prefix for a folder; the key of a file, or with a final slash the prefix that it goes below.
        kms_key: Id, alias or ARN of the KMS key to encrypt with; None leaves it to the bucket.
        region: The job's Region, in which the bucket must then be.

    Raises:
        FinetuneError: What is wrong, in one message.
    """
    where, path = parse(place), Path(source)
    if path.is_file():
        target = Location(where.bucket, where.prefix + path.name) if where.is_folder else where
        files: Iterator[tuple[Path, str]] = iter([(path, target.key)])
    elif path.is_dir():
        target = Location(where.bucket, where.prefix)
        files = ((file, target.key + file.relative_to(path).as_posix()) for file in _files(path))
    else:
        raise UsageError(f"{path}: there is no such file or folder to put to {where}. Check the path.")
    with client.connected(where) as service:
        if region is not None:
            buckets.check(service, where, region)
        count = _send(service, where.bucket, files, kms_key)
    log.info("%s files put to %s", f"{count:,}", target)
    return target


def check_writable(place: str | Location, kms_key: str | None = None, region: str | None = None) -> list[str]:
    """Tries whether files may be put below a prefix, by an upload that is begun and not ended; nothing comes of it.

    Args:
        place: The prefix.
        kms_key: As in `put`.
        region: As in `put`.

    Returns:
        The keys of up to 1,000 objects that lie there; none where the credentials do not allow to list them.

    Raises:
        FinetuneError: What is wrong, in one message.
    """
    from botocore.exceptions import ClientError

    where = parse(place)
    with client.connected(where) as service:
        if region is not None:
            buckets.check(service, where, region)
        asked = {"Bucket": where.bucket, "Key": where.prefix + LAST}
        begun = service.create_multipart_upload(**asked, **_encryption(kms_key))
        with contextlib.suppress(ClientError):  # Whoever may put need not be allowed to abort.
            service.abort_multipart_upload(**asked, UploadId=begun["UploadId"])
        try:
            answer = service.list_objects_v2(Bucket=where.bucket, Prefix=where.prefix)
        except ClientError as error:
            if failures.code_of(error) not in failures.DENIED:
                raise
            return []
    return [found["Key"] for found in answer.get("Contents", [])]


def remove(place: str | Location, names: Sequence[str]) -> None:
    """Removes objects below a prefix, those that are there, as far as the credentials allow.

    Args:
        place: The prefix.
        names: The rest of each key; up to 1,000.

    Raises:
        FinetuneError: S3 cannot be reached, or refuses for another reason than that it is not allowed.
    """
    where = parse(place)
    if not names:
        return
    with client.connected(where) as service:
        keys = [{"Key": where.prefix + name} for name in names]
        answer = service.delete_objects(Bucket=where.bucket, Delete={"Objects": keys, "Quiet": True})
    for refused in answer.get("Errors", []):
        log.warning("s3://%s/%s is of an earlier result and could not be removed", where.bucket, refused.get("Key"))


def _encryption(kms_key: str | None) -> dict[str, str]:
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}


def _files(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder in the order of their names; the model's archive last."""
    last = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name == LAST:
                last.append(Path(place, name))
            else:
                yield Path(place, name)
    yield from last


def _send(service: Any, bucket: str, files: Iterator[tuple[Path, str]], kms_key: str | None) -> int:
    """Sends all files, and returns how many; if one fails, the manager cancels the others when its block ends."""
    under_way: collections.deque[Callable[[], None]] = collections.deque()
    count = 0
    with client.transfers(service) as manager:
        for file, key in files:
            count += 1
            while under_way and (file.name == LAST or len(under_way) >= LEAD):
                under_way.popleft()()
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            extra = {"ChecksumAlgorithm": CHECKSUM, "ContentType": kind, **_encryption(kms_key)}
            under_way.append(_begun(manager, str(file), bucket, _checked(key, file), extra))
        while under_way:
            under_way.popleft()()
    return count


def _begun(manager: Any, *upload: Any) -> Callable[[], None]:
    """Begins an upload and returns what waits for its end, and makes it again after what passes."""
    begun = [manager.upload(*upload)]

    def wait() -> None:
        client.persistently(lambda: (begun.pop() if begun else manager.upload(*upload)).result(), threading.Event())

    return wait


def _checked(key: str, file: Path) -> str:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{file!a}: its name is not valid UTF-8, as a key must be. Rename the file.") from None
    if size > LONGEST_KEY:
        raise UsageError(f"{file}: its key would have {size:,} bytes; S3 allows {LONGEST_KEY:,}. Shorten the path.")
    return key
