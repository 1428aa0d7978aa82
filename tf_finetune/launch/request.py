"""The request of CreateTrainingJob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tf_finetune import s3
from tf_finetune.launch import channels, settings
from tf_finetune.launch.channels import Channel
from tf_finetune.launch.places import url
from tf_finetune.launch.plan import Plan
from tf_finetune.s3 import Location

SOURCE = "sourcedir.tar.gz"
CODE_CHANNEL = "code"
CHECKPOINTS = "/opt/ml/checkpoints"


@dataclass(frozen=True)
class Account:
    """What only AWS knows, or what stands for it.

    Attributes:
        role: ARN of the execution role.
        bucket: Bucket of code, uploads and results.
    """

    role: str
    bucket: str


def base(plan: Plan, account: Account) -> Location:
    """Returns the folder of a job's code and uploads, which is that of its results too where they share a prefix."""
    output = plan.output or Location(account.bucket, plan.prefix)
    return s3.joined(output, plan.name)


def source(plan: Plan, account: Account) -> Location:
    """Returns where the job's code goes."""
    return s3.joined(base(plan, account), "source", SOURCE)


def place(plan: Plan, account: Account, channel: Channel) -> Location:
    """Returns where a channel lies, or comes to lie."""
    return channel.place or s3.joined(base(plan, account), "input", channel.name, "")


def output(plan: Plan, account: Account) -> Location:
    """Returns the location that SageMaker appends NAME/output/model.tar.gz to."""
    return plan.output or Location(account.bucket, plan.prefix)


def archive(plan: Plan, account: Account) -> Location:
    """Returns where the job's archive comes to lie."""
    return s3.joined(output(plan, account), plan.name, "output", "model.tar.gz")


def build(plan: Plan, account: Account) -> dict[str, Any]:
    """Returns the request."""
    from tf_finetune import report

    inert, _ = settings.split(plan.values)
    code = f"/opt/ml/input/data/{CODE_CHANNEL}/{SOURCE}" if plan.network_isolation else str(source(plan, account))
    request: dict[str, Any] = {
        "TrainingJobName": plan.name,
        "HyperParameters": settings.encoded(inert, plan.name, plan.region, code),
        "AlgorithmSpecification": {
            "TrainingImage": plan.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": [dict(metric) for metric in report.METRIC_DEFINITIONS],
        },
        "RoleArn": account.role,
        "InputDataConfig": _inputs(plan, account),
        "OutputDataConfig": {"S3OutputPath": url(output(plan, account))},
        "ResourceConfig": {
            "InstanceType": plan.instance_type,
            "InstanceCount": plan.instance_count,
            "VolumeSizeInGB": plan.volume_size,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": plan.max_run},
    }
    if plan.kms_key:
        request["OutputDataConfig"]["KmsKeyId"] = plan.kms_key
    if plan.volume_kms_key:
        request["ResourceConfig"]["VolumeKmsKeyId"] = plan.volume_kms_key
    if plan.max_wait is not None:
        request["EnableManagedSpotTraining"] = True
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = plan.max_wait
    if plan.checkpoints is not None:
        where = plan.checkpoints or str(s3.joined(output(plan, account), plan.name, "checkpoints"))
        request["CheckpointConfig"] = {"S3Uri": where, "LocalPath": CHECKPOINTS}
    if plan.subnets:
        request["VpcConfig"] = {"SecurityGroupIds": list(plan.security_group_ids), "Subnets": list(plan.subnets)}
    if plan.encrypt_traffic:
        request["EnableInterContainerTrafficEncryption"] = True
    if plan.network_isolation:
        request["EnableNetworkIsolation"] = True
    if plan.disable_profiler is not None:
        request["ProfilerConfig"] = {"DisableProfiler": plan.disable_profiler}
    if plan.environment:
        request["Environment"] = dict(plan.environment)
    if plan.tags:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in plan.tags.items()]
    return request


def _inputs(plan: Plan, account: Account) -> list[dict[str, Any]]:
    inputs = [_input(channel.name, place(plan, account, channel)) for channel in plan.channels]
    for entry in inputs:
        if entry["ChannelName"] == "model":
            entry["ContentType"] = channels.MODEL_TYPE
    if plan.network_isolation:  # The toolkit cannot fetch the code itself then.
        inputs.append(_input(CODE_CHANNEL, s3.joined(base(plan, account), "source", "")))
    return inputs


def _input(name: str, where: Location) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": url(where), "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}
