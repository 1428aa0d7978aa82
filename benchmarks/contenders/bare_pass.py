"""The floor: one pass of decode and forward over the photos, with nothing else around it.

The backbone's variables are frozen into constants; the pass over training photos is 16-bit where the job says so, that
over validation photos float32. Both graphs are compiled before the clock starts. The pass is the first of its process,
as ours is; it is also repeated, and the median of three told, in which memory and files are at hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import child

PASSES = 3


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of the first pass, of the median one, and of all passes over each part."""
    import tensorflow as tf

    precisions = {"training": job["precision"], "validation": "float32"}
    forward = {precision: _frozen(job) for precision in sorted(set(precisions.values()))}
    every: dict[str, list[float]] = {}
    for part, precision in precisions.items():
        paths = [path for path, _ in job[part]]
        child.set_precision(precision)
        last = len(paths) % job["batch_size"] or job["batch_size"]
        size = job["image_size"]
        for count in {min(job["batch_size"], len(paths)), last}:
            forward[precision](tf.zeros([count, size, size, 3]))
        _pass(paths[:1], job, forward[precision])
        every[part] = [child.timed(lambda: _pass(paths, job, forward[precision]))[0] for _ in range(PASSES)]  # noqa: B023
    first = sum(found[0] for found in every.values())
    warm = sum(statistics.median(found) for found in every.values())
    return {"pass": first, "warm_pass": warm, "every_pass": every, "precisions": precisions}


def _frozen(job: dict[str, Any]) -> Callable[..., Any]:
    """Returns the backbone as a graph of constants: float32 [B, H, W, 3] to [B, D]."""
    import saved_model
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    loaded = tf.saved_model.load(job["backbone"])
    keywords = {"training": False} if saved_model.takes_training(loaded) else {}
    size = job["image_size"]
    function = tf.function(lambda photos: loaded(photos, **keywords))
    frozen = convert_variables_to_constants_v2(
        function.get_concrete_function(tf.TensorSpec([None, size, size, 3], tf.float32))
    )
    return lambda photos: frozen(photos)[0]


def _pass(paths: list[str], job: dict[str, Any], forward: Callable[..., Any]) -> list[Any]:
    import tensorflow as tf

    low, high = job["pixel_range"]

    def read(path: Any) -> Any:
        photo = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(photo, [job["image_size"]] * 2) * ((high - low) / 255) + low

    photos = tf.data.Dataset.from_tensor_slices(paths).map(read, tf.data.AUTOTUNE)
    return [forward(batch).numpy() for batch in photos.batch(job["batch_size"]).prefetch(tf.data.AUTOTUNE)]


if __name__ == "__main__":
    child.serve(main)
