"""Libraries without automatic differentiation: NumPy, CuPy, Dask and any other namespace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, is_dask_array, is_numpy_array

from vicreg._adapters.dispatch import library_of
from vicreg._core import collapse, engine, sums
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.objective import Objective

Array = Any


def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted."""
    xp = _library(views)
    values, _ = engine.forward(xp, views, objective, differentiated=False)
    outputs = engine.outputs(xp, weights, values, objective)
    # NumPy's sums are scalars of its own, which are not arrays.
    return tuple(xp.asarray(output) for output in outputs)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    xp = _library(views)
    loss, gradients = engine.value_and_grad(xp, views, weights, objective)
    return xp.asarray(loss), gradients


class _Eager(Library):
    """A library that computes at once, on the CPU."""

    def can_ask(self, array: Array) -> bool:
        return True


def _library(views: tuple[Array, ...]) -> Library:
    first = views[0]
    if is_numpy_array(first):
        return _numpy()
    if is_dask_array(first):
        return _dask()
    is_eager = library_of(first) in ("array_api_strict", "mparray")
    return (_Eager if is_eager else Library)(array_namespace(*views))


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


@functools.cache
def _dask() -> Library:
    """Return Dask, in which the samples of a chunk are summed as its own library does."""
    import array_api_compat.dask.array as standard
    import dask.array

    def over_chunks(of_chunk: Callable[..., Array], array: Array, run: int) -> Any:
        def chunk(array: Array, axis: Any, keepdims: bool) -> Array:
            return of_chunk(_library((array,)), array, run)[..., None, :]

        def aggregate(sums: Array, axis: Any, keepdims: bool) -> Array:
            return sums.sum(axis=axis, keepdims=keepdims)

        reduced: Any = dask.array.reduction  # which has no types
        return reduced(array, chunk, aggregate, axis=array.ndim - 2, dtype=array.dtype)

    class Dask(Library):
        stacks = True  # each call makes tasks of every chunk, however large
        sums_pairwise = True

        def sum_over_samples(self, array: Array, run: int) -> Array:
            return over_chunks(sums.over_samples, array, run)

        def sum_squares_over_samples(self, array: Array, run: int) -> Array:
            return over_chunks(sums.squares_over_samples, array, run)

    return Dask(standard)


def without_gradient(array: Array) -> Array:
    """Return `array`: nothing here differentiates."""
    return array


def measure(array: Array, axes: Axes) -> collapse.Measures:
    """Return how far the batch `array` has collapsed."""
    xp = array_namespace(array)
    if not hasattr(xp, "linalg"):
        name = xp.__name__.rpartition("array_api_compat.")[2]
        raise NotImplementedError(
            f"singular values need the linalg extension of the array API standard, which {name} "
            "does not have: convert the array to a library that has it"
        )
    measures = collapse.measure(_library((array,)), array, axes, _singular_values)
    return collapse.Measures(*map(xp.asarray, measures))


def register(record: type, constants: tuple[str, ...]) -> None:
    """Do nothing: functions return what they like here."""


def _singular_values(array: Array) -> Array:
    xp = array_namespace(array)
    if is_dask_array(array):
        # Its decomposition takes chunks along one axis alone, and no other choice of outputs.
        chunked: Any = array
        n, d = chunked.shape
        in_one = chunked.rechunk({1: -1} if n >= d else {0: -1})
        return xp.linalg.svd(in_one, full_matrices=False)[1]
    return xp.linalg.svdvals(array)
