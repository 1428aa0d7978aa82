"""The head's solver against scikit-learn, and what must not change its answer."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tf_finetune.training import logistic, solver

CLOSE = 1e-3


def clusters(count: int, size: int = 12, num_classes: int = 3, spread: float = 1.5, seed: int = 0):
    """Returns float32 [N, D] and int [N]: overlapping clouds, so that no strength fits all."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centres = generator.normal(0, 1, [num_classes, size])
    return (centres[labels] + generator.normal(0, spread, [count, size])).astype(np.float32), labels


def answers(solved: solver.Solved, features: np.ndarray) -> np.ndarray:
    """Returns float64 [N, K]: probabilities of a head, those of one unit as [1 - p, p]."""
    logits = features.astype(np.float64) @ solved.kernel + solved.bias
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def reference(features, labels, l2: float, weights=None) -> np.ndarray:
    """Returns scikit-learn's probabilities at the same optimum, which it finds on features scaled as ours are."""
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    basis = solver.make_basis(features, weights)
    scaled = (features - basis.mean) / basis.unit
    model = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-8, max_iter=5000)
    return model.fit(scaled, labels, sample_weight=weights).predict_proba(scaled)


@pytest.mark.parametrize(("count", "size"), [(120, 12), (30, 100)], ids=["more rows", "more features"])
def test_the_head_is_scikit_learns_optimum(count, size):
    features, labels = clusters(count, size)
    solved = solver.solve(features, labels, 3)
    np.testing.assert_allclose(answers(solved, features), reference(features, labels, solved.l2), atol=CLOSE)


def test_the_strength_is_the_one_that_held_out_rows_like_best():
    features, labels = clusters(150)
    solved = solver.solve(features, labels, 3)
    losses = {step["l2"]: step["loss"] for step in solved.path}
    assert solved.l2 == min(losses, key=losses.get)
    assert list(losses) == sorted(losses, reverse=True)
    assert solved.folds == solver.FOLDS
    assert all(0 <= step["accuracy"] <= 1 for step in solved.path)
    ends = [next(iter(losses)), list(losses)[-1]]
    assert solved.l2 not in ends


def test_a_path_that_only_gets_worse_is_left():
    features, labels = clusters(150)
    whole = solver.path(features, labels, 3, stop_early=False)
    stopped = solver.path(features, labels, 3)
    assert len(whole.tried) == len(solver.STRENGTHS)
    assert len(stopped.tried) == 1 + solver.PATIENCE + [one["l2"] for one in stopped.tried].index(stopped.l2)
    assert len(stopped.tried) < len(whole.tried)
    assert stopped.l2 == whole.l2


def test_each_head_of_the_path_is_solved():
    features, labels = clusters(200, 30)
    seen = solver.path(features, labels, 3, stop_early=False)
    assert np.max(seen.gradients) <= solver.PATH_TOLERANCE
    assert np.shape(seen.gradients) == (len(solver.STRENGTHS), solver.FOLDS)


def test_a_loose_tolerance_takes_fewer_steps(monkeypatch):
    features, labels = clusters(200, 30)
    tight = solver.path(features, labels, 3, stop_early=False)
    monkeypatch.setattr(solver, "PATH_TOLERANCE", 0.1)
    assert solver.path(features, labels, 3, stop_early=False).iterations < tight.iterations / 2


def test_a_warm_path_ends_where_a_cold_start_does(monkeypatch):
    monkeypatch.setattr(solver, "PATH_TOLERANCE", solver.TOLERANCE)
    features, labels = clusters(200, 30)
    strengths = [10.0, 1.0, 0.1, 0.05]
    warm = solver.path(features, labels, 3, strengths=strengths, stop_early=False)
    cold = solver.path(features, labels, 3, strengths=strengths[-1:], stop_early=False)
    assert warm.tried[-1]["loss"] == pytest.approx(cold.tried[-1]["loss"], rel=CLOSE)
    assert warm.tried[-1]["accuracy"] == cold.tried[-1]["accuracy"]


def test_the_last_head_is_solved_closely_enough_at_a_weak_strength(monkeypatch):
    monkeypatch.setattr(solver, "STRENGTHS", (1e-4, 3e-5, 1e-5))
    features, labels = clusters(300, 60, spread=3.0)
    solved = solver.solve(features, labels, 3)
    elsewhere, _ = clusters(300, 60, spread=3.0, seed=1)
    monkeypatch.setattr(solver, "TOLERANCE", 1e-9)
    monkeypatch.setattr(logistic, "LEAST_GAIN", 0.0)
    exact = solver.solve(features, labels, 3)
    np.testing.assert_allclose(answers(solved, elsewhere), answers(exact, elsewhere), atol=0.02)


def test_a_weight_of_two_is_a_row_given_twice():
    features, labels = clusters(90)
    weights = np.where(np.arange(90) % 4 == 0, 2.0, 1.0)
    twice = np.concatenate([np.arange(90), np.flatnonzero(weights == 2)])
    weighed = solver.solve(features, labels, 3, weights, np.arange(90))
    repeated = solver.solve(features[twice], labels[twice], 3, None, twice)
    np.testing.assert_allclose(weighed.kernel, repeated.kernel, atol=1e-3)
    np.testing.assert_allclose([one["loss"] for one in weighed.path], [one["loss"] for one in repeated.path], rtol=1e-3)


def test_balanced_weights_favour_the_rare_class():
    features, labels = clusters(200, 6, 2)
    rare = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:15]])
    features, labels = features[rare], labels[rare]
    weights = len(labels) / (2 * np.bincount(labels))[labels]
    plain, balanced = (
        answers(solver.solve(features, labels, 2, one), features)[:, 1].mean() for one in (None, weights)
    )
    assert balanced > plain + 0.1


def test_groups_never_straddle_folds_and_classes_are_spread():
    labels, groups = np.repeat(np.arange(60) % 3, 4), np.repeat(np.arange(60), 4)
    folds, count = solver.split(labels, groups)
    assert count == solver.FOLDS
    assert all(len(set(folds[groups == group])) == 1 for group in range(60))
    for label in range(3):
        assert np.bincount(folds[labels == label]).tolist() == [16] * count


def test_copies_in_one_fold_do_not_flatter():
    """Labels are noise: with copies on both sides of a fold the held-out accuracy would be nearly 1."""
    generator = np.random.default_rng(0)
    features = np.repeat(generator.normal(size=[40, 200]).astype(np.float32), 4, axis=0)
    labels, groups = np.repeat(generator.permutation(np.arange(40) % 2), 4), np.repeat(np.arange(40), 4)
    together = solver.path(features, labels, 2, groups=groups, stop_early=False)
    apart = solver.path(features, labels, 2, stop_early=False)
    assert max(one["accuracy"] for one in together.tried) < 0.75
    assert max(one["accuracy"] for one in apart.tried) > 0.9


def test_folds_do_not_depend_on_the_order_of_rows():
    labels, groups = np.arange(50) % 3, np.arange(50) * 7
    order = np.random.default_rng(1).permutation(50)
    folds, _ = solver.split(labels, groups)
    np.testing.assert_array_equal(solver.split(labels[order], groups[order])[0], folds[order])


def test_one_unit_answers_as_two_classes_do():
    features, labels = clusters(80, 8, 2)
    unit, both = solver.solve(features, labels, 2, is_binary=True), solver.solve(features, labels, 2)
    assert unit.kernel.shape == (8, 1)
    assert unit.bias.shape == (1,)
    np.testing.assert_allclose(answers(unit, features), answers(both, features), atol=1e-5)


def test_the_span_of_the_rows_gives_the_same_head(monkeypatch):
    features, labels = clusters(30, 90)
    small = solver.solve(features, labels, 3)
    monkeypatch.setattr(logistic, "_span", lambda features, mean, unit: solver.Basis(features, mean, unit))
    full = solver.solve(features, labels, 3)
    assert small.l2 == full.l2
    np.testing.assert_allclose(answers(small, features), answers(full, features), atol=CLOSE)


@pytest.mark.parametrize("size", [40, 400])
def test_the_same_rows_give_the_same_bits(size):
    features, labels = clusters(100, size)
    elsewhere = np.empty(features.size + 3, np.float32)[3:].reshape(features.shape)  # At another alignment.
    elsewhere[:] = features
    one, other = solver.solve(features, labels, 3), solver.solve(elsewhere, labels, 3)
    np.testing.assert_array_equal(one.kernel, other.kernel)
    np.testing.assert_array_equal(one.bias, other.bias)


def test_a_common_scale_and_an_offset_change_nothing():
    features, labels = clusters(100)
    plain, moved = solver.solve(features, labels, 3), solver.solve(features * 1000 + 5000, labels, 3)
    np.testing.assert_allclose(answers(plain, features), answers(moved, features * 1000 + 5000), atol=5e-3)


def test_features_keep_their_scale_within_a_band_and_constants_count_nothing():
    deviations = np.array([1e-6, 0.5, 1, 1, 1, 2, 1e6, 0])
    signs = np.where(np.arange(20) % 2 == 0, 1.0, -1.0)[:, None]
    basis = logistic.make_basis((signs * deviations).astype(np.float32), np.ones(20))
    least, most = logistic.BAND
    np.testing.assert_allclose(deviations / basis.unit, [least, 0.5, 1, 1, 1, 2, most, 0], rtol=1e-5)


def test_features_of_very_different_scales_all_count():
    features, labels = clusters(150, 6, spread=0.3)
    scaled = features * np.array([1e-6, 1e-3, 1, 1, 1e3, 1e6], np.float32)
    assert (answers(solver.solve(scaled, labels, 3), scaled).argmax(axis=1) == labels).mean() > 0.95


@pytest.mark.parametrize(
    ("features", "labels", "num_classes"),
    [
        (np.ones([6, 4]), [0, 1, 0, 1, 0, 1], 2),
        (np.arange(6.0)[:, None], [0, 0, 0, 1, 1, 1], 2),
        (np.eye(4), [0, 0, 1, 1], 2),
        (np.eye(2), [0, 1], 2),
        (np.repeat(np.eye(2), 5, axis=0), np.repeat([0, 1], 5), 2),
        (np.eye(7), [0, 0, 0, 1, 1, 1, 2], 3),
        (np.eye(6), [0, 0, 0, 2, 2, 2], 4),
        (np.random.default_rng(0).normal(size=[400, 5]), np.arange(400) % 200, 200),
        (np.random.default_rng(0).normal(size=[40, 5]) * [1e-6, 1, 1, 1, 1e6], np.arange(40) % 2, 2),
    ],
    ids=["constant", "separable", "few", "two", "copies", "a class of one", "absent classes", "200 classes", "scales"],
)
def test_odd_data_gives_finite_heads_and_sensible_answers(features, labels, num_classes):
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    solved = solver.solve(features, labels, num_classes)
    assert solved.kernel.shape == (features.shape[1], num_classes)
    assert np.isfinite(solved.kernel).all()
    assert np.isfinite(solved.bias).all()
    given = answers(solved, features)
    absent = sorted(set(range(num_classes)) - set(labels))
    assert given[:, absent].max(initial=0) < 1e-3
    assert solved.l2 > 0


def test_too_few_rows_to_cross_validate_take_the_default_strength():
    solved = solver.solve(np.eye(2, dtype=np.float32), np.array([0, 1]), 2)
    assert (solved.l2, solved.folds, solved.path) == (solver.DEFAULT_STRENGTH, 0, [])


def test_more_rows_than_are_looked_at_are_all_fitted_to(monkeypatch):
    features, labels = clusters(300, spread=2.0)
    monkeypatch.setattr(solver, "MOST_ROWS", 100)
    folds, _ = solver.split(labels, np.arange(300))
    assert np.bincount(labels[folds >= 0]).tolist() == [34, 34, 34]
    solved = solver.solve(features, labels, 3)
    np.testing.assert_allclose(answers(solved, features), reference(features, labels, solved.l2), atol=CLOSE)
    assert max(step["accuracy"] for step in solved.path) > 0.5


def test_a_row_far_out_does_not_overflow():
    features, labels = clusters(90)
    features[0] *= 1e6
    weights = np.where(np.arange(90) == 0, 1e-20, 1.0)  # Or it would set the scale of the features.
    solved = solver.solve(features, labels, 3, weights)
    without = solver.solve(features[1:], labels[1:], 3)
    assert np.isfinite([step["loss"] for step in solved.path]).all()
    assert (answers(solved, features[1:]).argmax(1) == answers(without, features[1:]).argmax(1)).mean() > 0.9


def test_a_class_of_one_is_always_fitted_to():
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    folds, count = solver.split(labels, np.arange(7))
    assert folds[-1] == count
    assert set(folds[:-1]) == set(range(count))


def test_heads_that_are_too_many_at_once_are_solved_one_by_one(monkeypatch):
    features, labels = clusters(100)
    together = solver.path(features, labels, 3)
    monkeypatch.setattr(logistic, "MOST_PARAMETERS", 10)
    apart = solver.path(features, labels, 3)
    losses = ([one["loss"] for one in seen.tried] for seen in (together, apart))
    np.testing.assert_allclose(*losses, rtol=5e-3)


# What the heads of the folds answer.


@pytest.mark.parametrize(("count", "size"), [(120, 12), (30, 100)], ids=["more rows", "more features"])
def test_held_out_probabilities_are_of_heads_that_did_not_see_the_row(count, size):
    """Each fold's head found again by scikit-learn, on the coordinates of all rows."""
    features, labels = clusters(count, size)
    solved = solver.solve(features, labels, 3)
    assert (solved.held_out.shape, solved.held_out.dtype) == ((count, 3), np.float32)
    basis = solver.make_basis(features, np.ones(count))
    scaled = (features - basis.mean) / basis.unit
    folds, number = solver.split(labels, np.arange(count))
    for fold in range(number):
        seen = folds != fold
        model = LogisticRegression(C=1 / (solved.l2 * seen.sum()), tol=1e-8, max_iter=5000)
        wanted = model.fit(scaled[seen], labels[seen]).predict_proba(scaled[~seen])
        np.testing.assert_allclose(solved.held_out[~seen], wanted, atol=5e-3)


def test_held_out_probabilities_are_those_whose_loss_was_least():
    features, labels = clusters(150)
    solved = solver.solve(features, labels, 3)
    losses = [step["loss"] for step in solved.path]
    assert losses.index(min(losses)) < len(losses) - 1  # Later strengths were tried, and are not what is given.
    loss = -np.log(solved.held_out[np.arange(150), labels]).mean()
    assert loss == pytest.approx(min(losses), rel=1e-5)
    best = solved.path[losses.index(min(losses))]
    assert (solved.held_out.argmax(axis=1) == labels).mean() == pytest.approx(best["accuracy"])


def test_rows_that_no_fold_holds_out_have_no_held_out_probabilities(monkeypatch):
    features, labels = clusters(120)
    labels[0] = 4  # A class of one, which is always fitted to; there is none of class 3.
    monkeypatch.setattr(solver, "MOST_ROWS", 60)
    groups = np.random.default_rng(0).permutation(120)
    solved = solver.solve(features, labels, 5, groups=groups)
    folds, count = solver.split(np.unique(labels, return_inverse=True)[1], groups)
    is_held = (folds >= 0) & (folds < count)
    assert 0 < np.count_nonzero(folds < 0) < 119
    np.testing.assert_array_equal(~np.isnan(solved.held_out), np.repeat(is_held[:, None], 5, axis=1))
    np.testing.assert_array_equal(solved.held_out[is_held, 3], 0)
    np.testing.assert_allclose(solved.held_out[is_held].sum(axis=1), 1, atol=1e-6)
    assert (solved.held_out[is_held].argmax(axis=1) == labels[is_held]).mean() > 0.5  # Each row has its own.


def test_one_unit_has_held_out_probabilities_of_both_classes():
    features, labels = clusters(80, 8, 2)
    unit, both = solver.solve(features, labels, 2, is_binary=True), solver.solve(features, labels, 2)
    np.testing.assert_array_equal(unit.held_out, both.held_out)


def test_without_a_cross_validation_nothing_is_held_out():
    assert solver.solve(np.eye(2, dtype=np.float32), np.array([0, 1]), 2).held_out is None


def test_progress_is_told_to_its_end():
    told = []
    solver.solve(*clusters(60), 3, progress=lambda *news: told.append(news))
    stages, done, total = zip(*told, strict=True)
    assert set(stages) == {"head"}
    assert list(done) == sorted(done)
    assert done[-1] == total[-1]


# Around an earlier head


def earlier_head(num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of a head that was solved on many rows of the same clouds."""
    solved = solver.solve(*clusters(3000, num_classes=num_classes), num_classes)
    return solved.kernel, solved.bias


@pytest.mark.parametrize("size", [12, 100], ids=["more rows", "more features"])
def test_a_strong_penalty_leaves_the_earlier_kernel_as_it_was(monkeypatch, size):
    monkeypatch.setattr(solver, "DEFAULT_STRENGTH", 1e7)
    monkeypatch.setattr(solver, "FOLDS", 0)  # So that no other strength is tried.
    features, labels = clusters(30, size)
    kernel = np.random.default_rng(1).normal(0, 0.1, [size, 3]).astype(np.float32)
    solved = solver.solve(features, labels, 3, start=(kernel, np.zeros(3, np.float32)))
    np.testing.assert_allclose(solved.kernel, kernel, atol=1e-4)


def test_few_rows_improve_on_the_earlier_head_rather_than_replace_it():
    features, labels = clusters(4000)  # The centres are drawn first, so they are the earlier head's.
    few, unseen = slice(3000, 3030), slice(3030, None)
    anew = solver.solve(features[few], labels[few], 3)
    going_on = solver.solve(features[few], labels[few], 3, start=earlier_head())

    def loss(solved: solver.Solved) -> float:
        given = answers(solved, features[unseen])
        return float(-np.log(given[np.arange(len(given)), labels[unseen]]).mean())

    assert loss(going_on) < loss(anew) - 0.05


def test_a_start_of_zeros_is_none():
    features, labels = clusters(60)
    zeros = (np.zeros([12, 3], np.float32), np.zeros(3, np.float32))
    one, other = (solver.solve(features, labels, 3, start=start) for start in (None, zeros))
    np.testing.assert_allclose(answers(one, features), answers(other, features), atol=1e-6)


def test_a_class_without_rows_keeps_its_earlier_row():
    kernel, bias = earlier_head(num_classes=4)
    features, labels = clusters(60)
    solved = solver.solve(features, np.array([0, 1, 3])[labels], 4, start=(kernel, bias))
    np.testing.assert_array_equal(solved.kernel[:, 2], kernel[:, 2])
    assert solved.bias[2] == bias[2]
    assert not np.array_equal(solved.kernel[:, 3], kernel[:, 3])


def test_one_unit_goes_on_as_two_classes_do():
    features, labels = clusters(60, num_classes=2)
    kernel = np.random.default_rng(1).normal(0, 0.5, [12, 1]).astype(np.float32)
    bias, halves = np.array([0.7], np.float32), np.array([-0.5, 0.5], np.float32)
    one = solver.solve(features, labels, 2, is_binary=True, start=(kernel, bias))
    two = solver.solve(features, labels, 2, start=(kernel * halves, bias * halves))
    assert one.kernel.shape == (12, 1)
    np.testing.assert_allclose(answers(one, features), answers(two, features), atol=CLOSE)


def test_a_weak_penalty_forgets_the_earlier_head(monkeypatch):
    monkeypatch.setattr(solver, "DEFAULT_STRENGTH", 1e-7)
    monkeypatch.setattr(solver, "FOLDS", 0)
    features, labels = clusters(600)
    kernel = np.random.default_rng(1).normal(0, 0.5, [12, 3]).astype(np.float32)
    start = (kernel, np.array([1, -1, 0.5], np.float32))
    one, other = (solver.solve(features, labels, 3, start=given) for given in (None, start))
    np.testing.assert_allclose(answers(one, features), answers(other, features), atol=1e-2)
