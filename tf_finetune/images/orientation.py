"""The orientation that a camera notes in a JPEG (EXIF), read from its bytes and applied to its pixels, in the graph.

Source: Exif 2.32 (CIPA DC-008), 4.6.4, tag 0x0112; a JPEG's segments: ITU T.81, annex B.
"""

from __future__ import annotations

import tensorflow as tf

MOST_SEGMENTS = 512  # Before the pixels; more is no photo of a camera.
END_OF_HEADER = (0xD9, 0xDA)  # Markers: end of the image, and start of the pixels.
ALONE = (0x01, *range(0xD0, 0xD9))  # Markers without a length.
ORIENTATION, SHORT, LONG = 0x0112, 3, 4


def of_photo(content: tf.Tensor) -> tf.Tensor:
    """Returns how a photo is to be turned: int32 [], 1 to 8 as EXIF has it; 1 where it says nothing that makes sense.

    Args:
        content: string []. The bytes of a photo of any format; only JPEGs are looked into.
    """
    return tf.cond(tf.io.is_jpeg(content), lambda: _of_jpeg(content), lambda: tf.constant(1))


def turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns pixels as they are to be seen.

    Args:
        pixels: [S, S, C], of a photo that was resized to a square.
        orientation: int32 [], 1 to 8.
    """

    def turn() -> tf.Tensor:
        upright = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
        mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        upright = tf.cond(mirrored, lambda: tf.reverse(upright, [1]), lambda: upright)
        flipped = tf.reduce_any(orientation == [3, 4, 7, 8])
        return tf.cond(flipped, lambda: tf.reverse(upright, [0]), lambda: upright)

    return tf.ensure_shape(tf.cond(orientation > 1, turn, lambda: pixels), pixels.shape)


def _of_jpeg(content: tf.Tensor) -> tf.Tensor:
    """Walks the segments of a JPEG up to its first EXIF data."""
    size = tf.strings.length(content)

    def unfinished(place: tf.Tensor, found: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        return (found < 0) & (place >= 0) & (place + 10 <= size)

    def step(place: tf.Tensor, found: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, ...]:
        head = _bytes(content, place, 10)
        marker, length = head[1], head[2] * 256 + head[3]
        following = tf.where(length >= 2, place + 2 + length, -1)
        following = tf.where(tf.reduce_any(marker == END_OF_HEADER), -1, following)
        following = tf.where(tf.reduce_any(marker == ALONE), place + 2, following)
        following = tf.where(marker == 0xFF, place + 1, following)  # A byte that fills up.
        is_exif = (head[0] == 0xFF) & (marker == 0xE1) & tf.reduce_all(head[4:] == list(b"Exif\0\0"))
        return tf.where(head[0] == 0xFF, following, -1), tf.where(is_exif, place + 10, -1), length - 8

    none = tf.constant(-1)
    _, found, length = tf.while_loop(unfinished, step, (tf.constant(2), none, none), maximum_iterations=MOST_SEGMENTS)
    length = tf.minimum(length, size - found)
    return tf.cond((found >= 0) & (length >= 14), lambda: _of_tiff(_bytes(content, found, length)), lambda: 1)


def _of_tiff(data: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of EXIF's TIFF structure; data: int32 [N], its bytes."""
    is_little, size = data[0] == ord("I"), tf.size(data)

    def number(digits: tf.Tensor, count: int) -> tf.Tensor:
        """Returns what bytes [..., count] say; what is beyond 2**31 turns negative, and is no place in the data."""
        weights = [256 << 16, 256 << 8, 256, 1][-count:]
        # Reversed here: the optimizer of graphs of TensorFlow 2.18 gives up the whole graph for a slice [::-1] in it.
        return tf.reduce_sum(digits * tf.where(is_little, weights[::-1], weights), axis=-1)

    def orientation() -> tf.Tensor:
        count = tf.minimum(number(data[start : start + 2], 2), (size - start - 2) // 12)
        entries = tf.reshape(data[start + 2 : start + 2 + 12 * count], [-1, 12])
        kinds = number(entries[:, 2:4], 2)
        values = tf.where(kinds == SHORT, number(entries[:, 8:10], 2), number(entries[:, 8:12], 4))
        fits = (number(entries[:, :2], 2) == ORIENTATION) & ((kinds == SHORT) | (kinds == LONG))
        first = tf.concat([tf.boolean_mask(values, fits), [1]], 0)[0]
        return tf.where((first >= 1) & (first <= 8), first, 1)

    start = number(data[4:8], 4)
    has_order = tf.reduce_all(data[:4] == list(b"II*\0")) | tf.reduce_all(data[:4] == list(b"MM\0*"))
    return tf.cond(has_order & (start >= 8) & (start + 2 <= size), orientation, lambda: 1)


def _bytes(content: tf.Tensor, place: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """Returns bytes as numbers, int32 [count]."""
    return tf.cast(tf.io.decode_raw(tf.strings.substr(content, place, count), tf.uint8), tf.int32)
