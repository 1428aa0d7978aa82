"""The head of a frozen backbone at its optimum: multinomial logistic regression, its L2 strength by cross-validation.

The objective is the weighted mean cross-entropy plus l2 / 2 times the squared norm of the kernel on centred and scaled
features; the bias is free. L-BFGS fits the heads of all folds at once: one wide product of matrices a step.

Dimension letters: B rows of a block, C coordinates, D features, F folds (or heads), K classes, N rows of features.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

FOLDS = 5
STRENGTHS = tuple(float(strength) for strength in np.geomspace(300, 3e-6, 20))  # From strong to weak.
DEFAULT_STRENGTH = 0.3  # Where there is too little to cross-validate.
MARGIN = 0.0  # Share of the held-out loss by which a weaker strength must be better.
PATIENCE = 3  # Strengths in a row that are not better, after which the path ends.
PATH_TOLERANCE, TOLERANCE = 1e-3, 1e-5  # Of a gradient's norm to that at zero weights, on the path and at the end.
BAND = (0.1, 10.0)  # Of a feature's deviation to the median one's: within it, features keep their scales.
LEAST_SPREAD = 1e-5  # Of a feature's deviation to its mean; float32 cannot tell less from a constant.
ABSENT = -20.0  # Bias of a class without examples: a probability of at most e^-20.
MOST_ROWS = 20_000  # That cross-validation looks at.
MOST_STEPS, MEMORY = 1000, 10  # Of L-BFGS for one strength, and those that it remembers.
MOST_PARAMETERS = 2**19  # Of heads that are fitted at once; L-BFGS holds some 25 times as many numbers.
BLOCK = 2**20  # Numbers that are computed at a time.
ONE_THREAD = 2**30  # Multiplications of one product from which several threads are worth it.

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
    """

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    path: list[dict[str, float]]
    folds: int
    iterations: int


@dataclasses.dataclass(frozen=True)
class Basis:
    """Rows of features, and the coordinates in which heads are fitted to them.

    Attributes:
        rows: float32 [N, D], the features as they are; or float64 [N, C], each row's coordinates along `axes`.
        mean: float64 [D]. Of each feature.
        unit: float64 [D]. What each feature is divided by; infinite where it is constant.
        axes: float64 [D, C], orthonormal directions that span the centred and scaled rows; None for the features' own.
    """

    rows: np.ndarray
    mean: np.ndarray
    unit: np.ndarray
    axes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads that are fitted at once.

    Attributes:
        basis: The rows and the coordinates.
        labels: int [N], in [0, K).
        shares: [F, N]. The weight of each row in each head's mean, which sums to 1; 0 where it is held out.
        num_classes: K.
    """

    basis: Basis
    labels: np.ndarray
    shares: np.ndarray
    num_classes: int

    @property
    def zero(self) -> np.ndarray:
        """Parameters to begin with: float64 [K, F, C + 1], the bias last."""
        return np.zeros([self.num_classes, len(self.shares), self.basis.rows.shape[1] + 1])


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
    """

    tried: list[dict[str, float]]
    l2: float
    start: np.ndarray | None
    basis: Basis
    gradients: list[np.ndarray]
    folds: int
    iterations: int


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    is_binary: bool = False,
    progress: Progress | None = None,
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
    """
    classes, labels = np.unique(labels, return_inverse=True)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    seen = path(features, labels, len(classes), weights, groups, progress=progress)
    with _threads(features.size * num_classes):
        basis, start = seen.basis, seen.start
        if len(basis.rows) < len(labels):
            basis, start = make_basis(features, weights), None
        heads = Heads(basis, labels, _shares(weights[None], basis), len(classes))
        found, _, steps = minimise(heads, seen.l2, heads.zero if start is None else start, TOLERANCE)
    kernel, bias = _fold_back(basis, found[:, 0], classes, num_classes, is_binary)
    if progress:
        progress("head", len(STRENGTHS) + 1, len(STRENGTHS) + 1)
    return Solved(kernel, bias, seen.l2, seen.tried, seen.folds, seen.iterations + steps)


def path(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
    stop_early: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Cross-validates strengths from strong to weak, each from the heads of the one before.

    Args:
        features, labels, num_classes, weights, groups, progress: As in `solve`.
        strengths: From strong to weak.
        stop_early: Whether to end after PATIENCE strengths that are not better.
    """
    with _threads(features.size * num_classes * FOLDS):
        return _path(features, labels, num_classes, weights, groups, strengths, stop_early, progress)


def _path(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    strengths: Sequence[float],
    stop_early: bool,
    progress: Progress | None,
) -> Path:
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    folds, count = split(labels, np.arange(len(labels)) if groups is None else groups)
    if (folds < 0).any():
        kept = np.flatnonzero(folds >= 0)
        features, labels, weights, folds = features[kept], labels[kept], weights[kept], folds[kept]
    basis = make_basis(features, weights)
    held = weights * (folds == np.arange(count)[:, None])
    heads = Heads(basis, labels, _shares(weights - held, basis), num_classes)
    tried: list[dict[str, float]] = []
    gradients: list[np.ndarray] = []
    found, start, best, iterations = heads.zero, None, -1, 0
    for number, l2 in enumerate(strengths if count else ()):
        found, norms, steps = minimise(heads, l2, found, PATH_TOLERANCE)
        tried.append({"l2": float(l2), **_judge(heads, found, held)})
        gradients.append(norms)
        iterations += steps
        if progress:
            progress("head", number + 1, len(strengths) + 1)
        if start is None or tried[-1]["loss"] < (1 - MARGIN) * tried[best]["loss"]:
            best, start = number, found.mean(axis=1, keepdims=True)
        if stop_early and number - best >= PATIENCE:
            break
    return Path(tried, tried[best]["l2"] if tried else DEFAULT_STRENGTH, start, basis, gradients, count, iterations)


def _threads(multiplications: int) -> contextlib.AbstractContextManager[object]:
    """Keeps products of matrices of up to ONE_THREAD multiplications on one thread.

    Several wait for each other by spinning: on a machine that has other work too, that takes many times as long.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas") if multiplications < ONE_THREAD else contextlib.nullcontext()


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


def make_basis(features: np.ndarray, weights: np.ndarray) -> Basis:
    """Returns the coordinates for heads on these rows: those in their span where that is much smaller.

    Full standardisation would blow up features that hardly ever differ from 0, of which ReLU makes many: measured on
    photos, it costs accuracy. Features of another order than most are brought to the edge of BAND.
    """
    count, size = features.shape
    shares = weights / weights.sum()
    mean, variance = np.zeros(size), np.zeros(size)
    for rows in _blocks(count, size):
        mean += shares[rows] @ features[rows].astype(np.float64)
    for rows in _blocks(count, size):
        variance += shares[rows] @ np.square(features[rows] - mean)
    deviation = np.sqrt(variance)
    varies = deviation > np.maximum(LEAST_SPREAD * np.abs(mean), np.finfo(np.float32).tiny)
    middle = np.median(deviation[varies]) if varies.any() else 1.0
    unit = np.full(size, np.inf)
    unit[varies] = deviation[varies] / np.clip(deviation[varies] / middle, *BAND)
    return _span(features, mean, unit) if 2 * count <= size else Basis(features, mean, unit)


def _span(features: np.ndarray, mean: np.ndarray, unit: np.ndarray) -> Basis:
    """Returns coordinates in the span of the rows, where the best head lies."""
    count, size = features.shape
    products, axes = np.zeros([count, count]), np.empty([size, count])
    for columns in _blocks(size, count):
        axes[columns] = ((features[:, columns] - mean[columns]) / unit[columns]).T
        products += axes[columns].T @ axes[columns]
    squares, turn = np.linalg.eigh(products)
    real = squares > 1e-10 * squares[-1]
    lengths, turn = np.sqrt(squares[real]), turn[:, real]
    return Basis(turn * lengths, mean, unit, axes @ (turn / lengths))


def minimise(heads: Heads, l2: float, start: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Fits heads by L-BFGS until each gradient is small, or gets no smaller.

    Args:
        heads: What is fitted.
        l2: The strength.
        start: float64 [K, F, C + 1], the bias last.
        tolerance: Of each gradient's norm to that at zero weights.

    Returns:
        float64 [K, F, C + 1], the parameters; float64 [F], the norm of each gradient over that at zero; the steps.
    """
    from scipy import optimize

    if start.size > MOST_PARAMETERS and len(heads.shares) > 1:
        each = [
            minimise(dataclasses.replace(heads, shares=heads.shares[[fold]]), l2, start[:, [fold]], tolerance)
            for fold in range(len(heads.shares))
        ]
        parameters, norms, steps = zip(*each, strict=True)
        return np.concatenate(parameters, axis=1), np.concatenate(norms), sum(steps)
    at_zero = np.maximum(_norms(_objective(heads, heads.zero, l2)[1]), np.finfo(np.float64).tiny)
    latest = reached = at_zero
    found, count = start, 0

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal latest
        loss, gradient = _objective(heads, flat.reshape(start.shape), l2)
        latest = _norms(gradient)
        return loss, gradient.ravel()

    def look(flat: np.ndarray) -> None:
        nonlocal found, reached, count
        found, reached, count = flat.reshape(start.shape).copy(), latest, count + 1
        if (reached <= tolerance * at_zero).all():
            raise StopIteration

    options = {"maxiter": MOST_STEPS, "maxcor": MEMORY, "gtol": 0.0, "ftol": 0.0}
    with contextlib.suppress(StopIteration):  # Before scipy 1.11 it passes through.
        optimize.minimize(evaluate, start.ravel(), jac=True, method="L-BFGS-B", callback=look, options=options)
    return found, reached / at_zero, count


def _objective(heads: Heads, parameters: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
    """Returns the sum of all heads' objectives, and its gradient: float64 [K, F, C + 1]."""
    basis, count = heads.basis, parameters[..., 0].size
    loss = l2 / 2 * float(np.square(parameters[..., :-1]).sum())
    slopes, pulls = np.zeros([count, basis.rows.shape[1]]), np.zeros(count)
    for rows, answers, losses in _forward(heads, parameters):
        loss += float(np.vdot(losses.astype(np.float64), heads.shares[:, rows]))
        answers[heads.labels[rows], :, np.arange(losses.shape[1])] -= 1
        errors = (answers * heads.shares[:, rows]).reshape(count, -1)
        slopes += errors @ basis.rows[rows]
        pulls += errors.sum(axis=1)
    if basis.axes is None:
        slopes = (slopes - pulls[:, None] * basis.mean) / basis.unit
    gradient = np.concatenate([slopes, pulls[:, None]], axis=1).reshape(parameters.shape)
    gradient[..., :-1] += l2 * parameters[..., :-1]
    return loss, gradient


def _forward(heads: Heads, parameters: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Gives block by block: which rows, their probabilities [K, F, B] and their losses [F, B] in nats."""
    basis, kernel, bias = heads.basis, parameters[..., :-1].reshape(-1, parameters.shape[2] - 1), parameters[..., -1]
    if basis.axes is None:
        kernel, bias = _plain(basis, kernel, bias.ravel())
    bias = bias.reshape(-1, 1).astype(basis.rows.dtype)
    for rows in _blocks(len(basis.rows), len(kernel)):
        logits = (kernel @ basis.rows[rows].T + bias).reshape(*parameters.shape[:2], -1)
        logits -= logits.max(axis=0)
        of_truth = logits[heads.labels[rows], :, np.arange(logits.shape[2])].T
        np.exp(logits, out=logits)
        total = logits.sum(axis=0)
        logits /= total
        yield rows, logits, np.log(total) - of_truth


def _judge(heads: Heads, parameters: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Returns mean loss in nats and accuracy over held-out rows; held: [F, N], their weights, 0 where fitted to."""
    loss = hits = 0.0
    for rows, answers, losses in _forward(heads, parameters):
        loss += float(np.vdot(losses.astype(np.float64), held[:, rows]))
        hits += float(np.vdot(answers.argmax(axis=0) == heads.labels[rows], held[:, rows]))
    return {"loss": loss / float(held.sum()), "accuracy": hits / float(held.sum())}


def _plain(basis: Basis, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns heads, [H, C] and [H], as float32 [H, D] and float64 [H] on the features as they are."""
    kernel = kernel if basis.axes is None else kernel @ basis.axes.T
    kernel = (kernel / basis.unit).astype(np.float32)
    return kernel, bias - kernel @ basis.mean


def _fold_back(
    basis: Basis, parameters: np.ndarray, classes: np.ndarray, num_classes: int, is_binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias as a head holds them, from the parameters [K', C + 1] of the classes that have rows."""
    every = np.zeros([num_classes, parameters.shape[1]])
    every[:, -1] = ABSENT
    every[classes] = parameters
    every = every[1:] - every[:1] if is_binary else every
    kernel, bias = _plain(basis, every[:, :-1], every[:, -1])
    return np.ascontiguousarray(kernel.T), bias.astype(np.float32)


def _shares(weights: np.ndarray, basis: Basis) -> np.ndarray:
    return (weights / weights.sum(axis=1, keepdims=True)).astype(basis.rows.dtype)


def _norms(gradient: np.ndarray) -> np.ndarray:
    """Returns float64 [F]: the norm of each head's gradient."""
    return np.sqrt(np.square(gradient).sum(axis=(0, 2)))


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Gives slices of `count` rows of `size` numbers, of about BLOCK numbers each."""
    step = max(1, BLOCK // max(1, size))
    return (slice(first, first + step) for first in range(0, count, step))
