"""Libraries without automatic differentiation: NumPy, CuPy and any other namespace."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace, is_numpy_array

from vicreg._adapters.dispatch import library_of
from vicreg._core import collapse, engine, local, ranks, sample_weights
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.objective import Objective

Array = Any


def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted."""
    xp = library(views[0])
    objective = ranks.joined(xp, views, objective, weights)
    values, _ = engine.forward(xp, views, objective, differentiated=False)
    outputs = engine.outputs(xp, weights, values, objective)
    # NumPy's sums are scalars of its own, which are not arrays.
    return tuple(xp.asarray(output) for output in outputs)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return what `evaluate` does, and the gradient of the loss by each view."""
    xp = library(views[0])
    objective = ranks.joined(xp, views, objective, weights)
    outputs, gradients = engine.value_and_grad(xp, views, weights, objective)
    return tuple(xp.asarray(output) for output in outputs), gradients


class _Eager(Library):
    """A library that computes at once, on the CPU."""

    def can_ask(self, array: Array) -> bool:
        return True


def library(array: Array) -> Library:
    """Return the library of `array`."""
    if is_numpy_array(array):
        return _numpy()
    is_eager = library_of(array) in ("array_api_strict", "mparray")
    return (_Eager if is_eager else Library)(array_namespace(array))


@functools.cache
def _numpy() -> Library:
    """Return NumPy with what it has beyond the standard that the core asks for."""
    import array_api_compat.numpy as standard
    import numpy as np

    class NumPy(_Eager):
        squares_in_blocks = True

        @staticmethod
        def top_k_indices(values: Array, k: int) -> Array:
            return np.argpartition(values, values.shape[-1] - k, axis=-1)[..., -k:]

    return NumPy(standard)


def apply(function: Any, arrays: local.Views, weights: tuple[Any, ...], settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses."""
    run = local.Run(library(arrays.maps[0]), evaluate, value_and_grad)
    return function(run, arrays, weights, settings)


def floats(arrays: Sequence[Array]) -> list[float]:
    """Return the values of arrays of shape ()."""
    return [float(array) for array in arrays]


def without_gradient(array: Array) -> Array:
    """Return `array`: nothing here differentiates."""
    return array


def rows(array: Array, axes: Axes) -> Array:
    """Return `array` as ``(n, d)``."""
    return axes.in_order(library(array), array)


def wrong_count(weight: Array, like: Array) -> float | None:
    """Return a value that is negative or not finite, None where none is known to be."""
    return sample_weights.first_wrong(library(weight), weight, like)


def measure(array: Array, axes: Axes, weight: Array | None = None) -> collapse.Measures:
    """Return how far the batch `array` has collapsed, whose samples count as `weight` says."""
    xp = array_namespace(array)
    if not hasattr(xp, "linalg"):
        name = xp.__name__.rpartition("array_api_compat.")[2]
        raise NotImplementedError(
            f"singular values need the linalg extension of the array API standard, which {name} "
            "does not have: convert the array to a library that has it"
        )
    svdvals = xp.linalg.svdvals
    if is_numpy_array(array):
        svdvals = functools.partial(collapse.svdvals_in_float64, _numpy())
    measures = collapse.measure(library(array), array, axes, svdvals, weight=weight)
    return collapse.Measures(*(None if one is None else xp.asarray(one) for one in measures))


def register(record: type, constants: tuple[str, ...]) -> None:
    """Do nothing: functions return what they like here."""
