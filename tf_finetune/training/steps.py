"""One step of training on any number of replicas, and the stream of batches that feeds it.

Examples are addressed by a counter: from it follow epoch, place in the epoch's permutation and seed, so nothing depends
on the number of replicas, and a stream can begin at any step.

Dimension letters: B batch, K classes, N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_finetune import classifier as heads
from tf_finetune.classifier import Classifier
from tf_finetune.features import Source
from tf_finetune.hyperparameters import Hyperparameters


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


def plan_of(count: int, replicas: int, settings: Hyperparameters) -> Plan:
    """Returns how `count` examples become the steps of a training."""
    return Plan(count, min(settings.batch_size, count), replicas, settings.epochs, settings.random_seed)


def class_weights(labels: np.ndarray, num_classes: int, settings: Hyperparameters) -> np.ndarray:
    """Returns float32 [K]: the weight of each class's examples in the loss; balanced is N / (K x size of the class)."""
    counts = np.bincount(labels, minlength=num_classes)
    if settings.class_weight == "none":
        return np.ones(num_classes, np.float32)
    return (len(labels) / (num_classes * np.maximum(counts, 1))).astype(np.float32)


def stream(source: Source, plan: Plan, first: int = 0, host: int = 0, hosts: int = 1) -> tf.data.Dataset:
    """Returns the batches of one host from a step on, one replica's after the other's: (inputs, labels, shares, keys,
    epoch).

    A share is 1 / the number of examples in the step, or 0 in a slot that is only filled up.

    Args:
        source: All examples, on each host; it reads only those of its own replicas.
        plan: How they become steps.
        first: The step to begin with.
        host: Index of this host.
        hosts: Their number; each has as many replicas.
    """
    width = plan.slots * plan.replicas // hosts  # Of this host; its slots in a step are side by side.
    labels, keys = tf.constant(source.labels), tf.constant(source.keys)

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and looking takes half a second.
    def example(counter: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step, slot = counter // width, host * width + counter % width
        epoch, first = step // plan.steps_per_epoch, step % plan.steps_per_epoch * plan.batch_size
        place, size = first + slot, tf.minimum(tf.constant(plan.batch_size, tf.int64), plan.examples - first)
        index = _permuted(place % plan.examples, epoch, plan)
        share = tf.where(slot < size, 1 / tf.cast(size, tf.float32), 0.0)
        key, epoch = tf.gather(keys, index), tf.cast(epoch, tf.int32)
        seed = tf.random.experimental.stateless_fold_in(_seed(plan.seed, "augmentation", epoch), key)
        view = tf.cast(epoch, tf.int64) % source.views * plan.examples
        return source.load(index + view, seed), tf.gather(labels, index), share, key, epoch

    counters = tf.data.Dataset.range(first * width, plan.steps * width)
    batches = counters.map(example, tf.data.AUTOTUNE, deterministic=True).batch(plan.slots, drop_remainder=True)
    if hosts > 1:  # A stream without an end, or TensorFlow asks all hosts at each step whether theirs has ended.
        batches = batches.repeat()
    return batches.prefetch(2)


def _permuted(place: tf.Tensor, epoch: tf.Tensor, plan: Plan) -> tf.Tensor:
    if plan.examples == 1:
        return place
    seed = tf.stack([tf.constant(plan.seed % 2**31, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(place, seed, tf.constant(plan.examples - 1, tf.int64))


def _seed(seed: int, purpose: str, epoch: tf.Tensor) -> tf.Tensor:
    """Returns int32 [2]: another random stream for each purpose and epoch."""
    start = tf.constant([seed % 2**31, sum(purpose.encode())], tf.int32)
    return tf.random.experimental.stateless_fold_in(start, epoch)


def make_step(
    model: Classifier,
    optimizer: keras.optimizers.Optimizer,
    settings: Hyperparameters,
    strategy: tf.distribute.Strategy,
    weights: np.ndarray,
    of_features: bool,
) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Returns the function that updates the weights by one batch and gives objective, cross-entropy and hits."""
    variables = model.trainable_variables
    by_class = tf.constant(weights)
    trains_backbone = model.backbone.trainable and not of_features

    def replica(inputs: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor, keys: tf.Tensor, epochs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            outputs = inputs if of_features else model.backbone(inputs, training=trains_backbone)
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

    @tf.function(autograph=False)
    def step(batch: Any) -> tuple[tf.Tensor, ...]:
        results = strategy.run(replica, args=batch)
        return tuple(strategy.reduce("SUM", result, axis=None) for result in results)

    return step


def make_answer(model: Classifier, of_features: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from what a source holds to probabilities, float32 [B, K]."""

    @tf.function(autograph=False)
    def answer(inputs: tf.Tensor) -> tf.Tensor:
        outputs = inputs if of_features else model.backbone(inputs, training=False)
        return heads.probabilities(model.head(outputs))

    return answer
