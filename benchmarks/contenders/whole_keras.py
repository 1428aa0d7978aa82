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
    import keras_recipe
    from saved_model import SavedModelLayer

    keras.utils.set_random_seed(job["seed"])
    child.set_precision(job["precision"])
    training, validation = (keras_recipe.photos(job, part) for part in ("training", "validation"))
    inputs, pixels = keras_recipe.rescaled(job)
    features = SavedModelLayer(job["backbone"], trainable=True)(pixels)
    model = keras_recipe.compiled(inputs, features, job["class_names"], 1e-4)
    moments = [time.perf_counter()]
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter()))
    history = model.fit(training, epochs=job["epochs"], validation_data=validation, callbacks=[clock], verbose=2)
    seconds = [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]
    return {"epoch_seconds": seconds, "losses": history.history["loss"]}


if __name__ == "__main__":
    child.serve(main)
