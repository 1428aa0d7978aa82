"""AWS: sessions and clients, the account, uploads, and the start of a job."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tf_finetune.errors import UsageError, listed
from tf_finetune.launch import places, request
from tf_finetune.launch.answers import told
from tf_finetune.launch.defaults import ROLE
from tf_finetune.launch.plan import Plan
from tf_finetune.launch.request import Account
from tf_finetune.s3 import Location

ATTEMPTS = 8  # Of each request; throttling and broken connections are tried again.
UPLOADS = 8  # At once.
LEAD = 200  # Files that wait for their turn; more would only fill memory.


def session(region: str | None, environ: Mapping[str, str] = os.environ) -> Any:
    """Returns a session in the Region that was given or that AWS's own settings name; nothing is asked of AWS.

    Raises:
        UsageError: No Region is set, or what is set is none.
    """
    with told("start"):
        import boto3

        made = boto3.session.Session(region_name=region or environ.get("AWS_REGION") or None)
    if not made.region_name:
        raise UsageError("There is no Region. Give --region, e.g. --region us-east-1, or set AWS_DEFAULT_REGION.")
    if not _is_region(made.region_name):
        raise UsageError(f"--region: expected a Region such as eu-west-1; received {made.region_name[:80]!r}.")
    return made


def _is_region(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z]{2,5}(-[a-z]+)+-\d{1,2}", name))


def client(made: Any, service: str) -> Any:
    """Returns a client that tries again what was throttled or broken off."""
    from botocore.config import Config

    settings = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, max_pool_connections=2 * UPLOADS)
    return made.client(service, config=settings)


def instance_types() -> list[str]:
    """Returns the instance types that boto3 knows; nothing is asked of AWS, nor are credentials looked for."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    return list(model.shape_for("TrainingInstanceType").enum)


def text_of(made: Any, url: str) -> str:
    """Returns the text of an object in S3."""
    place = places.parse("s3", url)
    with told(f"read {url}"):
        return str(client(made, "s3").get_object(Bucket=place.bucket, Key=place.key)["Body"].read().decode("utf-8"))


def account(made: Any, wanted: Plan) -> Account:
    """Returns the role's ARN and the bucket; the account is only asked where they do not tell."""
    role = wanted.role
    if not ROLE.fullmatch(role):
        with told(f"look up the role {role}"):
            role = str(client(made, "iam").get_role(RoleName=role.rpartition("/")[2])["Role"]["Arn"])
    bucket = wanted.bucket or default_bucket(role, made.region_name)
    return Account(role, bucket)


def default_bucket(role: str, region: str) -> str:
    """Returns the bucket that SageMaker's SDK makes in the role's account.

    >>> default_bucket("arn:aws:iam::123456789012:role/r", "eu-west-1")
    'sagemaker-eu-west-1-123456789012'
    """
    found = ROLE.fullmatch(role)
    return f"sagemaker-{region}-{found['account'] if found else 'ACCOUNT'}"


def upload(made: Any, files: Iterable[tuple[Path, Location]], kms_key: str | None) -> int:
    """Uploads files in parallel, large ones in parts; returns their bytes."""
    from boto3.s3 import transfer

    files, size = list(files), 0
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    config = transfer.TransferConfig(max_concurrency=UPLOADS)
    under_way: collections.deque[Any] = collections.deque()
    bucket = listed(sorted({place.bucket for _, place in files}))
    with (
        told(f"upload to the bucket {bucket}"),
        transfer.create_transfer_manager(client(made, "s3"), config) as manager,
    ):
        for path, place in files:
            if len(under_way) >= LEAD:
                under_way.popleft().result()
            under_way.append(manager.upload(str(path), place.bucket, place.key, dict(extra)))
            size += path.stat().st_size
        while under_way:
            under_way.popleft().result()
    return size


def create(made: Any, wanted: Plan, known: Account) -> str:
    """Starts the job; returns its ARN."""
    with told(f"start the training job {wanted.name}"):
        return str(client(made, "sagemaker").create_training_job(**request.build(wanted, known))["TrainingJobArn"])
