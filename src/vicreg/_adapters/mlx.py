"""MLX: custom functions, of which the first is differentiated by the second.

The residuals are outputs of ``evaluate``'s custom function, so its derivative costs what it must.
The derivative is a custom function too: a second derivative goes through the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from vicreg._core import collapse, engine, local
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.objective import Objective

Array = Any


class _MLX(Library):
    def without_gradient(self, array: Array) -> Array:
        return mx.stop_gradient(array)


class _Recorded(_MLX):
    """For what MLX itself differentiates."""

    updates_in_place = False

    def kept(self, array: Array, where: Array) -> Array:
        # MLX multiplies what it differentiates `where` with by 0, of which NaN stays NaN.
        # What it chooses by is an argument: MLX maps nothing that a function finds elsewhere.
        @mx.custom_function
        def function(array: Array, where: Array) -> Array:
            return mx.where(where, array, mx.zeros_like(array[..., :1, :1]))

        @function.vjp
        def vjp(primals: Any, cotangent: Array, output: Any) -> tuple[Array, Array]:
            _, where = primals
            return function(cotangent, where), mx.zeros_like(where)

        @function.jvp
        def jvp(primals: Any, tangents: Any) -> Array:
            _, where = primals
            return function(tangents[0], where)

        return function(array, where)


xp, recorded = _MLX(mx), _Recorded(mx)


def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted, differentiable."""
    views = _refusing(views, objective)
    return engine.outputs(xp, weights, _terms(views, objective), objective)


def _refusing(arrays: tuple[Array, ...], objective: Objective) -> tuple[Array, ...]:
    """Return `arrays`, of which the weights of samples are refused a derivative.

    MLX cannot be asked whether it differentiates by an array. But it calls the derivative of this
    function only where it does.
    """
    views, weight = objective.split(arrays)
    if weight is None:
        return arrays
    if not mx.issubdtype(weight.dtype, mx.floating):
        return engine.with_constant_weights(xp, arrays, objective)

    @mx.custom_function
    def constant(weight: Array) -> Array:
        return mx.stop_gradient(weight)

    @constant.vjp
    def vjp(primals: Any, cotangent: Array, output: Any) -> Array:
        raise ValueError(_NO_DERIVATIVE)

    @constant.jvp
    def jvp(primals: Any, tangents: Any) -> Array:
        raise ValueError(_NO_DERIVATIVE)

    return (*views, constant(weight))


_NO_DERIVATIVE = "sample_weight must not be differentiated by: pass mlx.core.stop_gradient of it"


def _terms(views: tuple[Array, ...], objective: Objective) -> engine.Values:
    terms = objective.terms_of(views)
    count = sum(term is not None for term in terms)

    @mx.custom_function
    def function(*views: Array) -> tuple[Array, ...]:
        values, saved = engine.forward(xp, views, objective)
        return (*_present(values), *engine.flatten(saved))

    @function.vjp
    def vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[Array, ...]:
        views = _as_tuple(primals)
        return _gradients(objective, views, tuple(cotangents[:count]), tuple(outputs[count:]))

    @function.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Array, ...]:
        views = _as_tuple(primals)
        _, saved = engine.forward(xp, views, objective)
        changes = engine.pushforward(xp, views, saved, _as_tuple(tangents), objective)
        return (*_present(changes), *(mx.zeros_like(array) for array in engine.flatten(saved)))

    return _placed(_as_tuple(function(*views))[:count], terms)


def _present(values: engine.Values) -> tuple[Array, ...]:
    return tuple(value for value in values if value is not None)


def _placed(values: Sequence[Array], terms: engine.Terms) -> engine.Values:
    left = iter(values)
    return tuple(None if term is None else next(left) for term in terms)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return what `evaluate` does, and the gradient of the loss by each view."""
    return engine.value_and_grad(recorded, views, weights, objective)


def apply(function: Any, arrays: local.Views, weights: tuple[Any, ...], settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses."""
    run = local.Run(xp, evaluate, value_and_grad)
    return function(run, arrays, weights, settings)


def floats(arrays: Sequence[Array]) -> list[float]:
    """Return the values of arrays of shape ()."""
    mx.eval(arrays)
    return [float(array.item()) for array in arrays]


def without_gradient(array: Array) -> Array:
    """Return `array` as a constant of differentiation."""
    return xp.without_gradient(array)


def rows(array: Array, axes: Axes) -> Array:
    """Return `array` as ``(n, d)``, a constant of differentiation."""
    return axes.in_order(xp, without_gradient(array))


def wrong_count(weight: Array, like: Array) -> None:
    """Return None, whatever the values: they are computed when asked for."""


def measure(array: Array, axes: Axes, weight: Array | None = None) -> collapse.Measures:
    """Return how far the batch `array` has collapsed, whose samples count as `weight` says."""
    return collapse.measure(xp, array, axes, _singular_values, weight=weight)


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
    """Return the gradient of each view from what was saved, differentiable through the views."""
    k, count = len(views), len(cotangents)
    terms = objective.terms_of(views)

    def pullback(
        xp: Library, views: Sequence[Array], cotangents: Sequence[Array], saved: Any
    ) -> tuple[Array, ...]:
        of_terms, wanted = _placed(cotangents, terms), (True,) * k
        return engine.pullback(xp, views, saved, of_terms, objective, wanted)

    @mx.custom_function
    def function(*tensors: Array) -> tuple[Array, ...]:
        views, cotangents = tensors[:k], tensors[k : k + count]
        saved = engine.unflatten(xp, tensors[k + count :], views, objective)
        return pullback(xp, views, cotangents, saved)

    def from_views(*tensors: Array) -> tuple[Array, ...]:
        views, cotangents = tensors[:k], tensors[k : k + count]
        _, saved = engine.forward(recorded, views, objective)
        return pullback(recorded, views, cotangents, saved)

    @function.vjp
    def vjp(primals: Any, of_gradients: Any, _: Any) -> tuple[Array, ...]:
        independent = list(primals[: k + count])
        _, changes = mx.vjp(from_views, independent, list(_as_tuple(of_gradients)))
        return (*changes, *(mx.zeros_like(array) for array in primals[len(independent) :]))

    @function.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Array, ...]:
        independent = list(primals[: k + count])
        directions = [
            mx.zeros_like(primal) if tangent is None else tangent
            for primal, tangent in zip(independent, tangents, strict=False)
        ]
        return tuple(mx.jvp(from_views, independent, directions)[1])

    return _as_tuple(function(*views, *cotangents, *arrays))
