"""Dask: graphs of few tasks, and few passes over the chunks, each of which reads them anew.

The Gram route needs all samples at once: they are put in one chunk, and the features in as few as
Dask's own limit on the size of one allows. By the definition the samples stay in their chunks, as
many features as there are in each: a value takes one pass, and gradients another. Nothing is
computed before the caller does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.dask.array as standard
import dask.array
from dask.delayed import delayed

from vicreg._adapters import dask_passes
from vicreg._adapters import standard as eager
from vicreg._core import chunks, collapse, engine, local, sums
from vicreg._core.layout import Axes
from vicreg._core.library import Library, Part
from vicreg._core.objective import Objective
from vicreg._core.samples import Samples
from vicreg._core.terms.covariance import uses_gram

Array = Any
Arrays = tuple[Array, ...]
_da: Any = dask.array  # which has few types


def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted."""
    views = _rechunked(views, objective)
    values, _ = engine.forward(xp, views, objective, differentiated=False)
    return engine.outputs(xp, weights, values, objective)


def value_and_grad(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return what `evaluate` does, and the gradient by each view, in the view's own chunks."""
    chunked = _rechunked(views, objective)
    values, saved = engine.forward(xp, chunked, objective)
    outputs = engine.outputs(xp, weights, values, objective)
    cotangents = engine.as_cotangents(xp, weights, views, objective)
    wanted, (own, _) = (True,) * len(views), objective.split(views)
    gradients: Any = engine.pullback(xp, chunked, saved, cotangents, objective, wanted)
    gradients = gradients[: len(own)]
    if any(objective.axes.laid_out(xp, view).numblocks[-2] > 1 for view in chunked[: len(own)]):
        shifts = engine.shifts(xp, chunked, objective)
        gradients = xp.in_another_pass(gradients, (*shifts, *engine.flatten(saved)))
    return outputs, tuple(
        gradient.rechunk(view.chunks) for gradient, view in zip(gradients, own, strict=True)
    )


def _rechunked(arrays: tuple[Array, ...], objective: Objective) -> tuple[Array, ...]:
    views, weight = objective.split(arrays)
    shape, axes = views[0].shape, objective.axes
    core_shape = axes.core_shape(shape)
    n, d = core_shape[-2:]
    *others, features = axes.split(len(shape))
    by_gram = uses_gram(objective.method, core_shape, objective.sizes)
    if by_gram:
        wanted = dict.fromkeys(itertools.chain(*others), -1) | dict.fromkeys(features, "auto")
    else:
        wanted = dict.fromkeys(features, -1) if n > d else {}
    rechunked = tuple(view.rechunk(wanted) for view in views)
    if weight is None:
        return rechunked
    return (*rechunked, weight.rechunk(-1) if by_gram else weight)


class _Dask(Library):
    stacks = True  # each call makes tasks of every chunk, however large
    sums_pairwise = True

    def stack(self, arrays: list[Array]) -> Array:
        """Return the views as one array, chunks of the same samples of all in one.

        So that they are read together, and none is kept until the others have been.
        """
        stacked = _da.stack(arrays)
        return stacked.rechunk({0: -1}) if stacked.numblocks[-2] > 1 else stacked

    def in_another_pass(self, outputs: Arrays, known: Arrays) -> Arrays:
        return dask_passes.in_another_pass(outputs, known)

    def can_choose(self, array: Array) -> bool:
        return bool(array.numblocks[-2] == 1)

    def sum_of_blocks(
        self, wanted: Array, otherwise: Array, array: Array, scale: Any, part: Part, length: int
    ) -> Array:
        """Return what the default does, chosen in the tasks."""
        dtype, meta = otherwise.dtype, otherwise._meta
        scale = _in_tasks(scale)
        begins = [0, *itertools.accumulate(array.chunks[-1][:-1])]
        # Not optimised here: an optimised graph has keys of its own, and is computed once more.
        wanted, otherwise, blocks = (
            each.to_delayed(optimize_graph=False) for each in (wanted, otherwise, array)
        )
        of_pair = delayed(functools.partial(_of_pair, part=part, length=length))
        parts = [
            of_pair(wanted.item(), rows, columns, start - first, scale)
            for sets in blocks.reshape(-1, len(begins))
            for first, rows in zip(begins, sets, strict=True)
            for start, columns in zip(begins, sets, strict=True)
        ]
        value = delayed(_chosen)(wanted.item(), otherwise.item(), parts)
        return _da.from_delayed(value, (), dtype=dtype, meta=meta)

    def sum_over_samples(self, array: Array, run: int) -> Array:
        return _over_chunks(sums.over_samples, array, run)

    def sum_squares_over_samples(self, array: Array, run: int) -> Array:
        return _over_chunks(sums.squares_over_samples, array, run)

    def centred_energies(self, samples: Samples) -> Array:
        if samples.z.numblocks[-2] == 1 or samples.weights is not None:
            return super().centred_energies(samples)
        return _in_one_pass(samples, _energies, 1)[..., 0, :]

    def centred_products(self, samples: Samples, scale: Any) -> Array:
        chunks_of_samples, chunks_of_features = samples.z.numblocks[-2:]
        in_one_pass = chunks_of_samples > 1 and chunks_of_features == 1
        if samples.weights is not None or not in_one_pass:
            return super().centred_products(samples, scale)
        products = functools.partial(Samples.feature_products, scale=scale)
        return _in_one_pass(samples, products, samples.features)


xp = _Dask(standard)


def _in_tasks(scale: Any) -> Any:
    """Return `scale`, a number or one chunk ``(..., 1, 1)``, as tasks take it."""
    is_lazy = isinstance(scale, dask.array.Array)
    return scale.to_delayed(optimize_graph=False).item() if is_lazy else scale


def _of_pair(
    wanted: Array, rows: Array, columns: Array, start: int, scale: Any, part: Part, length: int
) -> Any:
    """Return the part of some rows and columns in a sum over blocks; 0 if it is not wanted."""
    if not wanted:
        return 0.0
    return sums.total(
        part(eager.library(rows), rows, columns[..., first : first + length], start + first, scale)
        for first in range(0, columns.shape[-1], length)
    )


def _chosen(wanted: Array, otherwise: Array, parts: list[Any]) -> Array:
    return sums.total(parts) if wanted else otherwise


def _over_chunks(of_chunk: Callable[..., Array], array: Array, run: int) -> Array:
    def chunk(array: Array, axis: Any, keepdims: bool) -> Array:
        return of_chunk(eager.library(array), array, run)[..., None, :]

    def aggregate(sums: Array, axis: Any, keepdims: bool) -> Array:
        return sums.sum(axis=axis, keepdims=keepdims)

    return _da.reduction(array, chunk, aggregate, axis=array.ndim - 2, dtype=array.dtype)


def _energies(samples: Samples, array: Array) -> Array:
    return samples.xp.sum_squares_over_samples(array, samples.sizes.summed)[..., None, :]


def _in_one_pass(samples: Samples, products: chunks.Products, size: int) -> Array:
    """Return `products` of the centred samples, ``(..., size, d)``.

    The mean of all is not waited for: a chunk that was read before it would have to be kept.
    """
    sizes = samples.sizes
    # From the first sample of all, so that no mean is rounded on the scale of a common offset.
    shifted = samples.z - samples.z[..., :1, :]

    def chunk(array: Array, axis: Any, keepdims: bool, computing_meta: bool = False) -> Any:
        if computing_meta:  # Dask asks for an array like those that come out in the end
            return array
        return chunks.of_chunk(eager.library(array), array, sizes, products)

    def combine(parts: list[chunks.Chunk], axis: Any, keepdims: bool) -> chunks.Chunk:
        return chunks.merged(eager.library(parts[0].mean), parts, sizes, products)

    def aggregate(parts: list[chunks.Chunk], axis: Any, keepdims: bool) -> Array:
        return combine(parts, axis, keepdims).products

    return _da.reduction(
        shifted,
        chunk,
        aggregate,
        combine=combine,
        concatenate=False,
        axis=shifted.ndim - 2,
        keepdims=True,
        output_size=size,
        dtype=shifted.dtype,
        meta=shifted._meta,
    )


def apply(function: Any, arrays: local.Views, weights: tuple[Any, ...], settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses."""
    run = local.Run(xp, evaluate, value_and_grad)
    return function(run, arrays, weights, settings)


def floats(arrays: Sequence[Array]) -> list[float]:
    """Return the values of arrays of shape (), in one pass over their chunks."""
    return [float(value) for value in _da.compute(*arrays)]


def without_gradient(array: Array) -> Array:
    """Return `array`: nothing here differentiates."""
    return array


def rows(array: Array, axes: Axes) -> Array:
    """Return `array` as ``(n, d)``."""
    return axes.in_order(xp, array)


def wrong_count(weight: Array, like: Array) -> None:
    """Return None, whatever the values: they are computed when asked for."""


def measure(array: Array, axes: Axes, weight: Array | None = None) -> collapse.Measures:
    """Return how far the batch `array` has collapsed, whose samples count as `weight` says."""
    measures = collapse.measure(xp, array, axes, _singular_values, weight=weight)
    return collapse.Measures(*(None if one is None else xp.asarray(one) for one in measures))


def register(record: type, constants: tuple[str, ...]) -> None:
    """Do nothing: functions return what they like here."""


def _singular_values(array: Array) -> Array:
    # Its decomposition takes chunks along one axis alone, and no other choice of outputs.
    n, d = array.shape
    in_one = array.rechunk({1: -1} if n >= d else {0: -1})
    return xp.linalg.svd(in_one, full_matrices=False)[1]
