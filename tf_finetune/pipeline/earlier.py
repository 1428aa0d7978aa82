"""Going on from an earlier result: its head at its new place, and how its classes fare.

Dimension letters: D features, K classes, N examples.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import classifier, evaluation, features, hyperparameters, storage
from tf_finetune.backbone import interface, jumpstart
from tf_finetune.backbone.earlier import Head
from tf_finetune.classifier import Classifier
from tf_finetune.errors import BackboneError, HyperparameterError, listed
from tf_finetune.examples import Examples
from tf_finetune.features import Source
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.job.earlier import JUMPSTART, Earlier
from tf_finetune.training import Fitted, loop

log = logging.getLogger(__name__)

VERSION = 1  # Of how a model in JumpStart's layout is converted; a change makes what is cached void.
KEPT, IMPROVED, NEW = "kept as it was", "gone on with", "new"


@dataclasses.dataclass(frozen=True)
class Before:
    """What the earlier model answers to the validation examples of its own classes, before training changes it.

    Attributes:
        rows: float32 [N, K], in the order of its class names.
        labels: int [N], in [0, K).
        places: Of these examples among those of validation.
        weights: Of the model at the start, where it can answer for the whole job and so may stay; else None.
    """

    rows: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    weights: list[np.ndarray] | None


def ready(planned: Job, folder: Path) -> tuple[Path, Hyperparameters]:
    """Returns the folder of the SavedModel to load, and the settings by which examples are prepared for it.

    Args:
        planned: The job.
        folder: Of the SavedModel that its handle names.

    Raises:
        FinetuneError: A model in JumpStart's layout cannot be taken apart, or was trained on other pixels.
    """
    found, settings = planned.earlier, planned.settings
    if found is None:
        return folder, settings
    known = found.pixel_range
    if found.layout == JUMPSTART and (found.has_head or not _takes_pixels(folder, settings.trust_backbone)):
        folder = _converted(found, folder, settings.trust_backbone)
        known = jumpstart.pixel_range_of(folder)
    if known is None:
        return folder, settings
    if settings.pixel_range and tuple(map(float, settings.pixel_range.split(","))) != known:
        raise HyperparameterError(
            f"pixel_range: the earlier result {found.name} takes {known[0]:g},{known[1]:g}; received "
            f"{settings.pixel_range}. Leave it out."
        )
    return folder, settings.model_copy(update={"pixel_range": f"{known[0]!r},{known[1]!r}"})


def _takes_pixels(folder: Path, trusted: bool) -> bool:
    try:
        interface.read(interface.load_saved_model(folder, trusted), folder, "image")
    except BackboneError:
        return False
    return True


def _converted(found: Earlier, folder: Path, trusted: bool) -> Path:
    """Returns the folder of a backbone that was taken out of JumpStart's layout, from the cache if it lies there."""
    name = f"jumpstart-{VERSION}-{found.sha256}" + "-headless" * (not found.has_head)
    place = storage.cache_folder() / "backbones" / name
    if not storage.is_whole(place):
        with storage.written_aside(place) as aside:
            jumpstart.convert(folder, aside, found.output_key, found.has_head, trusted)
    return place


def keep_head(planned: Job, model: Classifier, class_names: Sequence[str]) -> None:
    """Gives the classifier the earlier result's head, where the job goes on with it; new classes start at zero.

    Args:
        planned: The job.
        model: Its head is assigned to.
        class_names: Of the classifier.

    Raises:
        BackboneError: The head does not fit its own class names or its backbone.
    """
    found, head = planned.earlier, model.backbone.head
    if found is None or not found.has_head:
        return
    size, units = model.head.kernel.shape[0], 1 if found.is_binary else len(found.class_names)
    if head is not None and found.layout == JUMPSTART and len(found.class_names) == 2:
        units = len(head.bias)  # Its files do not say which of the two it is.
    if head is None or head.kernel.shape != (size, units) or head.bias.shape != (units,):
        shape = "none" if head is None else f"{head.kernel.shape[0]} features and {len(head.bias)} units"
        raise BackboneError(
            f"the earlier result {found.name} is damaged: expected a head of {size} features and {units} units, for "
            f"{len(found.class_names)} classes; received {shape}. Fetch it anew."
        )
    if not planned.keeps_head:
        return
    placed = head.placed([class_names.index(name) for name in found.class_names], len(class_names))
    placed = placed.of_one_unit() if model.is_binary else placed
    model.head.kernel.assign(placed.kernel)
    model.head.bias.assign(placed.bias)
    added = [name for name in class_names if name not in found.class_names]
    log.info(
        "going on from %s: the head of its %d classes is kept%s",
        storage.redacted(planned.model_place),
        len(found.class_names),
        f", new: {listed(added)}" if added else "",
    )


def answers_before(
    planned: Job,
    model: Classifier,
    parts: Mapping[str, Examples],
    sources: Mapping[str, Source],
    strategy: tf.distribute.Strategy,
) -> Before | None:
    """Returns what the earlier model answers in validation; None where there is none, or nothing to ask it.

    Call it before training: that changes the backbone too, where it is trained whole.
    """
    found, head, part = planned.earlier, model.backbone.head, parts.get("validation")
    if found is None or not found.has_head or head is None or part is None:
        return None
    names = [part.class_names[label] for label in part.labels]
    places = np.array([place for place, name in enumerate(names) if name in found.class_names], np.int64)
    labels = np.array([found.class_names.index(names[place]) for place in places], np.int64)
    if not len(places):
        return None
    given = features.outputs(_answer(model, head, sources["validation"].is_features), sources["validation"], strategy)
    may_stay = planned.keeps_head and set(found.class_names) == set(part.class_names)
    return Before(given[places], labels, places, loop.weights(model) if may_stay else None)


def _answer(model: Classifier, head: Head, of_features: bool) -> Any:
    kernel, bias = tf.constant(head.kernel), tf.constant(head.bias)

    @tf.function(autograph=False)
    def answer(inputs: tf.Tensor) -> tf.Tensor:
        outputs = inputs if of_features else model.backbone(inputs, training=False)
        return classifier.probabilities(outputs @ kernel + bias)

    return answer


def stays(planned: Job, before: Before, part: Examples, rows: np.ndarray) -> bool:
    """Returns whether the earlier model is better in validation than what training made of it.

    A head that was solved is judged by its loss, one that was trained in epochs as these are: by eval_metric, and by
    the loss where that is equal.

    Args:
        planned: The job.
        before: What the earlier model answered.
        part: Validation.
        rows: float32 [N, K]. What the trained model answers there.
    """
    if before.weights is None or planned.earlier is None:
        return False
    old = before.rows[:, [planned.earlier.class_names.index(name) for name in part.class_names]]
    labels = np.array(part.labels)

    def rank(answers: np.ndarray) -> tuple[float, ...]:
        loss = -evaluation.cross_entropy(answers, labels)
        if hyperparameters.is_solved(planned.settings):
            return (loss,)
        return evaluation.score(answers, labels, planned.settings.eval_metric), loss

    return rank(old) > rank(rows)


def restored(model: Classifier, before: Before, fitted: Fitted) -> Fitted:
    """Gives the classifier the earlier model's weights again, and returns what training gave without a best epoch."""
    assert before.weights is not None
    log.info("the earlier model is better in validation than what training made of it: it is kept as it was")
    loop.set_weights(model, before.weights)
    return dataclasses.replace(fitted, best_epoch=0)


def describe(
    planned: Job,
    before: Before | None,
    fitted: Fitted,
    parts: Mapping[str, Examples],
    answers: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Returns what report.json says of the earlier result: `parent_model`, and `earlier`; None for both without one."""
    found = planned.earlier
    if found is None or not found.has_head:
        return {"parent_model": None, "earlier": None}
    names, here = parts["training"].class_names, {parts["training"].class_names[k] for k in parts["training"].labels}
    head = NEW if not planned.keeps_head else KEPT if fitted.best_epoch == 0 else IMPROVED
    return {
        "parent_model": {
            "layout": found.layout,
            "place": storage.redacted(planned.model_place),
            "sha256": found.sha256,
            "backbone": found.backbone or None,
            "class_names": list(found.class_names),
            "validation": dict(found.validation) if found.validation else None,
        },
        "earlier": {
            "head": head,
            "added": [name for name in names if name not in found.class_names],
            "missing": [name for name in found.class_names if name not in here],
            "caution": _caution(planned, found),
            "fared": _fared(found, before, parts, answers),
        },
    }


def _fared(
    found: Earlier, before: Before | None, parts: Mapping[str, Examples], answers: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Returns the figures of the earlier classes in validation, by the earlier model and by the new one."""
    if before is None:
        return None
    part, now = parts["validation"], answers["validation"][before.places]
    true = np.array(part.labels)[before.places]
    right = {"before": before.rows.argmax(axis=1) == before.labels, "after": now.argmax(axis=1) == true}
    losses = {
        "before": evaluation.cross_entropy(before.rows, before.labels),
        "after": evaluation.cross_entropy(now, true),
    }
    per_class = {}
    for label, name in enumerate(found.class_names):
        own = before.labels == label
        recalls = {moment: float(hits[own].mean()) if own.any() else None for moment, hits in right.items()}
        per_class[name] = {"support": int(own.sum()), **recalls}
    figures = {moment: {"accuracy": float(hits.mean()), "loss": losses[moment]} for moment, hits in right.items()}
    log.info(
        "the earlier classes in validation: accuracy %.4f by the earlier model, %.4f now",
        figures["before"]["accuracy"],
        figures["after"]["accuracy"],
    )
    return {"examples": len(true), **figures, "per_class": per_class}


def _caution(planned: Job, found: Earlier) -> str | None:
    """Returns why the earlier model's figures may flatter it, if they may."""
    settings, split = planned.settings, found.split or {}
    if planned.earlier_split is not None:
        return None  # The user has seen to it.
    if planned.validation is not None:
        same = split.get("has_channel") is True
    else:
        rule = (split.get("random_seed"), split.get("validation_split_ratio"), split.get("has_channel"))
        same = rule == (settings.random_seed, settings.validation_split_ratio, False)
    if same:
        return None
    return (
        "the earlier result was not validated on the same split, as far as it says, so it may have been trained on "
        "some of these examples: its figures may flatter it"
    )
