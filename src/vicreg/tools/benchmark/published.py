"""The formula of facebookresearch/vicreg, as it is usually written in each framework.

It forms the d × d covariance of each view. It does the same operations as the original, which
selects the off-diagonal elements by flattening the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from vicreg.tools import libraries

__all__ = ["LIBRARIES", "published_formula", "published_formula_in"]

Array = Any

#: The libraries that the formula is written for.
LIBRARIES = libraries.names_where("is_default")

_INVARIANCE, _VARIANCE, _EPS = 25.0, 25.0, 1e-4


def _torch() -> Callable[[Array, Array], Array]:
    import torch
    from torch.nn import functional

    def published(x: Array, y: Array) -> Array:
        n, d = x.shape
        invariance = functional.mse_loss(x, y)
        x = x - x.mean(dim=0)
        y = y - y.mean(dim=0)
        std_x = torch.sqrt(x.var(dim=0) + _EPS)
        std_y = torch.sqrt(y.var(dim=0) + _EPS)
        variance = torch.mean(functional.relu(1 - std_x)) / 2
        variance = variance + torch.mean(functional.relu(1 - std_y)) / 2
        covariance_x = (x.T @ x) / (n - 1)
        covariance_y = (y.T @ y) / (n - 1)
        covariance = off_diagonal(covariance_x).pow(2).sum() / d
        covariance = covariance + off_diagonal(covariance_y).pow(2).sum() / d
        return _INVARIANCE * invariance + _VARIANCE * variance + covariance

    def off_diagonal(matrix: Array) -> Array:
        d = matrix.shape[0]
        return matrix.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()

    return published


def published_formula_in(xp: Any) -> Callable[[Array, Array], Array]:
    """Return the formula in a namespace whose arrays have NumPy's methods.

    Parameters
    ----------
    xp : namespace
        With NumPy's functions.

    Returns
    -------
    callable
        As `published_formula` does.
    """

    def published(x: Array, y: Array) -> Array:
        n, d = x.shape
        invariance = ((x - y) ** 2).mean()
        x = x - x.mean(axis=0)
        y = y - y.mean(axis=0)
        std_x = xp.sqrt(x.var(axis=0, ddof=1) + _EPS)
        std_y = xp.sqrt(y.var(axis=0, ddof=1) + _EPS)
        variance = xp.maximum(1 - std_x, 0).mean() / 2 + xp.maximum(1 - std_y, 0).mean() / 2
        covariance_x = (x.T @ x) / (n - 1)
        covariance_y = (y.T @ y) / (n - 1)
        covariance = (off_diagonal(covariance_x) ** 2).sum() / d
        covariance = covariance + (off_diagonal(covariance_y) ** 2).sum() / d
        return _INVARIANCE * invariance + _VARIANCE * variance + covariance

    def off_diagonal(matrix: Array) -> Array:
        d = matrix.shape[0]
        return matrix.reshape(-1)[:-1].reshape(d - 1, d + 1)[:, 1:].reshape(-1)

    return published


def published_formula(library: str) -> Callable[[Array, Array], Array]:
    """Return the published formula of two views (n, d) in `library`.

    Parameters
    ----------
    library : str
        One of `LIBRARIES`.

    Returns
    -------
    callable
        A function of two arrays that returns the loss. It needs d ≥ 2.
    """
    if library == "torch":
        return _torch()
    return published_formula_in(import_module(libraries.LIBRARIES[library].namespace))
