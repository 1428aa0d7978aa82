"""Finds operations in a SavedModel that reach out of its graph, before any of them can run.

Loading a SavedModel already runs parts of it. So the file is read as the data that it is, and what it may do is decided
from the names and inputs of its operations, in all graphs and all functions, whether or not anything calls them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from tf_finetune.errors import BackboneError, listed

MAIN = ""  # Stands for the graph itself among the names of its functions.
INITIALIZATION = "__saved_model_init_op"  # The signature that is run at loading.
# Names without an "Experimental" in front or a version at the end. What TensorFlow does not know cannot be loaded.
REFUSED = """
reads files: ReadFile MatchingFiles MatchingFilesDataset LoadDataset RecordInput ImmutableConst LoadAndRemapMatrix
reads files: TextLineReader WholeFileReader TFRecordReader FixedLengthRecordReader IdentityReader LMDBReader
reads files: TextLineDataset TFRecordDataset FixedLengthRecordDataset CSVDataset SqlDataset LMDBDataset
reads files: ListSnapshotChunksDataset SnapshotChunkDataset SnapshotDatasetReader SnapshotNestedDatasetReader
reads files: GenerateVocabRemapping InitializeTRTResource DTensorRestore Skipgram
writes files: WriteFile SaveDataset SnapshotDataset DatasetToTFRecord DistributedSave FileSystemSetConfiguration
writes files: SummaryWriter CreateSummaryFileWriter CreateSummaryDbWriter FlushSummaryWriter CloseSummaryWriter
writes files: StatsAggregatorSetSummaryWriter WriteSummary WriteAudioSummary WriteGraphSummary WriteHistogramSummary
writes files: WriteImageSummary WriteRawProtoSummary WriteScalarSummary ImportEvent SerializeTRTResource
writes files: DebugIdentity DebugNanCount DebugNumericSummary DumpTensor CalibrationStatisticsSaver
runs Python code: PyFunc PyFuncStateless EagerPyFunc
runs a program hidden in its data: DatasetFromGraph TRTEngineOp XlaCallModule XlaCustomCall MlirPassthroughOp
talks to other processes: DataServiceDataset RegisterDataset RemoteCall Rpc TryRpc RpcCall RpcClient
talks to other processes: RpcServer RpcServerRegister RpcServerStart
ends the process: Abort
"""
WHAT = {name: line.split(": ")[0] for line in REFUSED.split("\n") for name in line.split(": ")[-1].split()}
# Every SavedModel has these, to save and restore its variables by; anywhere else they reach any file.
SAVING, RESTORING = frozenset(["Save", "SaveSlices", "MergeV2Checkpoints"]), frozenset(["Restore", "RestoreSlice"])
VOCABULARY, CACHE = "InitializeTableFromTextFile", "CacheDataset"
# Operations that reach out only with some values of an attribute: what then, the attribute, its harmless values.
BY_ATTRIBUTE = {
    "Print": ("writes files", "output_stream", (b"stderr", b"stdout", b"log(info)", b"log(warning)", b"log(error)")),
    "FixedUnigramCandidateSampler": ("reads files", "vocab_file", (b"",)),
    "DecodeProto": ("reads files", "descriptor_source", (b"", b"local://")),
    "EncodeProto": ("reads files", "descriptor_source", (b"", b"local://")),
}
CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])  # Their inputs are the function's arguments.


def check(folder: Path, trusted: bool) -> None:
    """Refuses a SavedModel that could do more than compute, unless its user has vouched for it.

    Args:
        folder: Of the SavedModel; nothing of it is run.
        trusted: The hyperparameter trust_backbone.

    Raises:
        BackboneError: It has operations that read or write files, run Python, load code or reach other processes; or
            it cannot be read.
    """
    if trusted:
        return
    graphs = _read(folder).meta_graphs
    found = dict.fromkeys(one for graph in graphs for one in _reaching_out(graph, len(graphs) == 1))
    if found:
        raise BackboneError(
            f"the SavedModel {folder} does more than compute: "
            f"{listed(f'{name} ({what})' for name, what in sorted(found))}. It is a program with all your rights. "
            "Choose another one; or, if you trust those who made it, set trust_backbone=True (--trust-backbone)."
        )


def _read(folder: Path) -> Any:
    """Returns the SavedModel's protobuf, from the file that TensorFlow would load."""
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    model, binary = saved_model_pb2.SavedModel(), folder / "saved_model.pb"
    try:
        if binary.is_file():
            model.ParseFromString(binary.read_bytes())
        else:
            text_format.Parse((folder / "saved_model.pbtxt").read_bytes().decode("utf-8"), model)
    except (OSError, DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise BackboneError(f"{folder} cannot be loaded: {reason}. Expected a TF2 SavedModel, whole.") from None
    return model


@dataclasses.dataclass(frozen=True)
class _Program:
    """A meta graph, by the names in it.

    Attributes:
        graph: The meta graph.
        bodies: Nodes by name, of the graph (MAIN) and of each function.
        arguments: Names of each function's arguments, in order.
        assets: Names of the graph's nodes whose values are replaced by the paths of files below assets/.
        is_object: Whether it is loaded as an object with functions; the graph itself, MAIN, is then never run.
    """

    graph: Any
    bodies: Mapping[str, Mapping[str, Any]]
    arguments: Mapping[str, list[str]]
    assets: frozenset[str]
    is_object: bool


def _reaching_out(graph: Any, is_only: bool) -> Iterator[tuple[str, str]]:
    """Yields the name of each operation of a meta graph that reaches out of it, and what it could do."""
    program = _program(graph, is_only)
    for asset in _assets(graph):
        if _leads_out(asset.filename):
            yield f"asset {asset.filename[:60]!r}", "reads files"
    may_run = _what_may_run(program)
    every = [(MAIN, node) for node in graph.graph_def.node]  # Not `bodies`: two nodes may have one name in the file.
    every += [(one.signature.name, node) for one in graph.graph_def.library.function for node in one.node_def]
    for body, node in every:
        what = _reaches_out(program, body, node, may_run)
        if what:
            yield node.op, what


def _program(graph: Any, is_only: bool) -> _Program:
    functions = graph.graph_def.library.function
    nodes = {node.name: node for node in graph.graph_def.node}
    # Paths are put in for initialization only: what computes an answer would see what the file itself has there.
    assets = {_name(asset.tensor_info.name) for asset in _assets(graph)} - _needed(nodes, _answers(graph)) - {MAIN}
    return _Program(
        graph,
        {MAIN: nodes, **{one.signature.name: {node.name: node for node in one.node_def} for one in functions}},
        {one.signature.name: [argument.name for argument in one.signature.input_arg] for one in functions},
        frozenset(assets),
        is_only and graph.HasField("object_graph_def"),
    )


def _assets(graph: Any) -> list[Any]:
    """Returns the descriptions of a meta graph's assets; old files keep them in a collection."""
    from tensorflow.core.protobuf import meta_graph_pb2

    assets = list(graph.asset_file_def)
    for packed in graph.collection_def["saved_model_assets"].any_list.value if not assets else ():
        asset = meta_graph_pb2.AssetFileDef()
        packed.Unpack(asset)
        assets.append(asset)
    return assets


def _answers(graph: Any) -> list[str]:
    """Returns the names of the graph's nodes that signatures answer with."""
    signatures = [one for key, one in graph.signature_def.items() if key != INITIALIZATION]
    return [info.name for one in signatures for info in one.outputs.values()]


def _reaches_out(program: _Program, body: str, node: Any, may_run: Mapping[tuple[str, str], set[str]]) -> str | None:
    """Returns what an operation could do beyond computing, or None."""
    operation = re.sub(r"^Experimental|V\d+$", "", node.op)
    what, ways = WHAT.get(operation), may_run.get((body, node.name), {"answering"})
    if operation in BY_ATTRIBUTE:
        what, attribute, harmless = BY_ATTRIBUTE[operation]
        value = node.attr.get(attribute)  # Attributes that have their default may be missing.
        what = what if value is not None and (value.placeholder or value.s not in harmless) else None
    elif operation == CACHE and _constant(program, body, node, 1) != [b""]:
        what = "writes files"
    elif operation == VOCABULARY and not _is_asset(program, body, list(node.input)[1:2], frozenset()):
        what = "reads files"
    elif operation in SAVING and ways - {"saving"}:
        what = "writes files"
    elif operation in RESTORING and ways - {"saving", "restoring"}:
        what = "reads files"
    return what


def _what_may_run(program: _Program) -> dict[tuple[str, str], set[str]]:
    """Returns of each node (its function's name and its own) the ways in which it may come to run.

    They are "saving" and "restoring" variables, "starting" (once, at loading) and "answering". A node of the graph
    that has none is a leftover that no one runs; a function that has none is not among the keys.
    """
    graph, nodes = program.graph, program.bodies[MAIN]
    starting = [info.name for info in graph.signature_def[INITIALIZATION].outputs.values()]
    starting += [name for one in graph.collection_def.values() for name in one.node_list.value]
    starts = {
        "saving": [graph.saver_def.save_tensor_name],
        "restoring": [graph.saver_def.restore_op_name],
        "starting": starting,
        "answering": _answers(graph),
    }
    ways: dict[tuple[str, str], set[str]] = {(MAIN, name): set() for name in nodes}
    for way, names in starts.items():
        main = _needed(nodes, names)
        own = _named(graph) if way == "answering" else set()
        for place in [*((MAIN, name) for name in main), *_in_functions(program, main, own)]:
            ways.setdefault(place, set()).add(way)
    return ways


def _named(graph: Any) -> set[str]:
    """Returns the names of the functions that may run without a node that calls them: by their names, or swapped in."""
    library = graph.graph_def.library
    holders = [*graph.graph_def.node, *library.function, *(node for one in library.function for node in one.node_def)]
    words = {word for one in holders for value in one.attr.values() for word in (value.s, *value.list.s)}
    found = {one.signature.name for one in library.function if "api_implements" in one.attr}
    found |= {one.signature.name for one in library.function if one.signature.name.encode() in words}
    return found | {one.gradient_func for one in library.gradient} | set(graph.object_graph_def.concrete_functions)


def _needed(nodes: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Returns the nodes of the graph that run when those of some names do."""
    found, left = set(), [_name(name) for name in names]
    while left:
        name = left.pop()
        if name in nodes and name not in found:
            found.add(name)
            left += map(_name, nodes[name].input)
    return found


def _in_functions(program: _Program, main: Iterable[str], functions: set[str]) -> Iterator[tuple[str, str]]:
    """Yields the nodes of all functions that some nodes of the graph, or functions themselves, lead to."""
    left = [*functions, *(one for name in main for one in _called(program, program.bodies[MAIN][name]))]
    found: set[str] = set()
    while left:
        function = left.pop()
        if function in found or function not in program.arguments:
            continue
        found.add(function)
        for name, node in program.bodies[function].items():
            yield function, name
            left += _called(program, node)


def _called(program: _Program, node: Any) -> list[str]:
    """Returns the names of the functions that a node is given or is a call of."""
    named = [name for value in node.attr.values() for name in _functions(value)]
    return [*named, node.op] if node.op in program.arguments else named


def _functions(value: Any) -> Iterator[str]:
    """Yields the names of the functions in an attribute, and of those that they are given in turn."""
    for one in (value.func, *value.list.func):
        if one.name:
            yield one.name
        for inner in one.attr.values():
            yield from _functions(inner)


def _is_asset(program: _Program, body: str, inputs: list[str], seen: frozenset[tuple[str, str]]) -> bool:
    """Returns whether an input (one, or none) can only be the path of one of the SavedModel's assets, whoever calls."""
    name = _origin(program.bodies[body], inputs[0]) if inputs else MAIN
    if body == MAIN:
        return name in program.assets
    if name not in program.arguments[body] or (body, name) in seen:
        return False
    place, seen = program.arguments[body].index(name), seen | {(body, name)}
    uses = []
    if body in program.graph.object_graph_def.concrete_functions:  # Objects are what its last arguments always are.
        objects = program.graph.object_graph_def.nodes
        bound = list(program.graph.object_graph_def.concrete_functions[body].bound_inputs)
        captured = place - (len(program.arguments[body]) - len(bound))
        of = bound[captured] if captured >= 0 else -1
        uses.append(0 <= of < len(objects) and objects[of].WhichOneof("kind") == "asset")
    for caller, nodes in program.bodies.items():
        for node in nodes.values() if caller != MAIN or not program.is_object else ():
            if body in _called(program, node):
                is_call = _called(program, node) == [body] and node.op in {*CALLS, body}
                given = list(node.input)[place : place + 1] if is_call else []
                uses.append(_is_asset(program, caller, given, seen))
    return bool(uses) and all(uses)


def _origin(nodes: Mapping[str, Any], reference: str) -> str:
    """Returns the node or argument that an input comes from, through nodes that only hand it on."""
    name = _name(reference)
    for _ in nodes:
        if name not in nodes or nodes[name].op != "Identity" or not nodes[name].input:
            break
        name = _name(nodes[name].input[0])
    return name


def _constant(program: _Program, body: str, node: Any, place: int) -> list[bytes] | None:
    """Returns the string that an input always is, in a list, or None where that cannot be told."""
    nodes = program.bodies[body]
    source = nodes.get(_origin(nodes, node.input[place])) if place < len(node.input) else None
    return list(source.attr["value"].tensor.string_val) if source is not None and source.op == "Const" else None


def _name(reference: str) -> str:
    return reference.removeprefix("^").split(":", maxsplit=1)[0]


def _leads_out(filename: str) -> bool:
    """Returns whether an asset's name is no place below assets/."""
    parts = filename.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or "://" in filename or bool(PureWindowsPath(filename).drive)
