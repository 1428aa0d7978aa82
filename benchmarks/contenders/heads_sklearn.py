"""scikit-learn's logistic regression (lbfgs) on the same features: a few of the heads, and what all would take.

Its C is 1 / (N x l2) of our strength l2. Standardising is not counted; each head starts anew, as in GridSearchCV.
"""

from __future__ import annotations

from typing import Any

import child
import heads_data

FOLDS = 5


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds that all heads would take, from those of a few strengths evenly spread on one fold."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    features, labels = heads_data.make(job)
    rows, _ = next(StratifiedKFold(FOLDS).split(features, labels))
    features, labels = StandardScaler().fit_transform(features[rows]), labels[rows]
    strengths = np.geomspace(*job["range"], job["strengths"])
    chosen = strengths[np.linspace(0, len(strengths) - 1, job["sample"]).round().astype(int)]
    heads = [LogisticRegression(C=1 / (len(rows) * l2), max_iter=5000) for l2 in chosen]
    seconds = [child.timed(lambda head=head: head.fit(features, labels))[0] for head in heads]  # type: ignore[misc]
    gradients = [_gradient(head, l2, features, labels) for head, l2 in zip(heads, chosen, strict=True)]
    count = FOLDS * len(strengths)
    return {
        "fit": float(np.mean(seconds)) * count,
        "heads": count,
        "sample_seconds": seconds,
        "largest_gradient": max(gradients),
    }


def _gradient(head: Any, l2: float, features: Any, labels: Any) -> float:
    """Returns the norm of a head's gradient, relative to that of zero weights."""
    import numpy as np

    def norm(probabilities: Any, kernel: Any) -> float:
        errors = (probabilities - np.eye(len(head.classes_))[labels]) / len(labels)
        return float(np.hypot(np.linalg.norm(errors.T @ features + l2 * kernel), np.linalg.norm(errors.sum(0))))

    even = np.full([len(labels), len(head.classes_)], 1 / len(head.classes_))
    return norm(head.predict_proba(features), head.coef_) / norm(even, np.zeros_like(head.coef_))


if __name__ == "__main__":
    child.serve(main)
