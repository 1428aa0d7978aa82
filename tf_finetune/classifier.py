"""The head on a backbone: dropout and one dense layer, its loss and its probabilities.

Dimension letters: B batch, D features, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_finetune.backbone import Backbone
from tf_finetune.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A backbone and a head.

    Attributes:
        backbone: Examples to features, float32 [B, D].
        head: Features to logits, float32 [B, K]; with binary_mode float32 [B, 1], of the class of index 1.
        num_classes: K.
    """

    backbone: Backbone
    head: keras.layers.Dense
    num_classes: int

    @property
    def is_binary(self) -> bool:
        """Whether one sigmoid unit stands for the two classes."""
        return self.head.units == 1

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """What training changes: the head's variables, and the backbone's unless it is frozen."""
        return [*self.backbone.trainable_variables, *self.head.trainable_variables]


def build(backbone: Backbone, feature_size: int, num_classes: int, settings: Hyperparameters) -> Classifier:
    """Returns a classifier with a new head. Call it inside the strategy's scope.

    The head starts at zero, so that the first answer is the even one and the seed plays no part.

    Args:
        backbone: Frozen or not.
        feature_size: D.
        num_classes: K, at least 2.
        settings: `binary_mode` and `regularizers_l2` are used.
    """
    head = keras.layers.Dense(
        1 if settings.binary_mode else num_classes,
        kernel_initializer="zeros",
        kernel_regularizer=keras.regularizers.L2(settings.regularizers_l2),
        dtype="float32",
        name="head",
    )
    head.build([None, feature_size])
    return Classifier(backbone, head, num_classes)


def values(model: Classifier) -> list[np.ndarray]:
    """Returns all weights. Of a model that is spread over several hosts some can only be read by all at once."""
    return [variable.numpy() for variable in [*model.backbone.adopted, *model.head.variables]]


def twin(model: Classifier, settings: Hyperparameters, weights: Sequence[np.ndarray] | None = None) -> Classifier:
    """Returns a classifier with the same weights, or those given, on the first CPU, outside of any strategy."""
    with tf.device("/CPU:0"):
        backbone = model.backbone.frozen_copy()
        copy = build(backbone, model.head.kernel.shape[0], model.num_classes, settings)
        mine = [*backbone.adopted, *copy.head.variables]
        for variable, value in zip(mine, values(model) if weights is None else weights, strict=True):
            variable.assign(value)
    return copy


def calibrate(model: Classifier, temperature: float) -> None:
    """Divides the head's logits by a temperature: its kernel and bias are, so that the exported graph answers so.

    Args:
        model: Its head is assigned to.
        temperature: Positive, of `evaluation.calibration`.
    """
    for variable in model.head.variables:
        variable.assign(variable.numpy() / np.float32(temperature))


def dropout(features: tf.Tensor, rate: float, keys: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns features with a share of them set to 0 and the rest scaled up, drawn anew for each example.

    What is dropped depends on an example's key and the seed, not on its place in the batch or on the device.

    Args:
        features: float32 [B, D].
        rate: Share in [0, 1); 1 drops everything.
        keys: int64 [B]. What identifies each example.
        seed: int32 [2]. What identifies the run and the epoch.
    """
    if rate == 0:
        return features
    if rate >= 1:
        return tf.zeros_like(features)
    size = tf.shape(features)[1]
    drawn = tf.map_fn(
        lambda key: tf.random.stateless_uniform([size], tf.random.experimental.stateless_fold_in(seed, key)),
        keys,
        fn_output_signature=tf.TensorSpec([None], tf.float32),
    )
    return tf.where(tf.ensure_shape(drawn, features.shape) >= rate, features / (1 - rate), 0.0)


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, num_classes: int, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns float32 [B]: each example's cross-entropy in nats.

    Args:
        logits: float32 [B, K], or [B, 1] of the class of index 1.
        labels: int32 [B], in [0, K).
        num_classes: K.
        label_smoothing: Share s of the target spread evenly: the true class gets 1 - s + s / K, the others s / K.
    """
    targets = tf.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
    if logits.shape[-1] == 1:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=targets[:, 1], logits=logits[:, 0])
    return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)


def probabilities(logits: tf.Tensor) -> tf.Tensor:
    """Returns float32 [B, K], rows that sum to 1, from logits [B, K], or [1 - p, p] from logits [B, 1]."""
    if logits.shape[-1] == 1:
        return tf.sigmoid(tf.concat([-logits, logits], axis=1))  # 1 - p would lose what a small 1 - p says.
    return tf.nn.softmax(logits)
