"""The operations of tensorflow_text: registered, or missed with one clear message; and told from TensorFlow's own."""

from __future__ import annotations

import sys

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.needs import NEEDS_TEXT
from tf_finetune import text_ops
from tf_finetune.errors import BackboneError

SERIES = ".".join(tf.__version__.split(".")[:2])


@NEEDS_TEXT
def test_text_ops_are_registered_and_told_from_tensorflows_own(tmp_path):
    tensorflow_text = text_ops.register_text_ops()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def normalize(texts):
        return tensorflow_text.normalize_utf8(tf.strings.lower(texts), "NFD")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def call(texts):
        return tf.map_fn(lambda text: normalize(text[tf.newaxis])[0], texts)  # Deep inside a loop.

    module = tf.Module()
    module.__call__ = call
    tf.saved_model.save(module, str(tmp_path))
    assert text_ops.needed_ops(tmp_path) == ["NormalizeUTF8"]


def test_a_missing_tensorflow_text_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(BackboneError) as caught:
        text_ops.register_text_ops()
    assert 'pip install "tf_finetune[text]"' in str(caught.value)
    assert f"tensorflow-text {SERIES}.*" in str(caught.value)


@pytest.mark.parametrize("error", ["ImportError('undefined symbol: _ZN')", "tf.errors.NotFoundError(None, None, 'so')"])
def test_a_tensorflow_text_for_another_tensorflow_is_told_with_both_versions(error, tmp_path, monkeypatch):
    (tmp_path / "tensorflow_text.py").write_text(f"import tensorflow as tf\nraise {error}\n")
    metadata = tmp_path / "tensorflow_text-2.3.4.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorflow-text\nVersion: 2.3.4\n")
    monkeypatch.delitem(sys.modules, "tensorflow_text", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackboneError, match="must match") as caught:
        text_ops.register_text_ops()
    assert f"tensorflow_text 2.3.4 cannot be used with TensorFlow {tf.__version__}" in str(caught.value)
    assert f'pip install "tensorflow-text=={SERIES}.*"' in str(caught.value)


def test_what_tensorflow_text_itself_lacks_is_not_mistaken_for_it(tmp_path, monkeypatch):
    (tmp_path / "tensorflow_text.py").write_text("import no_such_module\n")
    monkeypatch.delitem(sys.modules, "tensorflow_text", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        text_ops.register_text_ops()


def test_functions_and_internal_operations_are_not_needed_ones(tmp_path):
    model = saved_model_pb2.SavedModel()
    graph = model.meta_graphs.add().graph_def
    for op in ("AddV2", "my_function", "_Retval", "Foo>Bar"):
        graph.node.add(name=op.strip("_").replace(">", ""), op=op)
    function = graph.library.function.add()
    function.signature.name = "my_function"
    function.node_def.add(name="inner", op="InnerOp")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert text_ops.needed_ops(tmp_path) == ["Foo>Bar", "InnerOp"]


def test_a_backbone_of_tensorflows_own_operations_needs_none(mean_backbone, batch_norm_backbone, statistics_backbone):
    for folder in (mean_backbone, batch_norm_backbone, statistics_backbone):
        assert text_ops.needed_ops(folder) == []


@pytest.mark.parametrize(
    "name", ["mobilenet_v1_025_128_feature_vector", "minilm_static_64", "hub-mini/saved_model_v2_mini"]
)
def test_real_backbones_of_tensorflows_own_operations_need_none(name, real_data):
    assert text_ops.needed_ops(real_data / "backbones" / name) == []
