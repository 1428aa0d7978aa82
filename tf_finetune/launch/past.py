"""What is told of jobs: the list of past ones, and the end of one."""

from __future__ import annotations

import json
from typing import Any

from tf_finetune.errors import FinetuneError
from tf_finetune.launch import aws
from tf_finetune.launch.answers import told

PAGE = 100  # The most that SageMaker lists at once.


def listing(made: Any, most: int) -> list[dict[str, Any]]:
    """Returns the latest training jobs of the Region, the newest first: name, status, started (ISO 8601), seconds,
    instance, count, output, arn and failure.

    Args:
        made: A session of boto3.
        most: How many at most.
    """
    sagemaker = aws.client(made, "sagemaker")
    with told("list the training jobs"):
        pages = sagemaker.get_paginator("list_training_jobs").paginate(
            SortBy="CreationTime",
            SortOrder="Descending",
            PaginationConfig={"MaxItems": most, "PageSize": min(most, PAGE)},
        )
        names = [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]
        return [_row(sagemaker.describe_training_job(TrainingJobName=name)) for name in names]


def _row(job: dict[str, Any]) -> dict[str, Any]:
    resources = job.get("ResourceConfig", {})
    started = job.get("TrainingStartTime") or job.get("CreationTime")
    return {
        "name": job["TrainingJobName"],
        "status": job["TrainingJobStatus"],
        "started": started.isoformat(timespec="seconds") if started else None,
        "seconds": seconds(job),
        "instance": resources.get("InstanceType"),
        "count": resources.get("InstanceCount"),
        "output": artifact(job),
        "arn": job.get("TrainingJobArn"),
        "failure": job.get("FailureReason"),
    }


def seconds(job: dict[str, Any]) -> int | None:
    """Returns a job's seconds of training, waiting left out; None before it has begun."""
    if job.get("TrainingTimeInSeconds") is not None:
        return int(job["TrainingTimeInSeconds"])
    started, ended = job.get("TrainingStartTime"), job.get("TrainingEndTime")
    return int((ended - started).total_seconds()) if started and ended else None


def artifact(job: dict[str, Any]) -> str:
    """Returns where a job's archive is, or will be."""
    given = job.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    place = job.get("OutputDataConfig", {}).get("S3OutputPath", "").rstrip("/")
    return str(given or f"{place}/{job['TrainingJobName']}/output/model.tar.gz")


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the list as a table."""
    cells = [["NAME", "STATUS", "STARTED", "SECONDS", "INSTANCE", "OUTPUT"]]
    for row in rows:
        instance = f"{row['count']} x {row['instance']}" if (row["count"] or 1) > 1 else row["instance"]
        length = "-" if row["seconds"] is None else f"{row['seconds']:,}"
        cells.append([row["name"], row["status"], row["started"] or "-", length, instance or "-", row["output"]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows_of_text = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in rows_of_text)


def as_json(rows: list[dict[str, Any]]) -> str:
    """Returns the list as JSON."""
    return json.dumps(rows, indent=2, ensure_ascii=False)


def summary(job: dict[str, Any], parent: str) -> str:
    """Returns the user guide's list for a job that has ended well, and how to deploy its archive.

    Args:
        job: As DescribeTrainingJob returns it.
        parent: What the job started from.
    """
    length, billed = seconds(job), job.get("BillableTimeInSeconds")
    time = "unknown" if length is None else f"{length:,} seconds"
    if billed is not None:
        time += f" ({billed:,} billed for each instance)"
    return "\n".join(
        [
            f"parent model: {parent}",
            f"training job: {job['TrainingJobName']}",
            f"ARN: {job['TrainingJobArn']}",
            f"training time: {time}",
            f"output: {artifact(job)}",
            deployment(artifact(job), job["RoleArn"]),
        ]
    )


def deployment(place: str, role: str) -> str:
    """Returns how to deploy an archive."""
    return (
        'deploy it by SageMaker\'s Python SDK 2 (pip install "sagemaker<3"):\n'
        "    from sagemaker.tensorflow import TensorFlowModel\n"
        f'    model = TensorFlowModel(model_data="{place}", role="{role}", framework_version="2.19")\n'
        '    model.deploy(initial_instance_count=1, instance_type="ml.c5.xlarge")'
    )


def failure(job: dict[str, Any]) -> FinetuneError | None:
    """Returns why a job has no result; None for one that has."""
    status = job["TrainingJobStatus"]
    if status == "Completed":
        return None
    name = job["TrainingJobName"]
    reason = str(job.get("FailureReason") or "").strip()
    if status == "Failed":
        return FinetuneError(f"The training job {name} failed: {reason or 'AWS gives no reason. See its log.'}")
    ways = {
        "MaxRuntimeExceeded": "it took longer than --max-run. Give more seconds, or train for fewer epochs.",
        "MaxWaitTimeExceeded": "it waited longer than --max-wait. Give more seconds, or leave --spot away.",
    }
    how = ways.get(str(job.get("SecondaryStatus")), f"somebody stopped it. {reason}".strip())
    return FinetuneError(f"The training job {name} was stopped: {how}")
