"""A SavedModel in Keras 3, whose models refuse hub.KerasLayer: the least layer that freezes or trains one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def takes_training(loaded: Any) -> bool:
    """Returns whether a SavedModel's call takes `training`, as Keras's exports do and older ones do not."""
    functions = loaded.__call__.concrete_functions
    return any("training" in function.function_type.parameters for function in functions)


class SavedModelLayer(keras.layers.Layer):
    """Maps photos or texts to features by a SavedModel, whose variables become the layer's weights.

    Args:
        folder: Where saved_model.pb is.
        trainable: False leaves the backbone as it is, its batch-norm statistics included.
    """

    def __init__(self, folder: str, trainable: bool) -> None:
        super().__init__(trainable=trainable)
        self.supports_jit = False  # Strings, and restored functions, are not for XLA; on a CPU it is far slower too.
        self.loaded = tf.saved_model.load(folder)
        self.passes_training = takes_training(self.loaded)
        chosen = {id(variable) for variable in getattr(self.loaded, "trainable_variables", ())}
        for number, variable in enumerate(getattr(self.loaded, "variables", ())):
            if not variable.dtype.is_floating:
                continue
            weight = keras.Variable(
                variable, trainable=id(variable) in chosen, dtype=variable.dtype.name, name=f"backbone_{number}"
            )
            weight._value = variable
            self._track_variable(weight)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns float32 [B, D]; frozen it always answers as in inference."""
        if self.passes_training:
            return self.loaded(inputs, training=bool(training) and self.trainable)
        return self.loaded(inputs)
