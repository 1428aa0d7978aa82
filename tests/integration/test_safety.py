"""SavedModels that reach out of their graphs are refused before anything of them runs."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

from tests import builders
from tf_finetune import safety
from tf_finetune.backbone import Backbone, interface
from tf_finetune.errors import MESSAGE_LIMIT, BackboneError

# A prefix of counters' names.
WITHOUT_FILES = {"SetStatsAggregatorDataset", "ExperimentalSetStatsAggregatorDataset"}
TEXTS = tf.TensorSpec([None], tf.string)


def as_features(*given):
    """Returns float32 [B, 1] that needs some tensors."""
    return tf.reduce_sum([tf.cast(tf.size(one), tf.float32) for one in given]) * tf.ones([1, 1])


def dataset(made) -> tf.Tensor:
    return tf.data.experimental.cardinality(made)


def python(images):
    return tf.numpy_function(lambda values: values, [images], tf.float32)


# What a call may do, and what it must be refused as.
REACHING = {
    "ReadFile": lambda images: tf.io.read_file("/etc/hostname"),
    "WriteFile": lambda images: [tf.io.write_file("/tmp/x", "x"), images][1],
    "MatchingFiles": lambda images: tf.io.matching_files("/*"),
    "PyFunc": python,
    "EagerPyFunc": lambda images: tf.py_function(lambda values: values, [images], tf.float32),
    "TextLineDataset": lambda images: dataset(tf.data.TextLineDataset("/etc/passwd")),
    "TFRecordDataset": lambda images: dataset(tf.data.TFRecordDataset("/etc/passwd")),
    "FixedLengthRecordDatasetV2": lambda images: dataset(tf.data.FixedLengthRecordDataset("/etc/passwd", 1)),
    "CSVDatasetV2": lambda images: dataset(tf.data.experimental.CsvDataset("/etc/passwd", [""])),
    "SqlDataset": lambda images: dataset(tf.data.experimental.SqlDataset("sqlite", "/x", "select 1", tf.string)),
    "CacheDatasetV2": lambda images: dataset(tf.data.Dataset.range(3).cache("/tmp/x")),
    "PrintV2": lambda images: [tf.print("x", output_stream="file:///tmp/x"), images][1],
    "SaveV2": lambda images: [tf.raw_ops.SaveV2(prefix="/tmp/x", tensor_names=["a"], shape_and_slices=[""],
                                                tensors=[images]), images][1],
    "RestoreV2": lambda images: tf.raw_ops.RestoreV2(prefix="/tmp/x", tensor_names=["a"], shape_and_slices=[""],
                                                     dtypes=[tf.float32])[0],
    "MergeV2Checkpoints": lambda images: [tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=["/a"],
                                                                        destination_prefix="/b"), images][1],
    "ImmutableConst": lambda images: tf.raw_ops.ImmutableConst(dtype=tf.uint8, shape=[9],
                                                               memory_region_name="/etc/hostname"),
    "FixedUnigramCandidateSampler": lambda images: tf.raw_ops.FixedUnigramCandidateSampler(
        true_classes=[[1]], num_true=1, num_sampled=1, unique=True, range_max=5, vocab_file="/etc/passwd")[0],
    "DecodeProtoV2": lambda images: tf.raw_ops.DecodeProtoV2(
        bytes=[b""], message_type="x", field_names=[], output_types=[], descriptor_source="/etc/passwd")[0],
    "DebugIdentityV2": lambda images: tf.raw_ops.DebugIdentityV2(input=images, debug_urls=["file:///tmp/x"]),
    "DatasetFromGraph": lambda images: tf.raw_ops.DatasetFromGraph(graph_def="hidden"),
    "Abort": lambda images: [tf.raw_ops.Abort(error_msg="x"), images][1],
}  # fmt: skip
HARMLESS = {
    "print": lambda images: [tf.print("x"), tf.print("y", output_stream=tf.compat.v1.logging.info), images][2],
    "a cache in memory": lambda images: dataset(tf.data.Dataset.range(3).cache()),
    "a sampler without a file": lambda images: tf.raw_ops.FixedUnigramCandidateSampler(
        true_classes=[[1]], num_true=1, num_sampled=1, unique=True, range_max=5, unigrams=[0.2] * 5)[0],
    "file names": lambda images: tf.raw_ops.ShardedFilename(basename="x", shard=1, num_shards=2),
}  # fmt: skip


def save(folder: Path, reach, **attributes) -> Path:
    return builders.save_reusable(folder, lambda images: as_features(images, reach(images)), **attributes)


def refused(folder: Path) -> str:
    """Returns the message with which a SavedModel is refused; it holds what every one of them says."""
    with pytest.raises(BackboneError) as caught:
        safety.check(folder, trusted=False)
    message = str(caught.value)
    assert str(folder) in message
    assert "trust_backbone=True (--trust-backbone)" in message
    assert len(message) < MESSAGE_LIMIT
    return message


@pytest.mark.parametrize("operation", REACHING)
def test_what_reaches_out_of_the_graph_is_refused_by_name(tmp_path, operation):
    folder = save(tmp_path / "saved", REACHING[operation])
    assert re.search(rf"\b{operation} \((reads|writes|runs|ends)", refused(folder))
    safety.check(folder, trusted=True)


@pytest.mark.parametrize("what", HARMLESS)
def test_what_only_looks_as_if_it_did_is_not_refused(tmp_path, what):
    safety.check(save(tmp_path / "saved", HARMLESS[what]), trusted=False)


def test_every_operation_of_tensorflow_that_sounds_like_it_was_looked_at():
    """A new version's new operations are to be sorted into safety.REFUSED or here."""
    sounding = "File|Py|Save|Restore|Load|Write|Rpc|Dump|Snapshot|Sql|CSV|LMDB|TFRecord|TextLine|Service|Remote|Abort"
    harmless = (
        "(Load(All)?TPU|TensorArrayWrite|LookupTable|_?Copy|TPUCopy|DeleteRpc|RpcCheckStatus|RpcGetValue|Snapshot$)"
        "|Reader(RestoreState|SerializeState)|ShardedFile|DecodeCSV"
    )
    every = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())).op
    names = [one.name for one in every if re.search(sounding, one.name)]
    assert len(names) > 60
    known = {*safety.WHAT, *safety.SAVING, *safety.RESTORING, *safety.BY_ATTRIBUTE, safety.CACHE, safety.VOCABULARY}
    bare = {name: re.sub(r"^Experimental|V\d+$", "", name) for name in names}
    assert [name for name in names if bare[name] not in known and not re.match(harmless, name)] == []


def test_every_operation_that_is_given_a_file_was_looked_at():
    every = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())).op
    known = {*safety.WHAT, *safety.SAVING, *safety.RESTORING, *safety.BY_ATTRIBUTE, safety.CACHE, safety.VOCABULARY}
    about_files = re.compile("file|path|url|address|prefix$|prefixes$|stream$|logdir")
    for one in every:
        texts = [attribute.name for attribute in one.attr if attribute.type == "string"] + [
            argument.name for argument in one.input_arg if argument.type == tf.string.as_datatype_enum
        ]
        if any(about_files.search(text) for text in texts) and one.name not in WITHOUT_FILES:
            assert re.sub(r"^Experimental|V\d+$", "", one.name) in known, one.name


def test_operations_in_branches_and_in_functions_that_no_one_calls_are_found(tmp_path):
    def hidden(images):
        return tf.cond(tf.reduce_sum(images) > 1e9, lambda: tf.io.read_file("/etc/passwd"), lambda: tf.constant(""))

    assert "ReadFile" in refused(save(tmp_path / "branch", hidden))
    spare = tf.function(lambda: [tf.io.write_file("/tmp/x", "x"), tf.constant(1)][1], input_signature=[])
    assert "WriteFile" in refused(save(tmp_path / "spare", lambda images: images, spare=spare))


def test_a_second_graph_and_a_file_of_text_are_read_too(tmp_path):
    hostile = save(tmp_path / "hostile", REACHING["ReadFile"])
    good = builders.save_mean_backbone(tmp_path / "good")
    both = safety._read(good)
    both.meta_graphs.append(safety._read(hostile).meta_graphs[0])
    (good / "saved_model.pb").write_bytes(both.SerializeToString())
    assert "ReadFile" in refused(good)
    (hostile / "saved_model.pbtxt").write_text(str(safety._read(hostile)))
    (hostile / "saved_model.pb").unlink()
    assert "ReadFile" in refused(hostile)


def test_nothing_runs_before_the_refusal_and_trust_lets_it_run(tmp_path, monkeypatch):
    written = tmp_path / "written"

    class AtLoading(tf.lookup.TextFileInitializer):
        """A table's initialization, which TensorFlow runs when it loads the SavedModel."""

        def initialize(self, table):
            tf.io.write_file(str(written), "by the SavedModel")
            return super().initialize(table)

    (tmp_path / "vocabulary.txt").write_text("a\nb\n")
    how = (tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
    table = tf.lookup.StaticHashTable(AtLoading(str(tmp_path / "vocabulary.txt"), *how), -1)
    folder = save(tmp_path / "saved", lambda images: table.lookup(tf.constant(["a"])), table=table)
    written.unlink()
    for attempt in (interface.load_saved_model, Backbone):
        with pytest.raises(BackboneError, match="WriteFile"):
            attempt(folder)
        assert not written.exists()
    body = Backbone(folder, trusted=True)
    assert written.read_text() == "by the SavedModel"
    assert body.get_config()["trusted"] is True
    assert body.frozen_copy().trusted
    assert Backbone(builders.save_mean_backbone(tmp_path / "mean")).get_config()["trusted"] is False


def test_a_preprocessor_is_looked_at_too(tmp_path, bert_pair):
    encoder, preprocessor = bert_pair
    Backbone(encoder, "text", preprocessor=preprocessor)
    hostile = builders.save_reusable(tmp_path / "hostile", lambda texts: tf.io.read_file(texts[0]), spec=TEXTS)
    with pytest.raises(BackboneError, match="hostile does more than compute: ReadFile"):
        Backbone(encoder, "text", preprocessor=hostile)


# Vocabularies: files that belong to the SavedModel


def save_with_vocabulary(tmp_path: Path) -> Path:
    (tmp_path / "vocabulary.txt").write_text("a\nb\n")
    how = (tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(str(tmp_path / "vocabulary.txt"), *how), num_oov_buckets=1
    )
    return builders.save_reusable(
        tmp_path / "saved", lambda texts: as_features(table.lookup(texts)), spec=TEXTS, table=table
    )


def rewritten(folder: Path, change) -> Path:
    model = safety._read(folder)
    change(model.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


def test_a_vocabulary_among_the_assets_is_not_refused(tmp_path):
    folder = save_with_vocabulary(tmp_path)
    safety.check(folder, trusted=False)
    assert [one.name for one in (folder / "assets").iterdir()] == ["vocabulary.txt"]


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/passwd", "a/../../b", "file:///etc/passwd", "C:\\x", "\\\\h\\x"]
)
def test_an_asset_that_lies_elsewhere_is_refused(tmp_path, name):
    def lead_out(graph):
        graph.asset_file_def[0].filename = name

    assert "asset" in refused(rewritten(save_with_vocabulary(tmp_path), lead_out))


def test_an_asset_of_an_old_file_that_lies_elsewhere_is_refused(tmp_path):
    def lead_out(graph):
        graph.asset_file_def[0].filename = "../x"
        graph.collection_def["saved_model_assets"].any_list.value.add().Pack(graph.asset_file_def[0])
        del graph.asset_file_def[:]

    assert "asset" in refused(rewritten(save_with_vocabulary(tmp_path), lead_out))


def initializer(graph):
    """Returns the function that fills the table, and its operation."""
    return next(
        (one, node)
        for one in graph.graph_def.library.function
        for node in one.node_def
        if node.op.startswith(safety.VOCABULARY)
    )


def test_a_vocabulary_whose_name_is_a_constant_is_refused(tmp_path):
    def by_constant(graph):
        function, node = initializer(graph)
        constant = function.node_def.add(name="path", op="Const")
        constant.attr["dtype"].type = tf.string.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/etc/passwd"))
        node.input[1] = "path:output:0"

    assert "InitializeTableFromTextFileV2 (reads files)" in refused(
        rewritten(save_with_vocabulary(tmp_path), by_constant)
    )


def test_a_vocabulary_whose_name_comes_from_anything_but_an_asset_is_refused(tmp_path):
    def by_object(graph):
        function, _ = initializer(graph)
        bound = graph.object_graph_def.concrete_functions[function.signature.name].bound_inputs
        objects = graph.object_graph_def.nodes
        place = next(place for place, number in enumerate(bound) if objects[number].WhichOneof("kind") == "asset")
        bound[place] = next(number for number, one in enumerate(objects) if one.WhichOneof("kind") != "asset")

    assert "InitializeTable" in refused(rewritten(save_with_vocabulary(tmp_path), by_object))


@pytest.mark.parametrize("way", ["call", "by its name", "branch", "handed on"])
def test_a_second_caller_with_another_file_is_refused(tmp_path, way):
    def by_caller(graph):
        function, _ = initializer(graph)
        name = function.signature.name
        caller = graph.graph_def.library.function.add()
        caller.signature.name = "caller"
        arguments = [caller.signature.input_arg.add(name=f"argument{number}").name for number in range(2)]
        bound = graph.object_graph_def.concrete_functions[name].bound_inputs
        graph.object_graph_def.concrete_functions["caller"].bound_inputs.extend(bound)
        if way == "call":  # With something else than what the caller itself is given.
            call = caller.node_def.add(name="call", op="StatefulPartitionedCall", input=["path", "path"])
            call.attr["f"].func.name = name
        elif way == "by its name":
            caller.node_def.add(name="call", op=name, input=["path", "path"])
        elif way == "branch":  # Whose inputs are not the function's arguments.
            call = caller.node_def.add(name="call", op="If", input=arguments)
            call.attr["then_branch"].func.name = name
        else:  # To another function, which may call it with anything.
            call = caller.node_def.add(name="call", op="StatefulPartitionedCall", input=arguments)
            call.attr["f"].func.name = "other"
            call.attr["f"].func.attr["given"].func.name = name

    assert "InitializeTable" in refused(rewritten(save_with_vocabulary(tmp_path), by_caller))


def test_in_an_old_graph_a_vocabulary_is_an_asset_at_the_start_only(tmp_path):
    def old(graph):
        graph.ClearField("object_graph_def")
        graph.asset_file_def.add(filename="vocabulary.txt").tensor_info.name = "path:0"
        graph.graph_def.node.add(name="path", op="Const")
        graph.graph_def.node.add(name="start", op=safety.VOCABULARY, input=["table", "path"])
        graph.signature_def["__saved_model_init_op"].outputs["x"].name = "start"

    def answering(graph):
        graph.signature_def["serving_default"].outputs["x"].name = "start"

    folder = rewritten(builders.save_mean_backbone(tmp_path / "old"), old)
    safety.check(folder, trusted=False)
    assert safety.VOCABULARY in refused(rewritten(folder, answering))


def test_an_attribute_that_a_caller_fills_in_is_refused_and_so_is_a_node_outside_of_functions(tmp_path):
    def by_caller(graph):
        node = graph.graph_def.library.function[0].node_def.add(name="decode", op="DecodeProtoV2")
        node.attr["descriptor_source"].placeholder = "given"

    def outside(graph):
        graph.graph_def.node.add(name="file", op="ReadFile")

    for number, change in enumerate((by_caller, outside)):
        assert "reads files" in refused(rewritten(builders.save_mean_backbone(tmp_path / str(number)), change))


# Saving and restoring


def test_functions_that_save_may_do_so_only_where_no_one_else_calls_them(tmp_path):
    folder = builders.save_affine_backbone(tmp_path / "affine")
    safety.check(folder, trusted=False)

    def expose(graph):
        saving = next(one for one in graph.graph_def.library.function if "traced_save" in one.signature.name)
        graph.object_graph_def.concrete_functions[saving.signature.name].SetInParent()

    assert "SaveV2 (writes files)" in refused(rewritten(folder, expose))


@pytest.mark.parametrize("way", ["signature", "attribute", "restoring", "start", "swapped in", "gradient"])
def test_other_ways_to_the_functions_that_save_are_found(tmp_path, way):
    def expose(graph):
        name = next(one.signature.name for one in graph.graph_def.library.function if "save" in one.signature.name)
        if way == "signature":
            graph.signature_def["more"].outputs["x"].name = graph.saver_def.save_tensor_name
        elif way == "attribute":
            graph.graph_def.library.function[0].attr["backward_function_name"].s = name.encode()
        elif way == "restoring":
            graph.saver_def.restore_op_name = graph.saver_def.save_tensor_name.split(":")[0]
        elif way == "swapped in":
            saving = next(one for one in graph.graph_def.library.function if one.signature.name == name)
            saving.attr["api_implements"].s = b"something"
        elif way == "gradient":
            graph.graph_def.library.gradient.add(function_name="f", gradient_func=name)
        else:
            graph.collection_def["saved_model_main_op"].node_list.value.append(graph.saver_def.save_tensor_name)

    assert "SaveV2" in refused(rewritten(builders.save_affine_backbone(tmp_path / "affine"), expose))


# What people have


def test_the_savedmodels_that_people_have_are_not_refused(real_data, cache_folder):
    places = [*real_data.glob("backbones/**/saved_model.pb"), *(cache_folder / "backbones").glob("*/saved_model.pb")]
    assert len(places) >= 6
    for place in places:
        safety.check(place.parent, trusted=False)


def test_a_keras_export_and_an_old_graph_are_not_refused(tmp_path):
    tf.random.set_seed(1)  # Asked for where operations are deterministic, as they are once a job has run here.
    model = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    model.export(str(tmp_path / "keras"))
    safety.check(tmp_path / "keras", trusted=False)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3])
        features = tf.compat.v1.get_variable("w", [3], initializer=tf.compat.v1.zeros_initializer()) * tf.reduce_mean(
            images, [1, 2]
        )
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver()  # Of an earlier saving: left in the graph, run by no one.
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": images}, {"y": features})
    assert sum(node.op == "SaveV2" for node in safety._read(tmp_path / "old").meta_graphs[0].graph_def.node) == 2
    safety.check(tmp_path / "old", trusted=False)


def test_a_damaged_file_is_one_message(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"<html>")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        safety.check(tmp_path, trusted=False)
