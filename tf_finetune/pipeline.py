"""The straight line from a job to a proven archive. `run` is its order; each stage is a module."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import (
    archive,
    backbone,
    classifier,
    devices,
    evaluation,
    examples,
    export,
    features,
    images,
    job,
    packaged,
    results,
    storage,
    training,
)
from tf_finetune.backbone import interface
from tf_finetune.classifier import Classifier
from tf_finetune.errors import ExportError
from tf_finetune.examples import Examples
from tf_finetune.features import Progress, Source
from tf_finetune.job import Job
from tf_finetune.training import steps

log = logging.getLogger(__name__)

STAGES = ("data", "backbone", "features", "head", "fine_tuning", "evaluation", "export")


class Stopwatch:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the body's time to a stage."""
        start = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - start

    def total(self) -> dict[str, float]:
        """Returns the seconds of each stage, and those since the start."""
        return {
            "total": round(time.monotonic() - self.started, 3),
            **{name: round(value, 3) for name, value in self.seconds.items()},
        }


def run(task: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Trains, proves and writes one model; returns the record that report.json holds.

    Raises:
        FinetuneError: Something the user can mend. Nothing is written then.
    """
    watch, settings = Stopwatch(), task.settings
    warnings = job.warn_of_settings_without_effect(task)
    devices.make_deterministic(settings.random_seed)
    strategy = devices.strategy(task.replicas)
    with watch.stage("data"):
        parts = read_parts(task)
    with watch.stage("backbone"), strategy.scope():
        body = backbone.Backbone(locate_backbone(task), "image", trainable=not settings.train_only_top_layer)
        preprocessing = plan_preprocessing(task, body)
        size = body.feature_size(preprocessing.image_size)
        model = classifier.build(body, size, len(parts["training"].class_names), settings)
    with named_photos(parts, preprocessing):
        sources = {name: features.source(part, images.loader(part, preprocessing)) for name, part in parts.items()}
        if settings.train_only_top_layer and not settings.augmentation:
            with watch.stage("features"):
                sources = compute_features(sources, body, strategy, task, progress)
            through_backbone, stage = False, "head"
        else:
            augmented = images.loader(parts["training"], preprocessing, settings)
            sources["training"] = dataclasses.replace(sources["training"], load=augmented)
            through_backbone, stage = True, "fine_tuning"
        with watch.stage(stage):
            fitted = training.fit(
                model, sources["training"], sources.get("validation"), settings, strategy, through_backbone, progress
            )
        with watch.stage("evaluation"):
            answers = answer_all(model, sources, strategy, task, through_backbone)
    figures: dict[str, Any] = {
        name: evaluation.metrics(answers[name], sources[name].labels, parts["training"].class_names)
        for name in ("validation", "test")
        if name in answers
    }
    check_accuracy(figures, task)
    record = describe(task, parts, fitted, figures, warnings, size)
    with results.stage(task.destination) as staged:
        with watch.stage("export"):
            difference = export_model(staged, task, model, preprocessing, parts, answers)
        record["parity"] = {"examples": len(gate_inputs(parts)[1]), "largest_difference": difference}
        record["seconds"] = watch.total()
        record["job"]["training_seconds"] = record["seconds"]["total"]
        results.write_data(staged / "data", record, parts, answers)
        results.hand_over(staged, task.destination)
    return record


def read_parts(task: Job) -> dict[str, Examples]:
    """Returns the examples of training, and of validation and test where there are any."""
    everything = examples.read_class_folders(task.training)
    names = everything.class_names
    if task.validation:
        parts = {
            "training": everything,
            "validation": examples.read_class_folders(task.validation, names, "validation"),
        }
    else:
        seed, ratio = task.settings.random_seed, task.settings.validation_split_ratio
        parts = dict(zip(("training", "validation"), examples.split(everything, ratio, seed), strict=True))
    if task.test:
        parts["test"] = examples.read_class_folders(task.test, names, "test")
    counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
    log.info("data: %d classes, examples: %s", len(names), counts)
    return {name: part for name, part in parts.items() if len(part)}


def locate_backbone(task: Job) -> Path:
    """Returns the folder of the backbone's SavedModel, which is made or fetched if need be."""
    handle = task.card.handle if task.card else task.handle
    cache = storage.cache_folder()
    if handle.startswith("packaged:"):
        return packaged.make(handle.removeprefix("packaged:"), cache)
    return storage.resolve_backbone(handle, cache)


def plan_preprocessing(task: Job, body: backbone.Backbone) -> images.Preprocessing:
    """Returns how photos are prepared: the user's word first, then the SavedModel's and the card's."""
    settings = task.settings
    fixed = interface.image_size(body.interface)
    interface.check_image_size(settings.image_size, fixed, body.saved_model)
    size = settings.image_size or fixed or (task.card.image_size if task.card else None) or images.DEFAULT_SIZE
    if settings.pixel_range:
        low, high = (float(value) for value in settings.pixel_range.split(","))
    elif task.card and task.card.pixel_range:
        low, high = task.card.pixel_range
    else:
        low, high = 0.0, 1.0
        note = f" ({task.card.note})" if task.card and task.card.note else ""
        log.warning("pixel range of %s is not known: 0,1 is taken; say otherwise with pixel_range%s", task.handle, note)
    return images.Preprocessing(size, (low, high), settings.image_resize_interpolation)


@contextlib.contextmanager
def named_photos(parts: Mapping[str, Examples], preprocessing: images.Preprocessing) -> Iterator[None]:
    """Turns a decoder's failure, which names no file, into a message that does."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError):
        images.check_readable(list(parts.values()), preprocessing)
        raise


def compute_features(
    sources: Mapping[str, Source], body: backbone.Backbone, strategy: Any, task: Job, progress: Progress | None
) -> dict[str, Source]:
    """Returns the sources with each example replaced by its features, by one pass through the frozen backbone."""
    batch_size = task.settings.batch_size
    return {
        name: features.of_features(source, features.compute(body, source, strategy, batch_size, progress))
        for name, source in sources.items()
    }


def answer_all(
    model: Classifier, sources: Mapping[str, Source], strategy: Any, task: Job, through_backbone: bool
) -> dict[str, np.ndarray]:
    """Returns float32 [N, K] for validation and test, or for training where there is no validation."""
    answer = steps.make_answer(model, through_backbone)
    wanted = [name for name in ("validation", "test") if name in sources] or ["training"]
    return {name: features.outputs(answer, sources[name], strategy, task.settings.batch_size) for name in wanted}


def check_accuracy(figures: Mapping[str, Any], task: Job) -> None:
    """Stops the job when validation accuracy is below min_accuracy.

    Raises:
        ExportError: It is, or there is nothing to measure it on.
    """
    least = task.settings.min_accuracy
    accuracy = figures["validation"]["accuracy"] if "validation" in figures else None
    if least > 0 and (accuracy is None or accuracy < least):
        measured = "there are no validation examples" if accuracy is None else f"it is {accuracy:.4f}"
        raise ExportError(
            f"Expected a validation accuracy of at least min_accuracy={least:g}; {measured}. Nothing was exported."
        )


def gate_inputs(parts: Mapping[str, Examples]) -> tuple[str, list[int]]:
    """Returns the part that the parity gate asks about, and the indices of its examples."""
    name = "validation" if "validation" in parts else "training"
    return name, export.gate_sample(len(parts[name]))


def describe(
    task: Job,
    parts: Mapping[str, Examples],
    fitted: training.Fitted,
    figures: Mapping[str, Any],
    warnings: list[str],
    feature_size: int,
) -> dict[str, Any]:
    """Returns the record of report.json, but for seconds and parity, which are known last."""
    parent = task.card.id if task.card else task.handle
    artifact = task.destination.archive or task.destination.model_dir
    calls = {example.digest for part in parts.values() for example in part.items}
    return {
        "task": "image",
        "backbone": parent,
        "feature_size": feature_size,
        "class_names": list(parts["training"].class_names),
        "examples": {name: len(parts[name]) if name in parts else 0 for name in ("training", "validation", "test")},
        "hyperparameters": {**task.settings.model_dump(), "backbone": task.handle},
        "hyperparameter_sources": dict(task.sources),
        "metrics": {
            "validation": figures.get("validation"),
            **({"test": figures["test"]} if "test" in figures else {}),
        },
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "backbone_calls": len(calls),
        "gate_calls": 0,
        "warnings": warnings,
        "job": {
            "parent_model": parent,
            "name": task.name,
            "arn": task.arn,
            "training_seconds": None,
            "model_artifact": str(artifact),
            "report": str(task.destination.data / "report.html"),
        },
        "versions": export.versions(),
    }


def export_model(
    staged: Path,
    task: Job,
    model: Classifier,
    preprocessing: images.Preprocessing,
    parts: Mapping[str, Examples],
    answers: Mapping[str, np.ndarray],
) -> float:
    """Writes staged/model on SageMaker, else staged/model.tar.gz; returns the parity gate's largest difference."""
    spec, prepare = images.serving_inputs(preprocessing)
    folder = staged / "model"
    folder.mkdir()
    export.write_saved_model(folder / "1", model, spec, prepare)
    description = {
        "task": "image",
        "backbone": task.card.id if task.card else task.handle,
        "class_names": list(parts["training"].class_names),
        "binary_mode": model.is_binary,
        "signature": {"name": "serving_default", "input": spec.name, "output": "probabilities"},
        "preprocessing": preprocessing.as_json(),
    }
    export.write_side_files(folder, parts["training"].class_names, description)
    proved = folder
    if task.destination.archive:
        proved = staged / "model.tar.gz"
        archive.pack(folder, proved)
        shutil.rmtree(folder)
    name, indices = gate_inputs(parts)
    files = [str(parts[name].items[index].path.absolute()) for index in indices]
    return export.check_parity(proved, {"files": files}, answers[name][indices])
