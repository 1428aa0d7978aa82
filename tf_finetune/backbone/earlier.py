"""What an earlier result's SavedModel is made of: the backbone, its preprocessor and the head, each for itself.

Our SavedModels hold the very objects that they were trained with, see `export.write_saved_model`, so nothing else is
needed to go on from one.

Dimension letters: B batch, D features, K classes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

HEAD = "head.npz"  # Beside a SavedModel that `jumpstart` made.


@dataclasses.dataclass(frozen=True)
class Head:
    """A dense layer.

    Attributes:
        kernel: float32 [D, K], or [D, 1] of the class of index 1.
        bias: float32 [K], or [1].
    """

    kernel: np.ndarray
    bias: np.ndarray

    @property
    def is_binary(self) -> bool:
        """Whether one unit stands for two classes."""
        return len(self.bias) == 1

    def of_classes(self) -> Head:
        """Returns the same head with one unit a class: where one unit stood for two, each takes half of it."""
        if not self.is_binary:
            return self
        halves = np.array([-0.5, 0.5], np.float32)
        return Head(self.kernel * halves, self.bias * halves)

    def of_one_unit(self) -> Head:
        """Returns the same head of two classes as one unit, of the class of index 1."""
        if self.is_binary:
            return self
        return Head(self.kernel[:, 1:] - self.kernel[:, :1], self.bias[1:] - self.bias[:1])

    def placed(self, places: list[int], num_classes: int) -> Head:
        """Returns a head of more classes: each unit at its new place, and zeros for the others.

        >>> Head(np.ones([1, 2]), np.array([3.0, 4.0])).placed([2, 0], 3).bias.tolist()
        [4.0, 0.0, 3.0]
        """
        every = self.of_classes()
        kernel = np.zeros([len(every.kernel), num_classes], np.float32)
        bias = np.zeros(num_classes, np.float32)
        kernel[:, places], bias[places] = every.kernel, every.bias
        return Head(kernel, bias)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A loaded SavedModel.

    Attributes:
        backbone: What maps examples to features.
        preprocessor: What makes its inputs from texts, where an earlier result holds it.
        head: Of an earlier result; None for a backbone that comes alone.
        root: What was loaded; it owns what the others use.
    """

    backbone: Any
    preprocessor: Any = None
    head: Head | None = None
    root: Any = None


def opened(path: Path, loaded: Any) -> Opened:
    """Returns the parts of a loaded SavedModel; one that is no earlier result is the backbone itself.

    Args:
        path: Its folder.
        loaded: What TensorFlow loaded from there.
    """
    if (path / HEAD).is_file():
        with np.load(path / HEAD, allow_pickle=False) as held:
            return Opened(loaded, head=Head(held["kernel"], held["bias"]), root=loaded)
    bodies, weights = getattr(loaded, "backbone", None), getattr(loaded, "weights", None)
    if not (isinstance(bodies, list) and isinstance(weights, list) and bodies and len(weights) > 1):
        return Opened(loaded, root=loaded)
    kernel, bias = (weight.numpy() for weight in weights[-2:])
    return Opened(bodies[0], bodies[1] if len(bodies) > 1 else None, Head(kernel, bias), loaded)
