"""Evaluation: figures against plain NumPy, over all examples, whatever the batch size and the number of replicas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tf_finetune import evaluation, features
from tf_finetune.training import steps

CLASS_NAMES = ("daisy", "rose", "tulip", "weed")
CLOSE = 1e-6


def answers(count: int = 37, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 [N, 4] and int [N]: probabilities, and labels without the last class."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1, [count, 4])
    labels = generator.integers(0, 3, count)
    logits[np.arange(count), labels] += 0.8
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_the_metrics_are_those_of_numpy():
    probabilities, labels = answers()
    given = evaluation.metrics(probabilities, labels, CLASS_NAMES)
    predicted = np.argmax(probabilities, axis=1)
    matrix = np.zeros([4, 4], int)
    np.add.at(matrix, (labels, predicted), 1)
    assert given["confusion_matrix"] == matrix.tolist()
    assert given["accuracy"] == pytest.approx(np.trace(matrix) / 37)
    assert given["loss"] == pytest.approx(-np.mean(np.log(probabilities[np.arange(37), labels])), rel=CLOSE)
    scores = []
    for k, name in enumerate(CLASS_NAMES):
        hit, said, there = matrix[k, k], matrix[:, k].sum(), matrix[k].sum()
        precision, recall = hit / max(said, 1), hit / max(there, 1)
        scores.append(2 * precision * recall / (precision + recall) if hit else 0.0)
        wanted = {"precision": precision, "recall": recall, "f1": scores[-1], "support": there}
        assert given["per_class"][name] == pytest.approx(wanted)
    assert given["per_class"]["weed"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert given["macro_f1"] == pytest.approx(np.mean(scores))
    assert 0 < given["accuracy"] < 1  # Not all right or wrong.


def test_a_class_that_is_never_predicted_counts_as_zero_and_warns_nobody(recwarn):
    probabilities = np.array([[0.9, 0.1, 0.0, 0.0]] * 3, np.float32)
    given = evaluation.metrics(probabilities, np.array([0, 1, 1]), CLASS_NAMES)
    assert given["accuracy"] == pytest.approx(1 / 3)
    assert given["macro_f1"] == pytest.approx((2 * 1 * (1 / 3) / (4 / 3)) / 4)
    assert [str(warning.message) for warning in recwarn if "UndefinedMetric" in type(warning.message).__name__] == []


def test_the_loss_is_finite_where_a_probability_is_zero():
    loss = evaluation.cross_entropy(np.array([[1.0, 0.0], [1.0, 0.0]], np.float32), np.array([0, 1]))
    assert loss == pytest.approx(-np.log(np.finfo(np.float32).tiny) / 2)


# Of [1 - p, p] with p = 0.9, 0.8, 0.7, 0.4, 0.3, 0.2 and these labels: two of the three called positive are.
POSITIVE = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.2])
TRUTH = np.array([1, 0, 1, 1, 0, 0])
BY_HAND = {
    "accuracy": 4 / 6,
    "precision": 2 / 3,
    "recall": 2 / 3,
    "auc": 7 / 9,  # Of the nine pairs of a positive and a negative, two are in the wrong order: (.7, .8), (.4, .8).
    "prc": (1 / 1 + 2 / 3 + 3 / 4) / 3,  # Precision at each positive.
}


@pytest.mark.parametrize("metric", BY_HAND)
def test_each_eval_metric_is_as_counted_by_hand(metric):
    probabilities = np.stack([1 - POSITIVE, POSITIVE], axis=1)
    assert evaluation.score(probabilities, TRUTH, metric) == pytest.approx(BY_HAND[metric])


@pytest.mark.parametrize("metric", ["precision", "recall", "auc", "prc"])
def test_an_eval_metric_that_cannot_be_measured_is_zero(metric):
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert evaluation.score(probabilities, np.array([0, 0]), metric) == 0.0


def test_the_calibration_error_is_as_counted_by_hand():
    """Two answers of 0.9, one of them wrong; four from 0.62 to 0.64, which share a bin of 1/15, one of them wrong."""
    first = [0.9, 0.9, 0.62, 0.62, 0.62, 0.64]
    probabilities = np.array([[value, 1 - value] for value in first])
    labels = np.array([0, 1, 0, 0, 0, 1])
    expected = 2 / 6 * abs(0.5 - 0.9) + 4 / 6 * abs(0.75 - (3 * 0.62 + 0.64) / 4)
    assert evaluation.calibration_error(probabilities, labels) == pytest.approx(expected)


def test_certain_answers_are_calibrated_when_right_and_not_when_wrong():
    certain = np.array([[1.0, 0.0]] * 4)
    assert evaluation.calibration_error(certain, np.array([0, 0, 0, 0])) == 0.0
    assert evaluation.calibration_error(certain, np.array([1, 1, 1, 0])) == pytest.approx(0.75)


# All examples, in order.


@pytest.mark.parametrize("replicas", ["one", "two"])
@pytest.mark.parametrize("kind", ["features", "photos"])
@pytest.mark.parametrize("count", [1, 7, 32, 33, 64, 65, 70])
def test_all_examples_are_answered_once_and_in_order(request, monkeypatch, replicas, kind, count):
    """In batches of at most 32 photos a replica, or 32 rows of features; the last one is seldom whole."""
    monkeypatch.setattr(features, "ROWS", 32)
    shape = [count, 3] if kind == "features" else [count, 2, 2, 3]
    rows = np.random.default_rng(0).random(shape, np.float32)
    sizes = []

    def double(given: tf.Tensor) -> tf.Tensor:
        tf.py_function(lambda size: sizes.append(int(size)), [tf.shape(given)[0]], [])
        return given * 2

    strategy = request.getfixturevalue(replicas)
    source = builders.array_source(rows, np.zeros(count, int))
    result = features.outputs(tf.function(double), source, strategy)
    np.testing.assert_array_equal(result, rows * 2)
    assert max(sizes) <= 32
    if kind == "photos":
        assert len(set(sizes)) == 1  # Another shape would be traced, and computed, otherwise.
        assert sum(sizes) < count + 32 * strategy.num_replicas_in_sync


def test_a_source_of_one_shape_is_traced_once():
    source = builders.array_source(np.zeros([70, 2, 2, 3], np.float32), np.zeros(70, int))
    traced = []

    def trace(given: tf.Tensor) -> tf.Tensor:
        traced.append(given.shape)
        return given

    features.outputs(tf.function(trace), source, tf.distribute.get_strategy())
    assert len(traced) == 1


@pytest.mark.parametrize("as_constants", [False, True])
@pytest.mark.parametrize("replicas", ["one", "two"])
def test_features_are_those_of_the_backbone(request, convolution_backbone, replicas, as_constants):
    photos, labels = builders.coloured_arrays(70)
    strategy, told = request.getfixturevalue(replicas), []
    model = builders.make_classifier(convolution_backbone, builders.plain_settings(), strategy)
    passes = builders.make_passes(
        model.backbone, strategy=strategy, as_constants=as_constants, progress=lambda *news: told.append(news)
    )
    computed = passes.features(builders.array_source(photos, labels))
    alone = builders.make_classifier(convolution_backbone, builders.plain_settings())
    rows = np.stack([computed.load(index, None) for index in range(70)])
    np.testing.assert_allclose(rows, alone.backbone(photos), atol=CLOSE)
    np.testing.assert_array_equal(rows, computed.rows)
    np.testing.assert_array_equal(computed.labels, labels)
    assert told[0][1] == 32 * strategy.num_replicas_in_sync
    assert told[-1] == ("features", 70, 70)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_validation_figures_are_over_all_examples(convolution_backbone, batch_size):
    """Seven examples in batches of three, the last incomplete, and in one batch that is larger."""
    settings = builders.plain_settings(batch_size=batch_size, epochs=2)
    photos, labels = builders.coloured_arrays(7)
    source = builders.array_source(photos, labels)
    model, fitted = builders.train(convolution_backbone, source, source, settings)
    assert fitted.best_epoch == 2
    given = steps.make_answer(model, False)(photos).numpy()
    logits = model.backbone(photos).numpy() @ builders.head_weights(model)[0] + builders.head_weights(model)[1]
    exponentials = np.exp(logits)
    wanted = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(given, wanted, atol=CLOSE)
    row = fitted.history[-1]
    assert row["val_loss"] == pytest.approx(-np.log(wanted[np.arange(7), labels]).mean(), rel=1e-5)
    assert row["val_accuracy"] == pytest.approx(np.mean(wanted.argmax(axis=1) == labels))
