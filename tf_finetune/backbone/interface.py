"""What a SavedModel takes and gives, read off its signatures; and the messages for those that do not fit.

Dimension letters: B batch, H W pixels, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_finetune import safety, text_ops
from tf_finetune.errors import BackboneError, listed

# What TF-Hub's BERT encoders take: https://www.tensorflow.org/hub/common_saved_model_apis/text
BERT_INPUTS = frozenset({"input_word_ids", "input_mask", "input_type_ids"})
SPECIAL_TOKENS = 2  # [CLS] and [SEP].
LENGTH_STEP = 16  # Packed lengths are multiples of it, so that few shapes occur.
TENSOR = "tensor"  # Stands for "training is passed as a bool tensor" among the values True, False and None.
WAYS_OUT = "Expected a TF2 SavedModel in TF-Hub's format, that is a folder with saved_model.pb and variables/"


@dataclasses.dataclass(frozen=True)
class Interface:
    """How a SavedModel wants to be called, read off its signatures.

    Attributes:
        function: What is called: the object itself, or its serving signature.
        input_spec: Shape and dtype of its input; for a BERT-like encoder a dict of three.
        argument: Name of the input where it is passed by name (signatures), else None.
        training_values: What it accepts as `training`: True, False, None or TENSOR; empty when it takes none.
    """

    function: Callable[..., Any]
    input_spec: Any
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
    def takes_tokens(self) -> bool:
        """Whether it is a BERT-like encoder, which takes what a preprocessor makes of texts."""
        return isinstance(self.input_spec, dict)

    @property
    def has_training_mode(self) -> bool:
        """Whether it behaves differently when it is trained."""
        return bool(self.training_values & {True, TENSOR})


def load_saved_model(path: Path, trusted: bool = False) -> Any:
    """Returns the loaded SavedModel.

    Args:
        path: Its folder.
        trusted: Whether it may read and write files and run Python, as the hyperparameter trust_backbone says.

    Raises:
        BackboneError: The folder holds no SavedModel, a TF1 hub module, or operations that are not known here or that
            reach out of the graph.
    """
    if not (path / "saved_model.pb").is_file():
        if not path.exists():
            raise BackboneError(f"backbone {path} does not exist. {WAYS_OUT}.")
        is_keras = path.suffix == ".keras" or any(path.glob("*.keras"))
        hint = " A .keras file must be exported first: model.export(folder)." if is_keras else ""
        raise BackboneError(f"{path} is no SavedModel: it has no saved_model.pb. {WAYS_OUT}.{hint}")
    if (path / "tfhub_module.pb").is_file():
        raise BackboneError(f"{path} is a TF1 hub module, which TensorFlow 2 cannot train. {WAYS_OUT}.")
    safety.check(path, trusted)
    try:
        if text_ops.needed_ops(path):
            text_ops.register_text_ops()
        return tf.saved_model.load(str(path))
    except BackboneError:
        raise
    except tf.errors.NotFoundError as error:
        reason = str(error).split(" Make sure")[0].split("\n")[0]
        raise BackboneError(f"{path} cannot be loaded: {reason}. {WAYS_OUT}, of operations known here.") from None
    except Exception as error:  # TensorFlow raises anything from KeyError to DecodeError on damaged files.
        reason = (str(error).strip().split("\n") or [""])[0][:300]
        raise BackboneError(f"{path} cannot be loaded: {reason or type(error).__name__}. {WAYS_OUT}.") from None


def read(loaded: Any, path: Path, task: str) -> Interface:
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
    others = sorted(getattr(loaded, "signatures", {}))
    nothing = "nothing that can be called" + (f" but signatures named {listed(others)}" if others else "")
    takes = listed(dict.fromkeys(seen)) or nothing
    raise BackboneError(f"backbone {path} does not take {wanted}. It takes {takes}. Choose one for this task.")


def single_output(outputs: Any, path: Path) -> tf.Tensor:
    """Returns the one tensor of features among a SavedModel's outputs.

    Raises:
        BackboneError: There are several, and none is called `default`, `feature_vector` or `pooled_output`.
    """
    if isinstance(outputs, dict):
        for key in ("default", "feature_vector", "pooled_output"):
            if key in outputs:
                return outputs[key]
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        raise BackboneError(
            f"backbone {path} has {len(outputs)} outputs: {listed(sorted(outputs), limit=10)}. Expected one called "
            "default, feature_vector or pooled_output, or one only."
        )
    if isinstance(outputs, (list, tuple)):
        vectors = [output for output in outputs if tf.is_tensor(output) and output.shape.rank == 2]
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
    if rank == 4:
        features = tf.reduce_mean(features, axis=[1, 2])
    elif rank not in (2, None):
        raise BackboneError(
            f"backbone {path} gives features of shape {features.shape}. Expected [B, D] or [B, h, w, D]."
        )
    return tf.cast(features, tf.float32)


def image_size(interface: Interface) -> int | None:
    """Returns the height and width in pixels that a SavedModel is fixed to, or None if it accepts any."""
    if interface.takes_tokens:
        return None
    shape = interface.input_spec.shape
    return shape[1] if shape.rank == 4 else None


def _is_input(spec: Any, task: str) -> bool:
    if task == "text" and isinstance(spec, dict):
        return set(spec) == BERT_INPUTS
    if not isinstance(spec, tf.TensorSpec):
        return False
    if task == "text":
        return spec.dtype == tf.string and (spec.shape.rank is None or spec.shape.as_list() == [None])
    if spec.dtype != tf.float32:
        return False
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None, None, None, 3]
    is_batch_of_photos = len(shape) == 4 and shape[0] is None and shape[3] in (3, None)
    return is_batch_of_photos and shape[1] == shape[2]


def _described(spec: Any) -> str:
    if isinstance(spec, dict):
        return "{" + ", ".join(sorted(map(str, spec))) + "}"
    return f"{spec.dtype.name} {spec.shape}" if isinstance(spec, tf.TensorSpec) else type(spec).__name__


def _training_values(function: Any) -> list[Any]:
    """Returns what one concrete function was traced with as `training`; nothing when it does not take it."""
    parameter = function.function_type.parameters.get("training")
    if parameter is None:
        return []
    constraint = parameter.type_constraint
    return [TENSOR] if isinstance(constraint, tf.TensorSpec) else [getattr(constraint, "value", None)]


def all_variables(loaded: Any, interface: Interface) -> list[tf.Variable]:
    """Returns the variables that a SavedModel lists, and those that its functions use besides."""
    found = [*getattr(loaded, "variables", ()), *trainable_variables(loaded, interface), *_captured(loaded, interface)]
    return list({id(variable): variable for variable in found}.values())


def trainable_variables(loaded: Any, interface: Interface) -> list[tf.Variable]:
    """Returns the variables that training changes: those that a SavedModel lists, else all that are trainable."""
    listed_ones = getattr(loaded, "trainable_variables", None)
    if listed_ones is not None:
        return list(listed_ones)
    return [variable for variable in _captured(loaded, interface) if variable.trainable]


def _captured(loaded: Any, interface: Interface) -> list[tf.Variable]:
    """Returns the variables that the SavedModel's functions use, for those that do not list theirs."""
    if interface.argument is not None:
        return list(interface.function.variables)  # type: ignore[attr-defined]
    return [variable for function in loaded.__call__.concrete_functions for variable in function.variables]


def make_packer(
    loaded: Any, path: Path, max_sequence_length: int | None, encoder: Interface
) -> Callable[[tf.Tensor], Any]:
    """Returns the function from texts, string [B], to a BERT-like encoder's inputs, int32 [B, tokens] each.

    Where both SavedModels can, tokens are as many as the longest text of the batch has, not max_sequence_length, so
    that nothing is computed for padding. Padding is masked: an encoder's answers do not depend on it beyond rounding.

    Args:
        loaded: A preprocessing SavedModel; with `tokenize` and `bert_pack_inputs` it can make any length.
        path: Where it came from.
        max_sequence_length: Tokens; None for what the SavedModel does by itself.
        encoder: The encoder that takes them.

    Raises:
        BackboneError: It is no preprocessor, or has one length only and another is wanted.
    """
    can_pack = all(hasattr(loaded, name) for name in ("tokenize", "bert_pack_inputs"))
    default = _default_length(loaded)
    if not can_pack and default is None:
        raise BackboneError(
            f"preprocessor {path} does not make tokens from texts. Expected a SavedModel of TF-Hub's BERT "
            "preprocessing interface, such as bert_en_uncased_preprocess."
        )
    if not can_pack and max_sequence_length is not None:
        raise BackboneError(
            f"preprocessor {path} has one sequence length only: it lacks tokenize and bert_pack_inputs. Received: "
            f"max_sequence_length={max_sequence_length}. Leave it unset."
        )
    most = max_sequence_length or default
    if not can_pack or not most:
        return loaded
    fixed = any(spec.shape.rank is None or spec.shape[1] is not None for spec in encoder.input_spec.values())

    def pack(texts: tf.Tensor) -> Any:
        tokens = loaded.tokenize(texts)
        if fixed:
            return loaded.bert_pack_inputs([tokens], tf.constant(most, tf.int32))
        words = tokens.merge_dims(1, -1) if tokens.ragged_rank > 1 else tokens
        needed = tf.cast(tf.reduce_max(words.row_lengths()), tf.int32) + SPECIAL_TOKENS
        length = tf.minimum(-(-needed // LENGTH_STEP) * LENGTH_STEP, most)
        return loaded.bert_pack_inputs([tokens], length)

    return pack


def _default_length(loaded: Any) -> int | None:
    """Returns how many tokens a preprocessor makes of a text by itself, 0 where that is open; None if it is none."""

    @tf.function(autograph=False)
    def make(texts: tf.Tensor) -> Any:
        return loaded(texts)

    try:
        outputs = make.get_concrete_function(tf.TensorSpec([None], tf.string)).structured_outputs
    except (TypeError, ValueError):  # It cannot be called, or not with texts.
        return None
    if not isinstance(outputs, dict) or set(outputs) != BERT_INPUTS:
        return None
    return outputs["input_word_ids"].shape[1] or 0
