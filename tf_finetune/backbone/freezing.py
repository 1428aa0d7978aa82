"""A function whose variables are constants of its graph, so that TensorFlow can fold and fuse them.

A backbone's batch norms then vanish into its convolutions, and a graph rewriter that computes in 16 bits casts each
weight once rather than at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def with_constants(function: Callable[[tf.Tensor], tf.Tensor], spec: tf.TensorSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of one tensor with the values that its variables have now.

    Tables and other resources that are no variables stay what they are.

    Args:
        function: Of one tensor, to one tensor.
        spec: Of its argument.

    Raises:
        Exception: TensorFlow cannot do so with this graph; what it raises then is not documented.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    resources = {inner.name: outer for outer, inner in traced.graph.captures}
    argument = traced.inputs[0].name
    given = [None if tensor.name == argument else resources[tensor.name] for tensor in frozen.inputs]

    @tf.function(input_signature=[spec], autograph=False)
    def call(inputs: tf.Tensor) -> tf.Tensor:
        outputs: Any = frozen(*(inputs if resource is None else resource for resource in given))
        output = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        return tf.ensure_shape(output, traced.outputs[0].shape)

    call.keeps = traced  # Of the tables, which the graph names but does not own.
    return call
