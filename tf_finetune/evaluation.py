"""Figures from probabilities: what report.json says of a part of the data.

Dimension letters: K classes, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CALIBRATION_BINS = 15


def metrics(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the figures of one part of the data.

    Args:
        probabilities: float32 [N, K], rows that sum to 1; N at least 1.
        labels: int [N], in [0, K).
        class_names: The K class names.

    Returns:
        accuracy, macro_f1 and calibration_error in [0, 1]; loss, the mean cross-entropy in nats; per_class, for each
        class name its precision, recall, f1 and support; confusion_matrix [K][K], row the true class.
    """
    from sklearn import metrics as sklearn_metrics

    classes = np.arange(len(class_names))
    answers = probabilities.argmax(axis=1)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, answers, labels=classes, zero_division=0
    )
    per_class = {
        name: {
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "support": int(support[k]),
        }
        for k, name in enumerate(class_names)
    }
    return {
        "accuracy": score(probabilities, labels, "accuracy"),
        "loss": cross_entropy(probabilities, labels),
        "macro_f1": float(np.mean(f1)),
        "per_class": per_class,
        "confusion_matrix": sklearn_metrics.confusion_matrix(labels, answers, labels=classes).tolist(),
        "calibration_error": calibration_error(probabilities, labels),
    }


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross-entropy in nats; a probability of 0 counts as the least positive float32.

    >>> cross_entropy(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])).__round__(6)
    0.490415
    """
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())


def score(probabilities: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """Returns one eval_metric in [0, 1]; all but accuracy are of class 1 against class 0.

    Args:
        probabilities: float32 [N, K]; K = 2 for all but accuracy.
        labels: int [N], in [0, K).
        metric: accuracy, precision, recall, auc (area under the ROC curve) or prc (average precision).
    """
    answers = probabilities.argmax(axis=1)
    if metric == "accuracy":
        return float(np.mean(answers == labels))
    from sklearn import metrics as sklearn_metrics

    if metric in ("precision", "recall"):
        function = getattr(sklearn_metrics, f"{metric}_score")
        return float(function(labels, answers, pos_label=1, zero_division=0))
    if len(np.unique(labels)) < 2:
        return 0.0
    function = {"auc": sklearn_metrics.roc_auc_score, "prc": sklearn_metrics.average_precision_score}[metric]
    return float(function(labels, probabilities[:, 1]))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the expected calibration error in [0, 1]: how far confidence is from accuracy, over equal-width bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3, with 15 bins.

    >>> calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [
        abs(hits[bins == number].mean() - confidence[bins == number].mean()) * np.mean(bins == number)
        for number in np.unique(bins)
    ]
    return float(sum(gaps))
