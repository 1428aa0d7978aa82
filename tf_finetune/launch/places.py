"""Where things lie in S3, as SageMaker wants them written."""

from __future__ import annotations

from tf_finetune import s3
from tf_finetune.errors import UsageError
from tf_finetune.s3 import Location

FILE_ENDINGS = (".csv", ".csv.gz", ".tar.gz", ".tgz", ".tar")


def parse(flag: str, text: str) -> Location:
    """Returns the location that a user wrote.

    Raises:
        UsageError: It is no s3:// URL of a bucket.
    """
    try:
        return s3.parse(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None


def url(place: Location) -> str:
    """Returns the location as SageMaker wants it: a bucket without a slash behind.

    >>> url(Location("bucket", "")), url(Location("bucket", "a/"))
    ('s3://bucket', 's3://bucket/a/')
    """
    return str(place) if place.key else str(place).rstrip("/")


def as_channel(place: Location) -> Location:
    """Returns a channel's location with a slash behind a folder: without one S3 would take `flowers2` for `flowers`.

    >>> str(as_channel(Location("b", "flowers"))), str(as_channel(Location("b", "data.csv")))
    ('s3://b/flowers/', 's3://b/data.csv')
    """
    return place if place.key.lower().endswith(FILE_ENDINGS) else Location(place.bucket, place.prefix)
