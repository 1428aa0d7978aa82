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
    from saved_model import SavedModelLayer

    keras.utils.set_random_seed(job["seed"])

    def texts(part: str) -> Any:
        rows = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*job[part], strict=True))))
        if part == "training":
            rows = rows.shuffle(len(job[part]), seed=job["seed"])
        return rows.batch(job["batch_size"]).prefetch(tf.data.AUTOTUNE)

    training, validation = texts("training"), texts("validation")
    inputs = keras.Input((), dtype="string")
    x = SavedModelLayer(job["backbone"], trainable=False)(inputs, training=False)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(len(job["class_names"]))(x))
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
