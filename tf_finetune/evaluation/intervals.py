"""How far figures may be off by the luck of the draw: bootstrap intervals.

Dimension letters: K classes, M cells of a confusion matrix that hold examples, N examples, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000
COVERAGE = 95.0  # Percent.
SEED = 20_170_806  # Any, but always the same: the same data gives the same intervals.
BLOCK = 2**22  # Numbers that are drawn at a time.


def bootstrap(matrix: np.ndarray) -> dict[str, list[float]]:
    """Returns [low, high] of accuracy, macro_f1 and balanced_accuracy: bootstrap, percentile method, 95 %.

    Drawing N examples again, with replacement, changes these figures by the cells of the confusion matrix that the
    drawn ones are in, and nothing else: so numbers are drawn for the cells. Where all examples are right the bootstrap
    knows no other draw, and each interval is [1, 1] however few they are.

    Args:
        matrix: int [K, K], row the true class; at least one example.

    >>> bootstrap(np.array([[40, 10], [0, 50]]))["accuracy"]
    [0.83975, 0.96]
    """
    drawn: dict[str, list[np.ndarray]] = {"accuracy": [], "macro_f1": [], "balanced_accuracy": []}
    for hits, support, answered in _resamples(matrix):
        drawn["accuracy"].append(hits.sum(axis=1) / matrix.sum())
        drawn["macro_f1"].append(_macro_f1(hits, support, answered, matrix))
        drawn["balanced_accuracy"].append(_mean(hits, support))
    tail = (100 - COVERAGE) / 2
    return {
        name: [float(edge) for edge in np.percentile(np.concatenate(values), [tail, 100 - tail])]
        for name, values in drawn.items()
    }


def _resamples(matrix: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Gives int64 [R, K] three times, a block of resamples at a time: hits, examples and answers of each class."""
    generator = np.random.default_rng(SEED)
    rows, columns = np.nonzero(matrix)
    count, shares = int(matrix.sum()), matrix[rows, columns] / matrix.sum()
    step = max(1, BLOCK // len(rows))
    for first in range(0, RESAMPLES, step):
        cells = generator.multinomial(count, shares, min(step, RESAMPLES - first))
        is_hit = rows == columns
        hits = np.zeros([len(cells), len(matrix)], np.int64)
        hits[:, rows[is_hit]] = cells[:, is_hit]
        yield hits, _sums(cells, rows, len(matrix)), _sums(cells, columns, len(matrix))


def _sums(cells: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int64 [R, K], the sums of the cells [R, M] of each class; classes: int [M]."""
    order = np.argsort(classes, kind="stable")
    present, first = np.unique(classes[order], return_index=True)
    sums = np.zeros([len(cells), num_classes], np.int64)
    sums[:, present] = np.add.reduceat(cells[:, order], first, axis=1)
    return sums


def _macro_f1(hits: np.ndarray, support: np.ndarray, answered: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Returns float64 [R]: the mean F1 of all K classes, 0 for one that the data has neither examples nor answers of.

    One that only the resample lacks is left out of its mean: with 0 for it, intervals of rare classes lie too low.
    """
    known = np.count_nonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    return _mean(2 * hits, support + answered) * known / len(matrix)


def _mean(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Returns float64 [R]: the mean of parts / wholes, [R, K] each, over the classes whose whole is not 0."""
    return (parts / np.maximum(wholes, 1)).sum(axis=1) / np.count_nonzero(wholes, axis=1)
