"""A model in the layout of SageMaker JumpStart's image classification, taken apart into a backbone and a head.

Its serving signature takes encoded photos and answers probabilities. All of it is turned into one graph of constants;
the head is the last dense layer, and the backbone is what lies between the pixels and that layer's input. What range
the pixels have there is measured on flat photos, for no file says so reliably.

Dimension letters: B batch, H W pixels, D features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tf_finetune.backbone import interface
from tf_finetune.backbone.earlier import HEAD, Head
from tf_finetune.errors import BackboneError

DESCRIBED = "pixels.json"
PASSED = frozenset({"Identity", "Softmax", "Sigmoid", "Cast", "StopGradient"})  # Between the head and the answer.
SIDES = (8, 1024)  # Pixels that an image_size may have.
TOLERANCE = 0.02  # Of the measured range; a grey is off by half a level.
WAYS_OUT = "Give its backbone alone as a SavedModel from pixels to features, or reinitialize from another backbone"


def convert(path: Path, folder: Path, output_key: str, with_head: bool, trusted: bool) -> None:
    """Writes the backbone in TF-Hub's format, its range of pixels and, where wanted, the head.

    Args:
        path: Folder of the SavedModel.
        folder: Where to.
        output_key: Of the signature's output; empty where it has one only.
        with_head: Whether the last layer is a head that may be kept; a pretrained model's is dropped just the same.
        trusted: Whether it may read and write files and run Python.

    Raises:
        BackboneError: It cannot be taken apart so.
    """
    graph, photos, answer = _one_graph(interface.load_saved_model(path, trusted), path, output_key)
    features, head = _head_of(answer, path)
    pixels = _pixels_of(graph.graph, photos, features, path)
    sides, pixel_range = _measured(graph.prune([photos], [pixels]), path)
    body = graph.prune([pixels], [features])
    size = int(head.kernel.shape[0])

    @tf.function(input_signature=[tf.TensorSpec([None, sides, sides, 3], tf.float32)], autograph=False)
    def call(images: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(body(images)[0], [None, size])

    module = tf.Module()
    module.__call__ = call
    tf.saved_model.save(module, str(folder))
    (folder / DESCRIBED).write_text(json.dumps({"pixel_range": pixel_range}), encoding="utf-8")
    if with_head:
        with (folder / HEAD).open("wb") as stream:
            np.savez(stream, kernel=head.kernel, bias=head.bias)


def pixel_range_of(folder: Path) -> tuple[float, float]:
    """Returns the values of black and white that a converted model expects."""
    low, high = json.loads((folder / DESCRIBED).read_text(encoding="utf-8"))["pixel_range"]
    return low, high


def _one_graph(loaded: Any, path: Path, output_key: str) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """Returns the serving signature as one function of constants, its input and its output."""
    signature = getattr(loaded, "signatures", {}).get("serving_default")
    inputs = signature.structured_input_signature[1] if signature is not None else {}
    if signature is None or len(inputs) != 1 or next(iter(inputs.values())).dtype != tf.string:
        raise BackboneError(
            f"{path} has no serving_default signature from encoded photos to probabilities, which JumpStart's layout "
            f"has. {WAYS_OUT}."
        )
    outputs = sorted(signature.structured_outputs)
    key = output_key if output_key in outputs else "probabilities" if "probabilities" in outputs else outputs[0]
    spec = next(iter(inputs.values()))
    call = tf.function(lambda photos: signature(**{next(iter(inputs)): photos})[key], autograph=False)
    try:
        traced = call.get_concrete_function(tf.TensorSpec([None], spec.dtype))
        frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    except Exception as error:  # What TensorFlow raises then is not documented.
        reason = (str(error).strip().split("\n") or [""])[0][:200]
        raise BackboneError(f"{path} cannot be made one graph of constants: {reason}. {WAYS_OUT}.") from None
    definition = frozen.graph.as_graph_def()
    for node in definition.node:  # Control edges lead from each part to the photos, and would forbid to cut it off.
        del node.input[len([name for name in node.input if not name.startswith("^")]) :]
    whole = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(definition, name=""), [])
    return whole, *(whole.graph.get_tensor_by_name(one[0].name) for one in (frozen.inputs, frozen.outputs))


def _head_of(answer: tf.Tensor, path: Path) -> tuple[tf.Tensor, Head]:
    """Returns the input of the last dense layer, [B, D], and the layer."""
    operation = _passed(answer.op)
    bias = None
    if operation.type in ("BiasAdd", "AddV2", "Add"):
        bias = _constant(operation.inputs[1])
        operation = _passed(operation.inputs[0].op)
    kernel = _constant(operation.inputs[1]) if operation.type == "MatMul" else None
    if kernel is None or kernel.ndim != 2:
        raise BackboneError(
            f"{path} does not end in a dense layer and a softmax or sigmoid, but in {operation.type}. {WAYS_OUT}."
        )
    kernel = kernel.T if operation.get_attr("transpose_b") else kernel
    bias = np.zeros(kernel.shape[1]) if bias is None else bias
    return operation.inputs[0], Head(kernel.astype(np.float32), bias.astype(np.float32))


def _passed(operation: tf.Operation) -> tf.Operation:
    while operation.type in PASSED:
        operation = operation.inputs[0].op
    return operation


def _constant(tensor: tf.Tensor) -> np.ndarray | None:
    return tf.get_static_value(tf.convert_to_tensor(_passed(tensor.op).outputs[0]))


def _pixels_of(graph: tf.Graph, photos: tf.Tensor, features: tf.Tensor, path: Path) -> tf.Tensor:
    """Returns the first batch of pixels, float32 [B, H, W, 3], through which all that photos say passes."""
    above = list(_above(features.op, None))
    found = [
        tensor
        for operation in above
        for tensor in operation.outputs
        if _is_pixels(tensor) and photos.op in _above(operation, None)
    ]
    found = [tensor for tensor in found if photos.op not in set(_above(features.op, tensor.op))]
    if not found:
        raise BackboneError(f"{path} has no batch of pixels between its photos and its features. {WAYS_OUT}.")
    return min(found, key=lambda tensor: len(list(_above(tensor.op, None))))


def _is_pixels(tensor: tf.Tensor) -> bool:
    shape = tensor.shape
    return tensor.dtype == tf.float32 and shape.rank == 4 and shape[3] == 3 and tensor.op.type != "Const"


def _above(operation: tf.Operation, without: tf.Operation | None) -> Iterator[tf.Operation]:
    """Gives an operation and all that its value depends on; what only `without` leads to is left out."""
    seen, waiting = set(), [operation]
    while waiting:
        one = waiting.pop()
        if one in seen or one == without:
            continue
        seen.add(one)
        yield one
        waiting += [tensor.op for tensor in one.inputs]


def _measured(decode: Any, path: Path) -> tuple[int, tuple[float, float]]:
    """Returns the pixels' height and width, and the values of black and white: flat photos tell."""
    flat = [np.full([64, 64, 3], shade, np.uint8) for shade in (0, 128, 255)]
    photos = tf.stack([tf.io.encode_jpeg(pixels, quality=100) for pixels in flat])
    try:
        found = decode(photos)[0].numpy().astype(np.float64)
    except tf.errors.OpError as error:
        raise BackboneError(f"{path} does not decode a JPEG: {str(error).splitlines()[0][:200]}. {WAYS_OUT}.") from None
    height, width = found.shape[1:3]
    low, grey, high = found.mean(axis=(1, 2, 3))
    is_flat = np.ptp(found, axis=(1, 2, 3)).max() <= TOLERANCE * (high - low)
    is_linear = abs(grey - low - (high - low) * 128 / 255) <= TOLERANCE * (high - low)
    if not (high > low and is_flat and is_linear) or height != width or not SIDES[0] <= height <= SIDES[1]:
        raise BackboneError(
            f"{path} does not show its backbone square photos in one range of values: black is {low:.3g}, white "
            f"{high:.3g}, {height} x {width} pixels. {WAYS_OUT}."
        )
    return int(height), (_rounded(low), _rounded(high))


def _rounded(value: float) -> float:
    """Returns a value without the rounding of its decoding."""
    return float(round(value, 4)) + 0.0
