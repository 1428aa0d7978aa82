"""Evaluation: figures against plain NumPy, over all examples, whatever the batch size and the number of replicas."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tf_finetune import evaluation, features
from tf_finetune.evaluation import intervals
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


def test_reliability_holds_the_bins_that_the_calibration_error_sums():
    probabilities, labels = answers(200)
    probabilities[0] = [1, 0, 0, 0]  # The last bin holds its upper edge.
    given = evaluation.metrics(probabilities, labels, CLASS_NAMES)
    bins = given["reliability"]
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    assert sum(one["count"] for one in bins) == 200
    assert bins[-1]["high"] == 1
    assert [one["low"] for one in bins] == sorted(one["low"] for one in bins)
    for one in bins:
        inside = (confidence >= one["low"]) & ((confidence < one["high"]) | (confidence == 1) & (one["high"] == 1))
        assert one["high"] - one["low"] == pytest.approx(1 / 15)
        assert one["count"] == inside.sum() > 0
        assert one["confidence"] == pytest.approx(confidence[inside].mean())
        assert one["accuracy"] == pytest.approx(hits[inside].mean())
    gaps = [one["count"] / 200 * abs(one["accuracy"] - one["confidence"]) for one in bins]
    assert given["calibration_error"] == pytest.approx(sum(gaps))


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_with_examples():
    probabilities = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 3]]
    given = evaluation.metrics(probabilities, np.array([0, 0, 0, 1, 1]), CLASS_NAMES)
    assert given["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert given["macro_f1"] == pytest.approx((1 + 2 / 3) / 4)  # Of all four.


def test_top_k_is_told_of_more_than_five_classes_and_breaks_ties_as_argmax_does():
    names = [f"class {k}" for k in range(7)]
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(7), 50).astype(np.float32)
    labels = generator.integers(0, 7, 50)
    five = np.argsort(-probabilities, axis=1)[:, :5]
    wanted = np.mean([label in row for label, row in zip(labels, five, strict=True)])
    assert 0 < wanted < 1
    given = evaluation.metrics(probabilities, labels, names)["top_k"]
    assert given == {"k": 5, "accuracy": pytest.approx(wanted)}
    even = np.full([2, 7], 1 / 7, np.float32)
    assert evaluation.metrics(even, np.array([4, 5]), names)["top_k"]["accuracy"] == 0.5
    for count, is_told in ((5, False), (6, True)):
        given = evaluation.metrics(probabilities[:, :count], labels % count, names[:count])
        assert (given["top_k"] is not None) == is_told


def test_the_baseline_is_the_accuracy_of_one_answer():
    probabilities, labels = answers()
    given = evaluation.metrics(probabilities, labels, CLASS_NAMES, baseline=1)
    assert given["baseline"] == {"class": "rose", "accuracy": pytest.approx(np.mean(labels == 1))}
    given = evaluation.metrics(probabilities, labels, CLASS_NAMES, baseline=3)
    assert given["baseline"] == {"class": "weed", "accuracy": 0.0}
    assert evaluation.metrics(probabilities, labels, CLASS_NAMES)["baseline"] is None


# Intervals.


def test_intervals_are_those_of_examples_drawn_again_one_by_one():
    """The percentiles of 4,000 plain resamples, up to the luck of both."""
    probabilities, labels = answers(80)
    predicted = probabilities.argmax(axis=1)
    generator = np.random.default_rng(1)
    drawn = {"accuracy": [], "macro_f1": [], "balanced_accuracy": []}
    for _ in range(4000):
        rows = generator.integers(0, 80, 80)
        matrix = np.bincount(4 * labels[rows] + predicted[rows], minlength=16).reshape(4, 4)
        hits, there, said = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        drawn["accuracy"].append(hits.sum() / 80)
        drawn["macro_f1"].append(np.mean(2 * hits / np.maximum(there + said, 1)))
        drawn["balanced_accuracy"].append(np.mean(hits[there > 0] / there[there > 0]))
    given = evaluation.metrics(probabilities, labels, CLASS_NAMES)
    assert set(given["intervals"]) == set(drawn)
    for name, values in drawn.items():
        np.testing.assert_allclose(given["intervals"][name], np.percentile(values, [2.5, 97.5]), atol=0.015)
        low, high = given["intervals"][name]
        assert low < given[name] < high
        assert 0.1 < high - low < 0.3


def test_the_interval_of_accuracy_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        right = generator.binomial(100, 0.8)
        low, high = intervals.bootstrap(np.array([[right, 100 - right], [0, 0]]))["accuracy"]
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_data_has_the_same_intervals_in_any_order():
    probabilities, labels = answers(60)
    order = np.random.default_rng(0).permutation(60)
    one, other = (
        evaluation.metrics(probabilities[rows], labels[rows], CLASS_NAMES)["intervals"] for rows in (range(60), order)
    )
    assert one == other


def test_intervals_of_rare_classes_hold_the_figure():
    """Resamples lack one class of three examples in twenty; for 0 in its place the interval ended below the figure."""
    matrix = np.diag(np.full(60, 3))
    matrix[0, :2] = 2, 1
    recall = (2 / 3 + 59) / 60
    f1 = (2 * 2 / 5 + 2 * 3 / 7 + 58) / 60
    given = intervals.bootstrap(matrix)
    assert given["balanced_accuracy"][0] < recall < given["balanced_accuracy"][1]
    assert given["macro_f1"][0] < f1 < given["macro_f1"][1]
    missing = np.zeros([62, 62], int)
    missing[:60, :60] = matrix
    assert intervals.bootstrap(missing)["macro_f1"] == pytest.approx(np.array(given["macro_f1"]) * 60 / 62)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    matrix = np.array([[30, 5, 0], [2, 40, 3], [0, 0, 20]])
    whole = intervals.bootstrap(matrix)
    monkeypatch.setattr(intervals, "BLOCK", 700)
    assert intervals.bootstrap(matrix) == whole


def test_intervals_of_many_classes_take_little_time():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 100, 10_000)
    predicted = np.where(generator.random(10_000) < 0.7, labels, generator.integers(0, 100, 10_000))
    matrix = np.zeros([100, 100], int)
    np.add.at(matrix, (labels, predicted), 1)
    start = time.process_time()
    intervals.bootstrap(matrix)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("labels", [[0], [1, 1, 1], [2, 2, 0]], ids=["one example", "one class", "all wrong"])
def test_figures_are_json_without_nan(recwarn, labels):
    probabilities = np.array([[0.9, 0.1, 0.0, 0.0]] * len(labels), np.float32)
    given = evaluation.metrics(probabilities, np.array(labels), CLASS_NAMES, baseline=0)
    assert json.loads(json.dumps(given, allow_nan=False)) == given
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


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
