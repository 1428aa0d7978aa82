"""Figures from probabilities: what report.json says of a part of the data.

Dimension letters: K classes, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_finetune.evaluation import calibration, intervals, label_errors
from tf_finetune.evaluation.calibration import calibration_error
from tf_finetune.evaluation.scores import cross_entropy, score, top_k

__all__ = ["calibration", "calibration_error", "cross_entropy", "label_errors", "metrics", "score"]

TOP = 5  # Classes of top_k.


def metrics(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], baseline: int | None = None
) -> dict[str, Any]:
    """Returns the figures of one part of the data.

    Args:
        probabilities: float32 [N, K], rows that sum to 1; N at least 1.
        labels: int [N], in [0, K).
        class_names: The K class names.
        baseline: The label of the class that training has most of.

    Returns:
        accuracy, macro_f1, balanced_accuracy and calibration_error in [0, 1]; loss, the mean cross-entropy in nats;
        per_class, for each class name its precision, recall, f1 and support; confusion_matrix [K][K], row the true
        class; top_k, k and the accuracy of the k likeliest classes, None unless K > k; intervals, [low, high] of three
        figures at 95 %; baseline, the class name and the accuracy of always answering it, None where it is not given;
        reliability, the bins of the calibration error.
        macro_f1 is the mean of all K classes, 0 for those without examples here; balanced_accuracy, the mean recall,
        is of those with examples alone.
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
    matrix = sklearn_metrics.confusion_matrix(labels, answers, labels=classes)
    return {
        "accuracy": score(probabilities, labels, "accuracy"),
        "loss": cross_entropy(probabilities, labels),
        "macro_f1": float(np.mean(f1)),
        "balanced_accuracy": float(np.mean(recall[support > 0])),
        "top_k": {"k": TOP, "accuracy": top_k(probabilities, labels, TOP)} if len(classes) > TOP else None,
        "intervals": intervals.bootstrap(matrix),
        "baseline": _baseline(labels, class_names, baseline),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
        "calibration_error": calibration_error(probabilities, labels),
        "reliability": calibration.reliability(probabilities, labels),
    }


def _baseline(labels: np.ndarray, class_names: Sequence[str], label: int | None) -> dict[str, Any] | None:
    if label is None:
        return None
    return {"class": class_names[label], "accuracy": float(np.mean(labels == label))}
