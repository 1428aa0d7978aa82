"""A photo's bytes to its pixels, by TensorFlow's operations, so that training and the exported graph see the same.

JPEGs are decoded accurately, which gives the pixels that Pillow, browsers and phones see, to the last bit, and costs a
twentieth of the time. TensorFlow's default rounds down, by half a level of brightness and of either colour on average,
so that who feeds an exported LiteRT or ONNX file by other means would have other probabilities, a few by 0.3.

What TensorFlow does with CMYK (as Pillow does, within a few levels), gray, palettes and 16 bits (the high byte) is
right as it is. What is transparent is seen on white.
"""

from __future__ import annotations

import tensorflow as tf

ACCURATE = "INTEGER_ACCURATE"
WEBP_ALPHA = 0x10  # The flag of transparency, in byte 20 of a file with a VP8X header, and 24 of a lossless one.


def decoded(content: tf.Tensor) -> tf.Tensor:
    """Returns the pixels of one encoded photo: uint8 [H, W, 3].

    Args:
        content: string []. The bytes of a JPEG, PNG, BMP, GIF (its first frame) or still WebP.
    """

    # Without `channels` an animated WebP aborts the whole process (TensorFlow 2.21); with it, it is an ordinary error.
    def opaque() -> tf.Tensor:
        return tf.io.decode_image(content, channels=3, expand_animations=False)

    def on_white() -> tf.Tensor:
        pixels = tf.io.decode_image(content, channels=4, expand_animations=False)
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        return tf.cond(tf.reduce_all(alpha == _opaque(content)), lambda: colours, lambda: _composed(colours, alpha))

    def jpeg() -> tf.Tensor:
        return tf.io.decode_jpeg(content, channels=3, dct_method=ACCURATE)

    def other() -> tf.Tensor:
        return tf.cond(_may_be_transparent(content), on_white, opaque)

    pixels = tf.cond(tf.io.is_jpeg(content), jpeg, other)
    pixels.set_shape([None, None, 3])
    return pixels


def _opaque(content: tf.Tensor) -> tf.Tensor:
    """Returns the alpha that TensorFlow's decoder gives a photo without one: uint8 [].

    It should be 255. For a PNG of 1, 2 or 4 bits it is the largest number of so many bits (TensorFlow 2.21).
    """
    is_png = tf.strings.substr(content, 0, 4) == b"\x89PNG"
    depth = tf.cast(tf.io.decode_raw(tf.strings.substr(content, 24, 1), tf.uint8)[0], tf.int32)  # In a PNG's header.
    return tf.cast(tf.where(is_png & (depth < 8), tf.bitwise.left_shift(1, depth) - 1, 255), tf.uint8)


def _composed(colours: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Returns uint8 [H, W, 3]: colours, uint8 [H, W, 3], of an opacity, uint8 [H, W, 1], in front of white."""
    share = tf.cast(alpha, tf.float32) / 255
    return tf.cast(tf.round(tf.cast(colours, tf.float32) * share + 255 * (1 - share)), tf.uint8)


def _may_be_transparent(content: tf.Tensor) -> tf.Tensor:
    """Returns whether a photo is to be decoded to four channels: bool []. A WebP must be just where it has them."""
    head = tf.strings.substr(content, 0, 25)

    def has(place: int, mark: bytes) -> tf.Tensor:
        return tf.strings.substr(head, place, len(mark)) == mark

    def webp() -> tf.Tensor:
        numbers = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32)
        flags = tf.where(has(12, b"VP8X"), numbers[20], tf.where(has(12, b"VP8L"), numbers[24], 0))
        return flags & WEBP_ALPHA > 0

    is_long = tf.strings.length(content) >= 25
    return tf.cond(is_long, lambda: has(0, b"\x89PNG") | tf.cond(has(8, b"WEBP"), webp, lambda: False), lambda: False)
