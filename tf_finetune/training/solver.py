"""The head of a frozen backbone at its optimum: multinomial logistic regression, its L2 strength by cross-validation.

The objective is the weighted mean cross-entropy plus l2 / 2 times the squared norm of the kernel, on standardised
features; the bias is free. L-BFGS works in the principal axes of the features, scaled so that all have about the same
curvature, and on the heads of all folds at once: one wide product of matrices a step.

Dimension letters: A axes, D features, F folds (or heads), K classes, N rows of features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

log = logging.getLogger(__name__)

FOLDS = 5
STRENGTHS = tuple(float(strength) for strength in np.geomspace(30, 3e-6, 20))  # From strong to weak.
DEFAULT_STRENGTH = 0.3  # Where there is too little to cross-validate.
PATIENCE = 3  # Strengths in a row without a better held-out loss, after which the path ends.
PATH_TOLERANCE = 1e-3  # Of a gradient's norm to that at zero weights.
TOLERANCE = 1e-5
MOST_STEPS = 1000  # Of L-BFGS for one strength.
MEMORY = 10  # Steps that L-BFGS remembers.
MOST_ROWS = 20_000  # That cross-validation looks at.
MOST_AXES = 2048  # Of which principal ones are sought: their search takes the cube.
MOST_PARAMETERS = 2**19  # Of the heads that are fitted at once; L-BFGS holds some 25 times as many numbers.
ONE_THREAD = 2**30  # Multiplications in a product of matrices from which several threads are worth it.
BLOCK = 2**22  # Numbers that are computed at a time.
MOST_SPREAD = 10.0  # Of a standardised feature, and 1 / MOST_SPREAD the least.
LEAST_SPREAD = 1e-5  # Of a feature against its mean; float32 cannot tell less from a constant.
ABSENT = -20.0  # Bias of a class without examples: a probability of at most e^-20.

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
class Tried:
    """One strength of the path.

    Attributes:
        l2: The strength.
        loss: The mean held-out cross-entropy in nats.
        accuracy: Held out, in [0, 1].
        gradients: float64 [F]. The norm of each head's gradient over its norm at zero weights.
        iterations: Of L-BFGS.
    """

    l2: float
    loss: float
    accuracy: float
    gradients: np.ndarray
    iterations: int


@dataclasses.dataclass(frozen=True)
class Basis:
    """Rows of features and the coordinates in which heads are fitted to them.

    Attributes:
        rows: float32 [N, D], the features as they are; or float64 [N, A], the coordinates of each, where there are
            fewer rows than features.
        mean: float64 [D]. Of each feature.
        deviation: float64 [D]. What each feature is divided by, infinite where it is constant.
        axes: [D, A]. Orthonormal directions in the standardised features; None for those of the features.
        variances: float64 [A]. Of the standardised features along each axis.
        is_span: Whether rows are coordinates.
    """

    rows: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    axes: np.ndarray | None
    variances: np.ndarray
    is_span: bool


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads that are fitted at once.

    Attributes:
        basis: The rows, and the coordinates of the heads.
        labels: int [N], in [0, K).
        shares: [F, N]. The weight of each row in each head's mean, which sums to 1; 0 where it is held out.
        num_classes: K.
    """

    basis: Basis
    labels: np.ndarray
    shares: np.ndarray
    num_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """K, F, A + 1: the shape of parameters, whose last along A is the bias."""
        return self.num_classes, len(self.shares), len(self.basis.variances) + 1


@dataclasses.dataclass(frozen=True)
class Path:
    """Strengths as cross-validation saw them.

    Attributes:
        tried: From strong to weak; nothing where there was too little to cross-validate.
        folds: F; 0 then.
        basis: Of the rows that it looked at.
        start: float64 [K, 1, A + 1]. The mean of the heads of the best strength; None where there is none.
        is_whole: Whether it looked at all rows.
    """

    tried: list[Tried]
    folds: int
    basis: Basis
    start: np.ndarray | None
    is_whole: bool


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    is_binary: bool = False,
    progress: Progress | None = None,
) -> Solved:
    """Returns the head that fits all rows best, at the strength whose heads fitted the rows held out best.

    Args:
        features: float32 [N, D], finite.
        labels: int [N], in [0, K).
        num_classes: K. Classes without rows get a probability of about 0.
        weights: float [N], positive: how much each row counts. Even by default.
        groups: int64 [N]. Rows of one group, such as views of one example, are held out together; by default each row
            is one.
        is_binary: Whether one unit stands for the two classes.
        progress: Told the stage, the strengths done and all.
    """
    with _threads(FOLDS * num_classes * features.size):
        return _solve(features, labels, num_classes, weights, groups, is_binary, progress)


def _solve(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    is_binary: bool,
    progress: Progress | None,
) -> Solved:
    classes, labels = np.unique(labels, return_inverse=True)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    seen = path(features, labels, len(classes), weights, groups, progress=progress)
    best = min(seen.tried, key=lambda one: one.loss).l2 if seen.tried else DEFAULT_STRENGTH
    basis, start = (seen.basis, seen.start) if seen.is_whole else (make_basis(features, weights), None)
    heads = Heads(basis, labels, _shares(weights[None], basis), len(classes))
    found, _, iterations = minimise(heads, best, start, TOLERANCE)
    if progress:
        progress("head", len(STRENGTHS) + 1, len(STRENGTHS) + 1)
    kernel, bias = _fold_back(basis, found[:, 0], classes, num_classes, is_binary)
    curve = [{"l2": one.l2, "loss": one.loss, "accuracy": one.accuracy} for one in seen.tried]
    return Solved(kernel, bias, best, curve, seen.folds, iterations + sum(one.iterations for one in seen.tried))


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
    """Cross-validates strengths from strong to weak, each starting from the heads of the one before.

    Args:
        features: float32 [N, D], finite.
        labels: int [N], in [0, K).
        num_classes: K.
        weights: float [N], positive, as in `solve`.
        groups: int64 [N], as in `solve`.
        strengths: From strong to weak.
        stop_early: Whether to end after PATIENCE strengths without a better loss.
        progress: Told the stage, the strengths done and all, and one more for what follows.
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    folds, count = split(labels, np.arange(len(labels)) if groups is None else groups)
    is_whole = bool((folds >= 0).all())
    if not is_whole:
        looked = np.flatnonzero(folds >= 0)
        features, labels, weights, folds = features[looked], labels[looked], weights[looked], folds[looked]
    basis = make_basis(features, weights)
    tried: list[Tried] = []
    best, start = np.inf, None
    held = np.stack([folds == fold for fold in range(count)]) if count else np.zeros([0, len(labels)], bool)
    parts = _parts(Heads(basis, labels, _shares(np.where(held, 0, weights), basis), num_classes))
    found: list[np.ndarray | None] = [None for _ in parts]
    for number, l2 in enumerate(strengths if count else (), start=1):
        results = [minimise(heads, l2, before, PATH_TOLERANCE) for heads, before in zip(parts, found, strict=True)]
        found = [parameters for parameters, _, _ in results]
        gradients = np.concatenate([norms for _, norms, _ in results])
        loss, accuracy = _held_out(parts, found, held * weights)
        tried.append(Tried(float(l2), loss, accuracy, gradients, sum(steps for _, _, steps in results)))
        if progress:
            progress("head", number, len(strengths) + 1)
        if loss < best:
            best, start = loss, np.concatenate(found, axis=1).mean(axis=1, keepdims=True)
        if stop_early and all(one.loss > best for one in tried[-PATIENCE:]):
            break
    return Path(tried, count, basis, start, is_whole)


def split(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the fold of each row and the number of folds F, in which each class is spread evenly.

    Rows of one group share a fold. The order of the rows plays no part. A class of one group is in no fold: it is
    always fitted to. With fewer than two other classes there are no folds.

    Returns:
        int [N]: in [0, F), F where a row is never held out, or -1 where cross-validation does without it, because there
        are more than MOST_ROWS.

    >>> split(np.array([0, 0, 0, 1, 1, 2]), np.array([10, 10, 11, 12, 13, 14]))
    (array([0, 0, 1, 2, 3, 4]), 4)
    """
    names, group = np.unique(groups, return_inverse=True)
    of_group = np.full(len(names), labels.max(initial=0))
    np.minimum.at(of_group, group, labels)
    sizes = np.bincount(of_group)
    order = np.argsort(of_group, kind="stable")
    order = order[sizes[of_group[order]] > 1]
    count = min(FOLDS, len(order)) if np.count_nonzero(sizes > 1) > 1 else 0
    folds = np.full(len(names), count)
    folds[order] = np.arange(len(order)) % max(1, count)
    rank = np.arange(len(order)) - np.searchsorted(of_group[order], of_group[order])
    share = min(1.0, MOST_ROWS / len(labels))
    folds[order[rank >= np.ceil(share * sizes[of_group[order]])]] = -1
    return folds[group], count


def make_basis(features: np.ndarray, weights: np.ndarray) -> Basis:
    """Returns the coordinates in which heads on these rows are fitted.

    Args:
        features: float32 [N, D].
        weights: float64 [N].
    """
    count, size = features.shape
    shares = weights / weights.sum()
    mean, variance = np.zeros(size), np.zeros(size)
    for rows in _blocks(count, size):
        mean += shares[rows] @ features[rows].astype(np.float64)
    for rows in _blocks(count, size):
        variance += shares[rows] @ np.square(features[rows] - mean)
    deviation = _divisors(np.sqrt(variance), mean)
    if min(count, size) > MOST_AXES:
        return Basis(features, mean, deviation, None, np.ones(size), False)
    if count < size:
        return _span(features, mean, deviation)
    covariance = np.zeros([size, size], np.float32)
    for rows in _blocks(count, size):
        part = (features[rows] - mean.astype(np.float32)) / deviation.astype(np.float32)
        part *= np.sqrt(shares[rows, None]).astype(np.float32)
        covariance += part.T @ part
    variances, axes = np.linalg.eigh(covariance)
    return Basis(features, mean, deviation, axes, np.maximum(variances, 0).astype(np.float64), False)


def _divisors(deviation: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns what each feature is divided by: float64 [D], infinite for a feature that is constant.

    One divisor for all, the median deviation, keeps what features of one network say by their spread: over 20 splits
    of 400 photos the head is right by 1 to 2 % more often than with each feature's own deviation. A feature that is
    more than MOST_SPREAD times wider or narrower than the median is brought back to that.
    """
    varies = deviation > np.maximum(LEAST_SPREAD * np.abs(mean), np.finfo(np.float32).tiny)
    if not varies.any():
        return np.full(len(deviation), np.inf)
    median = np.median(deviation[varies])
    spread = np.clip(deviation / median, 1 / MOST_SPREAD, MOST_SPREAD)
    return np.where(varies, deviation / spread, np.inf)


def _span(features: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> Basis:
    """Returns the coordinates of fewer rows than features in their span, where the best head must lie."""
    count, size = features.shape

    def standardised(columns: slice) -> np.ndarray:
        return (features[:, columns] - mean[columns]) / deviation[columns]

    products = np.zeros([count, count])
    for columns in _blocks(size, count):
        part = standardised(columns)
        products += part @ part.T
    squares, turn = np.linalg.eigh(products)
    is_real = squares > 1e-10 * squares[-1]
    squares, turn = squares[is_real], turn[:, is_real]
    axes = np.empty([size, len(squares)])
    for columns in _blocks(size, count):
        axes[columns] = standardised(columns).T @ (turn / np.sqrt(squares))
    return Basis(turn * np.sqrt(squares), mean, deviation, axes, squares / count, True)


def minimise(heads: Heads, l2: float, start: np.ndarray | None, tolerance: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Fits heads by L-BFGS until each one's gradient is small enough, or does not get smaller.

    Args:
        heads: What is fitted.
        l2: The strength.
        start: float64 [K, F, A + 1], or None for zero.
        tolerance: Of each gradient's norm to that at zero weights.

    Returns:
        float64 [K, F, A + 1], the parameters; float64 [F], the norm of each gradient to that at zero; the steps.
    """
    from scipy import optimize

    zero = np.zeros(heads.shape)
    reference = _norms(_objective(heads, zero, l2)[1])
    # The Hessian at zero is variance / K + l2 along each axis, on what matters: differences between classes.
    scale = 1 / np.sqrt(np.append(heads.basis.variances / heads.num_classes + l2, 1 / heads.num_classes))
    found = zero if start is None else start
    norms, steps = reference, 0
    latest = reference

    def evaluate(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal latest
        loss, gradient = _objective(heads, scaled.reshape(heads.shape) * scale, l2)
        latest = _norms(gradient)
        return loss, (gradient * scale).ravel()

    def look(scaled: np.ndarray) -> None:
        nonlocal found, norms, steps
        found, norms, steps = scaled.reshape(heads.shape) * scale, latest, steps + 1
        if (norms <= tolerance * reference).all():
            raise StopIteration

    options = {"maxiter": MOST_STEPS, "maxcor": MEMORY, "gtol": 0.0, "ftol": 0.0}
    with contextlib.suppress(StopIteration):  # Which scipy before 1.11 does not take for an end.
        optimize.minimize(
            evaluate, (found / scale).ravel(), jac=True, method="L-BFGS-B", callback=look, options=options
        )
    return found, norms / np.maximum(reference, np.finfo(np.float64).tiny), steps


def _threads(count: int) -> contextlib.AbstractContextManager[object]:
    """Keeps products of up to ONE_THREAD multiplications on one thread.

    Several wait for each other busily: on a busy machine that takes many times as long as one thread alone.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas") if count < ONE_THREAD else contextlib.nullcontext()


def _objective(heads: Heads, parameters: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
    """Returns the sum of all heads' objectives, and its gradient: float64 [K, F, A + 1]."""
    basis, count = heads.basis, parameters.shape[0] * parameters.shape[1]
    loss = l2 / 2 * float(np.square(parameters[..., :-1]).sum())
    slopes, pulls = np.zeros([count, basis.rows.shape[1]]), np.zeros(count)
    for rows, probabilities, losses in _forward(heads, parameters):
        shares = heads.shares[:, rows]
        loss += float(np.vdot(losses.astype(np.float64), shares))
        probabilities[heads.labels[rows], :, np.arange(losses.shape[1])] -= 1
        probabilities *= shares
        slopes += probabilities.reshape(count, -1) @ basis.rows[rows]
        pulls += probabilities.reshape(count, -1).sum(axis=1)
    if not basis.is_span:
        slopes = (slopes - pulls[:, None] * basis.mean) / basis.deviation
        slopes = slopes if basis.axes is None else slopes.astype(np.float32) @ basis.axes
    gradient = np.concatenate([slopes, pulls[:, None]], axis=1).reshape(parameters.shape)
    gradient[..., :-1] += l2 * parameters[..., :-1]
    return loss, gradient


def _forward(heads: Heads, parameters: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Gives block by block: the rows, their probabilities [K, F, B] and their losses [F, B] in nats."""
    basis, count = heads.basis, parameters.shape[0] * parameters.shape[1]
    kernel, bias = parameters[..., :-1].reshape(count, -1), parameters[..., -1].ravel()
    if not basis.is_span:
        kernel, bias = _plain(basis, kernel, bias)
    kernel, bias = kernel.astype(basis.rows.dtype), bias.astype(basis.rows.dtype)
    for rows in _blocks(len(basis.rows), count):
        logits = (kernel @ basis.rows[rows].T + bias[:, None]).reshape(*parameters.shape[:2], -1)
        logits -= logits.max(axis=0)
        of_truth = logits[heads.labels[rows], :, np.arange(logits.shape[2])].T
        np.exp(logits, out=logits)
        total = logits.sum(axis=0)
        logits /= total
        yield rows, logits, np.log(total) - of_truth


def _held_out(parts: Sequence[Heads], found: Sequence[np.ndarray], weights: np.ndarray) -> tuple[float, float]:
    """Returns the mean loss in nats and the accuracy over the rows held out; weights: [F, N], 0 where fitted to."""
    loss, hits, first = 0.0, 0.0, 0
    for heads, parameters in zip(parts, found, strict=True):
        mine = weights[first : first + len(heads.shares)]
        first += len(mine)
        for rows, probabilities, losses in _forward(heads, parameters):
            loss += float(np.vdot(losses.astype(np.float64), mine[:, rows]))
            hits += float(mine[:, rows][probabilities.argmax(axis=0) == heads.labels[rows]].sum())
    return loss / float(weights.sum()), hits / float(weights.sum())


def _plain(basis: Basis, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns heads, [H, A] and [H], as float32 [H, D] and float64 [H] on features that are not standardised."""
    kernel = kernel if basis.axes is None else kernel.astype(basis.axes.dtype) @ basis.axes.T
    kernel = (kernel / basis.deviation).astype(np.float32)
    return kernel, bias - kernel @ basis.mean


def _fold_back(
    basis: Basis, parameters: np.ndarray, classes: np.ndarray, num_classes: int, is_binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias as a head holds them, from the parameters of the classes that have rows."""
    everything = np.zeros([num_classes, parameters.shape[1]])
    everything[:, -1] = ABSENT
    everything[classes] = parameters
    if is_binary:
        everything = everything[1:] - everything[:1]
    kernel, bias = _plain(basis, everything[:, :-1], everything[:, -1])
    return np.ascontiguousarray(kernel.T), bias.astype(np.float32)


def _parts(heads: Heads) -> list[Heads]:
    """Returns the heads in as many parts as memory asks for."""
    number = -(-int(np.prod(heads.shape)) // MOST_PARAMETERS)
    shares = np.array_split(heads.shares, max(1, min(number, len(heads.shares))))
    return [dataclasses.replace(heads, shares=part) for part in shares]


def _shares(weights: np.ndarray, basis: Basis) -> np.ndarray:
    return (weights / weights.sum(axis=1, keepdims=True)).astype(basis.rows.dtype)


def _norms(gradient: np.ndarray) -> np.ndarray:
    """Returns float64 [F]: the norm of each head's gradient."""
    return np.sqrt(np.square(gradient).sum(axis=(0, 2)))


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Gives slices of `count` rows of `size` numbers, each of about BLOCK numbers."""
    step = max(1, BLOCK // max(1, size))
    return (slice(first, first + step) for first in range(0, count, step))
