"""The straight line from a job to a proven archive. `run` is its order; each stage is a module."""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tf_finetune import (
    classifier,
    evaluation,
    export,
    feature_cache,
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
from tf_finetune.features import Progress, Source, sharing
from tf_finetune.features.frozen import Passes
from tf_finetune.hosts.team import Team, joined
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.pipeline import data, doubts, earlier, inputs, proof, together, watching
from tf_finetune.pipeline import record as records
from tf_finetune.report.stopwatch import Stopwatch
from tf_finetune.training import steps

log = logging.getLogger(__name__)

MEDIA: Mapping[str, Any] = {"image": images, "text": text}  # The branch: modules of the same functions.


def run(
    planned: Job, progress: Progress | None = None, ended: Callable[[str], Any] = together.end_process
) -> dict[str, Any]:
    """Trains, proves and writes one model; returns the record that report.json holds.

    Args:
        planned: The job. Where it has several hosts, all of them call this, and the first one writes.
        progress: Told the stage, the examples or steps done and all.
        ended: Given the message when another host is lost; it is to end the process.

    Raises:
        FinetuneError: Something the user can mend. Nothing is written then.
    """
    with (
        job.told_as_given(planned.places, planned.copies),
        tempfile.TemporaryDirectory(prefix="tf-finetune-") as scratch,
        joined(planned.cluster, together.ending(ended, scratch), together.settings_of(planned)) as team,
        together.explaining_losses(team),
    ):
        return _run(planned, Path(scratch), team, progress)


def _run(planned: Job, scratch: Path, team: Team, progress: Progress | None) -> dict[str, Any]:
    watch, settings, medium = Stopwatch(), planned.settings, MEDIA[planned.task]
    warnings = job.warn_of_settings_without_effect(planned)
    strategy = together.strategy(planned)
    crew = together.crew_of(team, strategy)
    with watch.stage("data"):
        found = data.read(planned, scratch)
        together.check_data(team, found)
        parts = found.parts
        warnings += found.warnings
        hyperparameters.check_classes(settings.model_dump(), parts["training"].class_names)
    with watch.stage("backbone"), strategy.scope():
        model, preprocessing = inputs.build_model(planned, medium, parts["training"].class_names)
        count = sum(map(len, parts.values()))
        passes = inputs.make_passes(planned, model, preprocessing, count, strategy, watch, progress, team)
        together.check_backbone(team, passes)
    with medium.explaining_failures(parts.values(), preprocessing):
        with watch.stage("features"):
            found, read = read_features(found, medium, preprocessing, passes, settings)
            parts = found.parts
            feature_cache.evict(passes.place)
        if not team.is_chief and crew.count == 1:
            return together.result(team)
        with watch.stage("data"):
            found = data.with_alike_features(found, passes.place)
        replicas = strategy.num_replicas_in_sync
        best = functools.partial(proof.write_folder, planned, medium, preprocessing, parts["training"].class_names)
        before = earlier.answers_before(planned, model, parts, read.sources, strategy)
        with watching.watched(planned, parts, passes, crew, replicas, watch.started, best) as watched:
            fitted = fit(model, read, settings, strategy, watch, progress, watched, crew)
        with watch.stage("evaluation"):
            fitted, answers = settle(planned, before, fitted, parts, read.sources, model, strategy, crew)
            model = together.own_model(crew, model, planned)
            if not team.is_chief:
                return together.result(team)
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
    return cast(dict[str, Any], team.told("result", record))


def read_features(
    found: data.Data, medium: Any, preprocessing: Any, passes: Passes, settings: Hyperparameters
) -> tuple[data.Data, inputs.Read]:
    """Returns the examples that can be read, and them as training reads them."""
    try:
        return found, inputs.read_sources(found.parts, medium, preprocessing, passes, settings)
    except tf.errors.InvalidArgumentError:  # A photo that Pillow decodes and TensorFlow does not.
        broken = medium.undecodable(found.parts.values(), preprocessing)
        if not broken:  # It failed for another reason, and would again.
            raise
    found = data.without(found, broken, settings)
    return found, inputs.read_sources(found.parts, medium, preprocessing, passes, settings)


def fit(
    model: Classifier,
    read: inputs.Read,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    watch: Stopwatch,
    progress: Progress | None,
    watched: training.Watched,
    crew: Team,
) -> training.Fitted:
    """Returns what training gave: a head that was solved, or epochs, with optimizer=auto from such a head."""
    examples_of = (read.sources["training"], read.sources.get("validation"))
    head, held_out = None, None
    if read.frozen is not None and settings.optimizer == "auto":
        with watch.stage("head"):
            if settings.train_only_top_layer:
                return training.fit_head(model, *examples_of, settings, strategy, progress)
            if crew.is_chief:
                head, held_out = training.solve(model, read.frozen, settings, progress)
            together.share_head(crew, model)
    with watch.stage("head" if settings.train_only_top_layer else "fine_tuning"):
        fitted = training.fit(
            model, *examples_of, settings, strategy, progress, read.precisions, read.remember, watched, crew
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
    crew: Team,
) -> tuple[training.Fitted, dict[str, np.ndarray]]:
    """Returns what training gave, and the model's answers: the earlier model's, where that is the better one."""
    answers = answer(parts, sources, model, strategy, crew)
    if before is None:
        return fitted, answers
    is_better = crew.is_chief and earlier.stays(planned, before, parts["validation"], answers["validation"])
    if not crew.told("whether the earlier model stays", is_better):
        return fitted, answers
    fitted = earlier.restored(model, before, fitted)
    return fitted, answer(parts, sources, model, strategy, crew)


def answer(
    parts: Mapping[str, Examples],
    sources: Mapping[str, Source],
    model: Classifier,
    strategy: tf.distribute.Strategy,
    crew: Team,
) -> dict[str, np.ndarray]:
    """Returns float32 [N, K] for validation and test: the probabilities of each example's classes, on the chief."""
    answers = {name: np.zeros([0, model.num_classes], np.float32) for name in ("validation", "test")}
    for name in set(answers) & set(parts):
        function = steps.make_answer(model, sources[name].is_features)
        answers[name] = sharing.outputs(function, sources[name], strategy, crew)
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
