"""Photos distorted at random: flipped, rotated, zoomed."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_finetune.hyperparameters import Hyperparameters


def augment(image: tf.Tensor, seed: tf.Tensor, settings: Hyperparameters) -> tf.Tensor:
    """Returns a photo flipped, rotated and zoomed at random, as Keras's layers of these names do, by one resampling.

    What leaves the frame is replaced by the photo mirrored at its border. The same seed gives the same distortion.

    Args:
        image: float32 [H, W, 3], any range.
        seed: int32 [2].
        settings: The augmentation_* hyperparameters.

    Returns:
        float32 [H, W, 3], in the range of the image.
    """
    height, width = image.shape[0], image.shape[1]
    drawn = tf.random.stateless_uniform([4], seed)
    flip = settings.augmentation_random_flip
    flip_x = tf.where(drawn[0] < 0.5, -1.0, 1.0) if flip in ("horizontal", "horizontal_and_vertical") else 1.0
    flip_y = tf.where(drawn[1] < 0.5, -1.0, 1.0) if flip in ("vertical", "horizontal_and_vertical") else 1.0
    angle = (2 * drawn[2] - 1) * abs(settings.augmentation_random_rotation) * 2 * math.pi
    # A zoom of -1 would leave nothing of the photo.
    zoom = tf.maximum(1 + (2 * drawn[3] - 1) * abs(settings.augmentation_random_zoom), 0.05)
    # Output pixel (x, y) is taken from input pixel (a0 x + a1 y + a2, b0 x + b1 y + b2): about the centre, the zoom,
    # then the rotation, then the flip.
    cos, sin = tf.cos(angle) * zoom, tf.sin(angle) * zoom
    a0, a1, b0, b1 = flip_x * cos, -flip_x * sin, flip_y * sin, flip_y * cos
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    a2 = centre_x - a0 * centre_x - a1 * centre_y
    b2 = centre_y - b0 * centre_x - b1 * centre_y
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.stack([a0, a1, a2, b0, b1, b2, 0.0, 0.0])[tf.newaxis],
        output_shape=[height, width],
        interpolation="BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )[0]
