"""Which buckets there are, and in which Regions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tf_finetune.s3 import client, failures, pool
from tf_finetune.s3.locations import Location, parse


@dataclass(frozen=True)
class Bucket:
    """A bucket of the account.

    Attributes:
        name: Its name.
        region: Its Region; None where the credentials do not allow to ask.
        in_job_region: Whether that is the job's Region; None where one of the two is not known.
    """

    name: str
    region: str | None
    in_job_region: bool | None


def listing(region: str | None = None) -> list[Bucket]:
    """Returns the buckets that the credentials list, by name.

    Args:
        region: The job's Region; None for that of AWS_DEFAULT_REGION, AWS_REGION or the profile.

    Raises:
        FinetuneError: What is wrong, in one message.
    """
    with client.connected(region=region) as service:
        job_region = client.configured_region(region)
        found: dict[str, str | None] = {}
        token: dict[str, str] = {}
        while True:
            page = service.list_buckets(MaxBuckets=1000, **token)
            found.update({bucket["Name"]: bucket.get("BucketRegion") for bucket in page.get("Buckets", [])})
            if not page.get("ContinuationToken"):
                break
            token = {"ContinuationToken": page["ContinuationToken"]}
        unknown = [name for name, place in found.items() if place is None]  # Other servers than AWS's do not say.
        found.update(pool.results(lambda name, stop: (name, region_of(service, name)), unknown, client.WORKERS))
    return [
        Bucket(name, place, place == job_region if place and job_region else None)
        for name, place in sorted(found.items())
    ]


def table(buckets: Sequence[Bucket], region: str | None = None, as_json: bool = False) -> str:
    """Returns the buckets as a text table, those outside the job's Region marked, or as JSON.

    >>> print(table([Bucket("photos", "eu-west-1", True), Bucket("old", "us-east-1", False)], "eu-west-1"))
    BUCKET  REGION     IN eu-west-1
    photos  eu-west-1  yes
    old     us-east-1  no: a job there needs its data in its own Region
    """
    if as_json:
        return json.dumps([asdict(bucket) for bucket in buckets], indent=2)
    if not buckets:
        return "The credentials list no buckets."
    words = {True: "yes", False: "no: a job there needs its data in its own Region", None: "unknown"}
    rows = [["BUCKET", "REGION", f"IN {region}" if region else "IN THE JOB'S REGION"]]
    rows += [[bucket.name, bucket.region or "unknown", words[bucket.in_job_region]] for bucket in buckets]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def check_region(place: str | Location, region: str) -> None:
    """Raises UsageError when a location's bucket is not in the job's Region, or is not there at all."""
    where = parse(place)
    with client.connected(where, region) as service:
        check(service, where, region)


def check(service: Any, where: Location, region: str) -> None:
    """As `check_region`, with a client; where the credentials do not allow to ask, nothing is said."""
    found = region_of(service, where.bucket)
    if found is not None and found != region:
        raise failures.elsewhere(str(where), found, region)


def region_of(service: Any, bucket: str) -> str | None:
    """Returns the Region of a bucket; None where nobody says.

    Raises:
        ClientError: There is no such bucket.
    """
    from botocore.exceptions import ClientError

    try:
        answer = service.head_bucket(Bucket=bucket)
    except ClientError as error:  # The Region is told also to those who may not read the bucket.
        if failures.code_of(error) in {"404", "NoSuchBucket"}:
            raise
        answer = error.response
    region = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return str(region) if region else None
