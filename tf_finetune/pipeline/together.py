"""What a job does otherwise when several hosts do it together: one of them, the chief, decides and writes.

All hosts read all examples, share out the passes through the backbone, and step together where the whole network is
trained. The head of a frozen backbone is the chief's alone: fitting it to features takes seconds, and every step that
is made over a network would take longer than it saves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import tensorflow as tf

from tf_finetune import classifier, devices, export, interruption
from tf_finetune.classifier import Classifier
from tf_finetune.errors import HostError, listed
from tf_finetune.features.frozen import Passes
from tf_finetune.hosts.team import ALONE, CURE, DOUBT_SECONDS, Team
from tf_finetune.job import Job
from tf_finetune.pipeline.data import Data

log = logging.getLogger(__name__)

SAME_DATA = (
    "Give all hosts all of the data (S3DataDistributionType=FullyReplicated): which examples are for validation is "
    "decided by the content of all; what is computed from them is shared out anyway"
)


def end_process(message: str) -> NoReturn:
    """Ends this process at once, with exit code 1, as another host is lost: TensorFlow would wait for it."""
    log.error("%s", message)
    os._exit(1)


def ending(ended: Callable[[str], Any], scratch: str) -> Callable[[str], None]:
    """Returns what ends the process, having removed its temporary folder."""

    def end(message: str) -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        ended(message)

    return end


@contextlib.contextmanager
def explaining_losses(team: Team) -> Iterator[None]:
    """Turns TensorFlow's failure to reach another host into a message; it may notice before that host counts as lost.

    Raises:
        HostError: A common step was broken off.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if team.count == 1:
            raise
        tasks = {int(number) for number in re.findall(r"/task:(\d+)", str(error))} - {team.index}
        names = listed(team.names[task] for task in sorted(tasks) if task < team.count) or "another host"
        time.sleep(DOUBT_SECONDS)  # If the connection is closed as well, that ends the process, and says why.
        raise HostError(f"{names} does not answer TensorFlow any more. {CURE}") from error


def settings_of(planned: Job) -> dict[str, Any]:
    """Returns what must be the same on all hosts from the start."""
    return {**planned.settings.model_dump(), **export.versions(), "--replicas": planned.replicas, "task": planned.task}


def strategy(planned: Job) -> tf.distribute.Strategy:
    """Returns how the job is spread over devices: over those of all hosts where these train a whole network."""
    if planned.cluster is None or planned.settings.train_only_top_layer:
        return devices.strategy(planned.replicas)
    spread = devices.over_hosts(planned.cluster, planned.replicas)
    interruption.reinstall()
    return spread


def crew_of(team: Team, strategy: tf.distribute.Strategy) -> Team:
    """Returns the hosts that train together."""
    return team if devices.spans_hosts(strategy) else ALONE


def check_data(team: Team, found: Data) -> None:
    """Compares the examples of all hosts.

    Raises:
        HostError: They are not the same.
    """
    if team.count == 1:
        return
    facts: dict[str, Any] = {"the number of classes": len(next(iter(found.parts.values())).class_names)}
    for name, part in found.parts.items():
        content = json.dumps([part.class_names, [(one.digest, one.label) for one in part.items]])
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        facts[f"the {name} part"] = f"{len(part):,} examples ({digest})"
    team.check_same("examples", facts, SAME_DATA)


def check_backbone(team: Team, passes: Passes) -> None:
    """Compares the backbones of all hosts.

    Raises:
        HostError: They are not the same.
    """
    if team.count > 1:
        cure = "Give all hosts the same files"
        team.check_same("backbone", {"its SHA-256": [str(digest)[:8] for digest in passes.digests]}, cure)


def share_head(crew: Team, model: Classifier) -> None:
    """Gives all hosts the chief's head."""
    values = crew.told("head", [variable.numpy() for variable in model.head.variables])
    for variable, value in zip(model.head.variables, values, strict=True):
        variable.assign(value)


def own_model(crew: Team, model: Classifier, planned: Job) -> Classifier:
    """Returns a classifier that is the chief's alone, as far as the model's weights are spread over hosts.

    Some variables can only be read by all hosts at once, so all call this, and the others get the model itself.
    """
    if crew.count == 1:
        return model
    values = classifier.values(model)
    return classifier.twin(model, planned.settings, values) if crew.is_chief else model


def result(team: Team) -> dict[str, Any]:
    """Returns the chief's record, when it has proved and written the model; SIGTERM asks it to end a training early."""
    log.info("%s, which has what this host computed, does the rest", team.names[0])
    with interruption.heeded() as stop:
        record: dict[str, Any] = team.awaited("result", stop)
    return record
