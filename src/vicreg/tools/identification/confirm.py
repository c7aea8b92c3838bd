"""Whether each term is on ordinary arrays what it was measured to be on the simple probes.

A function that is none of the conventions may do to a probe what no term does. So a departure is
reported only if ordinary arrays show it too. There a term is isolated by what does not change: the
order of one view's samples matters to nothing but the comparison of the views, and the order of
each feature's own values to nothing else but the comparison of features.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.identification.fitting import fit
from vicreg.tools.identification.model import term_models, terms_of
from vicreg.tools.identification.probes import (
    Model,
    Pair,
    Probed,
    Shape,
    ordinary_pairs,
    valued,
)
from vicreg.tools.identification.reading import NAMES, NOT_BY_FEATURE, Reading
from vicreg.tools.identification.terms import Measured, snapped

__all__ = ["confirmed"]

_ELSEWHERE = "not recognised: on ordinary arrays it is not what it is on simple ones"


class _Finding(NamedTuple):
    """What ordinary arrays show of a term."""

    as_measured: bool
    weight: float | None  # of the convention's own term, if it is that


def confirmed(f: Probed, measured: Measured, reading: Reading) -> Reading:
    """Return `reading` with only those departures that ordinary arrays show too.

    A term that is right on ordinary arrays gets the weight that it has there, and no departure.
    One that is neither right nor as measured is not recognised, and has no weight.
    """
    first, second, third = term_models(measured, reading)
    base = f.shapes[0]
    shapes = [*f.shapes, Shape(11, base.d)]
    if not measured.covariance.even:  # only that number of features was measured
        shapes = [shape for shape in shapes if shape.d == base.d]
    pairs = [pair for shape in shapes for pair in ordinary_pairs(shape)]
    # The order of the samples of one view matters only where the views are compared.
    orders = [((z1, z2), (z1, np.roll(z2, 1, axis=0))) for z1, z2 in pairs]
    reordered = [change for order in orders for change in _change(f, *order)]
    invariance = _finding(f, first, _own_term(reading, 0), reordered)
    own = _own_term(reading, 2)
    covariance = _finding(f, third, own, _shuffled(f, pairs))
    if not covariance.as_measured:
        weight = covariance.weight
        third = None if weight is None else lambda z1, z2: weight * own(z1, z2)
    constant = next(iter(measured.constants.values()))
    # If anything else depends on the mean of a view, only views of mean zero isolate the variance.
    centred = [(z1 - np.mean(z1, axis=0), z2) for z1, z2 in pairs]
    alone = _alone(f, centred, third, constant)
    variance = _finding(f, second, _own_term(reading, 1), alone)
    with_means = _finding(f, second, None, _alone(f, pairs, third, constant))
    variance = variance._replace(as_measured=variance.as_measured and with_means.as_measured)

    weights, departures = list(reading.weights), []
    for place, finding in enumerate((invariance, variance, covariance)):
        name = NAMES[place]
        said = [text for text in reading.departures if text.startswith(f"{name}:")]
        if finding.as_measured or not said:
            departures += said
        elif finding.weight is not None:
            weights[place] = snapped(finding.weight, 2.0**6 * measured.error)
        else:
            weights[place] = None
            if place == 1 and _finding(f, None, _hinge_of_mean(reading), alone).weight:
                departures.append(NOT_BY_FEATURE)
            elif all("not recognised" in text for text in said):
                departures += said
            else:
                departures.append(f"{name}: {_ELSEWHERE}")
    if None not in weights:
        departures += [text for text in reading.departures if not text.startswith(NAMES)]
    return replace(
        reading, weights=(weights[0], weights[1], weights[2]), departures=tuple(departures)
    )


class _Change(NamedTuple):
    """Two pairs of views between which one term changes, and how the function changes."""

    before: Pair
    after: Pair | None  # None if all other terms were subtracted instead
    change: float
    size: float  # of the numbers whose difference it is

    def of(self, model: Model) -> float:
        """Return how a model of the term changes."""
        return model(*self.before) - (model(*self.after) if self.after else 0.0)


def _finding(
    f: Probed, model: Model | None, own: Model | None, changes: list[_Change]
) -> _Finding:
    """Compare a term with how it was measured, and with the convention's own."""
    if not changes:
        return _Finding(False, None)
    actual = np.asarray([each.change for each in changes])
    allowed = 2.0**15 * f.roundoff * np.asarray([each.size for each in changes]) + f.noise
    seen = bool(np.any(np.abs(actual) > 2.0**4 * allowed))

    def agrees(values: Floats) -> bool:
        return bool(np.all(np.abs(values - actual) <= allowed))

    as_measured, weight = False, None
    if model is not None:
        values = np.asarray([each.of(model) for each in changes])
        as_measured = agrees(values) and (seen or not np.any(values))
    if own is not None and seen:
        best = fit(np.asarray([[each.of(own)] for each in changes]), actual)
        weight = float(best.factors[0]) if agrees(best.values) else None
    return _Finding(as_measured, weight)


def _own_term(reading: Reading, place: int) -> Model:
    """Return the convention's own term, with weight 1."""
    return lambda z1, z2: float(
        terms_of(reading.convention, reading.gamma, reading.eps, [(z1, z2)])[0, place]
    )


def _hinge_of_mean(reading: Reading) -> Model:
    """Return the hinge of the mean of the features' stds or variances."""
    convention = reading.convention
    eps = convention.eps if reading.eps is None else reading.eps

    def term(z1: Floats, z2: Floats) -> float:
        values = np.var(z1, axis=0, ddof=convention.variance_correction)
        if convention.hinge_on == "std":
            values = np.sqrt(values + eps)
        return max(0.0, (reading.gamma or 1.0) - float(np.mean(values)))

    return term


def _change(f: Probed, before: Pair, after: Pair) -> list[_Change]:
    """Return the change; none if the function has no value for one of the pairs."""
    _, values = valued(f, (before, after))
    if len(values) < 2:
        return []
    return [_Change(before, after, values[0] - values[1], abs(values[0]) + abs(values[1]))]


def _shuffled(f: Probed, pairs: list[Pair]) -> list[_Change]:
    """Change only what compares features: in one view, the other being 0, or else in both."""
    rng = np.random.default_rng(0)
    changes = []
    for z, _ in pairs:
        shuffled, zeros = rng.permuted(z, axis=0), np.zeros_like(z)
        first = _change(f, (z, zeros), (shuffled, zeros))
        second = _change(f, (zeros, z), (zeros, shuffled))
        changes += first + second if first and second else _change(f, (z, z), (shuffled, shuffled))
    return changes


def _alone(
    f: Probed, pairs: list[Pair], covariance: Model | None, constant: float
) -> list[_Change]:
    """Subtract all but the variance: the invariance of equal views is 0."""
    if covariance is None:
        return []
    changes = []
    for pair, value in zip(*valued(f, [(z, z) for z, _ in pairs]), strict=True):
        rest = constant + covariance(*pair)
        if math.isfinite(rest):
            changes.append(_Change(pair, None, value - rest, abs(value) + abs(rest)))
    return changes
