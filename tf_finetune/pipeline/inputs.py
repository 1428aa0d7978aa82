"""What a job starts from: its examples, its classifier, and the examples as training reads them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_finetune import (
    backbone,
    catalog,
    classifier,
    devices,
    features,
    hyperparameters,
    images,
    packaged,
    storage,
    text_ops,
)
from tf_finetune.backbone import interface
from tf_finetune.classifier import Classifier
from tf_finetune.examples import Examples
from tf_finetune.features import Progress, Source, precision, sharing
from tf_finetune.features.frozen import EXACT, LARGE, Passes, SpoiltError, Way
from tf_finetune.hosts.team import Team
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.pipeline import earlier
from tf_finetune.report.stopwatch import Stopwatch
from tf_finetune.training import steps

log = logging.getLogger(__name__)

SAMPLE = 32  # Examples on which 16 bits and scaled decoding are compared with the exact way.


@dataclasses.dataclass(frozen=True)
class Read:
    """The examples as training and evaluation read them.

    Attributes:
        sources: Of each part: features of a frozen backbone, else what the backbone takes.
        frozen: Features of training that a head can be solved on, or None where none is.
        precision: What report.json says of how features were computed, and why a whole network is trained as it is.
        precisions: Those that the steps of a training may be computed in; the fastest is taken.
        remember: Told which that was.
    """

    sources: Mapping[str, Source]
    frozen: Source | None
    precision: dict[str, Any]
    precisions: tuple[str, ...] = ("float32",)
    remember: Callable[[str], None] | None = None


def build_model(planned: Job, medium: Any, class_names: Sequence[str]) -> tuple[Classifier, Any]:
    """Returns a classifier with a new head or an earlier result's, and how examples are prepared.

    Call it inside the strategy's scope.
    """
    settings, card = planned.settings, planned.card
    handle = card.handle if card else planned.handle
    preprocessor = settings.preprocessor or (card.preprocessor if card else None)
    folder, settings = earlier.ready(planned, locate(handle, settings, planned.task))
    has_chance = not settings.train_only_top_layer and text_ops.draws_at_random(folder)
    devices.make_deterministic(settings.random_seed, strictly=not has_chance)
    body = backbone.Backbone(
        folder,
        planned.task,
        trainable=not settings.train_only_top_layer,
        trusted=settings.trust_backbone,
        preprocessor=locate(preprocessor, settings, planned.task) if preprocessor else None,
        max_sequence_length=None if handle.startswith(catalog.PACKAGED) else settings.max_sequence_length,
    )
    preprocessing = medium.plan(settings, card, planned.handle, interface.image_size(body.interface))
    size = body.feature_size(preprocessing.as_json().get("image_size"))
    model = classifier.build(body, size, len(class_names), settings)
    earlier.keep_head(planned, model, class_names)
    return model, preprocessing


def locate(handle: str, settings: Hyperparameters, task: str) -> Path:
    """Returns the folder of the SavedModel that a handle names; it is made or fetched if need be."""
    cache = storage.cache_folder()
    if handle.startswith(catalog.PACKAGED):
        return packaged.make(handle.removeprefix(catalog.PACKAGED), cache, settings.max_sequence_length)
    return storage.resolve_backbone(handle, cache, task)


def make_passes(
    planned: Job,
    model: Classifier,
    preprocessing: Any,
    count: int,
    strategy: tf.distribute.Strategy,
    watch: Stopwatch,
    progress: Progress | None,
    team: Team,
) -> Passes:
    """Returns the passes of `count` examples in all through the backbone as its SavedModel has it."""
    described = preprocessing.as_json()
    # Decided by the whole job, not by what is still to do: constants round otherwise, and a job that was killed gives
    # the same weights as one that was not. Text encoders gain nothing by it.
    in_16_bits = planned.settings.precision in ("bfloat16", "float16")
    as_constants = in_16_bits or (planned.task == "image" and count >= LARGE)
    return Passes(
        model.backbone,
        model.head.kernel.shape[0],
        described.get("image_size"),
        strategy,
        planned.feature_cache,
        {"preprocessing": described, "max_sequence_length": model.backbone.max_sequence_length},
        planned.backbone,
        as_constants=as_constants,
        preparing=lambda: watch.stage("backbone"),
        progress=progress,
        team=team,
    )


def read_sources(
    parts: Mapping[str, Examples], medium: Any, preprocessing: Any, passes: Passes, settings: Hyperparameters
) -> Read:
    """Returns the examples of each part as training reads them, and how training computes.

    A frozen backbone's are features throughout. One that is trained reads examples themselves, and features only of
    training, from which the head that it starts with is solved.
    """
    raw = {name: features.source(part, medium.loader(part, preprocessing)) for name, part in parts.items()}
    frozen, record = None, {"asked": settings.precision, "features": None}
    if settings.train_only_top_layer or settings.optimizer == "auto":
        frozen, record = training_features(parts["training"], medium, preprocessing, passes, settings)
    if settings.train_only_top_layer and frozen is not None:
        others = {name: passes.features(source) for name, source in raw.items() if name != "training"}
        return Read({"training": frozen, **others}, frozen, record)
    if settings.augmentation:
        load = medium.loader(parts["training"], preprocessing, settings)
        raw["training"] = dataclasses.replace(raw["training"], load=load)
    plan = steps.plan_of(len(parts["training"]), passes.strategy.num_replicas_in_sync, settings)
    read = sampled(parts["training"], medium, preprocessing)
    precisions, reason = sharing.decided(
        passes.team,
        "precisions of steps",
        lambda: precision.for_fine_tuning(passes, settings.precision, plan.steps, plan.batch_size, read),
    )
    remember = functools.partial(precision.keep_fastest, passes, plan.batch_size)
    return Read(raw, frozen, {**record, "fine_tuning_reason": reason}, tuple(precisions), remember)


def training_features(
    part: Examples, medium: Any, preprocessing: Any, passes: Passes, settings: Hyperparameters
) -> tuple[Source, dict[str, Any]]:
    """Returns the features that the head is fitted to, and what the report says of how they were computed."""
    read = sampled(part, medium, preprocessing)

    def choose() -> tuple[dict[str, Any], dict[str, Any]]:
        can_scale = functools.partial(medium.can_scale, first_of(part), preprocessing)
        chosen = precision.choose(passes, settings.precision, medium is images, len(part), read, can_scale)
        return dataclasses.asdict(chosen[0]), chosen[1]

    way, record = sharing.decided(passes.team, "way of computing features", choose)
    distorted = settings.augmentation and settings.train_only_top_layer
    augmentation = None
    if distorted:
        names = [name for name in hyperparameters.NAMES if name.startswith("augmentation_random")]
        augmentation = {name: getattr(settings, name) for name in ("random_seed", *names)}

    def computed(way: Way) -> Source:
        load = medium.loader(part, preprocessing, settings if distorted else None, scaled=way.scaled)
        source = features.source(part, load, settings.augmentation_views if distorted else 1)
        return passes.features(source, way, augmentation)

    try:
        return computed(Way(**way)), record
    except SpoiltError as error:
        record = precision.take_back(passes, Way(**way), read, record, str(error))
    return computed(EXACT), record


def first_of(part: Examples) -> Examples:
    """Returns a sample: the first in the order of their digests, which added examples hardly change."""
    return dataclasses.replace(part, items=part.items[:SAMPLE])


def sampled(part: Examples, medium: Any, preprocessing: Any) -> Callable[[bool], Source]:
    """Returns the function that reads the sample of a part, at a smaller scale where it is asked to."""
    sample = first_of(part)
    return lambda scaled: features.source(sample, medium.loader(sample, preprocessing, scaled=scaled))
