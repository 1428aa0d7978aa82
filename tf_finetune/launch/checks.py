"""What AWS is asked before anything is uploaded, so that nothing is uploaded for a job that it would refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tf_finetune.errors import FinetuneError, UsageError, combined
from tf_finetune.launch import places
from tf_finetune.launch.answers import DENIED, ForAllRequestsError, code_of, told
from tf_finetune.launch.aws import client
from tf_finetune.launch.plan import Plan
from tf_finetune.launch.request import Account
from tf_finetune.s3 import Location

log = logging.getLogger(__name__)

TEXT_FILES = ("training.csv", "training.csv.gz", "data.csv", "data.csv.gz")


def look(made: Any, wanted: Plan, known: Account) -> tuple[str, str | None]:
    """Asks AWS what would be refused: buckets, their Regions, empty channels, the job's name.

    Returns:
        The job's name, which is another than planned where the user gave none and the planned one is taken; and the
        task, as far as the data in S3 tells it.

    Raises:
        UsageError: Names all that is wrong.
    """
    problems: list[FinetuneError] = []
    s3 = client(made, "s3")
    uses = {known.bucket: "--output"}
    if wanted.checkpoints:
        uses.setdefault(places.parse("--checkpoints", wanted.checkpoints).bucket, "--checkpoints")
    written = set(uses)
    remote = [(f"--{channel.name}", channel.place) for channel in wanted.channels if channel.place]
    for flag, place in remote:
        uses.setdefault(place.bucket, flag)
    seen = set()
    for bucket, flag in uses.items():
        if _tried(problems, lambda b=bucket, f=flag: _check_bucket(s3, f, b, wanted.region, b in written)):  # type: ignore[misc]
            seen.add(bucket)
    for flag, place in remote:
        if place.bucket in seen:
            _tried(problems, lambda f=flag, p=place: _check_channel(s3, f, p))  # type: ignore[misc]
    name = _tried(problems, lambda: _free_name(client(made, "sagemaker"), wanted))
    if problems:
        raise combined(problems)
    training = next(place for flag, place in [*remote, ("--training", None)] if flag == "--training")
    task = _task(s3, training) if wanted.task is None and training and training.bucket in seen else wanted.task
    return str(name), task


def _tried(problems: list[FinetuneError], action: Callable[[], Any]) -> Any:
    """Returns what the action returns, or notes its problem; one of all requests is raised at once."""
    try:
        return action()
    except ForAllRequestsError:
        raise
    except UsageError as error:
        problems.append(error)
        return None


def _check_bucket(s3: Any, flag: str, bucket: str, region: str, is_written: bool) -> bool:
    """Returns whether the bucket may be looked into.

    Raises:
        UsageError: There is none, or it is in another Region.
    """
    from botocore.exceptions import ClientError

    with told(f"look at the bucket {bucket}"):
        try:
            answer = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]
        except ClientError as error:
            answer = error.response["ResponseMetadata"]
            there = answer.get("HTTPHeaders", {}).get("x-amz-bucket-region")
            if answer.get("HTTPStatusCode") not in (301, 403, 404) and there in (None, region):
                raise
        status = answer["HTTPStatusCode"]
        there = answer["HTTPHeaders"].get("x-amz-bucket-region") or (_region(s3, bucket) if status == 200 else None)
    if status == 404:
        make = f"Make it: aws s3 mb s3://{bucket} --region {region}; or give --output s3://BUCKET."
        raise UsageError(f"{flag}: there is no bucket {bucket}. {make if is_written else 'Check its name.'}")
    if there and there != region:
        raise UsageError(
            f"{flag}: the bucket {bucket} is in the Region {there}, and the job runs in {region}. SageMaker takes "
            f"buckets of the job's Region only: give --region {there}, or a bucket in {region}."
        )
    if status != 200:
        log.warning("%s: your credentials may not look into the bucket %s; the job's role may", flag, bucket)
    return bool(status == 200)


def _region(s3: Any, bucket: str) -> str | None:
    from botocore.exceptions import ClientError

    try:
        found = s3.get_bucket_location(Bucket=bucket).get("LocationConstraint")
    except ClientError as error:
        if code_of(error) in DENIED:
            return None
        raise
    return {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}.get(found, found)


def _check_channel(s3: Any, flag: str, place: Location) -> None:
    """Raises UsageError for a channel without an object, which SageMaker refuses."""
    from botocore.exceptions import ClientError

    with told(f"look into {place}"):
        try:
            found = s3.list_objects_v2(Bucket=place.bucket, Prefix=place.key, MaxKeys=1)
        except ClientError as error:
            if code_of(error) not in DENIED:
                raise
            log.warning("%s: your credentials may not list %s; the job's role may", flag, place)
            return
    if not found.get("KeyCount"):
        raise UsageError(f"{flag}: there is nothing at {place}. Check the prefix.")


def _free_name(sagemaker: Any, wanted: Plan) -> str:
    """Returns the job's name, or for a name that nobody chose the next that is free."""
    if not is_taken(sagemaker, wanted.name):
        return wanted.name
    free = next(name for n in range(2, 10_000) if not is_taken(sagemaker, name := _numbered(wanted.name, n)))
    if not wanted.is_named:
        return free
    raise UsageError(
        f"--model-name: there is a training job {wanted.name} already, and SageMaker gives no name twice. Give "
        f"another, such as --model-name {free}."
    )


def _numbered(name: str, number: int) -> str:
    return f"{name[: 62 - len(str(number))].rstrip('-')}-{number}"


def is_taken(sagemaker: Any, name: str) -> bool:
    """Returns whether there is a training job of this name."""
    from botocore.exceptions import ClientError

    with told(f"look up the training job {name}"):
        try:
            sagemaker.describe_training_job(TrainingJobName=name)
        except ClientError as error:
            code, words = code_of(error), str(error).lower()
            if (
                code == "ResourceNotFound"
                or code == "ValidationException"
                and ("not f" in words or "not find" in words)
            ):
                return False
            if code in DENIED:
                log.warning("your credentials may not ask whether there is a training job %s already", name)
                return False
            raise
    return True


def _task(s3: Any, training: Location) -> str:
    keys = {f"{training.key}{name}" for name in TEXT_FILES}
    with told(f"look into {training}"):
        for key in sorted(keys):
            found = s3.list_objects_v2(Bucket=training.bucket, Prefix=key, MaxKeys=1)
            if any(entry["Key"] in keys for entry in found.get("Contents", [])):
                return "text"
    return "image"
