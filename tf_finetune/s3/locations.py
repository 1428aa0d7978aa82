"""What s3://bucket/prefix says, and which local path each key below it becomes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tf_finetune.errors import UsageError

EXPECTED = "Expected s3://BUCKET/PREFIX, or s3://BUCKET/KEY of one file."
LONGEST_KEY = 1024  # Bytes of UTF-8: S3's own limit.
LONGEST_NAME = 255  # Bytes: what file systems allow a file's name.

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")


@dataclass(frozen=True)
class Location:
    """A place in S3.

    Attributes:
        bucket: The bucket's name.
        key: What comes after it, without the slash between; empty for the whole bucket.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def is_folder(self) -> bool:
        """Whether it can only be a prefix: the whole bucket, or written with a final slash."""
        return self.key == "" or self.key.endswith("/")

    @property
    def prefix(self) -> str:
        """The key with a final slash, so that data does not match data-old/; empty for the whole bucket."""
        return self.key if self.is_folder else f"{self.key}/"

    @property
    def name(self) -> str:
        """The last part of the key that is not empty, else the bucket."""
        return self.key.rstrip("/").rpartition("/")[2] or self.bucket


def is_s3(place: object) -> bool:
    """Returns whether a place is meant to be in S3, rightly written or not.

    >>> is_s3("s3://bucket/photos"), is_s3("photos"), is_s3(None)
    (True, False, False)
    """
    return bool(re.match(r"s3[an]?:/|arn:aws[\w-]*:s3:", str(place or ""), re.IGNORECASE))


def parse(place: str | os.PathLike[str] | Location) -> Location:
    """Returns the location that a text names; keys are taken as they are, nothing is percent-decoded.

    Raises:
        UsageError: It is not of the form s3://bucket/prefix, or the bucket's name cannot exist.

    >>> parse("s3://bucket/photos/flowers/").prefix
    'photos/flowers/'
    """
    if isinstance(place, Location):
        return place
    text = os.fspath(place)
    shown = re.sub(r"^(\w+:/+)[^/]*@", r"\1***@", text)  # Some tools allow s3://KEY:SECRET@bucket.
    arn = re.match(r"arn:aws[\w-]*:s3:::(.+)", text)
    if arn:
        raise UsageError(f"{shown} is an ARN. Expected s3://{arn[1]}")
    if not isinstance(place, str) and is_s3(text):
        raise UsageError(f"{shown}: a path object drops one of the two slashes. Give the location as text. {EXPECTED}")
    found = re.fullmatch(r"s3://([^/]*)(?:/(.*))?", text, re.IGNORECASE | re.DOTALL)
    if not found:
        raise UsageError(f"{shown} is not a location in S3. {EXPECTED}")
    bucket, key = found[1], found[2] or ""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or _ADDRESS.fullmatch(bucket):
        raise UsageError(
            f"{shown}: {'***' if '@' in bucket else repr(bucket)} is not the name of a bucket: 3 to 63 small letters, "
            f"digits, dots and hyphens. {EXPECTED} Of an access point give its alias."
        )
    if "\0" in key or len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise UsageError(f"{shown[:200]}: a key has at most {LONGEST_KEY:,} bytes, none of them zero.")
    return Location(bucket, key)


def joined(place: str | Location, *names: str) -> Location:
    """Returns the location below another one.

    >>> str(joined("s3://bucket/results", "flowers", "output/"))
    's3://bucket/results/flowers/output/'
    """
    where = parse(place)
    return Location(where.bucket, where.prefix + "/".join(names))


def problem_of(path: str) -> str | None:
    """Returns why the rest of a key after its prefix cannot be a path below a folder, or None where it can.

    The rule is the same on every system, so that data which works on one works on all.

    >>> problem_of("roses/1.jpg"), problem_of("../1.jpg")
    (None, 'it has the part ..')
    """
    parts = path.split("/")
    drive = next((part[:2] for part in parts if re.match(r"[A-Za-z]:", part)), None)
    dots = next((part for part in parts if part in {".", ".."}), None)
    problems = {
        "it has a zero byte": "\0" in path,
        "it has a backslash": "\\" in path,
        "it begins with a slash": path.startswith("/"),
        "it has two slashes in a row": "" in parts[1:],
        f"it has the part {dots}": dots,
        f"it has the drive letter {drive}": drive,
        f"it has a part of more than {LONGEST_NAME} bytes": any(len(part.encode()) > LONGEST_NAME for part in parts),
    }
    return next((problem for problem, applies in problems.items() if applies), None)
