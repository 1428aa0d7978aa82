"""One pass of examples through the backbone or the head: sources of examples, and their outputs in order.

Dimension letters: B batch, D features, K classes, N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_finetune.backbone import Backbone
from tf_finetune.errors import BackboneError
from tf_finetune.examples import Examples

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Source:
    """Examples as the steps read them.

    Attributes:
        load: An example's index, int64 [], and a random seed, int32 [2], to what the model takes.
        labels: int32 [N], in [0, K).
        keys: int64 [N]. What identifies each example: the start of its digest, so names and order play no part.
        is_features: Whether `load` gives features, float32 [D], rather than what the backbone takes.
    """

    load: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    labels: np.ndarray
    keys: np.ndarray
    is_features: bool = False

    def __len__(self) -> int:
        return len(self.labels)


def source(examples: Examples, load: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Source:
    """Returns examples with the function that reads one of them."""
    keys = [int(example.digest[:15], 16) for example in examples.items]
    return Source(load, np.array(examples.labels, np.int32), np.array(keys, np.int64))


def of_features(raw: Source, features: np.ndarray) -> Source:
    """Returns the same examples, read as their features: float32 [N, D]."""
    rows = tf.constant(features)
    return dataclasses.replace(raw, load=lambda index, seed: tf.gather(rows, index), is_features=True)


def compute(
    backbone: Backbone,
    examples: Source,
    strategy: tf.distribute.Strategy,
    batch_size: int,
    progress: Progress | None = None,
) -> Source:
    """Returns the examples read as their features, which one pass through the frozen backbone gives.

    Raises:
        BackboneError: Some features are NaN or infinite.
    """

    @tf.function(reduce_retracing=True)
    def forward(inputs: tf.Tensor) -> tf.Tensor:
        return backbone(inputs, training=False)

    rows = outputs(forward, examples, strategy, batch_size, progress)
    spoilt = int((~np.isfinite(rows)).any(axis=1).sum())
    if spoilt:
        raise BackboneError(
            f"backbone {backbone.saved_model} gives NaN or infinite features for {spoilt:,} of {len(rows):,} examples. "
            "Check pixel_range, or choose another backbone."
        )
    return of_features(examples, rows)


def outputs(
    forward: Callable[[tf.Tensor], tf.Tensor],
    examples: Source,
    strategy: tf.distribute.Strategy,
    batch_size: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Returns float32 [N, ...]: what a function gives for all examples, in order, spread over the replicas.

    The last batch is filled up with repeats, whose outputs are dropped, so every batch has one shape.
    """
    count, replicas = len(examples), strategy.num_replicas_in_sync
    size = max(1, min(-(-batch_size // replicas), -(-count // replicas)))
    batches = -(-count // (size * replicas))

    def stream(context: tf.distribute.InputContext) -> tf.data.Dataset:
        indices = tf.data.Dataset.range(batches * replicas * size).map(lambda slot: tf.minimum(slot, count - 1))
        read = indices.map(lambda index: examples.load(index, tf.zeros([2], tf.int32)), tf.data.AUTOTUNE)
        return read.batch(size, drop_remainder=True).prefetch(2)

    results: list[np.ndarray] = []
    for done, batch in enumerate(strategy.distribute_datasets_from_function(stream), start=1):
        per_replica = strategy.run(forward, args=(batch,))
        results += [part.numpy() for part in strategy.experimental_local_results(per_replica)]
        if progress:
            progress("features", min(done * size * replicas, count), count)
    return np.concatenate(results)[:count]
