"""Libraries without automatic differentiation: NumPy, CuPy, Dask and any other namespace."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from vicreg.core import terms
from vicreg.core.objective import Objective

Array = Any


def evaluate(views: tuple[Array, ...], objective: Objective) -> terms.Outputs:
    """Return the objective's outputs."""
    xp = array_namespace(*views)
    outputs, _ = terms.evaluate(xp, views, objective)
    # NumPy's sums are scalars of its own, which are not arrays.
    return tuple(xp.asarray(output) for output in outputs)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    xp = array_namespace(*views)
    loss, gradients = terms.value_and_grad(xp, views, objective)
    return xp.asarray(loss), gradients
