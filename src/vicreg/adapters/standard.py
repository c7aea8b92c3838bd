"""Libraries without automatic differentiation: NumPy, CuPy, Dask and any other namespace."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from vicreg.core.objective import Objective
from vicreg.core.terms import Outputs, pullback
from vicreg.core.terms import evaluate as evaluate_core

Array = Any


def evaluate(views: tuple[Array, ...], objective: Objective) -> Outputs:
    """Return the objective's outputs."""
    outputs, _ = evaluate_core(array_namespace(*views), views, objective)
    return outputs


def value_and_grad(
    views: tuple[Array, ...], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    xp = array_namespace(*views)
    (loss, *_), residuals = evaluate_core(xp, views, objective)
    return loss, pullback(xp, views, residuals, (1.0,), objective, (True,) * len(views))
