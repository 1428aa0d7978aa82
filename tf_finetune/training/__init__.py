"""Training: a head that is solved, or epochs of steps; what a classifier and its examples need for either."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import evaluation, features, report
from tf_finetune.classifier import Classifier
from tf_finetune.features import Progress, Source, sharing
from tf_finetune.hosts.team import ALONE, Team
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.training import loop, optimizers, solver, steps, trial
from tf_finetune.training.loop import Course, Place, Watched

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What training gave; the classifier holds the best epoch's weights.

    Attributes:
        history: One record per epoch, as report.json holds it.
        best_epoch: The epoch whose weights were kept, from 1.
        head: How the head was solved, as report.json holds it; None where it was not.
        precision: Of the steps.
        held_out: float32 [N, K]. For each training example the probabilities by a head that was fitted without it; rows
            of NaN where there is none. None where no head was cross-validated.
        ended_early: The reason why not all epochs were trained, apart from early stopping; empty otherwise.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    head: dict[str, Any] | None = None
    precision: str = "float32"
    held_out: np.ndarray | None = None
    ended_early: str = ""


def fit(
    model: Classifier,
    training: Source,
    validation: Source | None,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    progress: Progress | None = None,
    precisions: Sequence[str] = ("float32",),
    remember: Callable[[str], None] | None = None,
    watched: Watched = loop.UNWATCHED,
    team: Team = ALONE,
) -> Fitted:
    """Trains a classifier and leaves it with the weights of its best epoch by eval_metric on validation.

    Args:
        model: Made inside the strategy's scope.
        training: What is trained on: photos, or their features.
        validation: What is validated on; None when there is nothing, then the last epoch is kept.
        settings: The hyperparameters.
        strategy: Where the model lives.
        progress: Told the stage, the steps done and the steps in all.
        precisions: Those that the steps may be computed in; of several the fastest is taken. Weights, updates and
            validation are float32 in any case.
        remember: Told which that was.
        watched: Checkpoints, and what may end the training early.
        team: The hosts over which the strategy's replicas are spread; all call this alike, with the same examples.

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    plan = steps.plan_of(len(training), strategy.num_replicas_in_sync, settings)
    rates = optimizers.learning_rates(settings, plan.steps)
    with strategy.scope():
        optimizer = optimizers.make(settings, rates, model.backbone.task)
        optimizers.spare_from_decay(optimizer, model.trainable_variables)
        optimizer.build(model.trainable_variables)
    by_class = steps.class_weights(training.labels, model.num_classes, settings)
    step = steps.make_step(model, optimizer, settings, strategy, by_class, training.is_features)
    answer = steps.make_answer(model, validation.is_features) if validation else None
    course = Course(
        model,
        optimizer,
        step,
        plan,
        rates,
        lambda: _validate(answer, validation, settings, strategy, team),
        settings,
        strategy,
        watched,
        team,
        progress,
    )
    place = loop.resumed(course)
    first = place.step if place else 0
    batches = iter(
        strategy.distribute_datasets_from_function(
            lambda context: steps.stream(training, plan, first, context.input_pipeline_id, context.num_input_pipelines)
        )
    )
    if place is None:
        precision, batches = trial.fastest(step, batches, loop.changed(course), precisions, team)
        if remember and len(precisions) > 1:
            remember(precision)
        place = Place(kept=loop.weights(model), precision=precision)
    place, reason = loop.run(course, batches, place)
    loop.set_weights(model, place.kept)
    return Fitted(list(place.history), place.standing.epoch, precision=place.precision, ended_early=reason)


def solve(
    model: Classifier, training: Source, settings: Hyperparameters, progress: Progress | None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Gives the head its optimum on the features of training, and returns how it was found, for report.json, and
    `Fitted.held_out`. A head that is not zero comes from an earlier result, and the penalty draws towards it.

    Args:
        model: Its head is assigned to.
        training: Features.
        settings: `class_weight` is used.
        progress: Told the stage, the strengths done and all.

    Raises:
        TrainingError: The weights are no numbers.
    """
    assert training.rows is not None
    weights = steps.class_weights(training.labels, model.num_classes, settings)[training.labels]
    start = (model.head.kernel.numpy(), model.head.bias.numpy())
    solved = solver.solve(
        training.rows,
        np.tile(training.labels, training.views),
        model.num_classes,
        np.tile(weights, training.views),
        np.tile(training.keys, training.views),
        model.is_binary,
        progress,
        start if any(part.any() for part in start) else None,
    )
    model.head.kernel.assign(solved.kernel)
    model.head.bias.assign(solved.bias)
    loop.check_weights(model, 1, settings)
    chosen = f", the best of {len(solved.path)} in {solved.folds} folds" * bool(solved.folds)
    log.info("the head was solved by L-BFGS: L2 strength %.3g%s; %d iterations", solved.l2, chosen, solved.iterations)
    record = {
        "method": "L-BFGS",
        "l2": solved.l2,
        "folds": solved.folds,
        "iterations": solved.iterations,
        "path": solved.path,
    }
    held_out = solved.held_out
    if held_out is not None:  # The views of one example are held out together.
        held_out = held_out.reshape(training.views, len(training), -1).mean(axis=0)
    return record, held_out


def fit_head(
    model: Classifier,
    training: Source,
    validation: Source | None,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    progress: Progress | None = None,
) -> Fitted:
    """Solves the head of a frozen backbone, in place of `fit`; its history has the one entry of the optimum."""
    head, held_out = solve(model, training, settings, progress)
    answer = steps.make_answer(model, of_features=True)
    given = features.outputs(answer, training, strategy)
    labels = np.tile(training.labels, training.views)
    loss, accuracy = evaluation.cross_entropy(given, labels), evaluation.score(given, labels, "accuracy")
    figures, _ = _validate(answer if validation else None, validation, settings, strategy)
    record = {"epoch": 1, "loss": loss, "accuracy": accuracy, **figures, "learning_rate": None}
    log.info(report.metric_line(record, 1))
    return Fitted([record], 1, head, held_out=held_out)


def _validate(
    answer: Callable[[tf.Tensor], tf.Tensor] | None,
    validation: Source | None,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    team: Team = ALONE,
) -> tuple[dict[str, Any], float | None]:
    """Returns val_loss in nats and val_accuracy, and eval_metric; None for each where there is no validation."""
    if validation is None or answer is None:
        return {"val_loss": None, "val_accuracy": None}, None
    given, labels = sharing.outputs(answer, validation, strategy, team), validation.labels
    found: Any = None
    if team.is_chief:  # Which has the answers of all.
        loss, accuracy = evaluation.cross_entropy(given, labels), evaluation.score(given, labels, "accuracy")
        found = {"val_loss": loss, "val_accuracy": accuracy}, evaluation.score(given, labels, settings.eval_metric)
    figures, score = team.told("validation", found)
    return figures, score
