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

from vicreg.core import covariance, owned, smooth_l1, statistics
from vicreg.core.layout import core_shape, group_sizes, laid_out, like_view, together
from vicreg.core.objective import Coefficients, Objective

Array = Any
Namespace = Any
Outputs = tuple[Array, ...]  # (loss,), or (loss, invariance, variance, covariance)
Cotangents = Sequence[Any]  # of the outputs, each a number or a 0-d array, or None for zero


class Spread(NamedTuple):
    """What the gradient of one group's variance and covariance is formed from, besides the views.

    Rows and small matrices alone: to centre a view anew costs less than to keep it.
    """

    mean: Array  # of the views less their first sample, (..., 1, d)
    variance: Array | None  # (..., d)
    factors: Any  # covariance.Factors or None


Residuals = tuple[Spread, ...]


def flatten(residuals: Residuals) -> tuple[Array, ...]:
    """Return the residuals that are there, in order: for frameworks that save arrays alone."""
    return tuple(
        array
        for mean, variance, factors in residuals
        for array in (mean, variance, *(factors or ()))
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
        variance = None if coefficient.variance is None else next(left)
        if coefficient.covariance is None:
            return Spread(mean, variance, None)
        return Spread(mean, variance, kind(*(next(left) for _ in kind._fields)))

    return tuple(group() for _ in group_sizes(shape))


def _kind_of_factors(objective: Objective, n: int, d: int) -> type:
    if objective.uses_gram(n, d):
        return covariance.GramFactors
    if objective.penalty == "smooth_l1" and smooth_l1.in_blocks(n, d):
        return covariance.ProductFactors
    return covariance.CovarianceFactors


def evaluate(
    xp: Namespace, views: Sequence[Array], objective: Objective, differentiated: bool = True
) -> tuple[Outputs, Residuals]:
    """Return the outputs, 0-d arrays, and the residuals that their derivative needs.

    The outputs are ``(loss,)``, or ``(loss, invariance, variance, covariance)`` where the
    objective asks for each term. Where nothing is `differentiated` the residuals may lack what
    only they would be computed for.
    """
    shape = core_shape(views, objective.feature_axis, objective.pooled)
    coefficient = objective.coefficients(shape)
    laid = [laid_out(xp, view, objective.feature_axis, objective.pooled) for view in views]
    invariance_term = variance_term = covariance_term = None
    residuals: Residuals = ()

    if coefficient.invariance is not None:
        invariance_term = coefficient.invariance * statistics.squared_deviations(xp, laid)
    if coefficient.of_spread:
        left = iter(laid)
        sizes = group_sizes(shape, getattr(xp, "stacks", False))
        groups = ([next(left) for _ in range(size)] for size in sizes)
        found = [
            _spread(xp, together(xp, group), objective, coefficient, differentiated)
            for group in groups
        ]
        residuals, hinges, covariances = zip(*found, strict=True)
        if coefficient.variance is not None:
            variance_term = coefficient.variance * _total(hinges)
        if coefficient.covariance is not None:
            covariance_term = _total(covariances)

    terms = (invariance_term, variance_term, covariance_term)
    return _outputs(xp, terms, objective), residuals


def _spread(
    xp: Namespace,
    z: Array,
    objective: Objective,
    coefficient: Coefficients,
    differentiated: bool,
) -> tuple[Spread, Array | None, Array | None]:
    """Return what is computed of one group: residuals, summed hinge, covariance term."""
    n, d = z.shape[-2:]
    variance = hinge = value = None
    factors: covariance.Factors | None = None
    mean, energies = statistics.mean_and_energies(xp, z)
    if coefficient.variance is not None:
        variance = energies / (n - objective.convention.variance_correction)
        hinge = xp.sum(statistics.hinge(xp, variance, objective))
    if coefficient.covariance is not None:
        scale = coefficient.covariance
        zc = statistics.centred(xp, z, mean)
        if objective.uses_gram(n, d):
            value, factors = covariance.gram_route(xp, zc, energies, scale)
        elif objective.penalty == "smooth_l1":
            limit = objective.limit(n, scale)
            value, factors = smooth_l1.smooth_l1_route(xp, zc, scale, limit, differentiated)
        else:
            value, factors = covariance.covariance_route(xp, zc, scale)
    return Spread(mean, variance, factors), hinge, value


def _total(values: Sequence[Any]) -> Any:
    return functools.reduce(operator.add, values)


def _outputs(xp: Namespace, terms: Sequence[Array | None], objective: Objective) -> Outputs:
    loss = None
    for weight, term in zip(objective.weights, terms, strict=True):
        # Of weight 0 a term has no part in the loss, be it infinite.
        if term is not None and (weight != 0 or not any(objective.weights)):
            loss = weight * term if loss is None else loss + weight * term
    if not objective.each_term:
        return (loss,)
    return (loss, *(xp.zeros_like(loss) if term is None else term for term in terms))


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

    def finished(gradient: Array | None, view: Array) -> Array:
        if gradient is None:  # nothing with a cotangent depends on the views
            return xp.zeros_like(view)
        return like_view(xp, gradient, view, objective.feature_axis, objective.pooled)

    return tuple(
        finished(gradient, view) if is_wanted else None
        for gradient, view, is_wanted in zip(gradients, views, wanted, strict=True)
    )


def value_and_grad(
    xp: Namespace, views: Sequence[Array], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    (loss, *_), residuals = evaluate(xp, views, objective)
    return loss, pullback(xp, views, residuals, (1.0,), objective, (True,) * len(views))


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
            xp.sum(gradient * direction)
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None
        ]
        return _total(changes) if changes else None

    if not objective.each_term:
        return (change(1.0),)
    invariance = change(None, 1.0, None, None)
    variance = change(None, None, 1.0, None)
    return _outputs(xp, (invariance, variance, change(None, None, None, 1.0)), objective)


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
    for part, views in _parts(residuals, wanted):
        z = together(xp, [laid[view] for view in views])
        spread = _spread_gradient(xp, z, part, multipliers, objective)
        if spread is not None:
            for place, view in enumerate(views):
                gradients[view] = spread if len(views) == 1 else spread[place, ...]
    if multipliers.invariance is not None:
        deviations = [
            owned.multiply(xp, array, multipliers.invariance)
            for array in statistics.deviations(xp, laid)
        ]
        # Gradients of one group are slices of one array: each is to have its own in the end.
        in_place = len(residuals) == k
        add = functools.partial(owned.add, xp) if in_place else operator.add
        subtract = functools.partial(owned.subtract, xp) if in_place else operator.sub
        for view in (view for view in range(k) if wanted[view]):
            gradient = gradients[view]
            if view < len(deviations):
                gradients[view] = _sum(gradient, deviations[view], add)
            else:  # those of two views are one, z_0 - z_1
                (change,) = deviations
                gradients[view] = -change if gradient is None else subtract(gradient, change)
    return gradients


def _parts(groups: Sequence[Spread], wanted: Sequence[bool]) -> Iterator[tuple[Spread, list[int]]]:
    """Yield what to work on at once, with the places of its views: whole groups, or single views.

    Of a group of which not every view's gradient is wanted, the wanted ones are taken one by one.
    """
    start, size = 0, len(wanted) // max(len(groups), 1)
    for group in groups:
        views = [view for view in range(start, start + size) if wanted[view]]
        if len(views) == size:
            yield group, views
        else:
            for view in views:
                yield _of_view(group, view - start), [view]
        start += size


def _of_view(group: Spread, view: int) -> Spread:
    """Return what one view of a group of several has."""

    def one(array: Array | None) -> Array | None:
        return None if array is None else array[view, ...]

    factors = group.factors
    if factors is not None:
        factors = type(factors)(*map(one, factors))
    return Spread(one(group.mean), one(group.variance), factors)


def _spread_gradient(
    xp: Namespace, z: Array, group: Spread, multipliers: _Multipliers, objective: Objective
) -> Array | None:
    """Return the gradient of the variance and covariance terms of a group, as a new array."""
    mean, variance, factors = group
    row = product = None
    if multipliers.variance is None and multipliers.covariance is None:
        return None
    zc = statistics.centred(xp, z, mean)
    if multipliers.variance is not None:
        m = z.shape[-2] - objective.convention.variance_correction
        row = multipliers.variance * statistics.hinge_slope(xp, variance, m, objective)
    if multipliers.covariance is not None:
        alpha = multipliers.covariance
        product = covariance.product(xp, zc, factors, alpha)
        row = _sum(row, covariance.diagonal_row(factors, alpha))
    along_row = None if row is None else owned.multiply(xp, zc, row[..., None, :])
    return _sum(product, along_row, functools.partial(owned.add, xp))


def _sum(a: Any, b: Any, add: Callable[[Any, Any], Any] = operator.add) -> Any:
    """Return a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return add(a, b)
