"""Which labels are likely wrong, by answers of a model that was not fitted to them.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021.

Dimension letters: K classes, N examples, S ranked examples.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Examples, the most suspicious first.

    Attributes:
        indices: int64 [S]. Of the examples, those that have probabilities.
        likely: int64 [S], in [0, K). The likeliest other class of each.
        suspects: How many labels are likely wrong: those of examples that the model takes for another class as
            confidently as it takes that class's own examples for it, on average.
    """

    indices: np.ndarray
    likely: np.ndarray
    suspects: int


def rank(probabilities: np.ndarray, labels: np.ndarray) -> Ranking:
    """Ranks examples by how likely their labels are wrong: by the probability of the label, the least first.

    The source also has orders by the margin to the likeliest other class, and with the suspects before all others. On
    photos and texts with 5 % of labels exchanged this one found the most of them.

    Args:
        probabilities: float [N, K], out of sample; rows of NaN where there are none, which are left out.
        labels: int [N], in [0, K).

    >>> rank(np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.9, 0.1]]), np.array([0, 0, 1, 1, 1]))
    Ranking(indices=array([4, 3, 1, 0, 2]), likely=array([0, 0, 1, 1, 0]), suspects=1)
    """
    known = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    given, labels = probabilities[known].astype(np.float64), labels[known]
    rows = np.arange(len(known))
    of_label = given[rows, labels]
    confident = np.where(given >= _thresholds(given, labels), given, -np.inf)
    is_suspect = np.isfinite(confident).any(axis=1) & (confident.argmax(axis=1) != labels)
    given[rows, labels] = -np.inf
    order = np.lexsort((-given.max(axis=1), of_label))
    return Ranking(known[order], given.argmax(axis=1)[order], int(np.count_nonzero(is_suspect)))


def _thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64 [K]: each class's mean probability over the examples labelled so; infinite without any."""
    num_classes = probabilities.shape[1]
    totals = np.bincount(labels, probabilities[np.arange(len(labels)), labels], num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.inf)
