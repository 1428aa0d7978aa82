"""A job's log as it is written, and how the job ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from tf_finetune.errors import UsageError
from tf_finetune.launch import aws
from tf_finetune.launch.answers import DENIED, code_of, told

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
POLL_SECONDS = 5.0
LAST_LINES_SECONDS = 10.0  # Lines reach CloudWatch some seconds after they were written.
ENDED = frozenset({"Completed", "Failed", "Stopped"})


def lines(made: Any, name: str) -> Iterator[str]:
    """Yields the lines of a job's log as they come, and what the job is doing where that changes, until it has ended.

    Lines of several instances begin with the instance's name.

    Args:
        made: A session of boto3.
        name: The job's name.
    """
    sagemaker, logs = aws.client(made, "sagemaker"), aws.client(made, "logs")
    read = _Log(logs, name)
    said = None
    while True:
        job = _described(sagemaker, name)
        doing = doing_of(job)
        if doing != said:
            said = doing
            yield doing
        yield from read.new_lines()
        if job["TrainingJobStatus"] in ENDED:
            break
        time.sleep(POLL_SECONDS)
    time.sleep(min(LAST_LINES_SECONDS, 2 * POLL_SECONDS))
    yield from read.new_lines()


def describe(made: Any, name: str) -> dict[str, Any]:
    """Returns what AWS knows of a job."""
    return _described(aws.client(made, "sagemaker"), name)


def _described(sagemaker: Any, name: str) -> dict[str, Any]:
    with told(f"look up the training job {name}"):
        return dict(sagemaker.describe_training_job(TrainingJobName=name))


def doing_of(job: dict[str, Any]) -> str:
    """Returns a job's state, with AWS's words for it."""
    steps = job.get("SecondaryStatusTransitions") or [{}]
    words = str(steps[-1].get("StatusMessage") or "").strip()
    state = job.get("SecondaryStatus") or job["TrainingJobStatus"]
    return f"[{state}] {words}".strip()


class _Log:
    """The log streams of a job, one for each instance, and how far each was read."""

    def __init__(self, logs: Any, name: str) -> None:
        self.logs, self.prefix = logs, f"{name}/"
        self.tokens: dict[str, str | None] = {}
        self.is_readable = True

    def new_lines(self) -> Iterator[str]:
        """Yields the lines that were not yielded yet."""
        from botocore.exceptions import ClientError

        if not self.is_readable:
            return
        try:
            with told("read the job's log"):
                yield from self._new_lines()
        except UsageError as error:
            cause = error.__cause__
            code = code_of(cause) if isinstance(cause, ClientError) else ""
            if code == "ResourceNotFoundException":  # The instances have not written anything yet.
                return
            if code not in DENIED:
                raise
            self.is_readable = False
            log.warning("your credentials may not read the job's log (logs:GetLogEvents on %s)", LOG_GROUP)

    def _new_lines(self) -> Iterator[str]:
        for page in self.logs.get_paginator("describe_log_streams").paginate(
            logGroupName=LOG_GROUP, logStreamNamePrefix=self.prefix
        ):
            for stream in page["logStreams"]:
                self.tokens.setdefault(stream["logStreamName"], None)
        for stream_name in sorted(self.tokens):
            host = stream_name.removeprefix(self.prefix).rpartition("-")[0]
            tag = f"{host}: " if len(self.tokens) > 1 else ""
            for message in self._messages(stream_name):
                yield tag + message.rstrip("\n")

    def _messages(self, stream_name: str) -> Iterator[str]:
        while True:
            token = self.tokens[stream_name]
            given = {"nextToken": token} if token else {}
            page = self.logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream_name, startFromHead=True, **given
            )
            for event in page["events"]:
                yield str(event["message"])
            self.tokens[stream_name] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:  # So CloudWatch says that this is the end for now.
                return
