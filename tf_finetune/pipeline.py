"""The straight line from a job to a proven archive. `run` is its order; each stage is a module."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
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
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.report.stopwatch import Stopwatch
from tf_finetune.training import steps

log = logging.getLogger(__name__)


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
        model, preprocessing = build_model(task, len(parts["training"].class_names))
    with images.naming_broken_photos(parts.values(), preprocessing):
        with watch.stage("features"):
            sources = read_sources(parts, preprocessing, model, strategy, settings, progress)
        with watch.stage("head" if settings.train_only_top_layer else "fine_tuning"):
            fitted = training.fit(model, sources["training"], sources.get("validation"), settings, strategy, progress)
        with watch.stage("evaluation"):
            answers = answer(parts, sources, model, strategy, settings)
            figures = measure(parts, answers)
    check_accuracy(figures, task)
    record = describe(task, parts, fitted, figures, warnings)
    with results.stage(task.destination) as staged:
        with watch.stage("export"):
            record["parity"] = export_and_prove(staged, task, model, strategy, preprocessing, parts, answers)
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


def build_model(task: Job, num_classes: int) -> tuple[Classifier, images.Preprocessing]:
    """Returns a classifier with a new head, and how its photos are prepared. Call it inside the strategy's scope."""
    body = backbone.Backbone(locate_backbone(task), "image", trainable=not task.settings.train_only_top_layer)
    preprocessing = plan_preprocessing(task, body)
    size = body.feature_size(preprocessing.image_size)
    return classifier.build(body, size, num_classes, task.settings), preprocessing


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


def read_sources(
    parts: Mapping[str, Examples],
    preprocessing: images.Preprocessing,
    model: Classifier,
    strategy: tf.distribute.Strategy,
    settings: Hyperparameters,
    progress: Progress | None,
) -> dict[str, Source]:
    """Returns the examples of each part as training reads them: features of a frozen backbone, else photos.

    Training photos that are augmented differ in each epoch, so they stay photos.
    """
    sources = {name: features.source(part, images.loader(part, preprocessing)) for name, part in parts.items()}
    if settings.augmentation:
        load = images.loader(parts["training"], preprocessing, settings)
        sources["training"] = dataclasses.replace(sources["training"], load=load)
    if not settings.train_only_top_layer:
        return sources
    return {
        name: source
        if name == "training" and settings.augmentation
        else features.compute(model.backbone, source, strategy, settings.batch_size, progress)
        for name, source in sources.items()
    }


def answer(
    parts: Mapping[str, Examples],
    sources: Mapping[str, Source],
    model: Classifier,
    strategy: tf.distribute.Strategy,
    settings: Hyperparameters,
) -> dict[str, np.ndarray]:
    """Returns float32 [N, K] for validation and test: the probabilities of each example's classes."""
    answers = {name: np.zeros([0, model.num_classes], np.float32) for name in ("validation", "test")}
    for name in set(answers) & set(parts):
        function = steps.make_answer(model, sources[name].is_features)
        answers[name] = features.outputs(function, sources[name], strategy, settings.batch_size)
    return answers


def measure(parts: Mapping[str, Examples], answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the figures of validation, None where it has no examples, and of test where there is one."""
    figures: dict[str, Any] = {"validation": None}
    for name, rows in answers.items():
        if name in parts:
            figures[name] = evaluation.metrics(rows, np.array(parts[name].labels), parts[name].class_names)
    return figures


def check_accuracy(figures: Mapping[str, Any], task: Job) -> None:
    """Stops the job when validation accuracy is below min_accuracy.

    Raises:
        ExportError: It is, or there is nothing to measure it on.
    """
    least = task.settings.min_accuracy
    accuracy = figures["validation"]["accuracy"] if figures["validation"] else None
    if least > 0 and (accuracy is None or accuracy < least):
        measured = "there are no validation examples" if accuracy is None else f"it is {accuracy:.4f}"
        raise ExportError(
            f"Expected a validation accuracy of at least min_accuracy={least:g}; {measured}. Nothing was exported."
        )


def describe(
    task: Job,
    parts: Mapping[str, Examples],
    fitted: training.Fitted,
    figures: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """Returns the record of report.json, but for seconds and parity, which are known last."""
    parent = task.card.id if task.card else task.handle
    artifact = task.destination.archive or task.destination.model_dir
    calls = {example.digest for part in parts.values() for example in part.items}
    return {
        "task": "image",
        "backbone": parent,
        "class_names": list(parts["training"].class_names),
        "examples": {name: len(parts[name]) if name in parts else 0 for name in ("training", "validation", "test")},
        "hyperparameters": {**task.settings.model_dump(), "backbone": task.handle},
        "hyperparameter_sources": dict(task.sources),
        "metrics": dict(figures),
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


def export_and_prove(
    staged: Path,
    task: Job,
    model: Classifier,
    strategy: tf.distribute.Strategy,
    preprocessing: images.Preprocessing,
    parts: Mapping[str, Examples],
    answers: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Writes the model and puts it through the parity gate.

    Returns:
        examples, the number asked; largest_difference of a probability; accelerator_difference, the same between the
        devices that trained and the CPU in float32, or None where that is what trained.
    """
    name = "validation" if "validation" in parts else "training"
    sample, rows = export.gate_sample(parts[name])
    given = answers[name][rows] if name in answers else None
    if given is not None and devices.is_one_cpu(strategy):
        on_cpu, expected, difference = model, given, None
    else:
        on_cpu = model if devices.is_one_cpu(strategy) else classifier.twin(model, task.settings)
        source = features.source(sample, images.loader(sample, preprocessing))
        expected = features.outputs(steps.make_answer(on_cpu, False), source, tf.distribute.get_strategy(), len(sample))
        difference = None if given is None else export.check_accelerator(given, expected)
    proved = write_model(staged, task, on_cpu, preprocessing, parts["training"].class_names)
    files = [str(example.path.absolute()) for example in sample.items]
    log.info("proving the archive: a fresh process answers %d examples by it", len(sample))
    largest = export.check_parity(proved, {"files": files}, expected)
    return {"examples": len(sample), "largest_difference": largest, "accelerator_difference": difference}


def write_model(
    staged: Path, task: Job, model: Classifier, preprocessing: images.Preprocessing, class_names: Sequence[str]
) -> Path:
    """Writes the archive, or on SageMaker its unpacked folder, and returns its path."""
    spec, prepare = images.serving_inputs(preprocessing)
    folder = staged / "model"
    folder.mkdir()
    export.write_saved_model(folder / "1", model, spec, prepare)
    description = {
        "task": "image",
        "backbone": task.card.id if task.card else task.handle,
        "class_names": list(class_names),
        "binary_mode": model.is_binary,
        "signature": {"name": "serving_default", "input": spec.name, "output": "probabilities"},
        "preprocessing": preprocessing.as_json(),
    }
    export.write_side_files(folder, class_names, description)
    if task.destination.archive is None:
        return folder
    archive.pack(folder, staged / "model.tar.gz")
    shutil.rmtree(folder)
    return staged / "model.tar.gz"
