"""Whether each term is on ordinary arrays what it was measured to be on simple ones.

A function that is none of the conventions may do to the simple arrays what no term does. So what
departs is said only where ordinary arrays have it too. There a term can be had alone by what does
not change: the order of one view's samples is seen by nothing but what compares the views, and
the order of each feature's own values by nothing else but what compares features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.functions import FunctionError
from vicreg.tools.identification.laws import snapped
from vicreg.tools.identification.measure import Measured
from vicreg.tools.identification.model import Model, term_models, terms_of
from vicreg.tools.identification.probes import NoValueError, Shape, Values, ordinary_pairs
from vicreg.tools.identification.reading import Laws, Reading

__all__ = ["confirmed"]

_NAMES = ("invariance", "variance", "covariance")
_ELSEWHERE = "not recognised: on ordinary arrays it is not what it is on simple ones"

Pair = tuple[Floats, Floats]


class _Finding(NamedTuple):
    """What ordinary arrays say of a term."""

    as_measured: bool
    weight: float | None  # of the convention's own term, where it is that


def confirmed(f: Values, measured: Measured, laws: Laws, reading: Reading) -> Reading:
    """Return `reading` with those departures alone that ordinary arrays have too.

    Parameters
    ----------
    f : Values
        The function.
    measured : Measured
        What simple arrays showed of it.
    laws : Laws
        The weights by each law that fits it.
    reading : Reading
        What it was read as.

    Returns
    -------
    Reading
        A term that is right on ordinary arrays has its weight there and departs in nothing; one
        that is neither right nor as it was measured is not recognised, and has no weight.
    """
    models = term_models(measured, laws, reading)
    own = [_term(reading, place) for place in range(3)]
    base = f.shapes[0]
    shapes = [*f.shapes, Shape(11, base.d)]
    if not measured.covariance.even:  # it is known of that many features alone
        shapes = [shape for shape in shapes if shape.d == base.d]
    pairs = [pair for shape in shapes for pair in ordinary_pairs(shape)]
    invariance = _finding(f, models[0], own[0], list(_reordered(f, pairs)))
    covariance = _finding(f, models[2], own[2], list(_shuffled(f, pairs)))
    rest = models[2] if covariance.as_measured else _times(covariance.weight, own[2])
    constant = next(iter(measured.constants.values()))
    # Where something else sees the mean of a view, only one whose mean is zero has no more left.
    centred = [(z1 - np.mean(z1, axis=0), z2) for z1, z2 in pairs]
    alone = list(_alone(f, centred, rest, constant))
    variance = _finding(f, models[1], own[1], alone)
    with_means = _finding(f, models[1], own[1], list(_alone(f, pairs, rest, constant)))
    variance = _Finding(variance.as_measured and with_means.as_measured, variance.weight)

    weights, departures = list(reading.weights), []
    for place, found in enumerate((invariance, variance, covariance)):
        name = _NAMES[place]
        said = [text for text in reading.departures if text.startswith(f"{name}:")]
        if found.as_measured or not said:
            departures += said
        elif found.weight is not None:
            weights[place] = snapped(found.weight, 2.0**6 * laws.error)
        else:
            weights[place] = None
            if place == 1 and _finding(f, None, _hinge_of_mean(reading), alone).weight:
                departures.append("variance: the hinge is not taken feature by feature")
            elif all("not recognised" in text for text in said):
                departures += said
            else:
                departures.append(f"{name}: {_ELSEWHERE}")
    if None not in weights:
        departures += [text for text in reading.departures if not text.startswith(_NAMES)]
    first, second, third = weights
    return replace(reading, weights=(first, second, third), departures=tuple(departures))


class _Change(NamedTuple):
    """Two pairs of views between which one term changes, and what the function makes of it."""

    before: Pair
    after: Pair | None  # None where the other terms were taken off
    change: float
    size: float  # of what was subtracted

    def of(self, model: Model) -> float:
        return model(*self.before) - (model(*self.after) if self.after else 0.0)


def _finding(f: Values, model: Model | None, own: Model, found: list[_Change]) -> _Finding:
    """Hold a term against how it was measured, and against the convention's own."""
    if not found:
        return _Finding(False, None)
    actual = np.asarray([each.change for each in found])
    allowed = 2.0**15 * f.roundoff * np.asarray([each.size for each in found]) + f.noise
    seen = bool(np.any(np.abs(actual) > 2.0**4 * allowed))

    def agrees(values: Floats) -> bool:
        return bool(np.all(np.abs(values - actual) <= allowed))

    measured = np.asarray([each.of(model) for each in found]) if model is not None else actual
    as_measured = model is not None and agrees(measured) and (seen or not np.any(measured))
    plain = np.asarray([each.of(own) for each in found])
    weight = float(plain @ actual / (plain @ plain)) if np.any(plain) else 0.0
    return _Finding(as_measured, weight if seen and agrees(weight * plain) else None)


def _term(reading: Reading, place: int) -> Model:
    """Return the convention's own term, of weight 1."""

    def term(z1: Floats, z2: Floats) -> float:
        return terms_of(reading.convention, reading.gamma, reading.eps, z1, z2)[place]

    return term


def _times(weight: float | None, term: Model) -> Model | None:
    return None if weight is None else lambda z1, z2: weight * term(z1, z2)


def _hinge_of_mean(reading: Reading) -> Model:
    """Return the hinge of what the features' std or variance is on average."""
    gamma = reading.gamma or 1.0

    def term(z1: Floats, z2: Floats) -> float:
        # Of a γ above all of them the term is what γ exceeds the average by.
        above = 1.0 + gamma + float(np.max(np.abs(z1))) * 2
        above = above if reading.convention.hinge_on == "std" else above**2
        views = 2.0 if reading.convention.variance_over_views == "sum" else 1.0
        exceeds = terms_of(reading.convention, above, reading.eps, z1, z1)[1] / views
        return max(0.0, gamma - above + exceeds)

    return term


def _change(f: Values, before: Pair, after: Pair) -> _Change | None:
    """Return what changes; None where the function has no value for it."""
    try:
        first, second = f(*before), f(*after)
    except (FunctionError, NoValueError):
        return None
    return _Change(before, after, first - second, abs(first) + abs(second))


def _reordered(f: Values, pairs: list[Pair]) -> Iterator[_Change]:
    """Change what compares the views alone."""
    for z1, z2 in pairs:
        found = _change(f, (z1, z2), (z1, np.roll(z2, 1, axis=0)))
        if found is not None:
            yield found


def _shuffled(f: Values, pairs: list[Pair]) -> Iterator[_Change]:
    """Change what compares features alone: of one view beside one of zeros, where it can be."""
    rng = np.random.default_rng(0)
    for z, _ in pairs:
        shuffled, zeros = rng.permuted(z, axis=0), np.zeros_like(z)
        found = [
            _change(f, (z, zeros), (shuffled, zeros)),
            _change(f, (zeros, z), (zeros, shuffled)),
        ]
        if None in found:
            found = [_change(f, (z, z), (shuffled, shuffled))]
        yield from (each for each in found if each is not None)


def _alone(
    f: Values, pairs: list[Pair], covariance: Model | None, constant: float
) -> Iterator[_Change]:
    """Take off all but the variance: of equal views the invariance is 0."""
    if covariance is None:
        return
    for z, _ in pairs:
        try:
            value = f(z)
        except (FunctionError, NoValueError):
            continue
        rest = constant + covariance(z, z)
        if math.isfinite(rest):
            yield _Change((z, z), None, value - rest, abs(value) + abs(rest))
