"""Training: the epochs around the step, and the choice of the best of them.

The loop is our own because Keras's `fit` cannot drive every distribution strategy.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_finetune import devices, evaluation, features, report
from tf_finetune.classifier import Classifier
from tf_finetune.errors import TrainingError
from tf_finetune.features import Progress, Source
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.training import optimizers, solver, steps, trial
from tf_finetune.training.steps import Plan

log = logging.getLogger(__name__)

CHECK_EVERY = 20  # Steps between looks at the loss; each look waits for the device.


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
    """

    history: list[dict[str, Any]]
    best_epoch: int
    head: dict[str, Any] | None = None
    precision: str = "float32"
    held_out: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Standing:
    """The best epoch so far.

    Attributes:
        score: Its eval_metric.
        loss: Its val_loss in nats, which decides between equal scores.
        epoch: The epoch, from 1.
        reference: The score that early stopping compares with.
        improved_in: The last epoch that beat the reference by more than early_stopping_min_delta.
    """

    score: float = -math.inf
    loss: float = math.inf
    epoch: int = 0
    reference: float = -math.inf
    improved_in: int = 0

    def followed_by(self, score: float | None, loss: float | None, epoch: int, min_delta: float) -> Standing:
        """Returns the standing after one more epoch; without validation the last epoch is always the best."""
        if score is None or loss is None:
            return Standing(epoch=epoch, improved_in=epoch)
        improved = score - min_delta > self.reference
        reference, improved_in = (score, epoch) if improved else (self.reference, self.improved_in)
        if (score, -loss) > (self.score, -self.loss):
            return Standing(score, loss, epoch, reference, improved_in)
        return dataclasses.replace(self, reference=reference, improved_in=improved_in)


def fit(
    model: Classifier,
    training: Source,
    validation: Source | None,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    progress: Progress | None = None,
    precisions: Sequence[str] = ("float32",),
    remember: Callable[[str], None] | None = None,
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

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    plan = steps.plan_of(len(training), strategy.num_replicas_in_sync, settings)
    rates = optimizers.learning_rates(settings, plan.steps)
    with strategy.scope():
        optimizer = optimizers.make(settings, rates, model.backbone.task)
        optimizers.spare_from_decay(optimizer, model.trainable_variables)
        optimizer.build(model.trainable_variables)
    weights = steps.class_weights(training.labels, model.num_classes, settings)
    step = steps.make_step(model, optimizer, settings, strategy, weights, training.is_features)
    answer = steps.make_answer(model, validation.is_features) if validation else None
    batches = iter(strategy.distribute_datasets_from_function(lambda context: steps.stream(training, plan)))
    precision, batches = trial.fastest(step, batches, [*_all_variables(model), *optimizer.variables], precisions)
    if remember and len(precisions) > 1:
        remember(precision)
    history: list[dict[str, Any]] = []
    best, kept = Standing(), _weights(model)
    for epoch in range(1, plan.epochs + 1):
        with devices.rewriting(precision):
            loss, accuracy = _run_epoch(step, batches, plan, epoch, settings, progress)
        _average_statistics(model, strategy)
        _check_weights(model, epoch, settings)
        figures, score = _validate(answer, validation, settings, strategy)
        rate = float(rates(epoch * plan.steps_per_epoch - 1) if callable(rates) else rates)
        history.append({"epoch": epoch, "loss": loss, "accuracy": accuracy, **figures, "learning_rate": rate})
        log.info(report.metric_line(history[-1], plan.epochs))
        ahead = best.followed_by(score, figures["val_loss"], epoch, settings.early_stopping_min_delta)
        if ahead.epoch == epoch:
            kept = _weights(model)
        best = ahead
        if settings.early_stopping and epoch - best.improved_in >= settings.early_stopping_patience:
            log.info("early stopping: no better %s since epoch %d", settings.eval_metric, best.improved_in)
            break
    _set_weights(model, kept)
    return Fitted(history, best.epoch, precision=precision)


def solve(
    model: Classifier, training: Source, settings: Hyperparameters, progress: Progress | None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Gives the head its optimum on the features of training, and returns how it was found, for report.json, and
    `Fitted.held_out`.

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
    solved = solver.solve(
        training.rows,
        np.tile(training.labels, training.views),
        model.num_classes,
        np.tile(weights, training.views),
        np.tile(training.keys, training.views),
        model.is_binary,
        progress,
    )
    model.head.kernel.assign(solved.kernel)
    model.head.bias.assign(solved.bias)
    _check_weights(model, 1, settings)
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
) -> tuple[dict[str, Any], float | None]:
    """Returns val_loss in nats and val_accuracy, and eval_metric; None for each where there is no validation."""
    if validation is None or answer is None:
        return {"val_loss": None, "val_accuracy": None}, None
    given, labels = features.outputs(answer, validation, strategy), validation.labels
    loss, accuracy = evaluation.cross_entropy(given, labels), evaluation.score(given, labels, "accuracy")
    return {"val_loss": loss, "val_accuracy": accuracy}, evaluation.score(given, labels, settings.eval_metric)


def _run_epoch(
    step: Callable[..., tuple[tf.Tensor, ...]],
    batches: Any,
    plan: Plan,
    epoch: int,
    settings: Hyperparameters,
    progress: Progress | None,
) -> tuple[float, float]:
    """Returns the epoch's mean cross-entropy in nats and accuracy, each over its examples as they were trained on."""
    results: list[tuple[tf.Tensor, ...]] = []
    for number in range(1, plan.steps_per_epoch + 1):
        results.append(step(next(batches)))
        if number % CHECK_EVERY == 0 or number == plan.steps_per_epoch:
            _check_finite(results, number, epoch, settings)
            if progress:
                progress("training", (epoch - 1) * plan.steps_per_epoch + number, plan.steps)
    sizes = [min(plan.batch_size, plan.examples - first) for first in range(0, plan.examples, plan.batch_size)]
    values = np.array([[float(value) for value in result] for result in results])
    _, loss, accuracy = np.average(values, axis=0, weights=sizes)
    return float(loss), float(accuracy)


def _check_finite(results: list[tuple[tf.Tensor, ...]], number: int, epoch: int, settings: Hyperparameters) -> None:
    first = max(0, number - CHECK_EVERY)
    for place, result in enumerate(results[first:], start=first + 1):
        if not np.isfinite(float(result[0])):
            raise TrainingError(f"The loss became {float(result[0])} in epoch {epoch}, step {place}. {_cure(settings)}")


def _check_weights(model: Classifier, epoch: int, settings: Hyperparameters) -> None:
    """Stops when the epoch's last step, whose effect no loss has shown yet, spoilt the weights."""
    if not all(np.isfinite(variable.numpy()).all() for variable in model.head.variables):
        raise TrainingError(f"The weights became NaN or infinite in epoch {epoch}. {_cure(settings)}")


def _cure(settings: Hyperparameters) -> str:
    cures = [f"lower learning_rate (now {settings.learning_rate:g})", "give warmup_steps_fraction=0.1"]
    if settings.epsilon == 0:
        cures.insert(0, "give epsilon its default of 1e-07 (now 0)")
    if not settings.train_only_top_layer:
        cures.append("set train_only_top_layer=True")
    text = ", or ".join(cures)
    return text[0].upper() + text[1:] + "."


def _average_statistics(model: Classifier, strategy: tf.distribute.Strategy) -> None:
    """Gives all replicas the mean of what each assigned for itself in training: batch norm's moving statistics.

    Otherwise an example's answer would depend on the replica, and the first one's statistics alone be exported.
    """
    if strategy.num_replicas_in_sync == 1 or not model.backbone.trainable:
        return
    moved = [variable for variable in model.backbone.non_trainable_variables if variable.value.dtype.is_floating]
    copies = strategy.run(lambda: [tf.identity(variable.value) for variable in moved])
    for variable, copy in zip(moved, copies, strict=True):
        variable.assign(strategy.reduce("MEAN", copy, axis=None))


def _weights(model: Classifier) -> list[np.ndarray]:
    return [variable.numpy() for variable in _kept_variables(model)]


def _set_weights(model: Classifier, weights: list[np.ndarray]) -> None:
    for variable, value in zip(_kept_variables(model), weights, strict=True):
        variable.assign(value)


def _all_variables(model: Classifier) -> list[keras.Variable]:
    return [*model.backbone.variables, *model.head.variables]


def _kept_variables(model: Classifier) -> list[keras.Variable]:
    """Returns what an epoch changes; a trained backbone's moving statistics are among them."""
    return [*(model.backbone.variables if model.backbone.trainable else ()), *model.head.variables]
