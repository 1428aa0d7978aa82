"""Whether confidence is accuracy, and the temperature that makes it so.

Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.

Dimension letters: K classes, N examples.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_finetune.evaluation.scores import LEAST, cross_entropy

BINS = 15
FOLDS = 5
FEWEST = 20  # Distinct examples that a temperature is fitted on.
MOST = 10.0  # The highest temperature; the lowest is 1 / MOST.
SPREAD = 0.5  # Of the logarithm of temperatures about 0 that is expected before any example is seen.


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature, and what it does to answers that it was not fitted on.

    Attributes:
        temperature: What logits are divided by; 1 where it is not applied.
        applied: Whether it is.
        reason: Why, or why not.
        folds: Of the cross-validation; 0 where there was too little for one.
        error: The expected calibration error in [0, 1] before; and after, out of fold, or as before if not applied.
        loss: The cross-entropy in nats, before and after likewise.
    """

    temperature: float
    applied: bool
    reason: str
    folds: int
    error: tuple[float, float]
    loss: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Returns what report.json holds."""
        return {
            "temperature": self.temperature,
            "applied": self.applied,
            "reason": self.reason,
            "folds": self.folds,
            "calibration_error": dict(zip(("before", "after"), self.error, strict=True)),
            "loss": dict(zip(("before", "after"), self.loss, strict=True)),
        }


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Returns equal-width bins of confidence that hold examples: low, high, count, mean confidence and accuracy.

    >>> reliability(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 1, 1]))[0]["accuracy"]
    0.5
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "low": int(number) / BINS,
            "high": (int(number) + 1) / BINS,
            "count": int(np.count_nonzero(bins == number)),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(hits[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the expected calibration error in [0, 1]: how far confidence is from accuracy, over equal-width bins.

    It is equation 3 of the source, with 15 bins.

    >>> calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0
    """
    bins = reliability(probabilities, labels)
    return float(sum(abs(one["accuracy"] - one["confidence"]) * one["count"] for one in bins) / len(labels))


def apply(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns float32 [N, K]: the probabilities of logits divided by a temperature.

    The likeliest class of a row stays that, also where rounding would make it the equal of another.

    Args:
        probabilities: float32 [N, K], rows that sum to 1; a 0 counts as the least positive float32.
        temperature: Positive. Above 1 it makes answers less certain.

    >>> apply(np.array([[0.8, 0.2]], np.float32), 2.0).round(4).tolist()[0][0].__round__(4)
    0.6667
    """
    powers = np.exp(_logits(probabilities) / temperature)
    made = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    first, now = probabilities.argmax(axis=1), made.argmax(axis=1)
    moved = np.flatnonzero(first != now)
    made[moved, first[moved]] = np.nextafter(made[moved, now[moved]], np.float32(2))
    return made


def fit(probabilities: np.ndarray, labels: np.ndarray, keys: np.ndarray) -> Calibration:
    """Returns the temperature for answers like these, and how well the method does on answers that it has not seen.

    The temperature is of all examples. What it does is measured out of fold: on each fold with the temperature of the
    others. The order of examples plays no part.

    Args:
        probabilities: float32 [N, K], rows that sum to 1, of examples that the model was not fitted to.
        labels: int [N], in [0, K).
        keys: int64 [N]. What identifies each example; those of one key share a fold.
    """
    order = np.lexsort((labels, keys))
    probabilities, labels, keys = probabilities[order], labels[order], keys[order]
    before = _figures(probabilities, labels) if len(labels) else (0.0, 0.0)
    distinct, classes = len(np.unique(keys)), len(np.unique(labels))
    if distinct < FEWEST or classes < 2:
        lack = f"{distinct} distinct examples" if distinct < FEWEST else f"examples of {classes} class"
        return _left(f"{FEWEST} distinct validation examples of 2 classes are needed; there are {lack}", 0, before)
    folds = split(labels, keys)
    calibrated = np.empty_like(probabilities, np.float32)
    for fold in range(FOLDS):
        temperature = _temperature(probabilities[folds != fold], labels[folds != fold])
        calibrated[folds == fold] = apply(probabilities[folds == fold], temperature)
    after = _figures(calibrated, labels)
    told = f"the loss on examples that the temperature was not fitted on goes from {before[1]:.4f} to {after[1]:.4f}"
    if after[1] >= before[1]:
        return _left(told, FOLDS, before)
    error, loss = zip(before, after, strict=True)
    return Calibration(_temperature(probabilities, labels), True, told, FOLDS, error, loss)


def split(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns int [N], in [0, FOLDS): the fold of each example; each class is spread evenly over them.

    Examples of one key share a fold, and the order of examples plays no part.

    >>> split(np.array([0, 0, 0, 1, 1, 1]), np.array([12, 10, 10, 13, 14, 15]))
    array([1, 0, 0, 2, 3, 4])
    """
    names, group = np.unique(keys, return_inverse=True)
    label = np.full(len(names), labels.max())
    np.minimum.at(label, group, labels)
    folds = np.empty(len(names), int)
    folds[np.argsort(label, kind="stable")] = np.arange(len(names)) % FOLDS
    return folds[group]


def _left(reason: str, folds: int, figures: tuple[float, float]) -> Calibration:
    error, loss = figures
    return Calibration(1.0, False, reason, folds, (error, error), (loss, loss))


def _figures(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    return calibration_error(probabilities, labels), cross_entropy(probabilities, labels)


def _temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature of the least cross-entropy, kept near 1 where few examples speak.

    The expectation weighs as much as a few examples do. Without it, 30 that happen to be all right ask for the lowest
    temperature there is: measured on texts, that tripled the loss of others.
    """
    from scipy import optimize

    logits, count = _logits(probabilities), len(labels)
    of_truth = logits[np.arange(count), labels].mean()

    def loss(exponent: float) -> float:
        share = np.exp(-exponent)
        entropy = np.log(np.exp(logits * share).sum(axis=1)).mean() - of_truth * share
        return float(entropy + (exponent / SPREAD) ** 2 / (2 * count))

    edge = np.log(MOST)
    found = optimize.minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Returns float64 [N, K]: logits, of which the highest of each row is 0."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST))
    return logits - logits.max(axis=1, keepdims=True)
