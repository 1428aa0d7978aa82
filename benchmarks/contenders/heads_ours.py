"""Our solver: every strength of the path on every fold, none left out for getting worse."""

from __future__ import annotations

from typing import Any

import child
import heads_data


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of all heads, how many they were, and the largest gradient relative to that at zero."""
    import numpy as np
    import scipy.optimize  # noqa: F401  (before the clock starts)

    from tf_finetune.training import solver

    features, labels = heads_data.make(job)
    fit, path = child.timed(lambda: solver.path(features, labels, job["classes"], stop_early=False))
    gradients = np.concatenate(path.gradients)
    best = min(path.tried, key=lambda one: one["loss"])
    return {
        "fit": fit,
        "heads": len(gradients),
        "largest_gradient": float(gradients.max()),
        "accuracy": best["accuracy"],
        "strengths": [one["l2"] for one in path.tried],
    }


if __name__ == "__main__":
    child.serve(main)
