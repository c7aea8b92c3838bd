"""Values and derivatives of any tuple of terms, in both directions.

``forward`` returns the value of each term and what its derivative is formed from; ``pullback``
forms gradients from that (reverse mode), and ``pushforward`` the change of each value along a
direction (forward mode). ``value_and_gradients`` does the first two at once and no part twice.

Small views are stacked and worked on as one array, since each call of a library costs more than
its work there. Larger ones are too where the library says so: PyTorch and CuPy on a GPU, Dask, and
PyTorch on a CPU where their products are small. All others are worked on one after another: what
was computed of one leaves its memory to the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vicreg._core import memory, present_samples, sums
from vicreg._core.layout import computing_dtype
from vicreg._core.library import Library, Product
from vicreg._core.objective import Objective
from vicreg._core.sample_weights import SampleWeights, as_constant, of_each, total_of
from vicreg._core.samples import Samples, ShiftedSamples
from vicreg._core.terms import Term, products_size
from vicreg._core.terms.base import Factors

Array = Any
Terms = tuple[Term | None, ...]
Values = tuple[Array | None, ...]  # one a term, None where it is not computed
Cotangents = Sequence[Any]  # one a term: a number, a 0-d array, or None for zero
Gradients = list[Array | None]  # one a view, None where it is not wanted or zero


class Saved(NamedTuple):
    """What is kept of one group for its gradient: to centre it anew costs less than to keep it."""

    mean: Array | None  # as `Samples.mean`; None where no term has a part in one view
    factors: tuple[Factors, ...]  # of each term


def forward(
    xp: Library, views: Sequence[Array], objective: Objective, differentiated: bool = True
) -> tuple[Values, tuple[Saved, ...]]:
    """Return the value of each term, and what is kept of each group of views for the gradient.

    Where nothing is `differentiated`, what only gradients need may be missing. Here and below,
    the last of the `views` is the weights of their samples, if the objective has weights.
    """
    per_view = _samples_per_view(xp, views, objective)
    terms = _terms(per_view, objective)
    values, saved = _Values(terms), []
    for _, samples in _groups(per_view, objective):
        saved.append(_forward(samples, terms, values, differentiated))
        samples.forget_centred()
    for place, term in _present(terms):
        values.add(place, term.between_views(per_view, term.differences(per_view)))
    return values.of_terms, tuple(saved)


def pullback(
    xp: Library,
    views: Sequence[Array],
    saved: Sequence[Saved],
    cotangents: Cotangents,
    objective: Objective,
    wanted: Sequence[bool],
) -> tuple[Array | None, ...]:
    """Return the gradient of each wanted view, in its shape and dtype; None for the others.

    It is the gradient of the sum of the terms, each times its cotangent. That of the weights of
    samples is 0.
    """
    per_view = _samples_per_view(xp, views, objective)
    gradients = _gradients(per_view, saved, cotangents, objective, wanted)
    return tuple(
        like_its_view(xp, gradient, view, objective) if is_wanted else None
        for gradient, view, is_wanted in zip(gradients, views, wanted, strict=True)
    )


def value_and_gradients(
    xp: Library,
    views: Sequence[Array],
    cotangents: Cotangents,
    objective: Objective,
    wanted: Sequence[bool],
) -> tuple[Values, Gradients]:
    """Return what `forward` and `pullback` do, computing no part twice.

    The gradients are in the dtype and the layout of the computation: see `like_its_view`.
    """
    per_view = _samples_per_view(xp, views, objective)
    terms = _terms(per_view, objective)
    values, gradients = _Values(terms), [None] * len(wanted)

    def work_on(places: range, samples: Samples) -> None:
        # A function of its own, so that what is saved of one group is freed before the next: it
        # may be larger than the gradient.
        saved = _forward(samples, terms, values, any(wanted[place] for place in places))
        for chosen, part, of_part in _wanted_of(per_view, places, samples, saved, wanted):
            _place(_gradient(part, terms, of_part, cotangents), chosen, gradients)

    for group in _groups(per_view, objective):
        work_on(*group)
    in_place = _updates_gradients(per_view, objective)
    for some, own in _in_blocks(per_view, gradients, in_place):
        for place, term in _present(terms):
            differences = term.differences(some)
            values.add(place, term.between_views(some, differences))
            if cotangents[place] is not None:
                term.add_gradients(some, differences, cotangents[place], own, wanted, in_place)
    return values.of_terms, _without_absent(per_view, gradients)


def _in_blocks(
    per_view: list[Samples], gradients: Gradients, in_place: bool
) -> Iterator[tuple[list[Samples], Gradients]]:
    """Yield the views and their gradients: whole, or a block of samples at a time.

    In blocks, nothing that is formed between the views is as large as one of them.
    """
    samples, weights = per_view[0], per_view[0].weights
    k = len(per_view)
    # Only what is there, and is updated in place, may be updated by its blocks.
    is_updated = in_place and not any(gradient is None for gradient in gradients[:k])
    if samples.is_one_block(samples.z) or not is_updated:
        yield per_view, gradients
        return
    run = samples.sizes.summed
    of_samples = () if weights is None else (weights.each, weights.parts(run))
    for block in samples.blocks(*(view.z for view in per_view), *gradients[:k], *of_samples):
        of_block = None if weights is None else weights.of_some(*block[-2:])
        views = [Samples(samples.xp, z, samples.sizes, weights=of_block) for z in block[:k]]
        yield views, list(block[k : 2 * k])


def pushforward(
    xp: Library,
    views: Sequence[Array],
    saved: Sequence[Saved],
    tangents: Sequence[Array | None],
    objective: Objective,
) -> Values:
    """Return the change of each term along `tangents`, one a view, None where it is zero.

    Linear in the tangents, which is what reverse mode transposes.
    """
    per_view = _samples_per_view(xp, views, objective)
    tangents = tangents[: len(per_view)]
    moving = [tangent is not None for tangent in tangents]
    weights = per_view[0].weights
    directions = [
        None
        if tangent is None
        else Samples(xp, _cleaned(xp, tangent, weights, objective), objective.sizes)
        for tangent in tangents
    ]

    def change(place: int) -> Array:
        cotangents = [1.0 if other == place else None for other in range(len(terms))]
        gradients = _gradients(per_view, saved, cotangents, objective, moving)
        return sums.total(
            direction.total(gradient * direction.z)
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None and direction is not None
        )

    terms = _terms(per_view, objective)
    return tuple(None if term is None else change(place) for place, term in enumerate(terms))


def weighted_sum(
    xp: Library, weights: Sequence[Any], values: Values, objective: Objective
) -> Array:
    """Return the loss: the sum of the terms, each times its weight, a number or a 0-d array.

    A term of weight 0 has no part in it, be it infinite.
    """
    return sums.total(
        _weighted(xp, weight, value)
        for weight, value, counts in zip(weights, values, objective.in_loss, strict=True)
        if value is not None and counts
    )


def _weighted(xp: Library, weight: Any, value: Array) -> Array:
    is_one = isinstance(weight, (int, float)) and weight == 1
    return value if is_one else in_dtype(xp, weight, value.dtype) * value


def in_dtype(xp: Library, weight: Any, dtype: Any) -> Any:
    """Return `weight`, of which an array is given `dtype`: it decides no dtype but its own."""
    if isinstance(weight, (int, float)) or weight.dtype == dtype:
        return weight
    return xp.astype(weight, dtype)


def outputs(
    xp: Library, weights: Sequence[Any], values: Values, objective: Objective
) -> tuple[Array, ...]:
    """Return the loss, and after it the terms where each is wanted, 0 where there is none."""
    loss = weighted_sum(xp, weights, values, objective)
    if not objective.each_term:
        return (loss,)
    return (loss, *(_nothing(xp, loss) if value is None else value for value in values))


def _nothing(xp: Library, loss: Array) -> Array:
    """Return 0 for a term that there is not: it has a derivative, however large the loss is."""
    zero = xp.zeros_like(loss)
    return xp.where(zero == 0, zero, loss)


def value_and_grad(
    xp: Library, views: Sequence[Array], weights: Sequence[Any], objective: Objective
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the `outputs`, and the gradient of the loss by each view."""
    present = present_samples.select(xp, views, objective)
    if present is None:
        return _value_and_grad(xp, views, weights, objective)
    outputs, gradients = _value_and_grad(xp, present.arrays, weights, present.objective)
    own, _ = objective.split(views)
    return outputs, tuple(
        present.gradient(xp, gradient, view, objective.axes)
        for gradient, view in zip(gradients, own, strict=True)
    )


def _value_and_grad(
    xp: Library, views: Sequence[Array], weights: Sequence[Any], objective: Objective
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    cotangents = as_cotangents(xp, weights, views, objective)
    values, gradients = value_and_gradients(xp, views, cotangents, objective, (True,) * len(views))
    own, _ = objective.split(views)
    return outputs(xp, weights, values, objective), tuple(
        like_its_view(xp, gradient, view, objective)
        for gradient, view in zip(gradients[: len(own)], own, strict=True)
    )


def as_cotangents(
    xp: Library, weights: Sequence[Any], views: Sequence[Array], objective: Objective
) -> Cotangents:
    """Return the weights as cotangents of the terms, None for those without a part in the loss."""
    dtype = computing_dtype(xp, views[0])
    return [
        in_dtype(xp, weight, dtype) if counts else None
        for weight, counts in zip(weights, objective.in_loss, strict=True)
    ]


def like_its_view(xp: Library, gradient: Array | None, view: Array, objective: Objective) -> Array:
    """Return `gradient`, as the core lays it out, in the shape and dtype of `view`; None is 0."""
    if gradient is None:  # nothing with a cotangent depends on the view
        return xp.zeros_like(view)
    return objective.axes.like_view(xp, gradient, view)


def shifts(xp: Library, views: Sequence[Array], objective: Objective) -> tuple[Array, ...]:
    """Return of each view what `Saved.mean` is counted from."""
    return tuple(samples.shift for samples in _samples_per_view(xp, views, objective))


def flatten(saved: Sequence[Saved]) -> tuple[Array, ...]:
    """Return what is saved as one tuple, for libraries that keep arrays alone."""
    return tuple(
        array
        for mean, factors in saved
        if mean is not None
        for array in (mean, *itertools.chain.from_iterable(factors))
    )


def unflatten(
    xp: Library, arrays: Sequence[Array], views: Sequence[Array], objective: Objective
) -> tuple[Saved, ...]:
    """Return what `flatten` made `arrays` of, for these `views`."""
    views, _ = objective.split(views)
    shape = (len(views), *objective.axes.core_shape(views[0].shape))
    counts = [0 if term is None else term.factors for term in objective.terms(shape)]
    left = iter(arrays)
    return tuple(
        Saved(
            next(left) if any(counts) else None,
            tuple(tuple(itertools.islice(left, count)) for count in counts),
        )
        for _ in range(1 if _stacks(xp, shape, objective) else len(views))
    )


class _Values:
    """The values of the terms while they are added up."""

    def __init__(self, terms: Terms) -> None:
        self._sums: list[Array | None] = [None] * len(terms)

    def add(self, place: int, part: Array | None) -> None:
        if part is not None:
            self._sums[place] = sums.plus(self._sums[place], part)

    @property
    def of_terms(self) -> Values:
        return tuple(self._sums)


def _samples_per_view(xp: Library, views: Sequence[Array], objective: Objective) -> list[Samples]:
    own, _ = objective.split(views)
    weights = sample_weights(xp, views, objective)
    arrays = [objective.axes.laid_out(xp, view) for view in own]
    if weights is not None:
        arrays = [weights.clean_view(array) for array in arrays]
    return [_samples(xp, z, objective, place, weights=weights) for place, z in enumerate(arrays)]


def sample_weights(
    xp: Library, arrays: Sequence[Array], objective: Objective
) -> SampleWeights | None:
    """Return the weights of the samples of `arrays`, None where they have none."""
    views, weight = objective.split(arrays)
    if weight is None:
        return None
    each = of_each(xp, weight, views[0], objective.axes)
    if objective.batch is None:
        total = total_of(xp, each, objective.sizes.summed)
    else:
        total = objective.batch.weight_total
    return objective.sample_weights(xp, each, total)


def with_constant_weights(
    xp: Library, arrays: tuple[Array, ...], objective: Objective
) -> tuple[Array, ...]:
    """Return `arrays` with the weights of samples as a constant of differentiation."""
    views, weight = objective.split(arrays)
    return arrays if weight is None else (*views, as_constant(xp, weight, views[0]))


def number_of_samples(xp: Library, arrays: Sequence[Array], objective: Objective) -> Any:
    """Return n of the one view in `arrays`; of weighted samples the sums, ``(..., 1, 1)``."""
    weights = sample_weights(xp, arrays, objective)
    if weights is not None:
        return weights.counts(objective.sizes.summed).samples
    if objective.batch is not None:
        return objective.batch.count
    return objective.axes.core_shape(arrays[0].shape)[-2]


def _cleaned(
    xp: Library, view: Array, weights: SampleWeights | None, objective: Objective
) -> Array:
    """Return `view` as the core works on it, without what stands under a weight of 0."""
    array = objective.axes.laid_out(xp, view)
    return array if weights is None else weights.clean(array)


def _samples(
    xp: Library,
    z: Array,
    objective: Objective,
    place: Any = ...,
    mean: Array | None = None,
    weights: SampleWeights | None = None,
) -> Samples:
    """Return the samples `z` of all views, stacked, or of the one at `place`."""
    if objective.batch is not None:
        of_ranks: Samples = objective.batch.samples(xp, z, objective.sizes, place, weights)
        return of_ranks
    return Samples(xp, z, objective.sizes, mean, weights)


def _stacks(xp: Library, shape: tuple[int, ...], objective: Objective) -> bool:
    """Whether views laid out as `shape`, ``(k, ..., n, d)``, are worked on as one array."""
    views, *of_view = shape
    sizes = objective.sizes
    if objective.batch is not None:
        return views > 1  # so that the ranks reach each other once for all views
    # Of a size that stands for any, as an exporter has, nothing is asked: its limit is 0.
    if sizes.stacked == 0 or views == 1:
        return False
    if xp.stacks or math.prod(of_view) <= sizes.stacked:
        return True
    if len(of_view) > 2:  # positions: one call is for all of them already
        return False
    return products_size(objective.method, of_view, sizes) <= xp.stacked_products


def _updates_gradients(per_view: Sequence[Samples], objective: Objective) -> bool:
    """Whether what is between the views is added to their gradients in place.

    Gradients of small views, if they are slices of one array, become arrays of their own instead:
    none keeps the memory of the others.
    """
    limit = objective.sizes.stacked
    if len(per_view) == 1 or objective.batch is not None:
        return len(per_view) == 1
    # As in `_stacks`, nothing is asked where the limit is 0.
    return limit == 0 or math.prod(per_view[0].z.shape) > limit


def _stacked(
    xp: Library,
    per_view: Sequence[Samples],
    objective: Objective,
    mean: Array | None,
    weights: SampleWeights | None,
) -> Samples:
    """Return the samples of all views as one array."""
    arrays = [samples.z for samples in per_view]
    if objective.batch is not None:
        return _samples(xp, xp.stack(arrays), objective, mean=mean, weights=weights)
    stack = xp.stack_of_differences(arrays, [samples.shift for samples in per_view])
    return ShiftedSamples(xp, stack, objective.sizes, mean, weights)


def _groups(
    per_view: Sequence[Samples], objective: Objective, saved: Sequence[Saved] | None = None
) -> Iterator[tuple[range, Samples]]:
    """Yield what is worked on at once, with the places of its views."""
    means = [None] * len(per_view) if saved is None else [group.mean for group in saved]
    xp, weights = per_view[0].xp, per_view[0].weights
    if _stacks(xp, (len(per_view), *per_view[0].z.shape), objective):
        yield range(len(per_view)), _stacked(xp, per_view, objective, means[0], weights)
        return
    for place, (samples, mean) in enumerate(zip(per_view, means, strict=True)):
        yield range(place, place + 1), _samples(xp, samples.z, objective, place, mean, weights)


def _wanted_of(
    per_view: Sequence[Samples],
    places: range,
    group: Samples,
    saved: Saved,
    wanted: Sequence[bool],
) -> Iterator[tuple[range, Samples, Saved]]:
    """Yield what of a group to form gradients of at once: all, or each wanted view by itself."""
    chosen = [place for place in places if wanted[place]]
    if len(chosen) == len(places):
        yield places, group, saved
        return
    for place in chosen:  # of all views, stacked
        mean = None if saved.mean is None else saved.mean[place, ...]
        factors = tuple(tuple(array[place, ...] for array in of) for of in saved.factors)
        per_view[place].assume_mean(mean)
        yield range(place, place + 1), per_view[place], Saved(mean, factors)


def _place(gradient: Array | None, places: range, gradients: Gradients) -> None:
    """Put the gradient of a group among those of the views."""
    for index, place in enumerate(places):
        if gradient is None or len(places) == 1:
            gradients[place] = gradient
        else:
            gradients[place] = gradient[index, ...]


def _terms(per_view: Sequence[Samples], objective: Objective) -> Terms:
    return objective.terms((len(per_view), *per_view[0].z.shape), per_view[0].weights)


def _present(terms: Terms) -> list[tuple[int, Term]]:
    return [(place, term) for place, term in enumerate(terms) if term is not None]


def _forward(samples: Samples, terms: Terms, values: _Values, differentiated: bool) -> Saved:
    factors: list[Factors] = [()] * len(terms)
    for place, term in _present(terms):
        value, factors[place] = term.of_view(samples, differentiated)
        values.add(place, value)
    return Saved(samples.mean if any(factors) else None, tuple(factors))


def _gradients(
    per_view: Sequence[Samples],
    saved: Sequence[Saved],
    cotangents: Cotangents,
    objective: Objective,
    wanted: Sequence[bool],
) -> Gradients:
    """Return the gradient of each wanted view as the core lays it out."""
    terms, gradients = _terms(per_view, objective), [None] * len(wanted)
    for (places, samples), of_group in zip(
        _groups(per_view, objective, saved), saved, strict=True
    ):
        for chosen, part, of_part in _wanted_of(per_view, places, samples, of_group, wanted):
            _place(_gradient(part, terms, of_part, cotangents), chosen, gradients)
    in_place = _updates_gradients(per_view, objective)
    for place, term in _present(terms):
        if cotangents[place] is not None:
            differences = term.differences(per_view)
            term.add_gradients(
                per_view, differences, cotangents[place], gradients, wanted, in_place
            )
    return _without_absent(per_view, gradients)


def _without_absent(per_view: Sequence[Samples], gradients: Gradients) -> Gradients:
    """Return `gradients`, where recorded with none of what stands under a weight of 0 in them.

    There they are 0 already. But what they are differentiated with may be NaN there, and times 0
    it would stay so.
    """
    samples = per_view[0]
    if samples.weights is None or samples.xp.updates_in_place:
        return gradients
    return [None if each is None else samples.weights.clean(each) for each in gradients]


def _gradient(
    samples: Samples, terms: Terms, saved: Saved, cotangents: Cotangents
) -> Array | None:
    """Return the gradient by one group of the terms' parts in it; its centred array is used."""
    row = added = None
    products: list[Product] = []
    for place, term in _present(terms):
        if cotangents[place] is not None and term.factors:
            part = term.gradient_of_view(samples, saved.factors[place], cotangents[place])
            row, added = sums.plus(row, part.row), sums.plus(added, part.added)
            products.extend(part.products)
    xp, gradient = samples.xp, added
    if row is not None or products:
        own = xp.scaled_rows_and_products(
            samples.give_centred(), row, products, samples.sizes.part
        )
        gradient = own if added is None else memory.add(xp, own, added)
    return None if gradient is None else samples.in_statistics(gradient)
