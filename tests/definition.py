"""The losses by their plain definition: the tests' own truth, independent of the package.

There are two truths in this project. This one is for the tests. It imports nothing of the package
and is as plain as possible: each convention from its source, the d × d covariance matrix, one set
of samples at a time. It uses operators and methods only, so it runs on every kind of number that
a test needs: float64, JAX arrays (to differentiate), mpmath's numbers (for more digits), and
complex numbers, of which `gradients` takes the derivative without a difference: the imaginary part
of f(z + ih) is h f'(z), with no rounding except that of f.

The other one, `vicreg.tools.verification.definition`, is what ``vicreg verify`` judges by. It has
exact numbers, closed-form gradients and second derivatives, and is itself tested against this one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = Any
Number = Any
STEP = 1e-30


def average(values: Sequence[Number]) -> Number:
    return sum(values) / len(values)


def relu(x: Array) -> Array:
    return x * (x.real > 0)


def covariance_matrix(z: Array, correction: int) -> Array:
    zc = z - z.mean(axis=0)
    return zc.T @ zc / (z.shape[0] - correction)


def mean_square(z1: Array, z2: Array) -> Number:
    return ((z1 - z2) * (z1 - z2)).mean()


def mean_square_norm(z1: Array, z2: Array) -> Number:
    return ((z1 - z2) * (z1 - z2)).sum(axis=1).mean()


def hinge_on_std(own_eps: float, correction: int) -> Callable[..., Number]:
    def hinge(z: Array, gamma: float, eps: float | None = None) -> Number:
        variance = covariance_matrix(z, correction).diagonal()
        return relu(gamma - (variance + (own_eps if eps is None else eps)) ** 0.5).mean()

    return hinge


def hinge_on_variance(z: Array, gamma: float, eps: None = None) -> Number:
    return relu(gamma - covariance_matrix(z, 0).diagonal()).mean()


def off_diagonal(z: Array, correction: int) -> Array:
    """Return the covariance matrix with a zero diagonal."""
    return covariance_matrix(z, correction) * (1 - np.eye(z.shape[1]))


def over_d(correction: int) -> Callable[[Array], Number]:
    return lambda z: (off_diagonal(z, correction) ** 2).sum() / z.shape[1]


def over_pairs(z: Array) -> Number:
    return (off_diagonal(z, 1) ** 2).sum() / (z.shape[1] * (z.shape[1] - 1))


class Formula(NamedTuple):
    """One convention: the terms of a pair and of a view, and how those of two views combine."""

    invariance: Callable[[Array, Array], Number] | None
    variance: Callable[..., Number]  # of a view, γ and ε
    covariance: Callable[[Array], Number]
    sum_variance: bool  # the sum of two views, or their mean
    sum_covariance: bool


CONVENTIONS = {
    "official": Formula(mean_square, hinge_on_std(1e-4, 1), over_d(1), False, True),
    "paper": Formula(mean_square_norm, hinge_on_std(1e-4, 1), over_d(1), True, True),
    "algorithm1": Formula(mean_square, hinge_on_std(1e-4, 1), over_d(1), True, True),
    "article": Formula(mean_square_norm, hinge_on_variance, over_d(0), True, True),
    "vicregl": Formula(mean_square, hinge_on_std(1e-4, 1), over_d(1), False, False),
    "jolibrain": Formula(mean_square, hinge_on_std(0.0, 1), over_d(1), False, False),
    "tensorflow-similarity": Formula(mean_square, hinge_on_std(1e-4, 0), over_d(1), False, True),
    "eb-jepa": Formula(mean_square, hinge_on_std(1e-4, 1), over_pairs, True, True),
    "tensorflow-gnn": Formula(mean_square, hinge_on_std(1e-4, 0), over_d(0), True, True),
    "vcreg": Formula(None, hinge_on_std(1e-5, 1), over_pairs, False, False),
}


Pairs = Sequence[tuple[int, int]]


def terms(
    views: Sequence[Array],
    convention: str,
    gamma: float = 1.0,
    pairs: Pairs | None = None,
    eps: float | None = None,
    times: np.ndarray | None = None,
) -> tuple[Number, Number, Number]:
    """Return (invariance, variance, covariance) of views ``(n, ..., d)``.

    Parameters
    ----------
    views, convention, gamma
        As in `vicreg.vicreg_loss`.
    pairs : sequence of pairs, optional
        All of them if None.
    eps : float, optional
        The convention's own if None.
    times : array of int, shape (n,) or (n, positions), optional
        How often each sample occurs, in each position at least twice one. Once if None.
    """
    formula = CONVENTIONS[convention]
    n, d = views[0].shape[0], views[0].shape[-1]
    flat = [view.reshape(n, -1, d) for view in views]
    positions = flat[0].shape[1]
    if times is None:
        times = np.ones(n, dtype=int)
    times = np.broadcast_to(np.reshape(times, (n, -1)), (n, positions))
    rows = [np.repeat(np.arange(n), times[:, p]) for p in range(positions)]
    sets = [[view[rows[p], p, :] for view in flat] for p in range(positions)]

    def of_pairs(views: Sequence[Array]) -> Number:
        if formula.invariance is None:
            return 0.0
        chosen = pairs or itertools.combinations(range(len(views)), 2)
        return average([formula.invariance(views[a], views[b]) for a, b in chosen])

    def of_views(term: Callable[[Array], Number], views: Sequence[Array], is_sum: bool) -> Number:
        return average([term(view) for view in views]) * (2 if is_sum else 1)

    def variance(z: Array) -> Number:
        return formula.variance(z, gamma, eps)

    return (
        # The mean over all samples, of which a position may have more than another.
        sum(len(own) * of_pairs(views) for own, views in zip(rows, sets, strict=True))
        / sum(map(len, rows)),
        average([of_views(variance, views, formula.sum_variance) for views in sets]),
        average([of_views(formula.covariance, views, formula.sum_covariance) for views in sets]),
    )


def loss(
    views: Sequence[Array],
    convention: str = "official",
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    gamma: float = 1.0,
    pairs: Pairs | None = None,
    eps: float | None = None,
    times: np.ndarray | None = None,
) -> Number:
    """Return the weighted sum of the terms."""
    each = terms(views, convention, gamma, pairs, eps, times)
    return sum(w * term for w, term in zip(weights, each, strict=True))


def smooth_l1(x: Array, delta: float) -> Array:
    """Return x² where |x| ≤ δ, and the tangent there, 2δ|x| − δ², beyond."""
    magnitude = x * (1 - 2 * (x.real < 0))  # whose derivative is that of |x|, complex or not
    within = magnitude.real <= delta
    return x * x * within + (2 * delta * magnitude - delta**2) * (1 - within)


def vcreg(
    z: Array,
    weights: tuple[float, float] = (1.0, 1.0),
    gamma: float = 1.0,
    eps: float = 1e-5,
    delta: float | None = None,
    pooled: bool = True,
) -> Number:
    """Return VCReg's loss of ``(n, ..., d)``: squares, or the smooth L1 of a `delta`."""
    d = z.shape[-1]
    if not pooled:
        positions = z.reshape(z.shape[0], -1, d)
        each = [positions[:, p, :] for p in range(positions.shape[1])]
        return average([vcreg(one, weights, gamma, eps, delta) for one in each])
    z = z.reshape(-1, d)
    entries = off_diagonal(z, 1)
    penalties = entries * entries if delta is None else smooth_l1(entries, delta)
    hinge = hinge_on_std(eps, 1)(z, gamma)
    return weights[0] * hinge + weights[1] * penalties.sum() / (d * (d - 1))


def gradients(
    function: Callable[[Sequence[Array]], Number], views: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the derivative of `function`, of a list of views, by each of them."""
    views = [np.asarray(view, dtype=np.complex128) for view in views]
    result = [np.empty(view.shape) for view in views]
    for view, gradient in zip(views, result, strict=True):
        for index in np.ndindex(view.shape):
            kept = view[index]
            view[index] = kept + 1j * STEP
            gradient[index] = function(views).imag / STEP
            view[index] = kept
    return result
