"""The operations in SavedModels' graphs: those of tensorflow_text, and those that draw at random."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from tf_finetune.errors import BackboneError

SEEDED_OPS = frozenset(
    {
        "Multinomial",
        "ParameterizedTruncatedNormal",
        "RandomGamma",
        "RandomPoissonV2",
        "RandomShuffle",
        "RandomStandardNormal",
        "RandomUniform",
        "RandomUniformInt",
        "TruncatedNormal",
    }
)
_INSTALL = 'pip install "tf_finetune[text]"'


def register_text_ops() -> ModuleType:
    """Returns tensorflow_text, whose import makes its operations known to TensorFlow.

    Raises:
        BackboneError: It is not installed, or was built for another version of TensorFlow.
    """
    series = ".".join(tf.__version__.split(".")[:2])
    try:
        import tensorflow_text
    except ModuleNotFoundError as error:
        if error.name != "tensorflow_text":
            raise
        raise BackboneError(
            f"This backbone needs tensorflow_text, which is not installed. Run: {_INSTALL}. Its version must match "
            f"TensorFlow's, which is {tf.__version__}: tensorflow-text {series}.*."
        ) from None
    except (ImportError, tf.errors.OpError, OSError) as error:
        raise BackboneError(
            f"tensorflow_text {_installed()} cannot be used with TensorFlow {tf.__version__}: their versions must "
            f'match. Run: pip install "tensorflow-text=={series}.*", or {_INSTALL} in a new environment. '
            f"The import said: {_first_line(error)}"
        ) from error
    return tensorflow_text


def needed_ops(saved_model: Path) -> list[str]:
    """Returns the operations in a SavedModel's graphs that TensorFlow itself lacks, sorted.

    They are read off the file, so that the answer does not depend on what this process has registered.

    Args:
        saved_model: The folder with saved_model.pb.
    """
    used: set[str] = set()
    own: set[str] = set()
    for graph in _graphs(saved_model):
        used.update(node.op for node in graph.node)
        for function in graph.library.function:
            own.add(function.signature.name)  # A node may call a function by its bare name.
            used.update(node.op for node in function.node_def)
    return sorted(op for op in used - own if not hasattr(tf.raw_ops, op) and not op.startswith("_"))


def draws_at_random(saved_model: Path) -> bool:
    """Returns whether a SavedModel's graphs draw random numbers that no seed reaches, as old dropout layers do.

    TensorFlow's deterministic mode refuses to run such operations.

    Args:
        saved_model: The folder with saved_model.pb.
    """
    nodes = (
        node
        for graph in _graphs(saved_model)
        for part in (graph.node, *(function.node_def for function in graph.library.function))
        for node in part
    )
    # Attributes that have their default, here 0, are not saved.
    return any(node.op in SEEDED_OPS and not node.attr["seed"].i and not node.attr["seed2"].i for node in nodes)


def _graphs(saved_model: Path) -> list[Any]:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    return [meta_graph.graph_def for meta_graph in model.meta_graphs]


def _installed() -> str:
    try:
        return importlib.metadata.version("tensorflow-text")
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
