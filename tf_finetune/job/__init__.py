"""What a job is asked to do, checked as far as that goes without TensorFlow, with all problems at once."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tf_finetune import catalog, examples, feature_cache, hyperparameters, s3, storage
from tf_finetune.errors import FinetuneError, UsageError, collector, combined, listed
from tf_finetune.feature_cache import Place
from tf_finetune.hosts import Cluster
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import backbones, earlier
from tf_finetune.job.channels import Progress, brought, located, told_as_given
from tf_finetune.job.destination import Destination, check_checkpoints, check_remote, find
from tf_finetune.job.earlier import Earlier

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
        sources: Where each came from: "user", "earlier", "card" or "default".
        destination: Where results go.
        name: The job's name.
        arn: The training job's ARN on SageMaker.
        replicas: Devices to train on; None for all GPUs or one CPU.
        feature_cache: Where the features of a frozen backbone are kept between jobs.
        checkpoints: Folder from which a training goes on that was interrupted, or None.
        earlier: The earlier result that the handle names, or None where it names a backbone.
        split: The split.csv that the user gave back, as they named it, or None.
        earlier_split: The side of each digest, as the split.csv has it that the user gave back; None without one.
        places: Where each channel lies, as the user named it: a path, or a location in S3.
        cluster: The hosts that do the job together; None where there is but this one.
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
    earlier: Earlier | None = None
    split: str | None = None
    earlier_split: Mapping[str, str] | None = None
    checkpoints: Path | None = None
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cluster: Cluster | None = None

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each channel on this machine."""
        held = {"training": self.training, "validation": self.validation, "test": self.test}
        return {channel: folder for channel, folder in held.items() if folder}

    @property
    def copies(self) -> dict[str, Path]:
        """What messages of the job may name on this machine, by channel; `places` has what the user named."""
        is_channel = "model" in self.places and self.model_place != self.handle
        return {**self.folders, **({"model": Path(self.handle)} if is_channel else {})}

    @property
    def model_place(self) -> str:
        """What names the backbone or the earlier result, as the user wrote it where it is a channel in S3."""
        given = self.places.get("model", "")
        return given if s3.is_s3(given) and self.sources["backbone"] != "user" else self.handle

    @property
    def backbone(self) -> str:
        """What the backbone is called: its id or handle, and of an earlier result that which it was made from."""
        made_from = self.earlier.backbone if self.earlier else ""
        return made_from or (self.card.id if self.card else storage.redacted(self.model_place))

    @property
    def keeps_head(self) -> bool:
        """Whether training begins with the head of an earlier result."""
        return bool(self.earlier and self.earlier.has_head and self.settings.reinitialize_top_layer != "True")


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
    output_kms_key: str | None = None,
    region: str | None = None,
    progress: Progress | None = None,
    meanwhile: Callable[[], None] | None = None,
    cluster: Cluster | None = None,
) -> Job:
    """Returns the job, or every reason why it cannot be done.

    Args:
        channels: Folder or s3:// location of each: training, and if wanted validation, test and model.
        given: The user's hyperparameters, typed or as text.
        output: Results go to output/name/output/; a folder or s3://BUCKET/PREFIX.
        name: The job's name; by default that of the training folder.
        sagemaker_output: Model and data folder on SageMaker, used instead when there is no `output`.
        replicas: Devices to train on.
        arn: The training job's ARN.
        cache_dir: Where features are kept, "none" for nowhere; None for the cache folder.
        feature_folder: On SageMaker the folder for features where no other was named.
        checkpoints: Folder from which a training goes on that was interrupted.
        split: The split.csv of an earlier job, here or in S3, whose examples stay where they were.
        output_kms_key: With which S3 encrypts the results.
        region: The job's Region on SageMaker, in which all buckets must be; None for buckets anywhere.
        progress: Is called with a stage, objects done and objects in all, while channels are fetched.
        meanwhile: Is called while channels are fetched.
        cluster: The hosts that do the job together.

    Raises:
        FinetuneError: Names all that is wrong.
    """
    problems: list[FinetuneError] = []
    tried = collector(problems)
    places = tried(lambda: located(channels, str(next(iter(_of_backbone(given).values()), ""))))
    name = tried(lambda: _name(name, (places or {}).get("training")))
    destination = tried(
        lambda: find(output, name or "model", sagemaker_output, (places or {}).values(), output_kms_key)
    )
    tried(lambda: check_checkpoints(checkpoints))
    if replicas is not None and replicas < 1:
        problems.append(UsageError(f"--replicas: expected an integer of 1 or more; received {replicas}"))
    kept = tried(lambda: feature_cache.place(cache_dir, feature_folder, storage.cache_folder()))
    is_remote = any(map(s3.is_s3, (places or {}).values()))
    earlier_split = tried(lambda: _earlier_split(split, places or {})) if split else None
    if is_remote:
        tried(lambda: hyperparameters.parse(given))
        tried(lambda: _check_local(places or {}, given))
    if destination and not problems:
        tried(lambda: check_remote(destination, region))
    if is_remote and problems:  # Told before anything is fetched.
        raise combined(problems)
    folders = brought(places or {}, storage.cache_folder(), region, progress, meanwhile)
    with told_as_given(places or {}, folders):
        known = _understood(folders, given, tried, lambda: not problems, is_complete=places is not None)
        if problems or known is None or destination is None or name is None or kept is None:
            raise combined(problems)
    return Job(
        task=known.task,
        training=folders["training"],
        validation=folders.get("validation"),
        test=folders.get("test"),
        handle=known.handle,
        card=known.card,
        settings=known.settings,
        sources=known.sources,
        destination=destination,
        name=name,
        arn=arn,
        replicas=replicas,
        feature_cache=kept,
        earlier=known.earlier,
        split=os.fspath(split) if split else None,
        earlier_split=earlier_split,
        checkpoints=Path(checkpoints).absolute() if checkpoints else None,
        places=places or {},
        cluster=cluster,
    )


@dataclasses.dataclass(frozen=True)
class _Understood:
    """What the data and the hyperparameters of a job say, as `Job` holds it."""

    task: str
    handle: str
    card: catalog.Card | None
    earlier: Earlier | None
    settings: Hyperparameters
    sources: Mapping[str, str]


def _understood(
    folders: Mapping[str, Path],
    given: Mapping[str, object],
    tried: Callable[[Callable[[], Any]], Any],
    is_well: Callable[[], bool],
    is_complete: bool,
) -> _Understood | None:
    """Returns what the data and the hyperparameters say, or None where something is wrong with them.

    Args:
        folders: Of each channel.
        given: As `plan` takes it.
        tried: Collects what is wrong; what cannot be told is None.
        is_well: Whether nothing is wrong so far, so that a remote backbone may be fetched.
        is_complete: Whether these are all channels, so that one that is missing is told.
    """
    task = tried(lambda: _task(folders)) if folders or is_complete else None
    values = tried(lambda: hyperparameters.parse(given, task))
    classes = tried(lambda: examples.check(task, folders["training"])) if task else None
    asked = _of_backbone(given)
    handle = tried(lambda: backbones.handle_of(hyperparameters.parse(asked), folders.get("model"), task or "image"))
    card = tried(lambda: backbones.card_of(handle, task)) if handle else None
    going_on = tried(lambda: backbones.earlier_of(handle, task or "image", is_well())) if handle else None
    kept = going_on if (values or {}).get(earlier.REINITIALIZE) != "True" else None
    if handle and values is not None:
        tried(lambda: earlier.check(going_on, handle, task, values))
    classes = list(earlier.union(kept, classes)) if classes else None
    if values and classes:
        tried(lambda: hyperparameters.check_classes(values, classes))
    for other in [channel for channel in ("validation", "test") if channel in folders]:
        tried(functools.partial(examples.check, task or "image", folders[other], other, classes))
    if task is None or values is None or handle is None:
        return None
    settings, sources = earlier.resolved(values, card, going_on, task, classes if kept else None)
    return _Understood(task, handle, card, going_on, settings, sources)


def _of_backbone(given: Mapping[str, object]) -> dict[str, object]:
    """Returns the hyperparameter that names the backbone, in whatever spelling, if it was given."""
    return {key: value for key, value in given.items() if hyperparameters.canonical(key) == "backbone"}


def warn_of_settings_without_effect(job: Job) -> list[str]:
    """Logs and returns a line for each setting that the user gave and that changes nothing in this job."""
    given = [name for name, source in job.sources.items() if source == "user"]
    lines = hyperparameters.without_effect(job.settings, given)
    if job.validation and "validation_split_ratio" in given:
        lines.append("validation_split_ratio has no effect: there is a validation channel")
    if "momentum" in given and job.task == "text" and job.settings.optimizer == "rmsprop":
        lines.append("momentum has no effect: rmsprop uses it for photos only")
    if "reinitialize_top_layer" in given and not (job.earlier and job.earlier.has_head):
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


def _check_local(places: Mapping[str, str], given: Mapping[str, object]) -> None:
    """Looks at what needs nothing of what lies in S3, so that it is told before that is fetched."""
    for channel, place in places.items():
        if not s3.is_s3(place) and not os.path.exists(place):
            raise UsageError(f"{channel} channel {place}: there is no such file or folder. Check the path.")
    named = _of_backbone(given)
    if named:
        backbones.handle_of(hyperparameters.parse(named), None, "image")


def _earlier_split(file: str | os.PathLike[str], places: Mapping[str, str]) -> dict[str, str]:
    if "validation" in places:
        raise UsageError(f"--split {file}: there is a validation channel, so nothing is split. Give one of the two.")
    copy = Path(s3.local(file, storage.cache_folder()))
    with told_as_given({"split": os.fspath(file)}, {"split": copy}):
        return examples.read_split(copy)


def _name(name: str | None, training: str | None) -> str:
    if name is None:
        last = s3.parse(training or "").name if s3.is_s3(training) else Path(training or "").absolute().name
        stem = re.sub(r"[^A-Za-z0-9-]+", "-", last if training else "").strip("-")
        return stem[:63] or "model"
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"--model-name: expected up to 63 letters, digits, hyphens, dots or underscores; received {name!r}"
        )
    return name
