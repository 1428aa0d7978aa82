"""The straight line from a job to a proven archive. `run` is its order; each stage is a module."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import (
    archive,
    backbone,
    catalog,
    classifier,
    devices,
    evaluation,
    examples,
    export,
    feature_cache,
    features,
    hyperparameters,
    images,
    job,
    packaged,
    results,
    storage,
    text,
    text_ops,
    training,
)
from tf_finetune.backbone import interface
from tf_finetune.classifier import Classifier
from tf_finetune.errors import ExportError
from tf_finetune.examples import Examples
from tf_finetune.features import Progress, Source, precision
from tf_finetune.features.frozen import Passes, Way
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.report.stopwatch import Stopwatch
from tf_finetune.training import steps

log = logging.getLogger(__name__)

SAMPLE = 32  # Examples on which 16 bits and scaled decoding are compared with the exact way.
MEDIA: Mapping[str, Any] = {"image": images, "text": text}  # The branch: modules of the same functions.


def run(planned: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Trains, proves and writes one model; returns the record that report.json holds.

    Raises:
        FinetuneError: Something the user can mend. Nothing is written then.
    """
    watch, settings, medium = Stopwatch(), planned.settings, MEDIA[planned.task]
    warnings = job.warn_of_settings_without_effect(planned)
    strategy = devices.strategy(planned.replicas)
    with watch.stage("data"):
        parts = read_parts(planned)
        hyperparameters.check_classes(settings.model_dump(), parts["training"].class_names)
    with watch.stage("backbone"), strategy.scope():
        model, preprocessing = build_model(planned, medium, len(parts["training"].class_names))
        passes = make_passes(planned, model, preprocessing, strategy, watch, progress)
    with medium.explaining_failures(parts.values(), preprocessing):
        with watch.stage("features"):
            sources, frozen, chosen = read_sources(parts, medium, preprocessing, passes, settings)
        fitted = fit(model, sources, frozen, settings, strategy, watch, progress)
        with watch.stage("evaluation"):
            answers = answer(parts, sources, model, strategy)
            figures = measure(parts, answers)
    check_accuracy(figures, planned)
    record = describe(planned, parts, fitted, figures, warnings)
    record |= account(parts, passes, chosen, settings)
    with results.stage(planned.destination) as staged:
        with watch.stage("export"), export.fresh_process() as process:
            record["parity"] = export_and_prove(
                process, staged, planned, medium, model, strategy, preprocessing, parts, answers
            )
        record["seconds"] = watch.total()
        record["job"]["training_seconds"] = record["seconds"]["total"]
        results.write_data(staged / "data", record, parts, answers)
        results.hand_over(staged, planned.destination)
    return record


def read_parts(planned: Job) -> dict[str, Examples]:
    """Returns the examples of training, and of validation and test where there are any."""
    everything = examples.read(planned.task, planned.training)
    names, numbers = everything.class_names, everything.number_names
    if planned.validation:
        parts = {
            "training": everything,
            "validation": examples.read(planned.task, planned.validation, names, "validation", numbers),
        }
    else:
        seed, ratio = planned.settings.random_seed, planned.settings.validation_split_ratio
        parts = dict(zip(("training", "validation"), examples.split(everything, ratio, seed), strict=True))
    if planned.test:
        parts["test"] = examples.read(planned.task, planned.test, names, "test", numbers)
    counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
    log.info("data: %d classes, examples: %s", len(names), counts)
    return {name: part for name, part in parts.items() if len(part)}


def build_model(planned: Job, medium: Any, num_classes: int) -> tuple[Classifier, Any]:
    """Returns a classifier with a new head, and how examples are prepared. Call it inside the strategy's scope."""
    settings, card = planned.settings, planned.card
    handle = card.handle if card else planned.handle
    preprocessor = settings.preprocessor or (card.preprocessor if card else None)
    folder = locate(handle, settings)
    has_chance = not settings.train_only_top_layer and text_ops.draws_at_random(folder)
    devices.make_deterministic(settings.random_seed, strictly=not has_chance)
    body = backbone.Backbone(
        folder,
        planned.task,
        trainable=not settings.train_only_top_layer,
        preprocessor=locate(preprocessor, settings) if preprocessor else None,
        max_sequence_length=None if handle.startswith(catalog.PACKAGED) else settings.max_sequence_length,
    )
    preprocessing = medium.plan(settings, card, planned.handle, interface.image_size(body.interface))
    size = body.feature_size(preprocessing.as_json().get("image_size"))
    return classifier.build(body, size, num_classes, settings), preprocessing


def locate(handle: str, settings: Hyperparameters) -> Path:
    """Returns the folder of the SavedModel that a handle names; it is made or fetched if need be."""
    cache = storage.cache_folder()
    if handle.startswith(catalog.PACKAGED):
        return packaged.make(handle.removeprefix(catalog.PACKAGED), cache, settings.max_sequence_length)
    return storage.resolve_backbone(handle, cache)


def make_passes(
    planned: Job,
    model: Classifier,
    preprocessing: Any,
    strategy: tf.distribute.Strategy,
    watch: Stopwatch,
    progress: Progress | None,
) -> Passes:
    """Returns the passes through the backbone as its SavedModel has it."""
    described = preprocessing.as_json()
    return Passes(
        model.backbone,
        model.head.kernel.shape[0],
        described.get("image_size"),
        strategy,
        planned.feature_cache,
        {"preprocessing": described, "max_sequence_length": model.backbone.max_sequence_length},
        planned.card.id if planned.card else planned.handle,
        preparing=lambda: watch.stage("backbone"),
        progress=progress,
    )


def read_sources(
    parts: Mapping[str, Examples], medium: Any, preprocessing: Any, passes: Passes, settings: Hyperparameters
) -> tuple[dict[str, Source], Source | None, dict[str, Any]]:
    """Returns the examples of each part as training reads them, training's features, and how those were computed.

    A frozen backbone's are features throughout. One that is trained reads examples themselves, and features only of
    training, from which the head that it starts with is solved.
    """
    raw = {name: features.source(part, medium.loader(part, preprocessing)) for name, part in parts.items()}
    if not settings.train_only_top_layer and settings.augmentation:
        load = medium.loader(parts["training"], preprocessing, settings)
        raw["training"] = dataclasses.replace(raw["training"], load=load)
    if not settings.train_only_top_layer and settings.optimizer != "auto":
        return raw, None, {"asked": settings.precision, "features": None}
    frozen, record = training_features(parts["training"], medium, preprocessing, passes, settings)
    if settings.train_only_top_layer:
        others = {name: passes.features(source) for name, source in raw.items() if name != "training"}
        raw = {"training": frozen, **others}
    feature_cache.evict(passes.place)
    return raw, frozen, record


def training_features(
    part: Examples, medium: Any, preprocessing: Any, passes: Passes, settings: Hyperparameters
) -> tuple[Source, dict[str, Any]]:
    """Returns the features that the head is fitted to, how they were computed, and what the report says of that."""
    # The first in the order of their digests: added examples hardly change the choice.
    sample = dataclasses.replace(part, items=part.items[:SAMPLE])

    def read(scaled: bool) -> Source:
        return features.source(sample, medium.loader(sample, preprocessing, scaled=scaled))

    way, record = precision.choose(
        passes,
        settings.precision,
        medium is images,
        len(part),
        read,
        lambda: medium.can_scale(sample, preprocessing),
    )
    distorted = settings.augmentation and settings.train_only_top_layer
    load = medium.loader(part, preprocessing, settings if distorted else None, scaled=way.scaled)
    source = features.source(part, load, settings.augmentation_views if distorted else 1)
    augmentation = None
    if distorted:
        names = [name for name in hyperparameters.NAMES if name.startswith("augmentation_")]
        augmentation = {name: getattr(settings, name) for name in ("random_seed", *names)}
    return passes.features(source, way, augmentation), record


def fit(
    model: Classifier,
    sources: Mapping[str, Source],
    frozen: Source | None,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    watch: Stopwatch,
    progress: Progress | None,
) -> training.Fitted:
    """Returns what training gave: a head that was solved, or epochs, with optimizer=auto from such a head."""
    examples_of = (sources["training"], sources.get("validation"))
    head = None
    if frozen is not None and settings.optimizer == "auto":
        with watch.stage("head"):
            if settings.train_only_top_layer:
                return training.fit_head(model, *examples_of, settings, strategy, progress)
            head = training.solve(model, frozen, settings, progress)
    with watch.stage("head" if settings.train_only_top_layer else "fine_tuning"):
        fitted = training.fit(model, *examples_of, settings, strategy, progress)
    return dataclasses.replace(fitted, head=head)


def answer(
    parts: Mapping[str, Examples],
    sources: Mapping[str, Source],
    model: Classifier,
    strategy: tf.distribute.Strategy,
) -> dict[str, np.ndarray]:
    """Returns float32 [N, K] for validation and test: the probabilities of each example's classes."""
    answers = {name: np.zeros([0, model.num_classes], np.float32) for name in ("validation", "test")}
    for name in set(answers) & set(parts):
        function = steps.make_answer(model, sources[name].is_features)
        answers[name] = features.outputs(function, sources[name], strategy)
    return answers


def measure(parts: Mapping[str, Examples], answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the figures of validation, None where it has no examples, and of test where there is one."""
    figures: dict[str, Any] = {"validation": None}
    for name, rows in answers.items():
        if name in parts:
            figures[name] = evaluation.metrics(rows, np.array(parts[name].labels), parts[name].class_names)
    return figures


def check_accuracy(figures: Mapping[str, Any], planned: Job) -> None:
    """Stops the job when validation accuracy is below min_accuracy.

    Raises:
        ExportError: It is, or there is nothing to measure it on.
    """
    least = planned.settings.min_accuracy
    accuracy = figures["validation"]["accuracy"] if figures["validation"] else None
    if least > 0 and (accuracy is None or accuracy < least):
        measured = "there are no validation examples" if accuracy is None else f"it is {accuracy:.4f}"
        raise ExportError(
            f"Expected a validation accuracy of at least min_accuracy={least:g}; {measured}. Nothing was exported."
        )


def describe(
    planned: Job,
    parts: Mapping[str, Examples],
    fitted: training.Fitted,
    figures: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """Returns the record of report.json, but for seconds and parity, which are known last."""
    parent = planned.card.id if planned.card else planned.handle
    artifact = planned.destination.archive or planned.destination.model_dir
    return {
        "task": planned.task,
        "backbone": parent,
        "class_names": list(parts["training"].class_names),
        "examples": {name: len(parts[name]) if name in parts else 0 for name in ("training", "validation", "test")},
        "hyperparameters": {**planned.settings.model_dump(), "backbone": planned.handle},
        "hyperparameter_sources": dict(planned.sources),
        "metrics": dict(figures),
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "head": fitted.head,
        "warnings": warnings,
        "job": {
            "parent_model": parent,
            "name": planned.name,
            "arn": planned.arn,
            "training_seconds": None,
            "model_artifact": str(artifact),
            "report": str(planned.destination.data / "report.html"),
        },
        "versions": export.versions(),
    }


def account(
    parts: Mapping[str, Examples], passes: Passes, chosen: dict[str, Any], settings: Hyperparameters
) -> dict[str, Any]:
    """Returns what the report says of the passes through the backbone: how many, and in which precision."""
    way = Way(chosen["features"] or "float32", bool(chosen.get("scaled_decoding")))
    calls, checks = passes.calls(way)
    if not settings.train_only_top_layer:  # Its epochs read every example.
        calls = len({example.digest for part in parts.values() for example in part.items})
    return {
        "backbone_calls": calls,
        "gate_calls": checks,
        "precision": chosen,
        "feature_cache": {"place": str(passes.place.folder) if passes.place.folder else None, "reused": passes.reused},
    }


def export_and_prove(
    process: Popen[str],
    staged: Path,
    planned: Job,
    medium: Any,
    model: Classifier,
    strategy: tf.distribute.Strategy,
    preprocessing: Any,
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
        on_cpu = model if devices.is_one_cpu(strategy) else classifier.twin(model, planned.settings)
        source = features.source(sample, medium.loader(sample, preprocessing))
        expected = features.outputs(steps.make_answer(on_cpu, False), source, tf.distribute.get_strategy())
        difference = None if given is None else export.check_accelerator(given, expected)
    serving = medium.serving_inputs(preprocessing)
    proved = write_model(staged, planned, on_cpu, serving, preprocessing.as_json(), parts["training"].class_names)
    log.info("proving the archive: a fresh process answers %d examples by it", len(sample))
    largest = export.check_parity(process, proved, medium.raw_inputs(sample), expected)
    return {"examples": len(sample), "largest_difference": largest, "accelerator_difference": difference}


def write_model(
    staged: Path,
    planned: Job,
    model: Classifier,
    serving: tuple[tf.TensorSpec, Any],
    preprocessing: Mapping[str, Any],
    class_names: Sequence[str],
) -> Path:
    """Writes the archive, or on SageMaker its unpacked folder, and returns its path."""
    folder = staged / "model"
    folder.mkdir()
    export.write_saved_model(folder / "1", model, *serving)
    description = {
        "task": planned.task,
        "backbone": planned.card.id if planned.card else planned.handle,
        "class_names": list(class_names),
        "binary_mode": model.is_binary,
        "signature": {"name": "serving_default", "input": serving[0].name, "output": "probabilities"},
        "custom_ops": text_ops.needed_ops(folder / "1"),
        "preprocessing": dict(preprocessing),
    }
    export.write_side_files(folder, class_names, description)
    if planned.destination.archive is None:
        return folder
    archive.pack(folder, staged / "model.tar.gz")
    shutil.rmtree(folder)
    return staged / "model.tar.gz"
