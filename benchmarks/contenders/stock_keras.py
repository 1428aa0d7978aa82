"""The recipe of TensorFlow's transfer-learning tutorial: Keras's own reader, a frozen backbone, a dense head, `fit`."""

from __future__ import annotations

from typing import Any

import child


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of `fit` and of `export`, and validation accuracies, each in [0, 1]."""
    import keras
    import keras_recipe
    from saved_model import SavedModelLayer

    keras.utils.set_random_seed(job["seed"])
    training, validation = (keras_recipe.photos(job, part) for part in ("training", "validation"))
    inputs, pixels = keras_recipe.rescaled(job)
    features = SavedModelLayer(job["backbone"], trainable=False)(pixels, training=False)
    model = keras_recipe.compiled(inputs, features, job["class_names"], 1e-3)
    return keras_recipe.fit_and_export(model, training, validation, job)


if __name__ == "__main__":
    child.serve(main)
