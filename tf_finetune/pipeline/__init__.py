"""The straight line from a job to a proven archive. `run` is its order; each stage is a module."""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import (
    classifier,
    devices,
    evaluation,
    export,
    feature_cache,
    features,
    hyperparameters,
    images,
    job,
    results,
    text,
    training,
)
from tf_finetune.classifier import Classifier
from tf_finetune.errors import ExportError
from tf_finetune.evaluation import calibration
from tf_finetune.examples import Examples
from tf_finetune.features import Progress, Source
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.pipeline import data, doubts, earlier, inputs, proof, watching
from tf_finetune.pipeline import record as records
from tf_finetune.report.stopwatch import Stopwatch
from tf_finetune.training import steps

log = logging.getLogger(__name__)

MEDIA: Mapping[str, Any] = {"image": images, "text": text}  # The branch: modules of the same functions.


def run(planned: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Trains, proves and writes one model; returns the record that report.json holds.

    Raises:
        FinetuneError: Something the user can mend. Nothing is written then.
    """
    named = job.told_as_given(planned.places, planned.folders)
    with named, tempfile.TemporaryDirectory(prefix="tf-finetune-") as scratch:
        return _run(planned, Path(scratch), progress)


def _run(planned: Job, scratch: Path, progress: Progress | None) -> dict[str, Any]:
    watch, settings, medium = Stopwatch(), planned.settings, MEDIA[planned.task]
    warnings = job.warn_of_settings_without_effect(planned)
    strategy = devices.strategy(planned.replicas)
    with watch.stage("data"):
        found = data.read(planned, scratch)
        parts = found.parts
        warnings += found.warnings
        hyperparameters.check_classes(settings.model_dump(), parts["training"].class_names)
    with watch.stage("backbone"), strategy.scope():
        model, preprocessing = inputs.build_model(planned, medium, parts["training"].class_names)
        count = sum(map(len, parts.values()))
        passes = inputs.make_passes(planned, model, preprocessing, count, strategy, watch, progress)
    with medium.explaining_failures(parts.values(), preprocessing):
        with watch.stage("features"):
            try:
                read = inputs.read_sources(parts, medium, preprocessing, passes, settings)
            except tf.errors.InvalidArgumentError:  # A photo that Pillow decodes and TensorFlow does not.
                broken = medium.undecodable(parts.values(), preprocessing)
                if not broken:  # It failed for another reason, and would again.
                    raise
                found = data.without(found, broken, settings)
                parts = found.parts
                read = inputs.read_sources(parts, medium, preprocessing, passes, settings)
            feature_cache.evict(passes.place)
        with watch.stage("data"):
            found = data.with_alike_features(found, passes.place)
        replicas = strategy.num_replicas_in_sync
        best = functools.partial(proof.write_folder, planned, medium, preprocessing, parts["training"].class_names)
        before = earlier.answers_before(planned, model, parts, read.sources, strategy)
        with watching.watched(planned, parts, passes, replicas, watch.started, best) as watched:
            fitted = fit(model, read, settings, strategy, watch, progress, watched)
        with watch.stage("evaluation"):
            fitted, answers = settle(planned, before, fitted, parts, read.sources, model, strategy)
            answers, calibrated = calibrate(answers, found, model, settings)
            figures = measure(parts, answers)
    check_accuracy(figures, planned)
    doubtful, suspects = doubts.doubtful_labels(parts, out_of_sample(parts, fitted, answers))
    record = records.describe(planned, parts, fitted, figures, warnings) | records.account(
        parts, passes, read.precision, fitted, settings
    )
    record |= {"calibration": calibrated, "data": data.describe(found), "ended_early": fitted.ended_early or None}
    record |= earlier.describe(planned, before, fitted, parts, answers)
    record |= records.shown_doubts(parts, answers, doubtful[:suspects])
    with results.stage(planned.destination) as staged:
        with watch.stage("export"), export.fresh_process() as process:
            record["parity"] = proof.export_and_prove(
                process, staged, planned, medium, model, strategy, preprocessing, parts, answers, figures
            )
        record["seconds"] = watch.total()
        record["job"]["training_seconds"] = record["seconds"]["total"]
        pictured = doubts.photos_of([*record["mistakes"], *record["label_errors"]], parts)
        results.write_data(staged / "data", record, parts, answers, pictured)
        results.write_lists(staged / "data", data.manifest(found), found.seen.unusable, doubtful)
        results.hand_over(staged, planned.destination)
    return record


def fit(
    model: Classifier,
    read: inputs.Read,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    watch: Stopwatch,
    progress: Progress | None,
    watched: training.Watched,
) -> training.Fitted:
    """Returns what training gave: a head that was solved, or epochs, with optimizer=auto from such a head."""
    examples_of = (read.sources["training"], read.sources.get("validation"))
    head, held_out = None, None
    if read.frozen is not None and settings.optimizer == "auto":
        with watch.stage("head"):
            if settings.train_only_top_layer:
                return training.fit_head(model, *examples_of, settings, strategy, progress)
            head, held_out = training.solve(model, read.frozen, settings, progress)
    with watch.stage("head" if settings.train_only_top_layer else "fine_tuning"):
        fitted = training.fit(
            model, *examples_of, settings, strategy, progress, read.precisions, read.remember, watched
        )
    return dataclasses.replace(fitted, head=head, held_out=held_out)


def settle(
    planned: Job,
    before: earlier.Before | None,
    fitted: training.Fitted,
    parts: Mapping[str, Examples],
    sources: Mapping[str, Source],
    model: Classifier,
    strategy: tf.distribute.Strategy,
) -> tuple[training.Fitted, dict[str, np.ndarray]]:
    """Returns what training gave, and the model's answers: the earlier model's, where that is the better one."""
    answers = answer(parts, sources, model, strategy)
    if before is None or not earlier.stays(planned, before, parts["validation"], answers["validation"]):
        return fitted, answers
    fitted = earlier.restored(model, before, fitted)
    return fitted, answer(parts, sources, model, strategy)


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


def calibrate(
    answers: dict[str, np.ndarray], found: data.Data, model: Classifier, settings: Hyperparameters
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Fits the head's confidence to validation, and returns the answers by it, and what report.json says of it."""
    parts, groups = found.parts, found.seen.groups
    if not settings.calibrate or "validation" not in parts:
        return answers, None
    validation = parts["validation"]
    keys = np.array([int(groups.get(one.digest, one.digest)[:15], 16) for one in validation.items])
    fitted = calibration.fit(answers["validation"], np.array(validation.labels), keys)
    if fitted.applied:
        classifier.calibrate(model, fitted.temperature)
        answers = {name: calibration.apply(rows, fitted.temperature) for name, rows in answers.items()}
    log.info("calibration: temperature %.3g (%s)", fitted.temperature, fitted.reason)
    return answers, fitted.as_json()


def out_of_sample(
    parts: Mapping[str, Examples], fitted: training.Fitted, answers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns float32 [N, K] of the parts that have probabilities by a model that was not fitted to the example."""
    found = {name: rows for name, rows in answers.items() if name in parts}
    return found if fitted.held_out is None else {"training": fitted.held_out, **found}


def measure(parts: Mapping[str, Examples], answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the figures of validation, None where it has no examples, and of test where there is one."""
    figures: dict[str, Any] = {"validation": None}
    commonest = int(np.bincount(parts["training"].labels).argmax())
    for name, rows in answers.items():
        if name in parts:
            figures[name] = evaluation.metrics(rows, np.array(parts[name].labels), parts[name].class_names, commonest)
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
