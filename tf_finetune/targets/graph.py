"""The part of an archive's graph that other runtimes can have: from pixels in [0, 255] to probabilities.

Dimension letters: B batch, H W pixels, D features, K classes.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import archive, classifier, images, predictor
from tf_finetune.backbone import earlier, interface
from tf_finetune.errors import ExportError
from tf_finetune.images import Preprocessing
from tf_finetune.predictor import Predictor
from tf_finetune.targets import Order, description

BATCH = 16
NOISE_SEED = 20261123
SYNTHETIC = 16  # Examples where there are no photos.


@dataclasses.dataclass(frozen=True)
class Model:
    """An archive's model, cut after decoding and resizing.

    Attributes:
        whole: The archive's model, that takes encoded photos.
        preprocessing: How it makes pixels of them; its range is what the backbone takes.
        cut: tf.function from `pixels`, float32 [B, H, W, 3] in [0, 255], to {"probabilities": float32 [B, K]}.
        module: Owns what `cut` uses.
    """

    whole: Predictor
    preprocessing: Preprocessing
    cut: Any
    module: tf.Module


def load(order: Order) -> Model:
    """Returns the model of an archive.

    Raises:
        ExportError: It is no archive of ours, or none whose parts are known.
    """
    whole = predictor.load(order.archive, order.is_trusted)
    preprocessing = _preprocessing(whole.description, order.archive)
    low, high = preprocessing.pixel_range
    opened = earlier.opened(order.archive, whole.saved_model)
    if opened.head is None:
        raise ExportError(f"{order.archive} was made by another version: its head is not found. Train it anew.")
    head, wanted = opened.head, interface.read(opened.backbone, order.archive, "image")
    size = preprocessing.image_size
    spec = tf.TensorSpec([None, size, size, 3], tf.float32, name=description.INPUT)

    @tf.function(input_signature=[spec], autograph=False)
    def cut(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        scaled = pixels * ((high - low) / 255.0) + low
        outputs = interface.single_output(wanted.call(scaled, training=False), order.archive)
        logits = interface.pooled(outputs, order.archive) @ head.kernel + head.bias
        return {description.OUTPUT: classifier.probabilities(logits)}

    module = tf.Module()
    module.owned, module.cut = whole.saved_model, cut
    return Model(whole, preprocessing, cut, module)


def _preprocessing(described: Mapping[str, Any], place: Path) -> Preprocessing:
    """Returns what an archive's description says of preprocessing, which anyone may have edited."""
    try:
        found = described["preprocessing"]
        low, high = map(float, found["pixel_range"])
        return Preprocessing(operator.index(found["image_size"]), (low, high), str(found["interpolation"]))
    except (KeyError, TypeError, ValueError):
        raise ExportError(
            f"{place} holds no model of tf_finetune: the preprocessing in its {archive.DESCRIPTION} is broken. Fetch "
            "it anew."
        ) from None


def probabilities(model: Model, photos: Sequence[str | Path | bytes]) -> np.ndarray:
    """Returns float32 [N, K]: what the archive's SavedModel answers N photos, paths or bytes, on the CPU in float32."""
    with tf.device("/CPU:0"):
        return model.whole.probabilities(photos)


def pixels_of(model: Model, photos: Sequence[str | Path | bytes]) -> Iterator[np.ndarray]:
    """Yields float32 [B, H, W, 3] in [0, 255]: photos, paths or bytes, decoded and resized as the archive does it.

    Raises:
        DataError: A photo cannot be decoded.
    """
    raw = dataclasses.replace(model.preprocessing, pixel_range=(0.0, 255.0))
    _, prepare = images.serving_inputs(raw)
    prepared = tf.function(prepare, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    with tf.device("/CPU:0"):
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH]
            try:
                yield prepared(tf.constant([predictor.encoded(photo) for photo in batch])).numpy()
            except tf.errors.InvalidArgumentError:
                model.whole.probabilities(batch)  # It names the photo.
                raise


def synthetic_photos(image_size: int) -> list[bytes]:
    """Returns PNGs, half of noise and half of gradients from one colour to another, always the same ones."""
    generator = np.random.default_rng(NOISE_SEED)
    shape = [image_size, image_size, 3]
    noise = [generator.integers(0, 256, shape, np.uint8) for _ in range(SYNTHETIC // 2)]
    along = np.linspace(0, 1, image_size)[:, np.newaxis, np.newaxis]
    gradients = []
    for number in range(SYNTHETIC // 2):
        first, last = generator.integers(0, 256, [2, 3])
        column = np.broadcast_to(first + (last - first) * along, shape).astype(np.uint8)
        gradients.append(column if number % 2 else column.transpose(1, 0, 2))
    return [tf.io.encode_png(pixels).numpy() for pixels in [*noise, *gradients]]


def each(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields float32 [1, H, W, 3], one example after the other."""
    for batch in batches:
        for number in range(len(batch)):
            yield batch[number : number + 1]
