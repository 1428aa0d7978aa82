"""Examples as the steps read them, and what a function gives for all of them, in order.

Dimension letters: B batch, D features, K classes, N examples, V views of each example.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import devices
from tf_finetune.examples import Examples

Progress = Callable[[str, int, int], None]
Load = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

BATCH = 32  # Examples per replica in a pass; not batch_size, so that features do not depend on it.
ROWS = 8192  # Features per call of the head.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Source:
    """Examples as the steps read them.

    Attributes:
        load: An example's index, int64 [], and a random seed, int32 [2], to what the model takes. Of features the
            index goes to V x N: view v of example n is v x N + n.
        labels: int32 [N], in [0, K).
        keys: int64 [N]. What identifies each example: the start of its digest, so names and order play no part.
        digests: 32 bytes for each of N examples; none where nothing is to be kept.
        lengths: int64 [N]. How long each text is, in bytes; None for photos, which all become one size.
        rows: float32 [V x N, D]. The features that `load` gives, or None when it gives what the backbone takes.
        views: V. How often each example was distorted at random; epochs take turns with the views.
    """

    load: Load
    labels: np.ndarray
    keys: np.ndarray
    digests: Sequence[bytes] = ()
    lengths: np.ndarray | None = None
    rows: np.ndarray | None = None
    views: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_features(self) -> bool:
        """Whether `load` gives features, float32 [D], rather than what the backbone takes."""
        return self.rows is not None


def source(examples: Examples, load: Load, views: int = 1) -> Source:
    """Returns examples with the function that reads one of them."""
    keys = [int(example.digest[:15], 16) for example in examples.items]
    digests = [bytes.fromhex(example.digest) for example in examples.items]
    lengths = None
    if examples.items and isinstance(examples.items[0].content, str):
        lengths = np.array([len(str(example.content).encode("utf-8")) for example in examples.items])
    labels = np.array(examples.labels, np.int32)
    return Source(load, labels, np.array(keys, np.int64), digests, lengths, views=views)


def of_features(raw: Source, features: np.ndarray) -> Source:
    """Returns the same examples, read as their features: float32 [V x N, D]."""

    @functools.cache
    def rows() -> tf.Tensor:
        with tf.init_scope():  # Not in the graph of whoever asks first.
            return tf.constant(features)

    return dataclasses.replace(raw, load=lambda index, seed: tf.gather(rows(), index), rows=features)


def outputs(
    forward: Callable[[tf.Tensor], tf.Tensor], examples: Source, strategy: tf.distribute.Strategy
) -> np.ndarray:
    """Returns float32 [N, ...]: what a function gives for all examples, in order, spread over the replicas."""
    if examples.rows is not None:
        parts = [tf.constant(examples.rows[first : first + ROWS]) for first in range(0, len(examples.rows), ROWS)]
        answers = [strategy.experimental_local_results(strategy.run(forward, args=(part,)))[0] for part in parts]
        return np.concatenate([answer.numpy() for answer in answers])
    order = np.arange(len(examples))
    seeds = np.zeros([len(order), 2], np.int32)
    return np.concatenate(list(batches(forward, examples.load, order, seeds, strategy)))


def batches(
    forward: Callable[[tf.Tensor], tf.Tensor],
    load: Load,
    order: np.ndarray,
    seeds: np.ndarray,
    strategy: tf.distribute.Strategy,
    at_least: int = 0,
) -> Iterator[np.ndarray]:
    """Gives float32 [B, ...]: what a function gives for each batch of examples, spread over this host's replicas.

    Reading overlaps with computing, and no more examples are being decoded at once than there are cores. The last
    batch is filled up with repeats, whose outputs are dropped, so that every batch has one shape.

    Args:
        forward: From what `load` gives, batched, to the outputs.
        load: From an index and a seed to one example.
        order: int [M]. The indices, at least one.
        seeds: int32 [M, 2].
        strategy: The replicas.
        at_least: Batches are as large as for so many examples, so that the rest of a pass comes in batches of the
            shape that the whole came in.
    """
    count, replicas = len(order), devices.local_replicas(strategy)
    size = min(BATCH, -(-max(count, at_least) // replicas))
    calls = -(-count // (size * replicas))
    indices, given = tf.constant(order, tf.int64), tf.constant(seeds, tf.int32)

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and looking takes half a second.
    def read(slot: tf.Tensor) -> tf.Tensor:
        place = tf.minimum(slot, count - 1)
        return load(tf.gather(indices, place), tf.gather(given, place))

    def stream(context: tf.distribute.InputContext) -> tf.data.Dataset:
        slots = tf.data.Dataset.range(calls * replicas * size)
        whole = slots.map(read, CORES, deterministic=True).batch(size, drop_remainder=True)
        if devices.spans_hosts(strategy):  # Else each batch would have to wait for one of every other host.
            whole = whole.repeat()
        return whole.prefetch(2 * replicas)

    def run(batch: Any) -> Any:  # Behind a lambda: several replicas take a tf.function apart, and its signature breaks.
        return strategy.run(lambda part: forward(part), args=(batch,))

    run_all = run if replicas == 1 else tf.function(run, autograph=False)
    left = count
    for batch in itertools.islice(strategy.distribute_datasets_from_function(stream), calls):
        parts = strategy.experimental_local_results(run_all(batch))
        whole = np.concatenate([part.numpy() for part in parts])[:left]
        left -= len(whole)
        yield whole
