"""Calibration: the temperature is found again, is judged by what it was not fitted to, and changes no answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tf_finetune import classifier, evaluation
from tf_finetune.evaluation import calibration


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns float64 [N, K]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(count: int, temperature: float, num_classes: int = 4, seed: int = 0):
    """Returns float32 [N, K], int [N] and int64 [N]: answers, labels drawn of calibrated answers, and keys.

    Dividing the logits of the answers by the temperature gives the calibrated ones.
    """
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, [count, num_classes])
    truth = softmax(logits)
    labels = (truth.cumsum(axis=1) < generator.random([count, 1])).sum(axis=1)
    return softmax(logits * temperature).astype(np.float32), labels, generator.permutation(count).astype(np.int64)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.4, 1.5, 3.0])
def test_the_temperature_is_found_again(temperature, num_classes):
    probabilities, labels, keys = drawn(5000, temperature, num_classes)
    found = calibration.fit(probabilities, labels, keys)
    assert found.applied
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.error[1] < 0.03 < found.error[0]
    assert found.loss[1] < found.loss[0]


def test_the_temperature_is_that_of_the_least_cross_entropy_of_all_examples():
    probabilities, labels, keys = drawn(3000, 2.0)
    found = calibration.fit(probabilities, labels, keys)
    losses = [
        evaluation.cross_entropy(calibration.apply(probabilities, found.temperature * factor), labels)
        for factor in (0.97, 1.0, 1.03)
    ]
    assert losses[1] == min(losses)


def test_figures_before_are_those_of_the_answers_and_after_are_out_of_fold():
    probabilities, labels, keys = drawn(60, 3.0)
    found = calibration.fit(probabilities, labels, keys)
    folds = calibration.split(labels, keys)
    calibrated = np.zeros_like(probabilities)
    for fold in range(calibration.FOLDS):
        seen = folds != fold
        grid = np.geomspace(1, 10, 2000)
        losses = [evaluation.cross_entropy(calibration.apply(probabilities[seen], one), labels[seen]) for one in grid]
        losses += np.square(np.log(grid) / calibration.SPREAD) / (2 * np.count_nonzero(seen))
        calibrated[~seen] = calibration.apply(probabilities[~seen], grid[np.argmin(losses)])
    after = (evaluation.calibration_error(calibrated, labels), evaluation.cross_entropy(calibrated, labels))
    assert found.loss == pytest.approx((evaluation.cross_entropy(probabilities, labels), after[1]), rel=1e-4)
    assert found.error == pytest.approx((evaluation.calibration_error(probabilities, labels), after[0]), rel=1e-3)
    inside = evaluation.cross_entropy(calibration.apply(probabilities, found.temperature), labels)
    assert inside < found.loss[1]  # What was fitted to looks better.


def test_a_few_examples_that_are_all_right_do_not_make_answers_certain():
    """25 right answers of 0.8 are calibrated at 1 - 1 / 27 by Laplace's rule; the least cross-entropy is at 1."""
    labels = np.arange(25) % 2
    probabilities = np.where(np.arange(2) == labels[:, None], 0.8, 0.2).astype(np.float32)
    found = calibration.fit(probabilities, labels, np.arange(25))
    assert found.applied
    assert 0.9 < calibration.apply(probabilities, found.temperature).max() < 0.98


def test_the_order_of_examples_plays_no_part():
    probabilities, labels, keys = drawn(2000, 2.0)
    order = np.random.default_rng(3).permutation(2000)
    assert calibration.fit(probabilities[order], labels[order], keys[order]) == calibration.fit(
        probabilities, labels, keys
    )
    np.testing.assert_array_equal(calibration.split(labels[order], keys[order]), calibration.split(labels, keys)[order])


def test_folds_spread_each_class_evenly_and_keep_examples_of_one_key_together():
    keys = np.repeat(np.random.default_rng(0).permutation(60) * 11, 2)
    labels = np.repeat(np.arange(60) % 3, 2)
    folds = calibration.split(labels, keys)
    assert all(len(set(folds[keys == key])) == 1 for key in keys)
    for label in range(3):
        assert np.bincount(folds[labels == label]).tolist() == [8] * calibration.FOLDS


def test_too_few_examples_or_classes_leave_the_answers_as_they_are():
    probabilities, labels, keys = drawn(19, 3.0)
    few = calibration.fit(probabilities, labels, keys)
    assert (few.temperature, few.applied, few.folds) == (1.0, False, 0)
    assert "20" in few.reason
    assert "19" in few.reason
    copies = np.repeat(np.arange(19), 4)
    assert not calibration.fit(probabilities[copies], labels[copies], keys[copies]).applied
    probabilities, labels, keys = drawn(20, 3.0)
    assert calibration.fit(probabilities, labels, keys).folds == calibration.FOLDS
    alone = calibration.fit(probabilities, np.zeros(20, int), keys)
    assert (alone.temperature, alone.applied, alone.folds) == (1.0, False, 0)
    assert "1 class" in alone.reason
    none = calibration.fit(probabilities[:0], labels[:0], keys[:0])
    assert (none.temperature, none.applied) == (1.0, False)


def test_a_temperature_that_does_not_help_unseen_examples_is_not_applied():
    """Of 24 calibrated answers a temperature learns but their luck."""
    probabilities, labels, keys = drawn(24, 1.0, seed=9)
    found = calibration.fit(probabilities, labels, keys)
    assert (found.temperature, found.applied, found.folds) == (1.0, False, calibration.FOLDS)
    assert found.loss[1] == found.loss[0] == pytest.approx(evaluation.cross_entropy(probabilities, labels))
    assert found.error[1] == found.error[0]
    assert f"{found.loss[0]:.4f}" in found.reason


def test_the_record_is_json():
    found = calibration.fit(*drawn(100, 2.0))
    given = found.as_json()
    assert json.loads(json.dumps(given, allow_nan=False)) == given
    assert set(given) == {"temperature", "applied", "reason", "folds", "calibration_error", "loss"}
    assert given["loss"] == {"before": found.loss[0], "after": found.loss[1]}
    assert given["calibration_error"] == {"before": found.error[0], "after": found.error[1]}


# Applying it.


@pytest.mark.parametrize("temperature", [0.001, 0.1, 0.5, 1.0, 1.7, 10.0])
def test_the_class_answered_never_changes(temperature):
    """Neither of plain rows, nor of equal classes, of classes that differ in the last bit, or of zeros."""
    generator = np.random.default_rng(0)
    plain = generator.dirichlet(np.full(6, 0.3), 20_000).astype(np.float32)
    near = generator.dirichlet(np.ones(6), 20_000).astype(np.float32)
    first, second = generator.permuted(np.tile(np.arange(6), [20_000, 1]), axis=1)[:, :2].T
    top, rows = near.max(axis=1), np.arange(20_000)
    near[rows, first] = top
    near[rows[::2], second[::2]] = np.nextafter(top[::2], np.float32(1))
    near[rows[1::2], second[1::2]] = top[1::2]
    pairs = np.float32(0.5) + generator.integers(-3, 4, [1000, 1]).astype(np.float32) * np.float32(2**-25)
    pairs = np.concatenate([1 - pairs, pairs], axis=1)
    certain = np.eye(6, dtype=np.float32)
    for rows in (plain, near, pairs, certain):
        given = calibration.apply(rows, temperature)
        np.testing.assert_array_equal(given.argmax(axis=1), rows.argmax(axis=1))
        assert given.dtype == np.float32
        np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-6)


def test_a_temperature_of_one_gives_the_same_probabilities():
    probabilities, _, _ = drawn(500, 2.0)
    np.testing.assert_allclose(calibration.apply(probabilities, 1.0), probabilities, rtol=1e-6)


def test_zeros_stay_finite():
    given = calibration.apply(np.array([[1.0, 0.0, 0.0]], np.float32), 10.0)
    wanted = float(np.finfo(np.float32).tiny) ** 0.1
    np.testing.assert_allclose(given, np.array([[1, wanted, wanted]]) / (1 + 2 * wanted), rtol=1e-5)


# In the head.


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.9, 6.0])
@pytest.mark.parametrize("replicas", ["one", "two"])
@pytest.mark.parametrize("is_binary", [False, True], ids=["softmax", "one unit"])
def test_a_calibrated_head_answers_calibrated_probabilities(request, mean_backbone, is_binary, replicas, temperature):
    strategy = request.getfixturevalue(replicas)
    num_classes = 2 if is_binary else 5
    settings = builders.plain_settings(binary_mode=is_binary)
    model = builders.make_classifier(mean_backbone, settings, strategy, num_classes)
    generator = np.random.default_rng(0)
    for variable in model.head.variables:
        variable.assign(generator.normal(0, 6 if is_binary else 2.5, variable.shape))
    features = tf.constant(generator.normal(0, 2, [500, 3]), tf.float32)

    def answer() -> np.ndarray:
        given = strategy.run(lambda: classifier.probabilities(model.head(features)))
        return strategy.experimental_local_results(given)[-1].numpy()

    before = answer()
    classifier.calibrate(model, temperature)
    after = answer()
    assert before.max() > 0.999999
    np.testing.assert_allclose(after, calibration.apply(before, temperature), atol=max(1, 1 / temperature) * 1e-6)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
