"""Single figures from probabilities: the loss, and each eval_metric.

Dimension letters: K classes, N examples.
"""

from __future__ import annotations

import numpy as np

LEAST = float(np.finfo(np.float32).tiny)  # What a probability of 0 counts as.


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross-entropy in nats; a probability of 0 counts as the least positive float32.

    >>> cross_entropy(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])).__round__(6)
    0.490415
    >>> cross_entropy(np.array([[1.0, 0.0]]), np.array([0]))  # Not -0.0, which SageMaker's metrics would not find.
    0.0
    """
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(0.0 - np.log(np.maximum(of_truth, LEAST)).mean())


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


def top_k(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the share of examples whose class is among the k likeliest; of equal ones, those of lower index are.

    >>> top_k(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]), np.array([1, 2]), k=2)
    0.5
    """
    of_truth = probabilities[np.arange(len(labels)), labels][:, None]
    is_lower = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > of_truth) | (probabilities == of_truth) & is_lower
    return float(np.mean(ahead.sum(axis=1) < k))
