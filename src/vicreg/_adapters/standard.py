"""Libraries without automatic differentiation: NumPy, CuPy and any other namespace."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace, is_numpy_array

from vicreg._adapters.dispatch import library_of
from vicreg._core import collapse, engine, local, present_samples, ranks, sample_weights
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.objective import Objective

Array = Any


def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted."""
    xp = library(views[0], objective.sizes.on_device)
    objective = ranks.joined(xp, views, objective, weights)
    present = present_samples.select(xp, views, objective)
    if present is not None:
        views, objective = present.arrays, present.objective
    values, _ = engine.forward(xp, views, objective, differentiated=False)
    outputs = engine.outputs(xp, weights, values, objective)
    # NumPy's sums are scalars of its own, which are not arrays.
    return tuple(xp.asarray(output) for output in outputs)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return what `evaluate` does, and the gradient of the loss by each view."""
    xp = library(views[0], objective.sizes.on_device)
    objective = ranks.joined(xp, views, objective, weights)
    outputs, gradients = engine.value_and_grad(xp, views, weights, objective)
    return tuple(xp.asarray(output) for output in outputs), gradients


class _Eager(Library):
    """A library that computes at once, on the CPU, with NumPy's own sums or better ones."""

    sums_whole_pairwise = True

    def can_ask(self, array: Array) -> bool:
        return True


class _Indexed(Library):
    """NumPy, and what has its functions: arrays are updated in place, at indices too."""

    fills_masked = True

    def __init__(self, standard: Any, own: Any) -> None:
        super().__init__(standard)
        self._own = own

    def take_sample(self, array: Array, place: Array) -> Array:
        return self._own.take_along_axis(array, place, axis=-2)

    def top_k_indices(self, values: Array, k: int) -> Array:
        return self._own.argpartition(values, values.shape[-1] - k, axis=-1)[..., -k:]

    def put_along_axis(self, array: Array, indices: Array, values: Any) -> None:
        self._own.put_along_axis(array, indices, values, axis=-1)

    def stack_of_differences(self, arrays: Sequence[Array], rows: Sequence[Array]) -> Array:
        out = self.empty((len(arrays), *arrays[0].shape), dtype=arrays[0].dtype)
        for place, (array, row) in enumerate(zip(arrays, rows, strict=True)):
            self._own.subtract(array, row, out=out[place])
        return out

    def with_zero_diagonal(self, array: Array, start: int = 0) -> Array:
        rows, columns = array.shape[-2:]
        on_it = self._own.arange(max(start, 0), min(start + columns, rows))
        array[..., on_it, on_it - start] = 0.0
        return array


class _NumPy(_Indexed):
    blocks_of_samples = True
    sums_whole_pairwise = True

    def can_ask(self, array: Array) -> bool:
        return True

    def put_samples(self, array: Array, places: Array, n: int) -> Array:
        out = self.zeros((n, array.shape[-1]), dtype=array.dtype)
        out[places, :] = array
        return out


class _OnDevice(_Indexed):
    """CuPy: each call takes longer to begin than small arrays take to be worked on."""

    stacks = True


def library(array: Array, on_device: bool = False) -> Library:
    """Return the library of `array`; of a NumPy array that of a device's, if so wished."""
    if is_numpy_array(array):
        return _numpy(on_device)
    if library_of(array) == "cupy":
        return _cupy(array_namespace(array))
    is_eager = library_of(array) in ("array_api_strict", "mparray")
    return (_Eager if is_eager else Library)(array_namespace(array))


@functools.cache
def _numpy(on_device: bool = False) -> Library:
    import array_api_compat.numpy as standard
    import numpy as np

    return (_OnDevice if on_device else _NumPy)(standard, np)


@functools.cache
def _cupy(namespace: Any) -> Library:
    return _OnDevice(namespace, namespace)  # which has CuPy's own functions too


def apply(function: Any, arrays: local.Views, weights: tuple[Any, ...], settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses."""
    xp = library(arrays.maps[0])
    returned = function(local.Run(xp, evaluate, value_and_grad), arrays, weights, settings)
    if not isinstance(returned, tuple):
        return xp.asarray(returned)
    loss, *gradients = returned
    return (xp.asarray(loss), *gradients)


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
