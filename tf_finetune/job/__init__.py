"""What a job is asked to do, checked as far as that goes without TensorFlow, with all problems at once."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tf_finetune import catalog, examples, feature_cache, hyperparameters, storage
from tf_finetune.errors import FinetuneError, UsageError, collector, combined, listed
from tf_finetune.feature_cache import Place
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import backbones
from tf_finetune.job.destination import Destination, check_checkpoints, find

log = logging.getLogger(__name__)

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        task: "image" or "text", as the training channel has it.
        training: Folder of the training channel, or a file of texts.
        validation: Folder of the validation channel, or None to split the training channel.
        test: Folder of the test channel, or None.
        handle: Names the backbone: a catalog id, a folder, an archive or a URL.
        card: The backbone's catalog card, if it has one.
        settings: All hyperparameters.
        sources: Where each came from: "user", "card" or "default".
        destination: Where results go.
        name: The job's name.
        arn: The training job's ARN on SageMaker.
        replicas: Devices to train on; None for all GPUs or one CPU.
        feature_cache: Where the features of a frozen backbone are kept between jobs.
        checkpoints: Folder from which a training goes on that was interrupted, or None.
        split: The split.csv that the user gave back, or None.
        earlier_split: The side of each digest, as the split.csv has it that the user gave back; None without one.
    """

    task: str
    training: Path
    validation: Path | None
    test: Path | None
    handle: str
    card: catalog.Card | None
    settings: Hyperparameters
    sources: Mapping[str, str]
    destination: Destination
    name: str
    arn: str | None = None
    replicas: int | None = None
    feature_cache: Place = Place(None)
    split: Path | None = None
    earlier_split: Mapping[str, str] | None = None
    checkpoints: Path | None = None


def plan(
    channels: Mapping[str, str | os.PathLike[str] | None],
    given: Mapping[str, object],
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    sagemaker_output: tuple[Path, Path] | None = None,
    replicas: int | None = None,
    arn: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    feature_folder: Path | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    split: str | os.PathLike[str] | None = None,
) -> Job:
    """Returns the job, or every reason why it cannot be done.

    Args:
        channels: Folder of each channel: training, and if wanted validation, test and model.
        given: The user's hyperparameters, typed or as text.
        output: Results go to output/name/output/.
        name: The job's name; by default that of the training folder.
        sagemaker_output: Model and data folder on SageMaker, used instead when there is no `output`.
        replicas: Devices to train on.
        arn: The training job's ARN.
        cache_dir: Where features are kept, "none" for nowhere; None for the cache folder.
        feature_folder: On SageMaker the folder for features where no other was named.
        checkpoints: Folder from which a training goes on that was interrupted.
        split: The split.csv of an earlier job, whose examples stay where they were.

    Raises:
        FinetuneError: Names all that is wrong.
    """
    problems: list[FinetuneError] = []
    tried = collector(problems)
    for channel, place in channels.items():
        if "://" in str(place or ""):
            problems.append(UsageError(f"{channel} channel {place}: only folders on this machine are supported yet."))
    folders = {channel: Path(place) for channel, place in channels.items() if place and "://" not in str(place)}
    task = tried(lambda: _task(folders))
    values = tried(lambda: hyperparameters.parse(given, task))
    classes = tried(lambda: examples.check(task, folders["training"])) if task else None
    if values and classes:
        tried(lambda: hyperparameters.check_classes(values, classes))
    for other in [channel for channel in ("validation", "test") if channel in folders]:
        tried(lambda other=other: examples.check(task or "image", folders[other], other, classes))  # type: ignore[misc]
    asked = {key: value for key, value in given.items() if hyperparameters.canonical(key) == "backbone"}
    handle = tried(lambda: backbones.handle_of(hyperparameters.parse(asked), folders.get("model"), task or "image"))
    card = tried(lambda: backbones.card_of(handle, task)) if handle else None
    name = tried(lambda: _name(name, folders.get("training")))
    if replicas is not None and replicas < 1:
        problems.append(UsageError(f"--replicas: expected an integer of 1 or more; received {replicas}"))
    destination = tried(lambda: find(output, name or "model", sagemaker_output, folders.values()))
    earlier_split = tried(lambda: _earlier_split(split, folders)) if split else None
    tried(lambda: check_checkpoints(checkpoints))
    kept = tried(lambda: feature_cache.place(cache_dir, feature_folder, storage.cache_folder()))
    if (
        problems
        or task is None
        or values is None
        or destination is None
        or name is None
        or handle is None
        or kept is None
    ):
        raise combined(problems)
    brought = (card.defaults, card.whole_defaults) if card else ({}, {})
    settings, sources = hyperparameters.resolve(values, *brought, task)
    return Job(
        task=task,
        training=folders["training"],
        validation=folders.get("validation"),
        test=folders.get("test"),
        handle=handle,
        card=card,
        settings=settings,
        sources=sources,
        destination=destination,
        name=name,
        arn=arn,
        replicas=replicas,
        feature_cache=kept,
        split=Path(split) if split else None,
        earlier_split=earlier_split,
        checkpoints=Path(checkpoints).absolute() if checkpoints else None,
    )


def warn_of_settings_without_effect(job: Job) -> list[str]:
    """Logs and returns a line for each setting that the user gave and that changes nothing in this job."""
    given = [name for name, source in job.sources.items() if source == "user"]
    lines = hyperparameters.without_effect(job.settings, given)
    if job.validation and "validation_split_ratio" in given:
        lines.append("validation_split_ratio has no effect: there is a validation channel")
    if "momentum" in given and job.task == "text" and job.settings.optimizer == "rmsprop":
        lines.append("momentum has no effect: rmsprop uses it for photos only")
    if "reinitialize_top_layer" in given:
        lines.append("reinitialize_top_layer has no effect: there is no earlier result to take a head from")
    for line in lines:
        log.warning(line)
    return lines


def _task(folders: Mapping[str, Path]) -> str:
    if "training" not in folders:
        raise UsageError(
            f"There is no training channel; received {listed(folders) or 'no channels'}. Give a folder of class "
            "folders or with data.csv: --training FOLDER, or the channel `training` on SageMaker."
        )
    return examples.task_of(folders["training"])


def _earlier_split(file: str | os.PathLike[str], folders: Mapping[str, Path]) -> dict[str, str]:
    if "validation" in folders:
        raise UsageError(f"--split {file}: there is a validation channel, so nothing is split. Give one of the two.")
    return examples.read_split(Path(file))


def _name(name: str | None, training: Path | None) -> str:
    if name is None:
        stem = re.sub(r"[^A-Za-z0-9-]+", "-", training.absolute().name if training else "").strip("-")
        return stem[:63] or "model"
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"--model-name: expected up to 63 letters, digits, hyphens, dots or underscores; received {name!r}"
        )
    return name
