"""Multinomial logistic regression of many heads at once: coordinates of the rows, the objective, L-BFGS.

The objective is the weighted mean cross-entropy plus l2 / 2 times the squared norm of the kernel on centred and scaled
features; the bias is free. Where the rows come with logits of an earlier head, kernel and bias are what is added to
that one, so that the penalty draws towards it and not towards zero (L2-SP: Li et al., "Explicit Inductive Bias for
Transfer Learning with Convolutional Networks", 2018).

Dimension letters: B rows of a block, C coordinates, D features, F folds (or heads), H heads times classes, K classes,
N rows of features.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

BAND = (0.1, 10.0)  # Of a feature's deviation to the median one's: within it, features keep their scales.
LEAST_SPREAD = 1e-5  # Of a feature's deviation to its mean; float32 cannot tell less from a constant.
MOST_STEPS = 1000  # Of L-BFGS for one strength.
LEAST_GAIN = 1e-9  # Of a step of L-BFGS, as a share of the objective: float32 cannot tell less from none.
MOST_PARAMETERS = 2**19  # Of heads that are fitted at once; L-BFGS holds some 25 times as many numbers.
BLOCK = 2**20  # Numbers that are computed at a time.
ONE_THREAD = 2**30  # Multiplications of one product from which several threads are worth it.


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
        given: float32 [K, N], logits that are added to those of all heads; None for none.
    """

    basis: Basis
    labels: np.ndarray
    shares: np.ndarray
    num_classes: int
    given: np.ndarray | None = None

    @property
    def zero(self) -> np.ndarray:
        """Parameters to begin with: float64 [K, F, C + 1], the bias last."""
        return np.zeros([self.num_classes, len(self.shares), self.basis.rows.shape[1] + 1])


def threads(multiplications: int) -> contextlib.AbstractContextManager[object]:
    """Keeps products of matrices of up to ONE_THREAD multiplications on one thread.

    Several wait for each other by spinning: on a machine that has other work too, that takes many times as long.
    """
    import scipy.optimize  # noqa: F401  (so that its library of products is there to be limited)
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas") if multiplications < ONE_THREAD else contextlib.nullcontext()


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

    options = {"maxiter": MOST_STEPS, "gtol": 0.0, "ftol": LEAST_GAIN}
    with contextlib.suppress(StopIteration):  # Before scipy 1.11 it passes through.
        optimize.minimize(evaluate, start.ravel(), jac=True, method="L-BFGS-B", callback=look, options=options)
    return found, reached / at_zero, count


def _objective(heads: Heads, parameters: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
    """Returns the sum of all heads' objectives, and its gradient: float64 [K, F, C + 1]."""
    basis, count = heads.basis, parameters[..., 0].size
    loss = l2 / 2 * float(np.square(parameters[..., :-1]).sum())
    slopes, pulls = np.zeros([count, basis.rows.shape[1]]), np.zeros(count)
    for rows, answers, losses in forward(heads, parameters):
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


def forward(heads: Heads, parameters: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Gives block by block: which rows, their probabilities [K, F, B] and their losses [F, B] in nats."""
    basis, kernel, bias = heads.basis, parameters[..., :-1].reshape(-1, parameters.shape[2] - 1), parameters[..., -1]
    if basis.axes is None:
        kernel, bias = plain(basis, kernel, bias.ravel())
    bias = bias.reshape(-1, 1).astype(basis.rows.dtype)
    for rows in _blocks(len(basis.rows), len(kernel)):
        logits = (kernel @ basis.rows[rows].T + bias).reshape(*parameters.shape[:2], -1)
        if heads.given is not None:
            logits += heads.given[:, np.newaxis, rows]
        logits -= logits.max(axis=0)
        of_truth = logits[heads.labels[rows], :, np.arange(logits.shape[2])].T
        np.exp(logits, out=logits)
        total = logits.sum(axis=0)
        logits /= total
        yield rows, logits, np.log(total) - of_truth


def plain(basis: Basis, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns heads, [H, C] and [H], as float32 [H, D] and float64 [H] on the features as they are."""
    kernel = kernel if basis.axes is None else kernel @ basis.axes.T
    kernel = (kernel / basis.unit).astype(np.float32)
    return kernel, bias - kernel @ basis.mean


def shares_of(weights: np.ndarray, basis: Basis) -> np.ndarray:
    """Returns the shares of `Heads` from the weights of each head's rows, [F, N]."""
    return (weights / weights.sum(axis=1, keepdims=True)).astype(basis.rows.dtype)


def _norms(gradient: np.ndarray) -> np.ndarray:
    """Returns float64 [F]: the norm of each head's gradient."""
    return np.sqrt(np.square(gradient).sum(axis=(0, 2)))


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Gives slices of `count` rows of `size` numbers, of about BLOCK numbers each."""
    step = max(1, BLOCK // max(1, size))
    return (slice(first, first + step) for first in range(0, count, step))
