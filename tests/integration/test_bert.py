"""TF-Hub's BERT interface, by a tiny random pair of it; and the packaged encoders through the whole line."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_finetune
from tests import builders
from tests.needs import NEEDS_TEXT
from tf_finetune import backbone as backbones
from tf_finetune import classifier, features, training
from tf_finetune.errors import BackboneError

pytestmark = NEEDS_TEXT
SETTINGS = {"epochs": 8, "learning_rate": 0.05, "batch_size": 16, "max_sequence_length": 16}
INPUTS = {"input_word_ids", "input_mask", "input_type_ids"}


@pytest.fixture(scope="module")
def pair(bert_pair):
    return bert_pair


@pytest.fixture(scope="module")
def fixed_pair(tmp_path_factory):
    """A pair whose preprocessing has one length only."""
    return builders.save_bert_pair(tmp_path_factory.mktemp("fixed"), fixed_length=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty short reviews; one word of each tells the class."""
    words = {"neg": ("bad", "poor"), "pos": ("good", "fine")}
    ends = [a + b + c for a in ("", " film", " films") for b in (" !", " .", "") for c in ("", " the")]
    rows = [(name, f"The film was {word}{end}") for name in words for word in words[name] for end in ends[:15]]
    return builders.write_csv(tmp_path_factory.mktemp("data") / "reviews", rows)


def train(data: Path, pair: tuple[Path, Path], output: Path, **given) -> dict:
    settings = {**SETTINGS, "backbone": str(pair[0]), "preprocessor": str(pair[1]), **given}
    return tf_finetune.train(data, output, "bert", **{name: value for name, value in settings.items() if value})


def description_of(output: Path) -> dict:
    with tarfile.open(output / "bert" / "output" / "model.tar.gz") as packed:
        return json.load(packed.extractfile("tf_finetune.json"))


def test_the_pair_is_tf_hubs_interface(pair):
    encoder, preprocessing = (tf.saved_model.load(str(folder)) for folder in pair)
    texts = tf.constant(["The film was good!", ""])
    made = preprocessing(texts)
    assert {name: (value.dtype, value.shape.as_list()) for name, value in made.items()} == {
        name: (tf.int32, [2, 128]) for name in INPUTS
    }
    tokens = preprocessing.tokenize(texts)
    assert isinstance(tokens, tf.RaggedTensor)
    packed = preprocessing.bert_pack_inputs([tokens], tf.constant(9))
    assert packed["input_word_ids"].numpy().tolist()[1] == [2, 3, 0, 0, 0, 0, 0, 0, 0]
    both = preprocessing.bert_pack_inputs([tokens, tokens], seq_length=tf.constant(14))
    assert max(both["input_type_ids"].numpy()[0]) == 1
    outputs = encoder(made)
    assert {"pooled_output", "sequence_output", "encoder_outputs", "default"} == set(outputs)
    assert outputs["pooled_output"].shape == [2, 8]


@pytest.mark.parametrize("whole", [False, True])
def test_a_pair_trains_and_the_archive_answers_without_it(whole, pair, data, tmp_path):
    """The parity gate is the fresh process: it knows the archive alone, and that tensorflow_text is needed."""
    record = train(data, pair, tmp_path, train_only_top_layer=str(not whole), epochs=8 if whole else 40)
    assert record["parity"]["largest_difference"] < 1e-5
    assert record["metrics"]["validation"]["accuracy"] >= (1.0 if whole else 0.7)
    assert set(record["seconds"]) >= ({"fine_tuning"} if whole else {"head"})
    description = description_of(tmp_path)
    assert description["custom_ops"]
    assert all(re.match(r"[A-Z][\w>]+$", name) for name in description["custom_ops"])
    assert description["signature"]["input"] == "text_inputs"
    assert description["preprocessing"]["max_sequence_length"] == 16
    model = tf_finetune.load(tmp_path / "bert" / "output" / "model.tar.gz")
    answers = model.predict(["the film was good", "the film was bad"])
    if whole:
        assert [answer["predicted_label"] for answer in answers] == ["pos", "neg"]


def test_fine_tuning_changes_the_encoder_and_the_head_alone_does_not(pair, one):
    texts = tf.constant(["the film was good"])
    before = backbones.Backbone(pair[0], "text", preprocessor=pair[1], max_sequence_length=6)(texts)
    for whole in (False, True):
        model, _ = fit(pair, one, train_only_top_layer=not whole)
        assert (np.abs(model.backbone(texts) - before).max() > 1e-4) == whole


def test_the_features_are_the_pooled_output_of_the_packed_texts(pair):
    body = backbones.Backbone(pair[0], "text", preprocessor=pair[1])
    texts = tf.constant(["the film was good", "", "unheard words"])
    direct = body.loaded(body.loaded_preprocessor(texts))["pooled_output"]
    np.testing.assert_array_equal(body(texts), direct)
    assert body.feature_size() == 8
    assert len(body.trainable_variables) == 0
    assert len(backbones.Backbone(pair[0], "text", trainable=True, preprocessor=pair[1]).trainable_variables) == 8


@pytest.mark.parametrize(("given", "length"), [(None, 128), (3, 3), (20, 20), (512, 512)])
def test_max_sequence_length_is_the_packed_length(given, length, pair):
    body = backbones.Backbone(pair[0], "text", preprocessor=pair[1], max_sequence_length=given)
    packed = body.pack(tf.constant(["good " * 600, "bad"]))
    assert {name: value.shape.as_list() for name, value in packed.items()} == {name: [2, length] for name in INPUTS}
    assert packed["input_mask"].numpy().sum(axis=1).tolist() == [length, 3]
    assert body(tf.constant(["good " * 600])).shape == [1, 8]


def test_short_texts_are_not_padded_to_the_longest_allowed(pair):
    body = backbones.Backbone(pair[0], "text", preprocessor=pair[1], max_sequence_length=64)
    short, longer = "good film", "the film was bad . " * 5
    for texts, length in ((short, 16), (longer, 32), (" ".join(["good"] * 14), 16), (" ".join(["good"] * 15), 32)):
        assert body.pack(tf.constant([texts]))["input_word_ids"].shape == [1, length]
    alone, beside = body(tf.constant([short])), body(tf.constant([short, longer * 3]))
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-6)
    padded = body.interface.call(body.loaded_preprocessor(tf.constant([short])), False)["pooled_output"]
    np.testing.assert_allclose(alone, padded, atol=1e-6)


def test_a_preprocessing_of_one_length_refuses_another(fixed_pair):
    body = backbones.Backbone(fixed_pair[0], "text", preprocessor=fixed_pair[1])
    assert body.pack(tf.constant(["good"]))["input_word_ids"].shape == [1, 128]
    with pytest.raises(BackboneError, match="one sequence length only.*max_sequence_length=16. Leave it unset"):
        backbones.Backbone(fixed_pair[0], "text", preprocessor=fixed_pair[1], max_sequence_length=16)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        (None, "takes tokens .* Give it as preprocessor"),
        ("encoder", "does not make tokens from texts.*bert_en_uncased_preprocess"),
        ("length", "does not make tokens from texts"),
        ("signatures", "does not make tokens from texts"),
        ("empty", "expected one saved_model.pb"),
    ],
)
def test_what_is_no_preprocessing_is_refused_with_one_message(preprocessor, message, pair, data, tmp_path):
    if preprocessor == "length":
        builders.save_length_backbone(tmp_path / "length")
    if preprocessor == "signatures":
        tf.saved_model.save(tf.Module(), str(tmp_path / "signatures"))
    (tmp_path / "empty").mkdir()
    place = str(pair[0] if preprocessor == "encoder" else tmp_path / preprocessor) if preprocessor else ""
    with pytest.raises(BackboneError, match=message) as caught:
        train(data, (pair[0], place), tmp_path / "out", max_sequence_length=None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def fit(pair: tuple[Path, Path], strategy, **given) -> tuple[classifier.Classifier, training.Fitted]:
    """Returns what training on a few words gave, with 6 tokens of each."""
    settings = builders.plain_settings(learning_rate=0.1, epochs=2, batch_size=3, **given)
    texts = tf.constant(["good", "bad", "the film was fine", "poor", "good film !", "bad ."])
    labels = np.array([1, 0, 1, 0, 1, 0], np.int32)
    source = features.Source(lambda index, seed: tf.gather(texts, index), labels, np.arange(6))
    with strategy.scope():
        whole = not settings.train_only_top_layer
        body = backbones.Backbone(pair[0], "text", whole, preprocessor=pair[1], max_sequence_length=6)
        model = classifier.build(body, body.feature_size(), 2, settings)
    return model, training.fit(model, source, source, settings, strategy)


def test_two_replicas_train_a_pair_as_one_does(pair, one, two):
    histories = [fit(pair, strategy, train_only_top_layer=False)[1].history for strategy in (one, two)]
    losses = [[[epoch["loss"], epoch["val_loss"]] for epoch in history] for history in histories]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)


def few_texts(folder: Path) -> Path:
    things = {"1": ("bread", "cheese", "soup", "an apple"), "2": ("a dog", "two cats", "the horse", "a cow")}
    rows = [(name, f"I saw {thing}{end}") for name in things for thing in things[name] for end in ("", " today", "!")]
    return builders.write_csv(folder, rows)


def test_the_default_backbone_learns_from_a_few_texts(tmp_path):
    record = tf_finetune.train(few_texts(tmp_path / "few"), tmp_path, "bert", learning_rate=0.05)
    assert record["backbone"] == "universal-sentence-encoder-multilingual"
    assert record["metrics"]["validation"]["accuracy"] == 1.0
    assert description_of(tmp_path)["custom_ops"] == ["SentencepieceOp", "SentencepieceTokenizeOp"]
    answers = tf_finetune.load(tmp_path / "bert" / "output" / "model.tar.gz").predict(["Käse und Brot", "eine Katze"])
    assert [answer["predicted_label"] for answer in answers] == ["1", "2"]


def test_minilm_is_trained_whole_with_its_cards_settings(tmp_path):
    given = {"backbone": "minilm-l6", "train_only_top_layer": False, "epochs": 1, "optimizer": "adamw"}
    record = tf_finetune.train(few_texts(tmp_path / "few"), tmp_path, "bert", **given)
    assert (record["hyperparameters"]["learning_rate"], record["hyperparameters"]["batch_size"]) == (5e-5, 64)
    assert record["examples"]["training"] + record["examples"]["validation"] == 24
    assert record["parity"]["largest_difference"] < 1e-5
    assert "NormalizeUTF8" in description_of(tmp_path)["custom_ops"]
