"""A Keras 3 layer around a TF-Hub-format SavedModel.

tensorflow_hub's own KerasLayer is a Keras 2 layer, which Keras 3 models refuse. This one calls the "Reusable
SavedModel" interface (https://www.tensorflow.org/hub/reusable_saved_models): a callable object that may take
`training` and may have `variables`, `trainable_variables` and `regularization_losses`. A SavedModel that has only
signatures works frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_finetune.backbone import earlier, freezing, interface
from tf_finetune.backbone.earlier import Head
from tf_finetune.errors import BackboneError

log = logging.getLogger(__name__)


class Backbone(keras.layers.Layer):
    """Maps examples to features by a SavedModel, frozen or trained.

    Create it inside `strategy.scope()`. Frozen, it is always called with training=False, so that not even its
    batch-norm statistics move.

    An earlier result's SavedModel stands for the backbone in it, with the weights that it has there.

    Args:
        path: Folder of the SavedModel.
        task: "image" or "text".
        trainable: Whether training changes its variables.
        preprocessor: Folder of the SavedModel that makes a BERT-like encoder's inputs; None for any other backbone.
        max_sequence_length: Tokens of a text that such an encoder reads; None for what the preprocessor does.
        trusted: Whether both SavedModels may read and write files and run Python.

    Raises:
        BackboneError: It is no SavedModel in TF-Hub's TF2 format, takes another input, or cannot be trained; or it
            reaches out of its graph and is not trusted.
    """

    def __init__(
        self,
        path: str | Path,
        task: str = "image",
        trainable: bool = False,
        preprocessor: str | Path | None = None,
        max_sequence_length: int | None = None,
        trusted: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(trainable=trainable, **kwargs)
        self.saved_model, self.task = Path(path), task
        self.preprocessor, self.max_sequence_length = preprocessor, max_sequence_length
        self.trusted = trusted
        self.supports_jit = False
        self.opened = earlier.opened(self.saved_model, interface.load_saved_model(self.saved_model, trusted))
        self.loaded = self.opened.backbone
        self.interface = interface.read(self.loaded, self.saved_model, task)
        self._regularization_losses = list(getattr(self.loaded, "regularization_losses", None) or [])
        self._adopt_variables()
        if self.interface.takes_tokens:
            self._load_preprocessor()
        elif max_sequence_length and not self.opened.head:
            log.warning("max_sequence_length has no effect: backbone %s takes whole texts", path)
        if trainable:
            self._check_trainable()

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns float32 [B, D]: the features of inputs, float32 [B, H, W, 3] or string [B]."""
        training = bool(training) and self.trainable
        if self.interface.takes_tokens:
            inputs = self.pack(inputs)
        outputs = interface.single_output(self.interface.call(inputs, training), self.saved_model)
        features = interface.pooled(outputs, self.saved_model)
        if training:
            for loss in self._regularization_losses:
                self.add_loss(loss())
        return features

    @property
    def head(self) -> Head | None:
        """The head of the earlier result that the backbone was taken from, if it was taken from one."""
        return self.opened.head

    def regularization_loss(self) -> tf.Tensor:
        """Returns float32 []: the sum of the SavedModel's own penalties on its weights; 0 when it has none."""
        return tf.add_n([tf.cast(loss(), tf.float32) for loss in self._regularization_losses] or [tf.zeros([])])

    def compute_output_spec(self, inputs: Any, training: bool = False) -> keras.KerasTensor:
        """Returns the symbolic output, float32 [None, D]."""
        return keras.KerasTensor([inputs.shape[0], self.feature_size(inputs.shape[1])], "float32")

    def feature_size(self, image_size: int | None = None) -> int:
        """Returns D: read off the traced output, else found by one call on a blank example.

        Args:
            image_size: Height and width in pixels, for image backbones that accept any.
        """
        blank = self.blank(image_size)
        try:  # Without AutoGraph, which would rewrite our messages.
            traced = tf.function(self.call, autograph=False).get_concrete_function(tf.TensorSpec.from_tensor(blank))
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            reason = (str(error).strip().split("\n") or [""])[-1].strip()[:300]
            raise BackboneError(
                f"backbone {self.saved_model} cannot take inputs of shape {blank.shape}: {reason}. Choose another "
                "image_size."
            ) from None
        size = traced.structured_outputs.shape
        if size.rank is None or size[-1] is None:
            strategy = tf.distribute.get_strategy()  # Mirrored variables can only be read inside of `run`.
            size = strategy.experimental_local_results(strategy.run(self.call, args=(blank,)))[0].shape
        if size.rank != 2:
            raise BackboneError(f"backbone {self.saved_model} gives features of shape {size}. Expected [B, D].")
        return int(size[-1])

    def blank(self, image_size: int | None = None, examples: int = 1) -> tf.Tensor:
        """Returns blank examples: float32 [examples, H, W, 3] of zeros, or string [examples] of empty texts.

        Args:
            image_size: Height and width in pixels, for image backbones that accept any.
            examples: Their number.
        """
        if self.task == "text":
            return tf.fill([examples], "")
        shape = self.interface.input_spec.shape
        sides = shape[1:3] if shape.rank else [None, None]
        return tf.zeros([examples, *(side or image_size for side in sides), 3])

    def forward(self, image_size: int | None = None, as_constants: bool = False) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns the function from examples to features, float32 [B, D], as the frozen backbone answers.

        Args:
            image_size: Height and width in pixels, for image backbones that accept any.
            as_constants: Whether variables become constants, with the values that they have now; faster once it runs.
        """
        blank = self.blank(image_size)
        spec = tf.TensorSpec([None, *blank.shape[1:]], blank.dtype)

        def call(inputs: tf.Tensor) -> tf.Tensor:
            return self(inputs, training=False)

        if as_constants:
            return freezing.with_constants(call, spec)
        return tf.function(call, input_signature=[spec], autograph=False)

    def frozen_copy(self) -> Backbone:
        """Returns another one of the same SavedModel, frozen, on the first CPU; call it outside of any strategy."""
        with tf.device("/CPU:0"):
            return Backbone(
                self.saved_model,
                self.task,
                preprocessor=self.preprocessor,
                max_sequence_length=self.max_sequence_length,
                trusted=self.trusted,
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "path": str(self.saved_model),
            "task": self.task,
            "preprocessor": str(self.preprocessor) if self.preprocessor else None,
            "max_sequence_length": self.max_sequence_length,
            "trusted": self.trusted,
        }

    def _load_preprocessor(self) -> None:
        if self.opened.preprocessor is not None:
            self.loaded_preprocessor, path = self.opened.preprocessor, self.saved_model
        elif self.preprocessor is not None:
            path = Path(self.preprocessor)
            self.loaded_preprocessor = interface.load_saved_model(path, self.trusted)
        else:
            raise BackboneError(
                f"backbone {self.saved_model} takes tokens ({', '.join(sorted(interface.BERT_INPUTS))}), so it needs "
                "the SavedModel that makes them from texts. Give it as preprocessor."
            )
        self.pack = interface.make_packer(self.loaded_preprocessor, path, self.max_sequence_length, self.interface)

    def _adopt_variables(self) -> None:
        """Makes the SavedModel's variables this layer's weights: the very variables, not copies of them."""
        trained = {id(variable) for variable in interface.trainable_variables(self.loaded, self.interface)}
        self.adopted = []
        for index, variable in enumerate(interface.all_variables(self.loaded, self.interface)):
            if not variable.dtype.is_floating and not variable.dtype.is_integer:
                continue
            wrapper = keras.Variable(
                variable, trainable=id(variable) in trained, dtype=variable.dtype.name, name=f"backbone_{index}"
            )
            wrapper._value = variable  # Keras before 3.10 copies what it is given.
            self._track_variable(wrapper)
            self.adopted.append(wrapper)
        self.built = True

    def _check_trainable(self) -> None:
        if self.interface.argument is not None:
            raise BackboneError(
                f"backbone {self.saved_model} has signatures only, so it cannot be trained. Set "
                "train_only_top_layer=True, or choose a reusable SavedModel, one that can be called with inputs."
            )
        if not self.trainable_variables:
            raise BackboneError(
                f"backbone {self.saved_model} has no trainable variables. Set train_only_top_layer=True to train the "
                "head."
            )
        if not self.interface.has_training_mode:
            log.info("the backbone has no training mode: it is trained as it answers in inference")
