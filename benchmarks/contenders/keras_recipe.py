"""What the recipes in stock Keras share: its own reader of photos, a dense head on features, `fit` and `export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import child
import keras
import tensorflow as tf


def photos(job: dict[str, Any], part: str) -> tf.data.Dataset:
    """Returns the photos of "training" or "validation" as `image_dataset_from_directory` reads them."""
    size = job["image_size"]
    found = keras.utils.image_dataset_from_directory(
        job["folders"][part],
        class_names=job["class_names"],
        batch_size=job["batch_size"],
        image_size=(size, size),
        shuffle=part == "training",
        seed=job["seed"],
    )
    return found.prefetch(tf.data.AUTOTUNE)


def rescaled(job: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the input for photos, and it in the range of pixel values that the backbone takes."""
    low, high = job["pixel_range"]
    inputs = keras.Input((job["image_size"], job["image_size"], 3))
    return inputs, keras.layers.Rescaling((high - low) / 255, offset=low)(inputs)


def compiled(inputs: Any, features: Any, class_names: Sequence[str], rate: float) -> keras.Model:
    """Returns a model with dropout of 0.2 and a dense head on features, to be trained by Adam at a learning rate."""
    model = keras.Model(inputs, keras.layers.Dense(len(class_names))(keras.layers.Dropout(0.2)(features)))
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit_and_export(model: keras.Model, training: Any, validation: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of `fit` and of `export`, and validation accuracies, each in [0, 1]."""
    fit, history = child.timed(lambda: model.fit(training, epochs=job["epochs"], validation_data=validation, verbose=2))
    export, _ = child.timed(lambda: model.export(job["output"]))
    accuracies = history.history["val_accuracy"]
    return {"fit": fit, "export": export, "accuracy": accuracies[-1], "best_accuracy": max(accuracies)}
