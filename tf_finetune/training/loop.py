"""The epochs around the step: validation, the best of them, checkpoints, and the ways to end early.

The loop is our own because Keras's `fit` cannot drive every distribution strategy.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_finetune import devices, report
from tf_finetune.classifier import Classifier
from tf_finetune.errors import TrainingError
from tf_finetune.features import Progress
from tf_finetune.hosts.team import Team
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.training.checkpoints import Keeper
from tf_finetune.training.steps import Plan

log = logging.getLogger(__name__)

CHECK_EVERY = 20  # Steps between looks at the loss; each look waits for the device.
Arrays = list[np.ndarray]


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


@dataclasses.dataclass(frozen=True)
class Place:
    """How far a training has come.

    Attributes:
        step: Steps done.
        results: Of the steps of an epoch that is not done: objective, cross-entropy and hits of each.
        history: One record per epoch.
        standing: The best epoch so far.
        kept: Its weights.
        precision: Of the steps; empty before it is chosen.
    """

    kept: Arrays
    step: int = 0
    results: tuple[tuple[float, ...], ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    standing: Standing = Standing()
    precision: str = ""


@dataclasses.dataclass(frozen=True)
class Watched:
    """What watches over a training.

    Attributes:
        keeper: Where checkpoints go; of several hosts only the first has such a place.
        stop: Gives the reason to end early, or nothing; asked after each step.
        improved: Given the model after an epoch that was the best so far.
    """

    keeper: Keeper = dataclasses.field(default_factory=Keeper)
    stop: Callable[[], str] = str
    improved: Callable[[Classifier], None] = lambda model: None


UNWATCHED = Watched()


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training goes by.

    Attributes:
        model: What is trained.
        optimizer: By what.
        step: Updates the weights by one batch.
        plan: Of the steps.
        rates: The learning rate, or a schedule of the step.
        validate: Gives val_loss, val_accuracy and eval_metric of the weights of now; None for each without validation.
        settings: The hyperparameters.
        strategy: Where the model lives.
        watched: What watches over it.
        team: The hosts. What a clock, a signal or a local file says on the first of them counts for all: a host that
            went another way than the others would leave them waiting.
        progress: Told the stage, the steps done and all.
    """

    model: Classifier
    optimizer: keras.optimizers.Optimizer
    step: Callable[..., tuple[tf.Tensor, ...]]
    plan: Plan
    rates: Any
    validate: Callable[[], tuple[dict[str, Any], float | None]]
    settings: Hyperparameters
    strategy: tf.distribute.Strategy
    watched: Watched
    team: Team
    progress: Progress | None


def resumed(course: Course) -> Place | None:
    """Returns where an earlier run of the same job stood, having taken up its weights; None where there was none."""
    saved = course.watched.keeper.latest()
    told = course.team.told("checkpoint", saved and [saved.state, saved.arrays])
    if told is None:
        return None
    state, arrays = told
    for variable, value in zip(changed(course), arrays["weights"], strict=True):
        variable.assign(value)
    place = Place(
        kept=list(arrays["kept"]),
        step=state["step"],
        results=tuple(map(tuple, state["results"])),
        history=tuple(state["history"]),
        standing=Standing(**state["standing"]),
        precision=state["precision"],
    )
    log.info("going on at step %d of %d, from a checkpoint", place.step, course.plan.steps)
    return place


def run(course: Course, batches: Iterator[Any], place: Place) -> tuple[Place, str]:
    """Trains to the last epoch, or until there is a reason to end early, and returns where it stands and the reason."""
    plan, settings = course.plan, course.settings
    for epoch in range(place.step // plan.steps_per_epoch + 1, plan.epochs + 1):
        if _is_no_better(place, settings):
            log.info("early stopping: no better %s since epoch %d", settings.eval_metric, place.standing.improved_in)
            break
        with devices.rewriting(place.precision):
            results, reason = _run_epoch(course, batches, epoch, place)
        loss, accuracy = _means(results, plan)
        _average_statistics(course.model, course.strategy)
        check_weights(course.model, epoch, settings)
        figures, score = course.validate()
        done = (epoch - 1) * plan.steps_per_epoch + len(results)
        rate = float(course.rates(done - 1) if callable(course.rates) else course.rates)
        entry = {"epoch": epoch, "loss": loss, "accuracy": accuracy, **figures, "learning_rate": rate}
        log.info(report.metric_line(entry, plan.epochs))
        ahead = place.standing.followed_by(score, figures["val_loss"], epoch, settings.early_stopping_min_delta)
        is_best = ahead.epoch == epoch
        kept = weights(course.model) if is_best else place.kept
        place = Place(kept, done, (), (*place.history, entry), ahead, place.precision)
        if is_best:
            course.watched.improved(course.model)
        if reason:
            log.info("training ends in epoch %d: %s", epoch, reason)
            return place, reason
        _save(course, place)
    return place, ""


def _is_no_better(place: Place, settings: Hyperparameters) -> bool:
    """Returns whether early stopping ends the training here; asked between epochs."""
    waited = len(place.history) - place.standing.improved_in
    return settings.early_stopping and bool(place.history) and waited >= settings.early_stopping_patience


def _run_epoch(course: Course, batches: Iterator[Any], epoch: int, place: Place) -> tuple[list[Any], str]:
    """Returns the results of an epoch's steps, and the reason why it ended early, if it did."""
    plan = course.plan
    results: list[Any] = list(place.results)
    while len(results) < plan.steps_per_epoch:
        results.append(course.step(next(batches)))
        number = len(results)
        if number % CHECK_EVERY == 0 or number == plan.steps_per_epoch:
            _check_finite(results, number, epoch, course.settings)
            if course.progress:
                course.progress("training", (epoch - 1) * plan.steps_per_epoch + number, plan.steps)
        reason, is_due = course.team.told("step", (course.watched.stop(), course.watched.keeper.is_due()))
        if number < plan.steps_per_epoch and (reason or is_due):
            done = (epoch - 1) * plan.steps_per_epoch + number
            _save(course, dataclasses.replace(place, step=done, results=tuple(map(_floats, results))))
        if reason:
            return results, reason
    return results, ""


def _save(course: Course, place: Place) -> None:
    state = {name: value for name, value in dataclasses.asdict(place).items() if name != "kept"}
    arrays = {"weights": [variable.numpy() for variable in changed(course)], "kept": place.kept}
    course.watched.keeper.save(place.step, state, arrays)


def changed(course: Course) -> list[keras.Variable]:
    """Returns all that a step changes, which is what a checkpoint holds: of a frozen backbone nothing."""
    return [*_kept_variables(course.model), *course.optimizer.variables]


def _means(results: Sequence[Any], plan: Plan) -> tuple[float, float]:
    """Returns the mean cross-entropy in nats and the accuracy of an epoch's steps, as its examples were trained on."""
    sizes = [min(plan.batch_size, plan.examples - first) for first in range(0, plan.examples, plan.batch_size)]
    values = np.array([_floats(result) for result in results])
    _, loss, accuracy = np.average(values, axis=0, weights=sizes[: len(results)])
    return float(loss), float(accuracy)


def _floats(result: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in result)


def _check_finite(results: Sequence[Any], number: int, epoch: int, settings: Hyperparameters) -> None:
    first = max(0, number - CHECK_EVERY)
    for place, result in enumerate(results[first:], start=first + 1):
        if not np.isfinite(float(result[0])):
            raise TrainingError(f"The loss became {float(result[0])} in epoch {epoch}, step {place}. {_cure(settings)}")


def check_weights(model: Classifier, epoch: int, settings: Hyperparameters) -> None:
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


def weights(model: Classifier) -> Arrays:
    """Returns what training changes; a trained backbone's moving statistics are among them."""
    return [variable.numpy() for variable in _kept_variables(model)]


def set_weights(model: Classifier, values: Arrays) -> None:
    """Takes up what `weights` gave."""
    for variable, value in zip(_kept_variables(model), values, strict=True):
        variable.assign(value)


def _kept_variables(model: Classifier) -> list[keras.Variable]:
    return [*(model.backbone.variables if model.backbone.trainable else ()), *model.head.variables]
