"""Fine-tuning a whole network by stock Keras: `fit` with the SavedModel as a trainable layer.

The same network built of Keras's own layers was not faster here.
"""

from __future__ import annotations

import time
from typing import Any

import child


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of each epoch and the loss after it."""
    import keras
    import tensorflow as tf
    from saved_model import SavedModelLayer

    keras.utils.set_random_seed(job["seed"])
    child.set_precision(job["precision"])
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
    x = SavedModelLayer(job["backbone"], trainable=True)(keras.layers.Rescaling((high - low) / 255, offset=low)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(len(classes))(keras.layers.Dropout(0.2)(x)))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    moments = [time.perf_counter()]
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter()))
    history = model.fit(training, epochs=job["epochs"], validation_data=validation, callbacks=[clock], verbose=2)
    seconds = [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]
    return {"epoch_seconds": seconds, "losses": history.history["loss"]}


if __name__ == "__main__":
    child.serve(main)
