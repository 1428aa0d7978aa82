"""A Keras 3 layer around a TF-Hub-format SavedModel.

tensorflow_hub's own KerasLayer is a Keras 2 layer, which Keras 3 models refuse. This one calls the "Reusable
SavedModel" interface (https://www.tensorflow.org/hub/reusable_saved_models): a callable object that may take
`training` and may have `variables`, `trainable_variables` and `regularization_losses`. A SavedModel that has only
signatures works frozen.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_finetune.errors import BackboneError, listed

log = logging.getLogger(__name__)

TENSOR = "tensor"  # Stands for "training is passed as a bool tensor" among the values True, False and None.
WAYS_OUT = "Expected a TF2 SavedModel in TF-Hub's format, that is a folder with saved_model.pb and variables/"


@dataclasses.dataclass(frozen=True)
class Interface:
    """How a SavedModel wants to be called, read off its signatures.

    Attributes:
        function: What is called: the object itself, or its serving signature.
        input_spec: Shape, dtype of its input.
        argument: Name of the input where it is passed by name (signatures), else None.
        training_values: What it accepts as `training`: True, False, None or TENSOR; empty when it takes none.
    """

    function: Callable[..., Any]
    input_spec: tf.TensorSpec
    argument: str | None
    training_values: frozenset[Any]

    def call(self, inputs: tf.Tensor, training: bool) -> Any:
        """Returns the raw outputs; without a training mode, those of inference."""
        if self.argument is not None:
            return self.function(**{self.argument: inputs})
        if not self.training_values:
            return self.function(inputs)
        if training in self.training_values:
            return self.function(inputs, training=training)
        if TENSOR in self.training_values:
            return self.function(inputs, training=tf.constant(training))
        return self.function(inputs, training=False if False in self.training_values else None)

    @property
    def has_training_mode(self) -> bool:
        """Whether it behaves differently when it is trained."""
        return bool(self.training_values & {True, TENSOR})


class Backbone(keras.layers.Layer):
    """Maps examples to features by a SavedModel, frozen or trained.

    Create it inside `strategy.scope()`. Frozen, it is always called with training=False, so that not even its
    batch-norm statistics move.

    Args:
        path: Folder of the SavedModel.
        task: "image" or "text".
        trainable: Whether training changes its variables.

    Raises:
        BackboneError: It is no SavedModel in TF-Hub's TF2 format, takes another input, or cannot be trained.
    """

    def __init__(self, path: str | Path, task: str = "image", trainable: bool = False, **kwargs: Any) -> None:
        super().__init__(trainable=trainable, **kwargs)
        self.saved_model, self.task = Path(path), task
        self.supports_jit = False
        self.loaded = load_saved_model(self.saved_model)
        self.interface = read_interface(self.loaded, self.saved_model, task)
        self._regularization_losses = list(getattr(self.loaded, "regularization_losses", None) or [])
        self._adopt_variables()
        if trainable:
            self._check_trainable()

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns float32 [B, D]: the features of inputs, float32 [B, H, W, 3] or string [B]."""
        training = bool(training) and self.trainable
        features = pooled(single_output(self.interface.call(inputs, training), self.saved_model), self.saved_model)
        if training:
            for loss in self._regularization_losses:
                self.add_loss(loss())
        return features

    def regularization_loss(self) -> tf.Tensor:
        """Returns float32 []: the sum of the SavedModel's own penalties on its weights; 0 when it has none."""
        return tf.add_n([tf.cast(loss(), tf.float32) for loss in self._regularization_losses] or [tf.zeros([])])

    def compute_output_spec(self, inputs: Any, training: bool = False) -> keras.KerasTensor:
        """Returns the symbolic output, float32 [None, D]."""
        return keras.KerasTensor([inputs.shape[0], self.feature_size(inputs.shape[1])], "float32")

    def feature_size(self, image_size: int | None = None) -> int:
        """Returns D, found by one call on a blank example.

        Args:
            image_size: Height and width in pixels, for image backbones that accept any.
        """
        if self.task == "text":
            blank = tf.constant([""])
        else:
            height, width = [side or image_size for side in self.interface.input_spec.shape[1:3]]
            blank = tf.zeros([1, height, width, 3])
        return int(self(blank).shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "path": str(self.saved_model), "task": self.task}

    def _adopt_variables(self) -> None:
        """Makes the SavedModel's variables this layer's weights: the very variables, not copies of them."""
        trained = {id(variable) for variable in _trainable_variables(self.loaded, self.interface)}
        self.adopted = []
        for index, variable in enumerate(_all_variables(self.loaded, self.interface)):
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
                f"backbone {self.saved_model} has signatures only, so it cannot be trained. Set train_only_top_layer=True, "
                "or choose a reusable SavedModel, one that can be called with inputs."
            )
        if not self.trainable_variables:
            raise BackboneError(
                f"backbone {self.saved_model} has no trainable variables. Set train_only_top_layer=True to train the head."
            )
        if not self.interface.has_training_mode:
            log.info("the backbone has no training mode: it is trained as it answers in inference")


def load_saved_model(path: Path) -> Any:
    """Returns the loaded SavedModel.

    Raises:
        BackboneError: The folder holds no SavedModel, a TF1 hub module, or operations that are not known here.
    """
    if not (path / "saved_model.pb").is_file():
        keras_files = sorted(file.name for file in path.glob("*.keras")) if path.is_dir() else [path.name]
        hint = " A .keras file must be exported first: model.export(folder)." if keras_files else ""
        raise BackboneError(f"{path} is no SavedModel: it has no saved_model.pb. {WAYS_OUT}.{hint}")
    if (path / "tfhub_module.pb").is_file():
        raise BackboneError(f"{path} is a TF1 hub module, which TensorFlow 2 cannot train. {WAYS_OUT}.")
    try:
        return tf.saved_model.load(str(path))
    except tf.errors.NotFoundError as error:
        reason = str(error).split(" Make sure")[0].split("\n")[0]
        raise BackboneError(f"{path} cannot be loaded: {reason}. {WAYS_OUT}, of operations known here.") from None
    except Exception as error:  # TensorFlow raises anything from KeyError to DecodeError on damaged files.
        reason = (str(error).strip().split("\n") or [""])[0][:300]
        raise BackboneError(f"{path} cannot be loaded: {reason or type(error).__name__}. {WAYS_OUT}.") from None


def read_interface(loaded: Any, path: Path, task: str) -> Interface:
    """Returns how to call a SavedModel for a task.

    Raises:
        BackboneError: It can be called neither with photos (or texts) nor by a signature of one such input.
    """
    seen = []
    if callable(loaded) and hasattr(loaded.__call__, "concrete_functions"):
        functions = loaded.__call__.concrete_functions
        fitting = []
        for function in functions:
            arguments, named = function.structured_input_signature
            first = arguments[0] if arguments else None
            seen.append(_described(first))
            if _is_input(first, task):
                fitting.append(function)
        if fitting:
            values = frozenset(value for function in fitting for value in _training_values(function))
            if values == {True}:
                raise BackboneError(f"backbone {path} can only be called with training=True. {WAYS_OUT}.")
            return Interface(loaded, fitting[0].structured_input_signature[0][0], None, values)
    for name in ("serving_default", "default", "image_feature_vector"):
        signature = loaded.signatures.get(name) if hasattr(loaded, "signatures") else None
        if signature is None:
            continue
        named = signature.structured_input_signature[1]
        seen += [_described(spec) for spec in named.values()]
        if len(named) == 1 and _is_input(next(iter(named.values())), task):
            return Interface(signature, next(iter(named.values())), next(iter(named)), frozenset())
    wanted = "float32 [None, height, width, 3] photos" if task == "image" else "string [None] texts"
    takes = listed(dict.fromkeys(seen)) or "nothing that can be called"
    raise BackboneError(f"backbone {path} does not take {wanted}. It takes {takes}. Choose one for this task.")


def single_output(outputs: Any, path: Path) -> tf.Tensor:
    """Returns the one tensor of features among a SavedModel's outputs.

    Raises:
        BackboneError: There are several, and none is called `default` or `feature_vector`.
    """
    if isinstance(outputs, dict):
        for key in ("default", "feature_vector"):
            if key in outputs:
                return outputs[key]
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        raise BackboneError(
            f"backbone {path} has {len(outputs)} outputs: {listed(sorted(outputs), limit=10)}. Expected one called "
            "default or feature_vector, or one only."
        )
    if isinstance(outputs, (list, tuple)):
        vectors = [output for output in outputs if tf.is_tensor(output) and output.shape.rank == 2]  # noqa: PLR2004
        if len(vectors) == 1 or len(outputs) == 1:
            return (vectors or list(outputs))[0]
        raise BackboneError(f"backbone {path} has {len(outputs)} outputs without names. Expected one, [B, D].")
    return outputs


def pooled(features: tf.Tensor, path: Path) -> tf.Tensor:
    """Returns float32 [B, D]: vectors as they are, feature maps [B, h, w, D] averaged over h and w.

    Raises:
        BackboneError: The features have another rank.
    """
    rank = features.shape.rank
    if rank == 4:  # noqa: PLR2004 ([B, h, w, D])
        features = tf.reduce_mean(features, axis=[1, 2])
    elif rank not in (2, None):
        raise BackboneError(f"backbone {path} gives features of shape {features.shape}. Expected [B, D] or [B, h, w, D].")
    return tf.cast(features, tf.float32)


def image_size(interface: Interface) -> int | None:
    """Returns the height and width in pixels that a SavedModel is fixed to, or None if it accepts any."""
    shape = interface.input_spec.shape
    return shape[1] if shape.rank == 4 else None  # noqa: PLR2004


def check_image_size(wanted: int | None, fixed: int | None, path: Path) -> None:
    """Compares the user's image_size with what a SavedModel is fixed to.

    Raises:
        BackboneError: They differ.
    """
    if wanted and fixed and wanted != fixed:
        raise BackboneError(
            f"backbone {path} accepts {fixed}x{fixed} photos only. Received: image_size={wanted}. Leave image_size unset."
        )


def _is_input(spec: Any, task: str) -> bool:
    if not isinstance(spec, tf.TensorSpec):
        return False
    if task == "text":
        return spec.dtype == tf.string and (spec.shape.rank is None or spec.shape.as_list() == [None])
    if spec.dtype != tf.float32:
        return False
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None, None, None, 3]
    is_batch_of_photos = len(shape) == 4 and shape[0] is None and shape[3] in (3, None)  # noqa: PLR2004
    return is_batch_of_photos and shape[1] == shape[2]


def _described(spec: Any) -> str:
    return f"{spec.dtype.name} {spec.shape}" if isinstance(spec, tf.TensorSpec) else type(spec).__name__


def _training_values(function: Any) -> list[Any]:
    """Returns what one concrete function was traced with as `training`; nothing when it does not take it."""
    parameter = function.function_type.parameters.get("training")
    if parameter is None:
        return []
    constraint = parameter.type_constraint
    return [TENSOR] if isinstance(constraint, tf.TensorSpec) else [getattr(constraint, "value", None)]


def _all_variables(loaded: Any, interface: Interface) -> list[tf.Variable]:
    found = [*getattr(loaded, "variables", ()), *_trainable_variables(loaded, interface), *_captured(loaded, interface)]
    return list({id(variable): variable for variable in found}.values())


def _trainable_variables(loaded: Any, interface: Interface) -> list[tf.Variable]:
    listed_ones = getattr(loaded, "trainable_variables", None)
    if listed_ones is not None:
        return list(listed_ones)
    return [variable for variable in _captured(loaded, interface) if variable.trainable]


def _captured(loaded: Any, interface: Interface) -> list[tf.Variable]:
    """Returns the variables that the SavedModel's functions use, for those that do not list theirs."""
    if interface.argument is not None:
        return list(interface.function.variables)  # type: ignore[attr-defined]
    return [variable for function in loaded.__call__.concrete_functions for variable in function.variables]
