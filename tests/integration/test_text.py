"""The whole line for texts, from data.csv to an archive that answers, on texts whose classes show in their lengths."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_finetune
from tests import builders
from tf_finetune import backbone as backbones
from tf_finetune import classifier, devices, features, job, predictor, training
from tf_finetune.errors import BackboneError, DataError, ExportError
from tf_finetune.training import optimizers

SETTINGS = {"epochs": 6, "learning_rate": 0.5, "optimizer": "sgd", "batch_size": 8, "dropout_rate": 0.0}
STRINGS = tf.TensorSpec([None], tf.string)
WHOLE = {"train_only_top_layer": False, "learning_rate": 0.1}
COMMAND = [sys.executable, "-m", "tf_finetune.cli"]
MEASURE = """
import json, logging, resource, sys
from pathlib import Path
from tf_finetune import job

folder, backbone = map(Path, sys.argv[1:])
from tf_finetune import devices, pipeline  # devices first

resident = []

class AtEachEpoch(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("epoch"):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * resource.getpagesize() / 2**20)

logging.getLogger("tf_finetune").addHandler(AtEachEpoch())
logging.getLogger("tf_finetune").setLevel(logging.INFO)
given = {"backbone": str(backbone), "train_only_top_layer": False, "epochs": 4, "batch_size": 4000, "dropout_rate": 0,
         "validation_split_ratio": 0.02, "optimizer": "adam"}
record = pipeline.run(job.plan({"training": folder}, given, output=folder / ".." / "out"))
print(json.dumps({"examples": record["examples"], "resident": resident}))
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return builders.save_length_backbone(tmp_path_factory.mktemp("backbone") / "length")


@pytest.fixture(scope="module")
def rows():
    """Texts of two classes, among them what a CSV must quote."""
    return [*builders.texts_by_length(60), ("short", "a,b"), ("short", 'x"y'), ("long", "one\n" * 13), ("short", "")]


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    folder = builders.write_csv(tmp_path_factory.mktemp("data") / "texts", rows)
    return builders.write_csv(folder, builders.texts_by_length(10, seed=9), "test.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbone, data):
    output = tmp_path_factory.mktemp("results")
    record = tf_finetune.train(data, output, "lengths", test=data, backbone=str(backbone), **SETTINGS)
    return record, output / "lengths" / "output"


@pytest.fixture(scope="module")
def archive(trained):
    return trained[1] / "model.tar.gz"


def run(*words: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, check=False, **options)


def weights_in(archive: Path) -> bytes:
    with tarfile.open(archive) as packed:
        return packed.extractfile("1/variables/variables.data-00000-of-00001").read()


def description_in(archive: Path) -> dict:
    with tarfile.open(archive) as packed:
        return json.load(packed.extractfile("tf_finetune.json"))


def test_lengths_are_learnt_and_told_by_the_archive(trained, archive):
    record, _ = trained
    assert record["task"] == "text"
    assert record["class_names"] == ["long", "short"]
    assert record["metrics"]["validation"]["accuracy"] == record["metrics"]["test"]["accuracy"] == 1.0
    assert record["metrics"]["validation"]["macro_f1"] == 1.0
    assert record["examples"]["test"] == 10
    assert record["parity"]["largest_difference"] < 1e-6
    model = tf_finetune.load(archive)
    assert (model.task, model.class_names) == ("text", ("long", "short"))
    answers = model.predict(["tiny", "z" * 50, "", "日本語 😀" * 12])
    assert [answer["predicted_label"] for answer in answers] == ["short", "long", "short", "long"]
    assert answers[0]["input"] == "tiny"
    assert model.predict("tiny")[0]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)


def test_the_archive_takes_texts_and_says_so(archive, tmp_path):
    description = description_in(archive)
    assert description["task"] == "text"
    assert description["signature"] == {"name": "serving_default", "input": "text_inputs", "output": "probabilities"}
    assert description["custom_ops"] == []
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    signature = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("text_inputs", tf.string, [None])
    assert {name: value.shape.as_list() for name, value in signature.structured_outputs.items()} == {
        "probabilities": [None, 2]
    }
    answers = signature(text_inputs=tf.constant(["tiny", "z" * 50]))["probabilities"].numpy()
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)


def test_report_predictions_and_evaluate_tell_the_same(trained, archive, rows, tmp_path):
    record, place = trained
    with (place / "data" / "predictions.csv").open(newline="") as stream:
        told = list(csv.DictReader(stream))
    names, figures = record["class_names"], record["metrics"]["validation"]
    table = np.array([[float(row[name]) for name in names] for row in told])
    labels = np.array([names.index(row["label"]) for row in told])
    assert len(told) == record["examples"]["validation"]
    assert np.mean(table.argmax(axis=1) == labels) == figures["accuracy"]
    assert -np.log(table[np.arange(len(told)), labels]).mean() == pytest.approx(figures["loss"], abs=1e-6)
    lines, line = {}, 1
    for row in rows:
        lines[f"data.csv:{line}"] = row
        line += 1 + row[1].count("\n")
    builders.write_csv(tmp_path, [lines[row["id"]] for row in told])
    done = run("evaluate", archive, tmp_path, text=True)
    evaluated = json.loads(done.stdout)
    assert evaluated["examples"] == len(told)
    assert evaluated["accuracy"] == figures["accuracy"]
    assert evaluated["loss"] == pytest.approx(figures["loss"], abs=1e-6)
    assert evaluated["confusion_matrix"] == figures["confusion_matrix"]


def test_random_labels_do_not_pass_min_accuracy_and_nothing_is_exported(tmp_path, backbone):
    labels = np.random.default_rng(0).choice(["a", "b"], 200)
    rows = [(label, text) for label, (_, text) in zip(labels, builders.texts_by_length(200), strict=True)]
    data = builders.write_csv(tmp_path / "texts", rows)
    with pytest.raises(ExportError, match="min_accuracy=0.8"):
        tf_finetune.train(data, tmp_path / "out", "x", backbone=str(backbone), min_accuracy=0.8, **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_predict_answers_texts_lines_and_standard_input_in_utf_8_whatever_the_locale(archive, tmp_path):
    (tmp_path / "lines.txt").write_bytes("\ufefftiny\r\n\r\n".encode() + b"z" * 50)
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    words = ("a text, with a comma", tmp_path / "lines.txt", "-", "y" * 5000)
    done = run("predict", archive, *words, input="größer 😀\nzweite\n".encode(), env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    given = ["a text, with a comma", "tiny", "", "z" * 50, "größer 😀", "zweite", "y" * 5000]
    assert [answer["input"] for answer in answers] == given
    assert [answer["predicted_label"] == "long" for answer in answers] == [len(text) > 25 for text in given]
    assert all(set(answer) == {"input", "predicted_label", "probabilities"} for answer in answers)


def test_predict_says_which_input_is_not_utf_8(archive, tmp_path):
    (tmp_path / "latin.txt").write_bytes("größer\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8: .* Expected a text a line"):
        list(predictor.batches("text", [str(tmp_path / "latin.txt")]))
    done = run("predict", archive, "-", input=(tmp_path / "latin.txt").read_bytes())
    assert done.returncode == 1
    assert b"standard input is not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_same_seed_same_weights_bit_for_bit_whatever_the_order_of_rows(trained, archive, tmp_path, backbone, rows):
    data = builders.write_csv(tmp_path / "reversed", rows[::-1])
    record = tf_finetune.train(data, tmp_path, "again", backbone=str(backbone), cache_dir="none", **SETTINGS)
    assert weights_in(tmp_path / "again" / "output" / "model.tar.gz") == weights_in(archive)
    assert record["history"] == trained[0]["history"]


def losses_of(record: dict) -> list[list[float]]:
    return [[epoch["loss"], epoch["val_loss"]] for epoch in record["history"]]


def test_two_replicas_train_a_backbone_as_one_does(tmp_path, backbone, data):
    assert devices.strategy(2) is devices.strategy(2)  # Two in one process clash when their variables differ in shape.
    settings = {**SETTINGS, **WHOLE, "epochs": 3, "batch_size": 7, "dropout_rate": 0.2}
    losses = [
        losses_of(tf_finetune.train(data, tmp_path, f"on-{count}", backbone=str(backbone), replicas=count, **settings))
        for count in (1, 2)
    ]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    assert losses[0][-1][0] < losses[0][0][0]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd", "epochs": 2}, {**WHOLE, "epochs": 2}], ids=str)
def test_two_replicas_give_the_head_that_one_gives(tmp_path, backbone, data, settings, without_export):
    """Solved, trained on features, and as the start of fine-tuning; each by passes of its own."""
    records = [
        tf_finetune.train(
            data, tmp_path, "job", backbone=str(backbone), replicas=count, test=data, cache_dir="none", **settings
        )
        for count in (1, 2)
    ]
    np.testing.assert_allclose(losses_of(records[0]), losses_of(records[1]), atol=1e-4)
    for part in ("validation", "test"):
        losses = [record["metrics"][part]["loss"] for record in records]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert records[0]["backbone_calls"] == records[1]["backbone_calls"] == 73  # One of 74 texts is empty.


def test_numbers_keep_their_names_through_all_channels(tmp_path, backbone):
    numbers = ("1", "2")
    training = builders.write_csv(tmp_path / "training", builders.texts_by_length(40, numbers))
    (training / "labels.txt").write_text("zulu\nalpha\n")
    only_long = [row for row in builders.texts_by_length(20, numbers, seed=1) if row[0] == "2"]
    validation = builders.write_csv(tmp_path / "validation", only_long)
    test = builders.write_csv(tmp_path / "test", only_long)
    (test / "labels.txt").write_text("zulu\nalpha\n")
    record = tf_finetune.train(
        training, tmp_path, "named", validation=validation, test=test, backbone=str(backbone), **SETTINGS
    )
    assert record["class_names"] == ["zulu", "alpha"]
    assert record["metrics"]["validation"]["accuracy"] == record["metrics"]["test"]["accuracy"] == 1.0
    with tarfile.open(tmp_path / "named" / "output" / "model.tar.gz") as packed:
        assert json.load(packed.extractfile("labels_info.json")) == {"labels": ["zulu", "alpha"]}
        indices = json.load(packed.extractfile("class_label_to_prediction_index.json"))
    assert indices == {"zulu": 0, "alpha": 1}


def test_ten_classes_of_numbers_train_on_texts(tmp_path, backbone):
    classes = [str(number) for number in range(1, 11)]
    rows = builders.texts_by_length(200, classes, lengths=[(10 * number + 3, 10 * number + 5) for number in range(10)])
    ten = builders.write_csv(tmp_path / "ten", rows)
    settings = {**SETTINGS, "optimizer": "adamw", "epochs": 10, "batch_size": 1000, "learning_rate": 0.25}
    record = tf_finetune.train(ten, tmp_path, "ten-classes", backbone=str(backbone), **settings)  # 10 steps.
    assert record["class_names"] == classes  # 10 after 9.
    assert record["metrics"]["validation"]["accuracy"] > 0.15
    # adamw warms up over a tenth of all steps, and a step of 0 changes nothing.
    assert record["hyperparameters"]["warmup_steps_fraction"] == 0.1
    assert [epoch["learning_rate"] for epoch in record["history"]] == [0.0] + [0.25] * 9
    assert record["history"][0]["val_loss"] == pytest.approx(np.log(10), abs=1e-5)


def source_of(contents: list[str], labels: list[int]) -> features.Source:
    texts = tf.constant(contents)
    keys = np.arange(len(contents), dtype=np.int64)
    return features.Source(lambda index, seed: tf.gather(texts, index), np.array(labels, np.int32), keys)


def fit(folder: Path, strategy, **given) -> classifier.Classifier:
    """Returns a classifier of two classes that was trained on two texts, whole, without regularization."""
    settings = builders.plain_settings(train_only_top_layer=False, **given)
    with strategy.scope():
        body = backbones.Backbone(folder, "text", trainable=True)
        model = classifier.build(body, body.feature_size(), 2, settings)
    training.fit(model, source_of(["a", "b" * 50], [0, 1]), None, settings, strategy)
    return model


def test_adamw_decays_matrices_and_spares_vectors_and_scalars(tmp_path, one):
    matrix, vector, scalar = tf.Variable([[1.0, -2.0], [3.0, 4.0]]), tf.Variable([1.0, 2.0]), tf.Variable(5.0)

    def call(texts, training=False):
        unused = tf.reduce_sum(matrix) + tf.reduce_sum(vector) + scalar  # Their gradients are 0, so all is decay.
        return tf.cast(tf.strings.length(texts), tf.float32)[:, None] + 0.0 * unused

    weights = {"matrix": matrix, "vector": vector, "scalar": scalar}
    builders.save_reusable(tmp_path / "b", call, {"training": True}, {"training": False}, spec=STRINGS, **weights)
    model = fit(tmp_path / "b", one, optimizer="adamw", learning_rate=0.1, epochs=3)
    loaded = model.backbone.loaded
    np.testing.assert_allclose(loaded.matrix, (1 - 0.1 * 0.01) ** 3 * matrix.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(loaded.vector, [1.0, 2.0])
    assert float(loaded.scalar) == 5.0


def test_one_step_of_adamw_is_the_formulas(tmp_path, one):
    """Kernel and bias start at 0: the decay is nothing, and the first step of Adam is the rate against the sign."""
    folder = builders.save_length_backbone(tmp_path / "b")
    model = fit(folder, one, optimizer="adamw", learning_rate=0.01)
    lengths = np.array([1 / 50, 1.0])
    inputs = np.stack([lengths, lengths**2], axis=1)
    errors = np.array([[0.5, 0.5], [0.5, 0.5]]) - np.eye(2)
    kernel, bias = builders.head_weights(model)
    np.testing.assert_allclose(kernel, -0.01 * np.sign(inputs.T @ errors), atol=1e-5)
    np.testing.assert_allclose(bias, np.zeros(2), atol=1e-6)  # The classes are even.
    assert float(model.backbone.loaded.weight) == 1.0  # The head is 0, so nothing reaches the backbone; no decay.


def test_momentum_is_not_for_rmsprop_with_texts(tmp_path, one):
    folder = builders.save_length_backbone(tmp_path / "b")
    for optimizer, matters in (("rmsprop", False), ("sgd", True), ("nesterov", True)):
        kernels = [
            builders.head_weights(fit(folder, one, optimizer=optimizer, momentum=momentum, epochs=3))[0]
            for momentum in (0.0, 0.9)
        ]
        assert np.array_equal(*kernels) != matters
    settings = builders.plain_settings(optimizer="rmsprop", momentum=0.9)
    assert [optimizers.make(settings, 0.1, task).momentum for task in ("text", "image")] == [0.0, 0.9]


def test_momentum_given_to_rmsprop_with_texts_is_told_to_have_no_effect(data, tmp_path, caplog):
    for task_data, told in ((data, True), (builders.write_class_folders(tmp_path / "photos", 1), False)):
        planned = job.plan({"training": task_data}, {"optimizer": "rmsprop", "momentum": 0.5}, output=tmp_path / "out")
        assert any(line.startswith("momentum has no") for line in job.warn_of_settings_without_effect(planned)) == told


def test_backbones_of_photos_are_refused_for_texts(data, mean_backbone, tmp_path):
    with pytest.raises(BackboneError, match=r"does not take string \[None\] texts"):
        tf_finetune.train(data, tmp_path / "out", "x", backbone=str(mean_backbone), **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_backbone_with_a_signature_of_strings_works_frozen(tmp_path):
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "sentences")])
    def serve(sentences):
        return {"default": tf.cast(tf.strings.length(sentences), tf.float32)[:, None] / 50}

    tf.saved_model.save(module, str(tmp_path / "b"), signatures={"serving_default": serve})
    body = backbones.Backbone(tmp_path / "b", "text")
    np.testing.assert_allclose(body(tf.constant(["a" * 5, ""])), [[0.1], [0.0]], atol=1e-6)
    assert body.feature_size() == 1
    with pytest.raises(BackboneError, match="has signatures only, so it cannot be trained"):
        backbones.Backbone(tmp_path / "b", "text", trainable=True)


def test_the_segmenter_of_tf1_is_refused_with_one_message(data, real_data, tmp_path):
    found = [path.parent for path in (real_data / "backbones").rglob("tfhub_module.pb")]
    if not found:
        pytest.skip("there is no TF1 hub module in the real data")
    with pytest.raises(BackboneError, match="is a TF1 hub module, which TensorFlow 2 cannot train"):
        tf_finetune.train(data, tmp_path / "out", "x", backbone=str(found[0]), **SETTINGS)


def test_minilm_static_64_is_a_backbone_for_texts(real_data, tmp_path):
    folder = real_data / "backbones" / "minilm_static_64"
    words = {"food": ["bread", "soup", "cheese", "an apple"], "animals": ["a dog", "cats", "the horse", "a cow"]}
    rows = [(name, f"{word} {end}") for name in words for word in words[name] for end in ("here", "now", "today")]
    data = builders.write_csv(tmp_path / "texts", rows)
    record = tf_finetune.train(data, tmp_path / "out", "x", backbone=str(folder), test=data)
    assert record["metrics"]["test"]["accuracy"] > 0.9
    assert description_in(tmp_path / "out" / "x" / "output" / "model.tar.gz")["custom_ops"] == []


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_epochs_over_a_hundred_thousand_texts_take_no_more_memory(tmp_path, backbone):
    rows = [("long" if number % 2 else "short", f"{number:06}" + "x" * (number % 2 * 40)) for number in range(100_000)]
    builders.write_csv(tmp_path / "texts", rows)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "texts"), str(backbone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert sum(measured["examples"].values()) == 100_000
    resident = measured["resident"]
    assert len(resident) == 4
    assert max(resident[2:]) - resident[1] < 24, resident  # MiB; the texts alone are 3, as Python objects 20.


def test_a_channel_with_a_class_that_the_archive_lacks_is_refused(archive, tmp_path):
    data = builders.write_csv(tmp_path / "texts", [("short", "a"), ("huge", "b")])
    with pytest.raises(DataError, match="1 class that training lacks: huge"):
        predictor.evaluate(tf_finetune.load(archive), data)
