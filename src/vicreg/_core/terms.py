"""The three terms and the loss, and their derivative in both directions.

``evaluate`` returns the values and the residuals; ``pullback`` forms gradients from the residuals
(reverse mode), and ``pushforward`` the change of the values along a direction (forward mode). The
derivative of every term is linear in the cotangents, so one rule serves the loss, each term alone
and any weighting of them. A view's whole gradient is one product, one row and one difference:

    α (K zc or zc O) + zc ∘ w + β (z − z').
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vicreg._core import covariance, owned, smooth_l1, statistics
from vicreg._core.blocks import WHOLE, blocks
from vicreg._core.layout import core_shape, group_sizes, laid_out, like_view, together
from vicreg._core.objective import Coefficients, Objective
from vicreg._core.sizes import Sizes
from vicreg._core.statistics import total

Array = Any
Namespace = Any
Outputs = tuple[Array, ...]  # (loss,), or (loss, invariance, variance, covariance)
Cotangents = Sequence[Any]  # of the outputs, each a number or a 0-d array, or None for zero


class Spread(NamedTuple):
    """What the gradient of one group's variance and covariance is formed from, besides the views.

    Rows and small matrices alone: to centre a view anew costs less than to keep it.
    """

    mean: Array  # of the views less their first sample, (..., 1, d)
    hinged: Array | None  # the std or the variance of each feature, (..., d)
    factors: Any  # covariance.Factors or None


Residuals = tuple[Spread, ...]


class _Sums(NamedTuple):
    """The plain sums of the terms, before their coefficients; None for a term not computed."""

    invariance: Array | None
    variance: Array | None
    covariance: Array | None  # the term itself, but for the weight


def flatten(residuals: Residuals) -> tuple[Array, ...]:
    """Return the residuals that are there, in order: for frameworks that save arrays alone."""
    return tuple(
        array
        for mean, hinged, factors in residuals
        for array in (mean, hinged, *(factors or ()))
        if array is not None
    )


def unflatten(arrays: Sequence[Array], views: Sequence[Array], objective: Objective) -> Residuals:
    """Return the residuals of `views` that `flatten` made `arrays` of."""
    shape = core_shape(views, objective.feature_axis, objective.pooled)
    coefficient = objective.coefficients(shape)
    if not coefficient.of_spread:
        return ()
    kind: Any = _kind_of_factors(objective, *shape[-2:])
    left = iter(arrays)

    def group() -> Spread:
        mean = next(left)
        hinged = None if coefficient.variance is None else next(left)
        if coefficient.covariance is None:
            return Spread(mean, hinged, None)
        return Spread(mean, hinged, kind(*(next(left) for _ in kind._fields)))

    return tuple(group() for _ in group_sizes(shape, objective.sizes))


def _kind_of_factors(objective: Objective, n: int, d: int) -> type:
    if objective.uses_gram(n, d):
        return covariance.GramFactors
    if objective.penalty == "smooth_l1" and smooth_l1.in_blocks(n, d, objective.sizes):
        return covariance.ProductFactors
    if objective.penalty == "smooth_l1":
        return covariance.PenaltyFactors
    return covariance.CovarianceFactors


def evaluate(
    xp: Namespace, views: Sequence[Array], objective: Objective, differentiated: bool = True
) -> tuple[Outputs, Residuals]:
    """Return the outputs, 0-d arrays, and the residuals that their derivative needs.

    The outputs are ``(loss,)``, or ``(loss, invariance, variance, covariance)`` where the
    objective asks for each term. Where nothing is `differentiated` the residuals may lack what
    only they would be computed for.
    """
    laid = [laid_out(xp, view, objective.feature_axis, objective.pooled) for view in views]
    coefficient = objective.coefficients((len(laid), *laid[0].shape))
    residuals = tuple(
        _spread(xp, z, objective, coefficient, differentiated)[1]
        for _, z in _groups(xp, laid, coefficient, objective.sizes)
    )
    invariance = None
    if coefficient.invariance is not None:
        nothing, unwanted = [None] * len(laid), (False,) * len(laid)
        invariance = total(
            [
                statistics.squared_deviations(xp, deviations, objective.sizes)
                for deviations, _ in _deviations(
                    xp, laid, nothing, unwanted, True, objective.sizes
                )
            ]
        )
    sums = _sums(xp, invariance, residuals, objective)
    return _outputs(xp, sums, coefficient, objective), residuals


def value_and_gradients(
    xp: Namespace, views: Sequence[Array], objective: Objective, wanted: Sequence[bool]
) -> tuple[Array, list[Array | None]]:
    """Return the loss and its gradient by each wanted view, as `finished` takes it.

    It computes what `evaluate` and `pullback` do, and no part of it twice.
    """
    laid = [laid_out(xp, view, objective.feature_axis, objective.pooled) for view in views]
    coefficient = objective.coefficients((len(laid), *laid[0].shape))
    multipliers = _multipliers((1.0,), objective, coefficient)
    gradients: list[Array | None] = [None] * len(laid)
    residuals = []
    for places, z in _groups(xp, laid, coefficient, objective.sizes):
        zc, spread = _spread(xp, z, objective, coefficient, any(wanted))
        residuals.append(spread)
        for part, chosen in _parts(spread, places, wanted):
            of_part = zc if part is spread else zc[chosen[0] - places[0], ...]
            gradient = _spread_gradient(xp, of_part, part, multipliers, objective)
            _place(gradient, chosen, gradients)
        del z, zc  # their memory is the next group's
    invariance = None
    if coefficient.invariance is not None:
        in_place = len(residuals) == len(laid)
        squares = []
        for deviations, there in _deviations(
            xp, laid, gradients, wanted, in_place, objective.sizes
        ):
            squares.append(statistics.squared_deviations(xp, deviations, objective.sizes))
            _add_deviations(xp, deviations, multipliers.invariance, there, wanted, in_place)
        invariance = total(squares)
    sums = _sums(xp, invariance, residuals, objective)
    loss, *_ = _outputs(xp, sums, coefficient, objective)
    return loss, gradients


def residuals_and_gradient(
    xp: Namespace, view: Array, objective: Objective, multiplier: Any
) -> tuple[Residuals, Array]:
    """Return the residuals of one view and `multiplier` times the gradient, without any value.

    The gradient is as `finished` takes it.
    """
    z = laid_out(xp, view, objective.feature_axis, objective.pooled)
    coefficient = objective.coefficients((1, *z.shape))
    multipliers = _multipliers((multiplier,), objective, coefficient)
    zc, spread = _spread(xp, z, objective, coefficient, differentiated=True)
    return (spread,), _spread_gradient(xp, zc, spread, multipliers, objective)


def outputs_of(xp: Namespace, view: Array, residuals: Residuals, objective: Objective) -> Outputs:
    """Return the outputs that the residuals of one view tell; of `view` only the shape is used."""
    shape = core_shape([view], objective.feature_axis, objective.pooled)
    sums = _sums(xp, None, residuals, objective)
    return _outputs(xp, sums, objective.coefficients(shape), objective)


def _groups(
    xp: Namespace, laid: Sequence[Array], coefficient: Coefficients, sizes: Sizes
) -> Iterator[tuple[range, Array]]:
    """Yield the places of the views of each group, and the group as one array."""
    if not coefficient.of_spread:
        return
    start = 0
    for size in group_sizes((len(laid), *laid[0].shape), sizes, getattr(xp, "stacks", False)):
        yield range(start, start + size), together(xp, laid[start : start + size])
        start += size


def _spread(
    xp: Namespace,
    z: Array,
    objective: Objective,
    coefficient: Coefficients,
    differentiated: bool,
) -> tuple[Array, Spread]:
    """Return the centred views of one group and its residuals."""
    n, d = z.shape[-2:]
    hinged = None
    factors: covariance.Factors | None = None
    zc, mean = statistics.centred_and_mean(xp, z, objective.sizes)
    energies = statistics.energies(xp, zc, objective.sizes)
    if coefficient.variance is not None:
        hinged = statistics.hinged(xp, energies, n, objective)
    if coefficient.covariance is not None:
        scale = coefficient.covariance
        if objective.uses_gram(n, d):
            factors = covariance.gram_route(xp, zc, energies, scale, objective.sizes)
        elif objective.penalty == "smooth_l1":
            factors = smooth_l1.smooth_l1_route(
                xp, zc, scale, coefficient.limit, differentiated, objective.sizes
            )
        else:
            factors = covariance.covariance_route(xp, zc, scale, objective.sizes)
    return zc, Spread(mean, hinged, factors)


def _sums(
    xp: Namespace, invariance: Array | None, residuals: Sequence[Spread], objective: Objective
) -> _Sums:
    """Return the sums over all views; those of each view by itself are told by its residuals."""
    hinges = [
        statistics.sum_all(xp, statistics.hinge(xp, group.hinged, objective), objective.sizes)
        for group in residuals
        if group.hinged is not None
    ]
    values = [
        covariance.value(xp, group.factors, objective.sizes)
        for group in residuals
        if group.factors is not None
    ]
    return _Sums(invariance, total(hinges) if hinges else None, total(values) if values else None)


def _outputs(
    xp: Namespace, sums: _Sums, coefficient: Coefficients, objective: Objective
) -> Outputs:
    # The covariance's coefficient is in its sum already. Whether the others are 0 is not asked:
    # where a size stands for any, they have no truth value.
    scales = [
        0.0 if scale is None else scale
        for scale in (coefficient.invariance, coefficient.variance, 1.0)
    ]
    loss = None
    for weight, scale, plain in zip(objective.weights, scales, sums, strict=True):
        # Of weight 0 a term has no part in the loss, be it infinite.
        if plain is not None and (weight != 0 or not any(objective.weights)):
            loss = _sum(loss, (weight * scale) * plain)
    if not objective.each_term:
        return (loss,)
    return loss, *(
        xp.zeros_like(loss) if plain is None else scale * plain
        for scale, plain in zip(scales, sums, strict=True)
    )


def pullback(
    xp: Namespace,
    views: Sequence[Array],
    residuals: Residuals,
    cotangents: Cotangents,
    objective: Objective,
    wanted: Sequence[bool],
) -> tuple[Array | None, ...]:
    """Return the gradient of each wanted view, in its shape and dtype; None for the others.

    It is the gradient of the sum of the outputs, each times its cotangent.
    """
    laid = [laid_out(xp, view, objective.feature_axis, objective.pooled) for view in views]
    gradients = _gradients(xp, laid, residuals, cotangents, objective, wanted)
    return tuple(
        finished(xp, gradient, view, objective) if is_wanted else None
        for gradient, view, is_wanted in zip(gradients, views, wanted, strict=True)
    )


def finished(xp: Namespace, gradient: Array | None, view: Array, objective: Objective) -> Array:
    """Return `gradient`, laid out in the dtype of the computation, as one of `view`."""
    if gradient is None:  # nothing with a cotangent depends on the view
        return xp.zeros_like(view)
    return like_view(xp, gradient, view, objective.feature_axis, objective.pooled)


def value_and_grad(
    xp: Namespace, views: Sequence[Array], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    loss, gradients = value_and_gradients(xp, views, objective, (True,) * len(views))
    return loss, tuple(
        finished(xp, gradient, view, objective)
        for gradient, view in zip(gradients, views, strict=True)
    )


def pushforward(
    xp: Namespace,
    views: Sequence[Array],
    residuals: Residuals,
    tangents: Sequence[Array | None],
    objective: Objective,
) -> Outputs:
    """Return the change of each output along `tangents`, one a view, None where it is zero.

    Linear in the tangents, which is what reverse mode transposes.
    """
    moving = [tangent is not None for tangent in tangents]
    lay_out = functools.partial(
        laid_out, xp, feature_axis=objective.feature_axis, pooled=objective.pooled
    )
    laid = [lay_out(view) for view in views]
    directions = [None if tangent is None else lay_out(tangent) for tangent in tangents]

    def change(*cotangents: Any) -> Array | None:
        gradients = _gradients(xp, laid, residuals, cotangents, objective, moving)
        changes = [
            statistics.sum_all(xp, gradient * direction, objective.sizes)
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None
        ]
        return total(changes) if changes else None

    if not objective.each_term:
        return (change(1.0),)
    changes = _Sums(
        change(None, 1.0, None, None), change(None, None, 1.0, None), change(None, None, None, 1.0)
    )
    return _outputs(xp, changes, Coefficients(1.0, 1.0, 1.0), objective)


class _Multipliers(NamedTuple):
    """What multiplies each term's part of a gradient; None where it has none."""

    invariance: Any  # of the deviations
    variance: Any  # of the hinge's slope
    covariance: Any  # of the product and the diagonal row


#: The exponents' share of the derivative: of a square, of the hinge (all in its slope), and of
#: the square of a product of the views with themselves.
_EXPONENTS = (2.0, 1.0, 4.0)


def _multipliers(
    cotangents: Cotangents, objective: Objective, coefficients: Coefficients
) -> _Multipliers:
    of_loss, *of_terms = cotangents
    of_terms = of_terms or [None, None, None]

    def multiplier(term: int) -> Any:
        weight, coefficient = objective.weights[term], coefficients[term]
        skipped = of_loss is None or (weight == 0 and any(objective.weights))
        cotangent = _sum(None if skipped else weight * of_loss, of_terms[term])
        if coefficient is None or cotangent is None:
            return None
        return _EXPONENTS[term] * coefficient * cotangent

    return _Multipliers(multiplier(0), multiplier(1), multiplier(2))


def _gradients(
    xp: Namespace,
    laid: Sequence[Array],
    residuals: Residuals,
    cotangents: Cotangents,
    objective: Objective,
    wanted: Sequence[bool],
) -> list[Array | None]:
    """Return the gradient of each wanted view, laid out ``(..., n, d)``; None for the others."""
    k = len(laid)
    coefficient = objective.coefficients((k, *laid[0].shape))
    multipliers = _multipliers(cotangents, objective, coefficient)
    gradients: list[Array | None] = [None] * k
    if multipliers.variance is not None or multipliers.covariance is not None:
        size = k // len(residuals)
        for number, group in enumerate(residuals):
            places = range(number * size, (number + 1) * size)
            for part, chosen in _parts(group, places, wanted):
                z = together(xp, [laid[place] for place in chosen])
                zc = statistics.centred(xp, z, part.mean)
                gradient = _spread_gradient(xp, zc, part, multipliers, objective)
                _place(gradient, chosen, gradients)
    if multipliers.invariance is not None:
        in_place = len(residuals) == k
        for deviations, there in _deviations(
            xp, laid, gradients, wanted, in_place, objective.sizes
        ):
            _add_deviations(xp, deviations, multipliers.invariance, there, wanted, in_place)
    return gradients


def _place(gradient: Array, places: Sequence[int], gradients: list[Array | None]) -> None:
    """Put the gradient of a group among those of the views, at the places of its own."""
    for index, place in enumerate(places):
        gradients[place] = gradient if len(places) == 1 else gradient[index, ...]


def _deviations(
    xp: Namespace,
    laid: Sequence[Array],
    gradients: list[Array | None],
    wanted: Sequence[bool],
    in_place: bool,
    sizes: Sizes,
) -> Iterator[tuple[list[Array], list[Array | None]]]:
    """Yield the deviations of each block of samples, and the part of the gradients there.

    With more than one block that part is views of the gradients, to be updated in place. There is
    one block where a wanted gradient has no array yet: what is added would be lost with the view.
    """
    have_arrays = all(
        gradient is not None
        for gradient, is_wanted in zip(gradients, wanted, strict=True)
        if is_wanted
    )
    rows = blocks(xp, laid[0], -2, sizes) if in_place and have_arrays else WHOLE
    if rows == WHOLE:
        yield statistics.deviations(xp, laid), gradients
        return
    for block in rows:
        there = (..., block, slice(None))
        yield (
            statistics.deviations(xp, [z[there] for z in laid]),
            [None if gradient is None else gradient[there] for gradient in gradients],
        )


def _add_deviations(
    xp: Namespace,
    deviations: Sequence[Array],
    multiplier: Any,
    gradients: list[Array | None],
    wanted: Sequence[bool],
    in_place: bool,
) -> None:
    """Add the gradient of the invariance to the wanted `gradients`; `deviations` are used up.

    Gradients of one group are slices of one array, so they are not added to `in_place`: each is
    to have memory of its own in the end.
    """
    parts = [owned.multiply(xp, array, multiplier) for array in deviations]
    add = functools.partial(owned.add, xp) if in_place else operator.add
    subtract = functools.partial(owned.subtract, xp) if in_place else operator.sub
    for place in (place for place, is_wanted in enumerate(wanted) if is_wanted):
        gradient = gradients[place]
        if place < len(parts):
            gradients[place] = _sum(gradient, parts[place], add)
        else:  # those of two views are one, z_0 - z_1
            (change,) = parts
            gradients[place] = -change if gradient is None else subtract(gradient, change)


def _parts(
    group: Spread, places: Sequence[int], wanted: Sequence[bool]
) -> Iterator[tuple[Spread, list[int]]]:
    """Yield what of a group to work on at once, with the places of its views.

    It is the whole group, or, where not every view's gradient is wanted, the wanted ones by
    themselves.
    """
    chosen = [place for place in places if wanted[place]]
    if len(chosen) == len(places):
        yield group, chosen
    else:
        for place in chosen:
            yield _of_view(group, place - places[0]), [place]


def _of_view(group: Spread, view: int) -> Spread:
    """Return what one view of a group of several has."""

    def one(array: Array | None) -> Array | None:
        return None if array is None else array[view, ...]

    factors = group.factors
    if factors is not None:
        factors = type(factors)(*map(one, factors))
    return Spread(one(group.mean), one(group.hinged), factors)


def _spread_gradient(
    xp: Namespace, zc: Array, group: Spread, multipliers: _Multipliers, objective: Objective
) -> Array | None:
    """Return the gradient of the variance and covariance terms of a group; `zc` is used up."""
    _, hinged, factors = group
    row = None
    if multipliers.variance is not None:
        slope = statistics.hinge_slope(xp, hinged, zc.shape[-2], objective)
        row = multipliers.variance * slope
    if multipliers.covariance is not None:
        return covariance.gradient(xp, zc, factors, multipliers.covariance, row, objective.sizes)
    return None if row is None else owned.multiply(xp, zc, row[..., None, :])


def _sum(a: Any, b: Any, add: Callable[[Any, Any], Any] = operator.add) -> Any:
    """Return a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return add(a, b)
