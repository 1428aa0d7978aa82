"""Photos to what a backbone takes: the same operations in training, in evaluation and in the exported graph.

Dimension letters: B batch, H W pixels, N examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_finetune.catalog import Card
from tf_finetune.errors import BackboneError, DataError, listed
from tf_finetune.examples import Examples
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.images import decoding, orientation
from tf_finetune.images.augmentation import augment

log = logging.getLogger(__name__)

INPUT_NAME = "bytes_inputs"
# From this reduction of the sides on (the mean of both), resizing without antialiasing skips pixels; below it
# antialiasing changes little and takes four times as long. "nearest" and "area" do not change by it.
ANTIALIAS_FROM = 2
# A JPEG can be decoded at a half, a quarter or an eighth of its sides, for less work and memory. What remains must be
# this many times as large as what the backbone takes, on both sides: then the features of each of 300 photos of many
# kinds had a cosine of 0.997 or more to those of full decoding. With 1, two in five had less than 0.995.
RATIOS = (2, 4, 8)
MARGIN = 1.75
# What tf.image.resize antialiases with, by the name of its method. "nearest" and "area" are not among them, and differ
# too much between scaled and full decoding: with them every photo is decoded in full.
KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
KERNELS |= {method: method for method in ("lanczos3", "lanczos5", "gaussian", "mitchellcubic")}
DEFAULT_SIZE = 224  # Pixels; what most image backbones were trained on.


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a photo's bytes become pixels.

    Attributes:
        image_size: Height and width in pixels.
        pixel_range: Values of black and white that the backbone expects.
        interpolation: A method of tf.image.resize.
    """

    image_size: int
    pixel_range: tuple[float, float]
    interpolation: str

    def as_json(self) -> dict[str, Any]:
        """Returns the record as tf_finetune.json holds it."""
        return {**dataclasses.asdict(self), "pixel_range": list(self.pixel_range)}


def plan(settings: Hyperparameters, card: Card | None, handle: str, fixed_size: int | None = None) -> Preprocessing:
    """Returns how photos are prepared: the user's word first, then the SavedModel's and the card's.

    Args:
        settings: image_size, pixel_range and image_resize_interpolation are used.
        card: The backbone's catalog card, if it has one.
        handle: What the user called the backbone.
        fixed_size: Height and width in pixels that the SavedModel is fixed to, or None if it accepts any.

    Raises:
        BackboneError: The user's image_size is not what the SavedModel is fixed to.
    """
    if settings.image_size and fixed_size and settings.image_size != fixed_size:
        raise BackboneError(
            f"backbone {handle} accepts {fixed_size}x{fixed_size} photos only. Received: "
            f"image_size={settings.image_size}. Leave image_size unset."
        )
    size = settings.image_size or fixed_size or (card.image_size if card else None) or DEFAULT_SIZE
    if settings.pixel_range:
        low, high = (float(value) for value in settings.pixel_range.split(","))
    elif card and card.pixel_range:
        low, high = card.pixel_range
    else:
        low, high = 0.0, 1.0
        note = f" ({card.note})" if card and card.note else ""
        log.warning("pixel range of %s is not known: 0,1 is taken; say otherwise with pixel_range%s", handle, note)
    return Preprocessing(size, (low, high), settings.image_resize_interpolation)


def prepare(content: tf.Tensor, preprocessing: Preprocessing, scaled: bool = False) -> tf.Tensor:
    """Returns the pixels of one encoded photo.

    Args:
        content: string []. The bytes of a JPEG, PNG, BMP, GIF (its first frame) or still WebP. A JPEG is turned as its
            EXIF orientation says.
        preprocessing: What the backbone wants.
        scaled: Whether large JPEGs are decoded at a part of their size (see `ratio`): for training features only,
            since the pixels differ a little from those of the exported graph.

    Returns:
        float32 [image_size, image_size, 3] in preprocessing.pixel_range (cubic and Lanczos filters may overshoot).
    """
    sides = _jpeg_sides(content)
    step = _scaling_step(sides, preprocessing)

    def in_full() -> tf.Tensor:
        return _decoded_and_resized(content, preprocessing)

    def at(ratio: int) -> Callable[[], tf.Tensor]:
        return lambda: _large_jpeg_resized(content, sides, ratio, preprocessing)

    if preprocessing.interpolation not in KERNELS:
        resized = in_full()
    elif scaled:
        resized = tf.switch_case(step, [in_full, *(at(ratio) for ratio in RATIOS)])
    else:
        resized = tf.cond(step > 0, at(1), in_full)
    # Turned when it is small: resizing to a square does the same to rows and columns.
    upright = orientation.turned(resized, orientation.of_photo(content))
    low, high = preprocessing.pixel_range
    return upright * ((high - low) / 255.0) + low


def ratio(content: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns by how much `prepare(..., scaled=True)` divides a photo's sides in decoding it: int32 [], 1, 2, 4 or 8.

    Args:
        content: string []. The bytes of a photo; only the header of a JPEG is read.
        preprocessing: What the backbone wants.
    """
    return tf.gather((1, *RATIOS), _scaling_step(_jpeg_sides(content), preprocessing))


def can_scale(examples: Examples, preprocessing: Preprocessing) -> bool:
    """Returns whether any of some photos would be decoded at a part of its size."""
    contents = (tf.io.read_file(os.fsencode(example.content)) for example in examples.items)
    return any(int(ratio(content, preprocessing)) > 1 for content in contents)


def _jpeg_sides(content: tf.Tensor) -> tf.Tensor:
    """Returns a JPEG's height and width in pixels, int32 [2]; zeros for any other format."""
    none = tf.zeros([2], tf.int32)
    return tf.cond(tf.io.is_jpeg(content), lambda: tf.image.extract_jpeg_shape(content)[:2], lambda: none)


def _scaling_step(sides: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns how many of RATIOS a photo is large enough for, int32 []; 0 means that it is decoded in full."""
    if preprocessing.interpolation not in KERNELS:
        return tf.constant(0)
    needed = [math.ceil(ratio * MARGIN * preprocessing.image_size) for ratio in RATIOS]
    return tf.reduce_sum(tf.cast(tf.reduce_min(sides) >= needed, tf.int32))


def _decoded_and_resized(content: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns float32 [image_size, image_size, 3] in [0, 255] of a photo of any format and size."""
    pixels = decoding.decoded(content)
    size = [preprocessing.image_size] * 2

    def resized(antialias: bool) -> tf.Tensor:
        # From bytes to the same floats as from floats, with a quarter of the memory; only "nearest" returns bytes.
        small = tf.image.resize(pixels, size, method=preprocessing.interpolation, antialias=antialias)
        return tf.cast(small, tf.float32)

    large = tf.reduce_prod(tf.shape(pixels)[:2]) >= (ANTIALIAS_FROM * preprocessing.image_size) ** 2
    return tf.cond(large, lambda: resized(True), lambda: resized(False))


def _large_jpeg_resized(content: tf.Tensor, sides: tf.Tensor, ratio: int, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns float32 [image_size, image_size, 3] in [0, 255] of a JPEG that is decoded at 1/ratio of its sides.

    The last row and column of the decoded photo may stand for fewer than `ratio` pixels. tf.image.resize would stretch
    the photo by the rest, and the features of every tenth photo would be off, so the true sides set the scale.
    """
    pixels = tf.io.decode_jpeg(content, channels=3, ratio=ratio, dct_method=decoding.ACCURATE)
    size = [preprocessing.image_size] * 2
    return tf.raw_ops.ScaleAndTranslate(
        images=pixels[tf.newaxis],
        size=size,
        scale=tf.cast(size, tf.float32) / tf.cast(sides, tf.float32) * ratio,
        translation=tf.zeros([2]),
        kernel_type=KERNELS[preprocessing.interpolation],
        antialias=True,
    )[0]


def serving_inputs(preprocessing: Preprocessing) -> tuple[tf.TensorSpec, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns the exported signature's input, string [B], and the function from it to float32 [B, H, W, 3]."""

    def decoded(contents: tf.Tensor) -> tf.Tensor:
        size = preprocessing.image_size
        spec = tf.TensorSpec([size, size, 3], tf.float32)
        return tf.map_fn(lambda content: prepare(content, preprocessing), contents, fn_output_signature=spec)

    return tf.TensorSpec([None], tf.string, name=INPUT_NAME), decoded


def loader(
    examples: Examples, preprocessing: Preprocessing, settings: Hyperparameters | None = None, scaled: bool = False
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the function that reads one example for training or evaluation.

    Args:
        examples: Those that indices point into.
        preprocessing: What the backbone wants.
        settings: Given, and with `augmentation` on, photos are distorted at random.
        scaled: Whether large JPEGs are decoded at a part of their size, as in `prepare`.

    Returns:
        A function of an example's index, int64 [], and a random seed, int32 [2], to its float32 [H, W, 3].
    """
    paths = tf.constant([os.fsencode(example.content) for example in examples.items] or [b""])
    distorted = settings is not None and settings.augmentation

    def load(index: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        pixels = prepare(tf.io.read_file(tf.gather(paths, index)), preprocessing, scaled)
        return augment(pixels, seed, settings) if distorted and settings is not None else pixels

    return load


@contextlib.contextmanager
def explaining_failures(parts: Iterable[Examples], preprocessing: Preprocessing) -> Iterator[None]:
    """Turns a decoder's failure, which names no file, into a message that does."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError):
        check_readable(parts, preprocessing)
        raise


def raw_inputs(examples: Examples) -> dict[str, list[str]]:
    """Returns what the parity gate's process answers: the paths of the photos."""
    return {"files": [str(Path(example.content).absolute()) for example in examples.items]}


def check_readable(parts: Iterable[Examples], preprocessing: Preprocessing) -> None:
    """Names the photos that cannot be decoded; asked only after a decoder has failed.

    Raises:
        DataError: Lists the photos that TensorFlow cannot decode.
    """
    parts = list(parts)
    broken = sorted(map(str, undecodable(parts, preprocessing)))
    if broken:
        raise DataError(
            f"{len(broken):,} of {sum(map(len, parts)):,} files cannot be decoded as photos: {listed(broken)}. "
            "Expected whole JPEG, PNG, BMP, GIF or WebP files. Remove or replace them."
        )


def undecodable(parts: Iterable[Examples], preprocessing: Preprocessing) -> set[Path]:
    """Returns the photos that TensorFlow cannot decode, having tried each: few that Pillow can are among them."""
    paths = sorted({os.fsencode(example.content) for part in parts for example in part.items})

    def brightness(path: tf.Tensor) -> tf.Tensor:  # Of the pixels, or nothing would have to be decoded.
        return tf.reduce_sum(prepare(tf.io.read_file(path), preprocessing))

    trial = tf.data.Dataset.from_tensor_slices(paths).map(brightness, num_parallel_calls=tf.data.AUTOTUNE)
    iterator = iter(trial)
    broken = set()
    for path in paths:
        try:
            next(iterator)
        except tf.errors.OpError:
            broken.add(Path(os.fsdecode(path)))
    return broken
