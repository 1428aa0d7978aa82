"""The head of a frozen backbone at its optimum: multinomial logistic regression, its L2 strength by cross-validation.

The heads of all folds are fitted at once: one wide product of matrices a step of L-BFGS.

Dimension letters: C coordinates, D features, F folds, K classes, N rows of features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tf_finetune.training.logistic import Basis, Heads, forward, make_basis, minimise, plain, shares_of, threads

FOLDS = 5
STRENGTHS = tuple(float(strength) for strength in np.geomspace(300, 3e-6, 20))  # From strong to weak.
DEFAULT_STRENGTH = 0.3  # Where there is too little to cross-validate.
PATIENCE = 3  # Strengths in a row that are not better, after which the path ends.
PATH_TOLERANCE, TOLERANCE = 1e-3, 1e-6  # Of a gradient's norm to that at zero weights, on the path and at the end.
ABSENT = -20.0  # Bias of a class without examples: a probability of at most e^-20.
MOST_ROWS = 20_000  # That cross-validation looks at.

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Solved:
    """A head at its optimum, for features as they are.

    Attributes:
        kernel: float32 [D, K], or [D, 1] of the class of index 1 where the head is binary.
        bias: float32 [K], or [1].
        l2: The chosen strength.
        path: For each strength that was tried, from strong to weak: l2; loss, the mean held-out cross-entropy in nats;
            accuracy, held out, in [0, 1].
        folds: Of the cross-validation; 0 where there was too little for one.
        iterations: Of L-BFGS in all.
        held_out: float32 [N, K]. What the head that was not fitted to a row answers, at the chosen strength; NaN for
            rows that no head was kept from. None where there was too little for a cross-validation.
    """

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    path: list[dict[str, float]]
    folds: int
    iterations: int
    held_out: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Path:
    """Strengths as cross-validation saw them; empty where there was too little for one.

    Attributes:
        tried: As `Solved.path`.
        l2: The best of them.
        start: float64 [K, 1, C + 1]. The mean of its heads; None where there is none.
        basis: What they were fitted to.
        gradients: For each strength float64 [F], the norm of each head's gradient over that at zero weights.
        folds: F.
        iterations: Of L-BFGS.
        held_out: As `Solved.held_out`.
    """

    tried: list[dict[str, float]]
    l2: float
    start: np.ndarray | None
    basis: Basis
    gradients: list[np.ndarray]
    folds: int
    iterations: int
    held_out: np.ndarray | None


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    is_binary: bool = False,
    progress: Progress | None = None,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> Solved:
    """Returns the head that fits all rows best, at the strength that fits held-out rows best.

    Args:
        features: float32 [N, D], finite.
        labels: int [N], in [0, K).
        num_classes: K. Classes without rows get a probability of about 0.
        weights: float [N], positive: how much each row counts; by default evenly.
        groups: int64 [N]. Rows of one group, such as views of one example, are held out together; by default each row
            is one.
        is_binary: Whether one unit stands for the two classes.
        progress: Told the stage, the strengths done and all.
        start: Kernel [D, K] and bias [K] of an earlier head, float32, that the penalty draws towards instead of zero;
            as wide as those that are returned. Its classes without rows stay as they are.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    given = None if start is None else _logits(features, *start)[classes]
    seen = path(features, labels, len(classes), weights, groups, progress=progress, given=given)
    with threads(features.size * num_classes):
        basis, first = seen.basis, seen.start
        if len(basis.rows) < len(labels):
            basis, first = make_basis(features, weights), None
        heads = Heads(basis, labels, shares_of(weights[None], basis), len(classes), given)
        found, _, steps = minimise(heads, seen.l2, heads.zero if first is None else first, TOLERANCE)
    absent = ABSENT if start is None else 0.0
    kernel, bias = _fold_back(basis, found[:, 0], classes, num_classes, is_binary, absent)
    if start is not None:
        kernel, bias = start[0] + kernel, start[1] + bias
    if progress:
        progress("head", len(STRENGTHS) + 1, len(STRENGTHS) + 1)
    held_out = None if seen.held_out is None else _of_all_classes(seen.held_out, classes, num_classes)
    return Solved(kernel, bias, seen.l2, seen.tried, seen.folds, seen.iterations + steps, held_out)


def path(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
    stop_early: bool = True,
    progress: Progress | None = None,
    given: np.ndarray | None = None,
) -> Path:
    """Cross-validates strengths from strong to weak, each from the heads of the one before.

    Args:
        features, labels, num_classes, weights, groups, progress: As in `solve`.
        strengths: From strong to weak.
        stop_early: Whether to end after PATIENCE strengths that are not better.
        given: As in `Heads`.
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    folds, count = split(labels, np.arange(len(labels)) if groups is None else groups)
    kept, size = np.flatnonzero(folds >= 0), len(folds)
    if len(kept) < size:
        features, labels, weights, folds = features[kept], labels[kept], weights[kept], folds[kept]
        given = None if given is None else given[:, kept]
    with threads(features.size * num_classes * FOLDS):
        basis = make_basis(features, weights)
        held = weights * (folds == np.arange(count)[:, None])
        heads = Heads(basis, labels, shares_of(weights - held, basis), num_classes, given)
        seen = _walked(heads, held, strengths if count else (), stop_early, progress)
    if seen.held_out is None or len(kept) == size:
        return seen
    held_out = np.full([size, num_classes], np.nan, np.float32)
    held_out[kept] = seen.held_out
    return dataclasses.replace(seen, held_out=held_out)


def _walked(
    heads: Heads, held: np.ndarray, strengths: Sequence[float], stop_early: bool, progress: Progress | None
) -> Path:
    """Returns the path of some strengths; held: [F, N], the weights of held-out rows, 0 where they are fitted to."""
    tried: list[dict[str, float]] = []
    gradients: list[np.ndarray] = []
    found, start, held_out, best, iterations = heads.zero, None, None, -1, 0
    for number, l2 in enumerate(strengths):
        found, norms, steps = minimise(heads, l2, found, PATH_TOLERANCE)
        figures, answers = _judge(heads, found, held)
        tried.append({"l2": float(l2), **figures})
        gradients.append(norms)
        iterations += steps
        if progress:
            progress("head", number + 1, len(strengths) + 1)
        if start is None or tried[-1]["loss"] < tried[best]["loss"]:
            best, start, held_out = number, found.mean(axis=1, keepdims=True), answers
        if stop_early and number - best >= PATIENCE:
            break
    l2 = tried[best]["l2"] if tried else DEFAULT_STRENGTH
    return Path(tried, l2, start, heads.basis, gradients, len(heads.shares), iterations, held_out)


def _logits(features: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Returns float32 [K, N]: what a head gives for rows; [2, N] where one unit stands for two classes."""
    logits = (features @ kernel + bias).T
    return np.concatenate([-logits / 2, logits / 2]) if len(bias) == 1 else np.ascontiguousarray(logits)


def split(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the fold of each row and the number of folds F; each class is spread evenly over them.

    Rows of one group share a fold, and the order of rows plays no part. Without two classes of two groups or more
    there are no folds.

    Returns:
        int [N]: in [0, F); F where a row is always fitted to, since its class has no other group; -1 where
        cross-validation does without it, since there are more than MOST_ROWS.

    >>> split(np.array([0, 0, 0, 1, 1, 2]), np.array([10, 10, 11, 12, 13, 14]))
    (array([0, 0, 1, 2, 3, 4]), 4)
    """
    names, group = np.unique(groups, return_inverse=True)
    label = np.full(len(names), np.max(labels))
    np.minimum.at(label, group, labels)
    sizes = np.bincount(label)
    order = np.argsort(label, kind="stable")
    order = order[sizes[label[order]] > 1]
    count = min(FOLDS, len(order)) if np.count_nonzero(sizes > 1) > 1 else 0
    folds = np.full(len(names), count)
    folds[order] = np.arange(len(order)) % max(1, count)
    rank = np.arange(len(order)) - np.searchsorted(label[order], label[order])
    folds[order[rank >= np.ceil(sizes[label[order]] * min(1.0, MOST_ROWS / len(labels)))]] = -1
    return folds[group], count


def _judge(heads: Heads, parameters: np.ndarray, held: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Returns mean loss in nats and accuracy over held-out rows, and their probabilities.

    Args:
        heads, parameters: What is judged.
        held: [F, N]. The weights of held-out rows, 0 where they are fitted to.

    Returns:
        loss and accuracy; float32 [N, K], NaN for rows that all heads are fitted to.
    """
    loss = hits = 0.0
    fold = held.argmax(axis=0)
    held_out = np.empty([len(heads.labels), heads.num_classes], np.float32)
    for rows, answers, losses in forward(heads, parameters):
        loss += float(np.vdot(losses.astype(np.float64), held[:, rows]))
        hits += float(np.vdot(answers.argmax(axis=0) == heads.labels[rows], held[:, rows]))
        held_out[rows] = answers[:, fold[rows], np.arange(losses.shape[1])].T
    held_out[~held.any(axis=0)] = np.nan
    return {"loss": loss / float(held.sum()), "accuracy": hits / float(held.sum())}, held_out


def _of_all_classes(held_out: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns probabilities float32 [N, K] from those of the classes that have rows, [N, K']; the others have 0."""
    every = np.zeros([len(held_out), num_classes], np.float32)
    every[:, classes] = held_out
    every[np.isnan(held_out[:, 0])] = np.nan
    return every


def _fold_back(
    basis: Basis, parameters: np.ndarray, classes: np.ndarray, num_classes: int, is_binary: bool, absent: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias as a head holds them, from the parameters [K', C + 1] of the classes that have rows.

    The others have the bias `absent`.
    """
    every = np.zeros([num_classes, parameters.shape[1]])
    every[:, -1] = absent
    every[classes] = parameters
    every = every[1:] - every[:1] if is_binary else every
    kernel, bias = plain(basis, every[:, :-1], every[:, -1])
    return np.ascontiguousarray(kernel.T), bias.astype(np.float32)
