"""The loss by its plain definition: an independent truth for the tests.

Nothing is shared with the package: every convention is written out from its source, with the
d × d covariance matrix and one sample set at a time. Written for complex numbers, so that the
derivative is that of the complex step: f(z + ih e) has the exact derivative in its imaginary
part, with no difference taken and so no rounding but that of f itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

STEP = 1e-30


def _square(x: np.ndarray) -> np.ndarray:
    return x * x


def _covariance(z: np.ndarray, correction: int) -> np.ndarray:
    zc = z - z.mean(axis=0)
    return zc.T @ zc / (z.shape[0] - correction)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, 0)


def mean_square(z1: np.ndarray, z2: np.ndarray) -> complex:
    return _square(z1 - z2).mean()


def mean_square_norm(z1: np.ndarray, z2: np.ndarray) -> complex:
    return _square(z1 - z2).sum(axis=1).mean()


def hinge_on_std(z: np.ndarray, gamma: float, eps: float, correction: int) -> complex:
    variance = np.diag(_covariance(z, correction))
    return _relu(gamma - np.sqrt(variance + eps)).mean()


def hinge_on_variance(z: np.ndarray, gamma: float) -> complex:
    return _relu(gamma - np.diag(_covariance(z, 0))).mean()


def off_diagonal(z: np.ndarray, correction: int) -> complex:
    c = _covariance(z, correction)
    return _square(c[~np.eye(z.shape[1], dtype=bool)]).sum()


#: name: (invariance of two views, variance of one, covariance of one, sum of two views' variance
#: rather than their mean, and so for the covariance)
CONVENTIONS: dict[str, tuple[Callable | None, Callable, Callable, bool, bool]] = {
    "official": (
        mean_square,
        lambda z, g: hinge_on_std(z, g, 1e-4, 1),
        lambda z: off_diagonal(z, 1) / z.shape[1],
        False,
        True,
    ),
    "paper": (
        mean_square_norm,
        lambda z, g: hinge_on_std(z, g, 1e-4, 1),
        lambda z: off_diagonal(z, 1) / z.shape[1],
        True,
        True,
    ),
    "algorithm1": (
        mean_square,
        lambda z, g: hinge_on_std(z, g, 1e-4, 1),
        lambda z: off_diagonal(z, 1) / z.shape[1],
        True,
        True,
    ),
    "article": (
        mean_square_norm,
        hinge_on_variance,
        lambda z: off_diagonal(z, 0) / z.shape[1],
        True,
        True,
    ),
    "vicregl": (
        mean_square,
        lambda z, g: hinge_on_std(z, g, 1e-4, 1),
        lambda z: off_diagonal(z, 1) / z.shape[1],
        False,
        False,
    ),
    "jolibrain": (
        mean_square,
        lambda z, g: hinge_on_std(z, g, 0.0, 1),
        lambda z: off_diagonal(z, 1) / z.shape[1],
        False,
        False,
    ),
    "tensorflow-similarity": (
        mean_square,
        lambda z, g: hinge_on_std(z, g, 1e-4, 0),
        lambda z: off_diagonal(z, 1) / z.shape[1],
        False,
        True,
    ),
    "vcreg": (
        None,
        lambda z, g: hinge_on_std(z, g, 1e-5, 1),
        lambda z: off_diagonal(z, 1) / (z.shape[1] * (z.shape[1] - 1)),
        False,
        False,
    ),
}


def terms(
    views: Sequence[np.ndarray], convention: str, gamma: float = 1.0
) -> tuple[complex, complex, complex]:
    """Return (invariance, variance, covariance) of views ``(n, ..., d)``."""
    invariance, variance, covariance, sum_variance, sum_covariance = CONVENTIONS[convention]
    n, d = views[0].shape[0], views[0].shape[-1]
    flat = [view.reshape(n, -1, d) for view in views]
    sets = [[view[:, p, :] for view in flat] for p in range(flat[0].shape[1])]

    def over_pairs(views: Sequence[np.ndarray]) -> complex:
        pairs = itertools.combinations(views, 2)
        return np.mean([invariance(a, b) for a, b in pairs]) if invariance else 0.0

    def over_views(term: Callable, views: Sequence[np.ndarray], is_sum: bool) -> complex:
        return np.mean([term(view) for view in views]) * (2.0 if is_sum else 1.0)

    return (
        np.mean([over_pairs(views) for views in sets]),
        np.mean([over_views(lambda z: variance(z, gamma), views, sum_variance) for views in sets]),
        np.mean([over_views(covariance, views, sum_covariance) for views in sets]),
    )


def loss(
    views: Sequence[np.ndarray],
    convention: str = "official",
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    gamma: float = 1.0,
) -> complex:
    """Return the weighted sum of the terms."""
    return sum(w * term for w, term in zip(weights, terms(views, convention, gamma), strict=True))


def smooth_l1(x: np.ndarray, delta: float) -> np.ndarray:
    magnitude = x * np.sign(x.real)  # whose derivative is that of |x|, complex or not
    return np.where(magnitude.real <= delta, x * x, 2 * delta * magnitude - delta**2)


def vcreg(
    z: np.ndarray,
    weights: tuple[float, float] = (1.0, 1.0),
    gamma: float = 1.0,
    eps: float = 1e-5,
    delta: float | None = None,
    pooled: bool = True,
) -> complex:
    """Return VCReg's loss of ``(n, ..., d)``: squares, or the smooth L1 of a `delta`."""
    d = z.shape[-1]
    if not pooled:
        positions = z.reshape(z.shape[0], -1, d)
        each = [positions[:, p, :] for p in range(positions.shape[1])]
        return np.mean([vcreg(one, weights, gamma, eps, delta) for one in each])
    z = z.reshape(-1, d)
    entries = _covariance(z, 1)[~np.eye(d, dtype=bool)]
    penalties = _square(entries) if delta is None else smooth_l1(entries, delta)
    hinge = hinge_on_std(z, gamma, eps, 1)
    return weights[0] * hinge + weights[1] * penalties.sum() / (d * (d - 1))


def gradients(function: Callable, views: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the derivative of `function`, of a list of views, by each of them."""
    views = [np.asarray(view, dtype=np.complex128) for view in views]
    found = [np.empty(view.shape) for view in views]
    for view, gradient in zip(views, found, strict=True):
        for index in np.ndindex(view.shape):
            kept = view[index]
            view[index] = kept + 1j * STEP
            gradient[index] = function(views).imag / STEP
            view[index] = kept
    return found
