"""Training: one step on any number of replicas, and the epochs around it.

The step is our own because Keras's `fit` cannot drive every distribution strategy. Examples are addressed by a counter:
from it follow epoch, place in the epoch's permutation and seed, so nothing depends on the number of replicas, and
training can begin at any step.

Dimension letters: B batch, K classes, N examples.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_finetune import classifier as heads
from tf_finetune import evaluation, features, report
from tf_finetune.classifier import Classifier
from tf_finetune.errors import TrainingError
from tf_finetune.features import Progress, Source
from tf_finetune.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)

CHECK_EVERY = 20  # Steps between looks at the loss; each look waits for the device.


@dataclasses.dataclass(frozen=True)
class Plan:
    """How N examples become steps.

    Attributes:
        examples: N.
        batch_size: Examples per step over all replicas.
        replicas: Devices.
        epochs: Passes over the examples.
        seed: Seed of order, dropout and augmentation.
    """

    examples: int
    batch_size: int
    replicas: int
    epochs: int
    seed: int

    @property
    def slots(self) -> int:
        """Places in each replica's batch; those beyond batch_size or the epoch's end are filled up and weigh 0."""
        return -(-min(self.batch_size, self.examples) // self.replicas)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example is seen once."""
        return -(-self.examples // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What training gave; the classifier holds the best epoch's weights.

    Attributes:
        history: One record per epoch, as report.json holds it.
        best_epoch: The epoch whose weights were kept, from 1.
    """

    history: list[dict[str, Any]]
    best_epoch: int


def fit(
    model: Classifier,
    training: Source,
    validation: Source | None,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    through_backbone: bool,
    progress: Progress | None = None,
) -> Fitted:
    """Trains a classifier and leaves it with the weights of its best epoch by eval_metric on validation.

    Args:
        model: Made inside the strategy's scope.
        training: Photos or texts, or features when not `through_backbone`.
        validation: The same of the validation examples; None when there are none, then the last epoch is kept.
        settings: The hyperparameters.
        strategy: Where the model lives.
        through_backbone: Whether the sources hold what the backbone takes, rather than features.
        progress: Told the stage, the steps done and the steps in all.

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    plan = Plan(
        len(training),
        settings.batch_size,
        strategy.num_replicas_in_sync,
        settings.epochs,
        settings.random_seed,
    )
    rates = learning_rates(settings, plan.steps)
    with strategy.scope():
        optimizer = make_optimizer(settings, rates)
        optimizer.build(model.trainable_variables)
    step = _make_step(model, optimizer, settings, strategy, class_weights(training.labels, model.num_classes, settings), through_backbone)
    answer = make_answer(model, through_backbone)
    batches = iter(strategy.distribute_datasets_from_function(lambda context: _stream(training, plan)))
    history: list[dict[str, Any]] = []
    best: tuple[float, float] | None = None
    kept, best_epoch, last_improvement = _weights(model), 0, (-math.inf, 0)
    for epoch in range(1, plan.epochs + 1):
        loss, accuracy = _run_epoch(step, batches, plan, epoch, settings, progress)
        record: dict[str, Any] = {"epoch": epoch, "loss": loss, "accuracy": accuracy, "val_loss": None, "val_accuracy": None}
        record["learning_rate"] = float(rates(epoch * plan.steps_per_epoch - 1) if callable(rates) else rates)
        score = -math.inf
        if validation is not None:
            given = features.outputs(answer, validation, strategy, settings.batch_size)
            record["val_loss"] = evaluation.cross_entropy(given, validation.labels)
            record["val_accuracy"] = evaluation.score(given, validation.labels, "accuracy")
            score = evaluation.score(given, validation.labels, settings.eval_metric)
        history.append(record)
        log.info(report.metric_line(record, plan.epochs))
        standing = (score, -(record["val_loss"] or 0.0))
        if validation is None or best is None or standing > best:
            best, best_epoch, kept = standing, epoch, _weights(model)
        if score > last_improvement[0] + settings.early_stopping_min_delta or last_improvement[1] == 0:
            last_improvement = (score, epoch)
        elif settings.early_stopping and epoch - last_improvement[1] >= settings.early_stopping_patience:
            log.info("early stopping: no better %s since epoch %d", settings.eval_metric, last_improvement[1])
            break
    _set_weights(model, kept)
    return Fitted(history, best_epoch)


def class_weights(labels: np.ndarray, num_classes: int, settings: Hyperparameters) -> np.ndarray:
    """Returns float32 [K]: the weight of each class's examples in the loss; balanced is N / (K x size of the class)."""
    counts = np.bincount(labels, minlength=num_classes)
    if settings.class_weight == "none":
        return np.ones(num_classes, np.float32)
    return (len(labels) / (num_classes * np.maximum(counts, 1))).astype(np.float32)


def learning_rates(settings: Hyperparameters, steps: int) -> Any:
    """Returns the learning rate: a number, or a Keras schedule of the step when it changes.

    It rises from 0 over the first warmup_steps_fraction of all steps; then it stays, or falls to 0 on a half cosine
    that ends with the last step.
    """
    warmup = round(settings.warmup_steps_fraction * steps)
    rate = settings.learning_rate
    schedules = keras.optimizers.schedules
    if settings.schedule == "cosine":
        rest = max(1, steps - warmup)
        if warmup:
            return schedules.CosineDecay(0.0, rest, warmup_target=rate, warmup_steps=warmup)
        return schedules.CosineDecay(rate, rest)
    return schedules.PolynomialDecay(0.0, warmup, end_learning_rate=rate) if warmup else rate


def make_optimizer(settings: Hyperparameters, rates: Any) -> keras.optimizers.Optimizer:
    """Returns the optimizer that `settings.optimizer` names, with the settings that it uses."""
    kinds: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "adam": lambda: keras.optimizers.Adam(rates, settings.beta_1, settings.beta_2, settings.epsilon),
        "sgd": lambda: keras.optimizers.SGD(rates, settings.momentum),
        "nesterov": lambda: keras.optimizers.SGD(rates, settings.momentum, nesterov=True),
        "rmsprop": lambda: keras.optimizers.RMSprop(rates, settings.rho, settings.momentum, settings.epsilon),
        "adagrad": lambda: keras.optimizers.Adagrad(rates, settings.initial_accumulator_value, settings.epsilon),
        "adadelta": lambda: keras.optimizers.Adadelta(rates, settings.rho, settings.epsilon),
    }
    return kinds[settings.optimizer]()


def _stream(source: Source, plan: Plan) -> tf.data.Dataset:
    """Returns the batches of one host, one replica's after the other's: (inputs, labels, shares, keys, epoch).

    A share is 1 / the number of examples in the step, or 0 in a slot that is only filled up.
    """
    width = plan.slots * plan.replicas
    labels, keys = tf.constant(source.labels), tf.constant(source.keys)

    def example(counter: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step, slot = counter // width, counter % width
        epoch, first = step // plan.steps_per_epoch, step % plan.steps_per_epoch * plan.batch_size
        place, size = first + slot, tf.minimum(tf.constant(plan.batch_size, tf.int64), plan.examples - first)
        index = _permuted(place % plan.examples, epoch, plan)
        share = tf.where(slot < size, 1 / tf.cast(size, tf.float32), 0.0)
        key, epoch = tf.gather(keys, index), tf.cast(epoch, tf.int32)
        seed = tf.random.experimental.stateless_fold_in(_seed(plan.seed, "augmentation", epoch), key)
        return source.load(index, seed), tf.gather(labels, index), share, key, epoch

    counters = tf.data.Dataset.range(plan.steps * width)
    return counters.map(example, tf.data.AUTOTUNE, deterministic=True).batch(plan.slots, drop_remainder=True).prefetch(2)


def _permuted(place: tf.Tensor, epoch: tf.Tensor, plan: Plan) -> tf.Tensor:
    if plan.examples == 1:
        return place
    seed = tf.stack([tf.constant(plan.seed % 2**31, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(place, seed, tf.constant(plan.examples - 1, tf.int64))


def _seed(seed: int, purpose: str, epoch: tf.Tensor) -> tf.Tensor:
    """Returns int32 [2]: another random stream for each purpose and epoch."""
    start = tf.constant([seed % 2**31, sum(purpose.encode())], tf.int32)
    return tf.random.experimental.stateless_fold_in(start, epoch)


def _make_step(
    model: Classifier,
    optimizer: keras.optimizers.Optimizer,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    weights: np.ndarray,
    through_backbone: bool,
) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Returns the function that updates the weights by one batch and gives objective, cross-entropy and hits."""
    variables = model.trainable_variables
    by_class = tf.constant(weights)
    trains_backbone = through_backbone and model.backbone.trainable

    def replica(inputs: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor, keys: tf.Tensor, epochs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            outputs = model.backbone(inputs, training=trains_backbone) if through_backbone else inputs
            seed = _seed(settings.random_seed, "dropout", epochs[0])
            logits = model.head(heads.dropout(outputs, settings.dropout_rate, keys, seed))
            smoothed = heads.cross_entropy(logits, labels, model.num_classes, settings.label_smoothing)
            objective = tf.reduce_sum(smoothed * tf.gather(by_class, labels) * shares)
            penalty = model.head.kernel_regularizer(model.head.kernel.value)
            if trains_backbone:
                penalty += model.backbone.regularization_loss()
            objective += penalty / strategy.num_replicas_in_sync
        gradients = tape.gradient(objective, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        answers = tf.argmax(heads.probabilities(logits), axis=1, output_type=tf.int32)
        hits = tf.reduce_sum(tf.cast(answers == labels, tf.float32) * shares)
        plain = tf.reduce_sum(heads.cross_entropy(logits, labels, model.num_classes) * shares)
        return objective, plain, hits

    @tf.function
    def step(batch: Any) -> tuple[tf.Tensor, ...]:
        results = strategy.run(replica, args=batch)
        return tuple(strategy.reduce("SUM", result, axis=None) for result in results)

    return step


def make_answer(model: Classifier, through_backbone: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from what a source holds to probabilities, float32 [B, K]."""

    @tf.function
    def answer(inputs: tf.Tensor) -> tf.Tensor:
        outputs = model.backbone(inputs, training=False) if through_backbone else inputs
        return heads.probabilities(model.head(outputs))

    return answer


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
            raise TrainingError(
                f"The loss became {float(result[0])} in epoch {epoch}, step {place}. Lower learning_rate (now "
                f"{settings.learning_rate:g}), give warmup_steps_fraction=0.1, or set train_only_top_layer=True."
            )


def _weights(model: Classifier) -> list[np.ndarray]:
    return [variable.numpy() for variable in _kept_variables(model)]


def _set_weights(model: Classifier, weights: list[np.ndarray]) -> None:
    for variable, value in zip(_kept_variables(model), weights, strict=True):
        variable.assign(value)


def _kept_variables(model: Classifier) -> list[keras.Variable]:
    """Returns what an epoch changes; a trained backbone's moving statistics are among them."""
    return [*(model.backbone.variables if model.backbone.trainable else ()), *model.head.variables]
