"""ONNX files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tf_finetune import devices, export
from tf_finetune.errors import ExportError, listed
from tf_finetune.targets import description as descriptions
from tf_finetune.targets.graph import Model

OPSET = 17  # Of 2022: ONNX Runtime 1.12 and newer, and what phones and browsers have.


def convert(model: Model) -> Any:
    """Returns an onnx.ModelProto.

    Raises:
        ExportError: The graph has operations that ONNX lacks.
    """
    import onnx
    import tf2onnx

    failure, proto = "", None
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # Its errors are ours to tell.
    with devices.without_noise():
        try:
            proto, _ = tf2onnx.convert.from_function(model.cut, input_signature=model.cut.input_signature, opset=OPSET)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # Anything from ValueError to KeyError.
            failure = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if proto is None:
        raise ExportError(f"The model cannot be written as ONNX: {failure}. Nothing was written.")
    # tf2onnx hands over operations that it does not know as they are.
    unknown = {node.op_type for node in _nodes(proto.graph) if not onnx.defs.has(node.op_type, OPSET, node.domain)}
    if unknown:
        raise ExportError(
            f"The model cannot be written as ONNX: ONNX has no operations for {listed(sorted(unknown))} (opset "
            f"{OPSET}). Nothing was written."
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "B"
    return proto


def _nodes(graph: Any) -> list[Any]:
    """Returns the nodes of a graph and of the graphs inside of them."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                found += _nodes(inner)
    return found


def described(proto: Any, description: Mapping[str, Any]) -> bytes:
    """Returns the file, with its description and its class names among its metadata_props."""
    proto.producer_name, proto.producer_version = "tf_finetune", export.versions().get("tf_finetune", "")
    for name, text in (
        (descriptions.NAME, descriptions.as_text(description)),
        (descriptions.LABELS, descriptions.labels(description)),
    ):
        proto.metadata_props.add(key=name, value=text)
    return proto.SerializeToString(deterministic=True)
