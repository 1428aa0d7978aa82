"""The recipe of TensorFlow's transfer-learning tutorial: Keras's own reader, a frozen backbone, a dense head, `fit`."""

from __future__ import annotations

from typing import Any

import child


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of `fit` and of `export`, and validation accuracies, each in [0, 1]."""
    import keras
    import tensorflow as tf
    from saved_model import SavedModelLayer

    keras.utils.set_random_seed(job["seed"])
    size, classes = job["image_size"], job["class_names"]
    low, high = job["pixel_range"]

    def photos(part: str) -> Any:
        found = keras.utils.image_dataset_from_directory(
            job["folders"][part],
            class_names=classes,
            batch_size=job["batch_size"],
            image_size=(size, size),
            shuffle=part == "training",
            seed=job["seed"],
        )
        return found.prefetch(tf.data.AUTOTUNE)

    training, validation = photos("training"), photos("validation")
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling((high - low) / 255, offset=low)(inputs)
    x = SavedModelLayer(job["backbone"], trainable=False)(x, training=False)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(len(classes))(x))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    fit, history = child.timed(lambda: model.fit(training, epochs=job["epochs"], validation_data=validation, verbose=2))
    export, _ = child.timed(lambda: model.export(job["output"]))
    accuracies = history.history["val_accuracy"]
    return {"fit": fit, "export": export, "accuracy": accuracies[-1], "best_accuracy": max(accuracies)}


if __name__ == "__main__":
    child.serve(main)
