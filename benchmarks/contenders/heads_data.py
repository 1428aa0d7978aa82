"""Features to fit heads to, made from a seed.

They are spread over the axes and about as separable as EfficientNet-Lite0's features of flowers, of which a head gets
some nine in ten right.
"""

from __future__ import annotations

from typing import Any


def make(job: dict[str, Any]) -> tuple[Any, Any]:
    """Returns float32 [N, D] features, none negative, and int [N] labels in [0, K)."""
    import numpy as np

    random = np.random.default_rng(job["seed"])
    count, size, classes = job["examples"], job["features"], job["classes"]
    labels = np.arange(count) % classes
    axes = random.normal(size=[size, size]) * np.arange(1, size + 1)[:, None] ** -0.7
    points = random.normal(size=[count, size])
    points[:, classes : 2 * classes] += 2.5 * np.eye(classes)[labels]
    return np.maximum(points @ axes, 0).astype(np.float32), labels
