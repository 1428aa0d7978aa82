"""A frozen encoder in stock Keras: texts through the SavedModel in every epoch, a dense head, `fit`."""

from __future__ import annotations

import contextlib
from typing import Any

import child


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of `fit` and of `export`, and validation accuracies, each in [0, 1]."""
    import keras
    import tensorflow as tf

    with contextlib.suppress(ImportError):  # The operations of most encoders' tokenizers are in there.
        import tensorflow_text  # noqa: F401
    import keras_recipe
    from saved_model import SavedModelLayer

    keras.utils.set_random_seed(job["seed"])

    def texts(part: str) -> Any:
        rows = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*job[part], strict=True))))
        if part == "training":
            rows = rows.shuffle(len(job[part]), seed=job["seed"])
        return rows.batch(job["batch_size"]).prefetch(tf.data.AUTOTUNE)

    training, validation = texts("training"), texts("validation")
    inputs = keras.Input((), dtype="string")
    features = SavedModelLayer(job["backbone"], trainable=False)(inputs, training=False)
    model = keras_recipe.compiled(inputs, features, job["class_names"], 1e-3)
    return keras_recipe.fit_and_export(model, training, validation, job)


if __name__ == "__main__":
    child.serve(main)
