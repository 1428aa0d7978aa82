"""hub.KerasLayer under Keras 2, as TF-Hub's make_image_classifier had it: generator, SGD, smoothed labels.

Of that tool's own settings only the number of epochs differs, which is everyone's here, and the split, which is ours:
its own shares photos between training and validation.
"""

from __future__ import annotations

import os
from typing import Any

import child

os.environ["TF_USE_LEGACY_KERAS"] = "1"


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of `fit` and of saving, and validation accuracies, each in [0, 1]."""
    import tensorflow_hub as hub
    import tf_keras as keras

    keras.utils.set_random_seed(job["seed"])
    size, classes, batch_size = job["image_size"], job["class_names"], job["batch_size"]
    low, high = job["pixel_range"]
    generator = keras.preprocessing.image.ImageDataGenerator(
        preprocessing_function=lambda photo: photo * ((high - low) / 255) + low
    )

    def photos(part: str) -> Any:
        return generator.flow_from_directory(
            job["folders"][part],
            classes=classes,
            target_size=(size, size),
            batch_size=batch_size,
            interpolation="bilinear",
            shuffle=part == "training",
            seed=job["seed"],
        )

    training, validation = photos("training"), photos("validation")
    model = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            hub.KerasLayer(job["backbone"], trainable=False),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(len(classes), activation="softmax", kernel_regularizer=keras.regularizers.l2(0.0001)),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.005, momentum=0.9),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    fit, history = child.timed(lambda: model.fit(training, epochs=job["epochs"], validation_data=validation, verbose=2))
    export, _ = child.timed(lambda: model.save(job["output"], save_format="tf"))
    accuracies = history.history["val_accuracy"]
    return {"fit": fit, "export": export, "accuracy": accuracies[-1], "best_accuracy": max(accuracies)}


if __name__ == "__main__":
    child.serve(main)
