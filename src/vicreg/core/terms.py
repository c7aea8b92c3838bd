"""The three terms and the loss, and their derivative in both directions.

``evaluate`` returns the values and the residuals; ``pullback`` forms gradients from the residuals
(reverse mode), and ``pushforward`` the change of the values along a direction (forward mode). The
derivative of every term is linear in the cotangents, so one rule serves the loss, each term alone
and any weighting of them. A view's whole gradient is one product, one row and one difference:

    α (K zc or zc O) + zc ∘ w + β (z − z').
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vicreg.core import covariance, statistics
from vicreg.core.layout import core_shape, like_view, stacked
from vicreg.core.objective import Coefficients, Objective

Array = Any
Namespace = Any
Outputs = tuple[Array, ...]  # (loss,), or (loss, invariance, variance, covariance)
Cotangents = Sequence[Any]  # of the outputs, each a number or a 0-d array, or None for zero


class Residuals(NamedTuple):
    """What the derivative is formed from; None for what the objective has no use for.

    The axis of the views, k, comes first in each, but for the difference of two views.
    """

    deviations: Array  # z - z' of two views; of more, of each from their mean
    centred: Array  # (k, ..., n, d)
    variance: Array  # (k, ..., d)
    factors: Any  # covariance.Factors


def flatten(residuals: Residuals) -> tuple[Array, ...]:
    """Return the residuals that are there, in order: for frameworks that save arrays alone."""
    *plain, factors = residuals
    return tuple(array for array in (*plain, *(factors or ())) if array is not None)


def unflatten(arrays: Sequence[Array], views: Sequence[Array], objective: Objective) -> Residuals:
    """Return the residuals of `views` that `flatten` made `arrays` of."""
    shape = core_shape(views, objective.feature_axis)
    coefficient = objective.coefficients(shape)
    left = iter(arrays)
    deviations = None if coefficient.invariance is None else next(left)
    spread = coefficient.variance is not None or coefficient.covariance is not None
    zc = next(left) if spread else None
    variance = None if coefficient.variance is None else next(left)
    if coefficient.covariance is None:
        return Residuals(deviations, zc, variance, None)
    gram = objective.uses_gram(*shape[-2:])
    kind = covariance.GramFactors if gram else covariance.CovarianceFactors
    return Residuals(deviations, zc, variance, kind(*left))


def evaluate(
    xp: Namespace, views: Sequence[Array], objective: Objective
) -> tuple[Outputs, Residuals]:
    """Return the outputs, 0-d arrays, and the residuals that their derivative needs.

    The outputs are ``(loss,)``, or ``(loss, invariance, variance, covariance)`` where the
    objective asks for each term.
    """
    z = stacked(xp, views, objective.feature_axis)
    n, d = z.shape[-2:]
    coefficient = objective.coefficients(z.shape)
    invariance_term = variance_term = covariance_term = None
    deviations: Array = None
    zc: Array = None
    energies: Array = None
    variance: Array = None
    factors: Any = None

    if coefficient.invariance is not None:
        deviations = statistics.deviations(xp, z)
        invariance_term = coefficient.invariance * statistics.sum_of_squares(xp, deviations)
    if coefficient.variance is not None or coefficient.covariance is not None:
        zc = statistics.centred(xp, z)
        energies = xp.sum(zc * zc, axis=-2)
    if coefficient.variance is not None:
        variance = energies / (n - objective.convention.variance_correction)
        variance_term = coefficient.variance * xp.sum(statistics.hinge(xp, variance, objective))
    if coefficient.covariance is not None:
        if objective.uses_gram(n, d):
            covariance_term, factors = covariance.gram_route(
                xp, zc, energies, coefficient.covariance
            )
        else:
            covariance_term, factors = covariance.covariance_route(xp, zc, coefficient.covariance)

    terms = (invariance_term, variance_term, covariance_term)
    residuals = Residuals(deviations, zc, variance, factors)
    return _outputs(xp, terms, objective), residuals


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
    gradients = _gradients(xp, residuals, cotangents, objective, wanted)

    def finished(gradient: Array | None, view: Array) -> Array:
        if gradient is None:  # nothing with a cotangent depends on the views
            return xp.zeros_like(view)
        return like_view(xp, gradient, view, objective.feature_axis)

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
    residuals: Residuals,
    tangents: Sequence[Array | None],
    objective: Objective,
) -> Outputs:
    """Return the change of each output along `tangents`, one a view, None where it is zero.

    Linear in the tangents, which is what reverse mode transposes.
    """
    moving = [tangent is not None for tangent in tangents]
    along = stacked(xp, [t for t in tangents if t is not None], objective.feature_axis)
    place = iter(range(along.shape[0]))
    directions = [along[next(place), ...] if moves else None for moves in moving]

    def change(*cotangents: Any) -> Array | None:
        gradients = _gradients(xp, residuals, cotangents, objective, moving)
        changes = [
            xp.sum(gradient * direction)
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None
        ]
        return sum(changes[1:], changes[0]) if changes else None

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
    residuals: Residuals,
    cotangents: Cotangents,
    objective: Objective,
    wanted: Sequence[bool],
) -> list[Array | None]:
    """Return the gradient of each wanted view, laid out ``(..., n, d)``; None for the others."""
    k = len(wanted)
    coefficient = objective.coefficients(_shape(residuals, k))
    multipliers = _multipliers(cotangents, objective, coefficient)
    # All views in one product, or only those of the views that are asked for.
    groups = [range(k)] if all(wanted) else [range(a, a + 1) for a in range(k) if wanted[a]]
    gradients: list[Array | None] = [None] * k
    for group in groups:
        part = residuals if len(group) == k else _of_view(residuals, group.start)
        spread = _spread_gradient(xp, part, multipliers, objective)
        for place, view in enumerate(group):
            of_spread = None if spread is None else spread[place, ...]
            of_deviations = _deviations_gradient(residuals, view, k, multipliers)
            gradients[view] = _sum(of_spread, of_deviations)
    return gradients


def _deviations_gradient(
    residuals: Residuals, view: int, k: int, multipliers: _Multipliers
) -> Array | None:
    """Return the invariance term's gradient of one view."""
    if multipliers.invariance is None:
        return None
    if k == 2:  # the deviations are z_0 - z_1
        sign = 1.0 if view == 0 else -1.0
        return (sign * multipliers.invariance) * residuals.deviations
    return multipliers.invariance * residuals.deviations[view, ...]


def _spread_gradient(
    xp: Namespace,
    residuals: Residuals,
    multipliers: _Multipliers,
    objective: Objective,
) -> Array | None:
    """Return the gradient of the variance and covariance terms, of all the residuals' views."""
    row = product = None
    if multipliers.variance is not None:
        m = residuals.centred.shape[-2] - objective.convention.variance_correction
        slope = statistics.hinge_slope(xp, residuals.variance, m, objective)
        row = multipliers.variance * slope
    if multipliers.covariance is not None:
        alpha = multipliers.covariance
        product = covariance.product(xp, residuals.centred, residuals.factors, alpha)
        row = _sum(row, covariance.diagonal_row(residuals.factors, alpha))
    along_row = None if row is None else residuals.centred * row[..., None, :]
    return _sum(product, along_row)


def _sum(a: Any, b: Any) -> Any:
    """Return a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _of_view(residuals: Residuals, view: int) -> Residuals:
    """Return the residuals of one view, its axis kept."""

    def one(array: Array | None) -> Array | None:
        return None if array is None else array[view : view + 1, ...]

    factors = residuals.factors
    if factors is not None:
        factors = type(factors)(*map(one, factors))
    return Residuals(None, one(residuals.centred), one(residuals.variance), factors)


def _shape(residuals: Residuals, k: int) -> tuple[int, ...]:
    """Return ``(k, ..., n, d)``."""
    if residuals.centred is not None:
        return tuple(residuals.centred.shape)
    shape = tuple(residuals.deviations.shape)
    return (k, *shape) if k == 2 else shape
