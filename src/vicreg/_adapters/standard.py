"""Libraries without automatic differentiation: NumPy, CuPy, Dask and any other namespace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from array_api_compat import array_namespace, is_dask_array, is_numpy_array

from vicreg._core import collapse, statistics, terms
from vicreg._core.objective import Objective
from vicreg._core.sizes import DEFAULT_SIZES

Array = Any


def evaluate(views: tuple[Array, ...], objective: Objective) -> terms.Outputs:
    """Return the objective's outputs."""
    xp = _namespace(views)
    outputs, _ = terms.evaluate(xp, views, objective, differentiated=False)
    # NumPy's sums are scalars of its own, which are not arrays.
    return tuple(xp.asarray(output) for output in outputs)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    xp = _namespace(views)
    loss, gradients = terms.value_and_grad(xp, views, objective)
    return xp.asarray(loss), gradients


def _namespace(views: tuple[Array, ...]) -> Any:
    first = views[0]
    if is_numpy_array(first):
        return _numpy_namespace()
    return _dask_namespace() if is_dask_array(first) else array_namespace(*views)


@functools.cache
def _numpy_namespace() -> SimpleNamespace:
    """Return NumPy's namespace with what it has beyond the standard that the core asks for."""
    import array_api_compat.numpy as xp
    import numpy as np

    def energies(zc: Array) -> Array:
        return np.einsum("...nd,...nd->...d", zc, zc)

    def sum_of_squares(array: Array) -> Array:
        return np.sum(np.vecdot(array, array))  # of one axis, which NumPy sums pairwise

    def top_k_indices(values: Array, k: int) -> Array:
        return np.argpartition(values, values.shape[-1] - k, axis=-1)[..., -k:]

    def replace_columns(array: Array, places: Array, columns: Array | float) -> None:
        np.put_along_axis(array, places, columns, axis=-1)

    beyond = (energies, sum_of_squares, top_k_indices, replace_columns)
    return SimpleNamespace(**vars(xp) | {function.__name__: function for function in beyond})


@functools.cache
def _dask_namespace() -> SimpleNamespace:
    """Return Dask's namespace, in which the samples of a chunk are summed as elsewhere."""
    import array_api_compat.dask.array as xp
    import dask.array

    def over_chunks(of_chunk: Callable[..., Array]) -> Callable[[Array], Array]:
        def chunk(array: Array, axis: Any, keepdims: bool) -> Array:
            return of_chunk(_namespace((array,)), array, DEFAULT_SIZES)[..., None, :]

        def aggregate(sums: Array, axis: Any, keepdims: bool) -> Array:
            return sums.sum(axis=axis, keepdims=keepdims)

        def summed(array: Array) -> Array:
            axis, dtype = array.ndim - 2, array.dtype
            reduced: Any = dask.array.reduction  # which has no types
            return reduced(array, chunk, aggregate, axis=axis, dtype=dtype)

        return summed

    return SimpleNamespace(
        **vars(xp),
        # Each call makes tasks of every chunk, however large: views are worked on together.
        stacks=True,
        sums_pairwise=True,
        sum_over_samples=over_chunks(statistics.sum_over_samples),
        energies=over_chunks(statistics.energies),
    )


def without_gradient(array: Array) -> Array:
    """Return `array`: nothing here differentiates."""
    return array


def measure(array: Array, feature_axis: int) -> collapse.Measures:
    """Return how far the batch `array` has collapsed."""
    xp = array_namespace(array)
    if not hasattr(xp, "linalg"):
        name = xp.__name__.rpartition("array_api_compat.")[2]
        raise NotImplementedError(
            f"singular values need the linalg extension of the array API standard, which {name} "
            "does not have: convert the array to a library that has it"
        )
    measures = collapse.measure(xp, array, feature_axis, _singular_values)
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
