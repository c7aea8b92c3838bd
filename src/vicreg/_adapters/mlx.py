"""MLX: custom functions, of which the first is differentiated by the second.

The residuals are outputs of ``evaluate``'s custom function, so its derivative costs what it must.
The derivative is a custom function too: a second derivative goes through the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from vicreg._core import collapse, terms
from vicreg._core.objective import Objective

Array = Any


def evaluate(views: tuple[Array, ...], objective: Objective) -> terms.Outputs:
    """Return the objective's outputs, differentiable."""
    count = objective.outputs

    @mx.custom_function
    def function(*views: Array) -> tuple[Array, ...]:
        outputs, residuals = terms.evaluate(mx, views, objective)
        return (*outputs, *terms.flatten(residuals))

    @function.vjp
    def vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[Array, ...]:
        views, of_outputs = _as_tuple(primals), tuple(cotangents[:count])
        return _gradients(objective, views, of_outputs, tuple(outputs[count:]))

    @function.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Array, ...]:
        views = _as_tuple(primals)
        _, residuals = terms.evaluate(mx, views, objective)
        changes = terms.pushforward(mx, views, residuals, _as_tuple(tangents), objective)
        return (*changes, *(mx.zeros_like(array) for array in terms.flatten(residuals)))

    return tuple(_as_tuple(function(*views))[:count])


def value_and_grad(
    views: tuple[Array, ...], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    return terms.value_and_grad(mx, views, objective)


def without_gradient(array: Array) -> Array:
    """Return `array` as a constant of differentiation."""
    return mx.stop_gradient(array)


def measure(array: Array, feature_axis: int) -> collapse.Measures:
    """Return how far the batch `array` has collapsed."""
    return collapse.measure(mx, array, feature_axis, _singular_values)


def register(record: type, constants: tuple[str, ...]) -> None:
    """Do nothing: MLX's compiled functions return arrays, lists, tuples and dicts alone."""


def _singular_values(array: Array) -> Array:
    # MLX decomposes on the CPU alone.
    return mx.linalg.svd(array, compute_uv=False, stream=mx.cpu)


def _as_tuple(arrays: Any) -> tuple[Array, ...]:
    return tuple(arrays) if isinstance(arrays, (list, tuple)) else (arrays,)


def _gradients(
    objective: Objective,
    views: tuple[Array, ...],
    cotangents: tuple[Array, ...],
    arrays: tuple[Array, ...],
) -> tuple[Array, ...]:
    """Return the gradient of each view from the residuals, differentiable through the views."""
    k, wanted = len(views), (True,) * len(views)

    @mx.custom_function
    def function(*tensors: Array) -> tuple[Array, ...]:
        views, cotangents, arrays = _separated(tensors, k, objective)
        residuals = terms.unflatten(arrays, views, objective)
        return terms.pullback(mx, views, residuals, cotangents, objective, wanted)

    def from_views(*tensors: Array) -> tuple[Array, ...]:
        views, cotangents, _ = _separated(tensors, k, objective)
        _, residuals = terms.evaluate(mx, views, objective)
        return terms.pullback(mx, views, residuals, cotangents, objective, wanted)

    @function.vjp
    def vjp(primals: Any, of_gradients: Any, _: Any) -> tuple[Array, ...]:
        independent = list(primals[: k + len(cotangents)])
        _, found = mx.vjp(from_views, independent, list(_as_tuple(of_gradients)))
        return (*found, *(mx.zeros_like(array) for array in primals[len(independent) :]))

    @function.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Array, ...]:
        independent = list(primals[: k + len(cotangents)])
        directions = [
            mx.zeros_like(primal) if tangent is None else tangent
            for primal, tangent in zip(independent, tangents, strict=False)
        ]
        return tuple(mx.jvp(from_views, independent, directions)[1])

    return _as_tuple(function(*views, *cotangents, *arrays))


def _separated(
    tensors: Sequence[Array], k: int, objective: Objective
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Return the views, the cotangents and what comes after."""
    end = k + (objective.outputs)
    return tuple(tensors[:k]), tuple(tensors[k:end]), tuple(tensors[end:])
