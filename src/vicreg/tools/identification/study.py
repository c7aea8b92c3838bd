"""The steps: measure each term, read them as a convention, compare on random arrays."""

from __future__ import annotations

import itertools
import math
import warnings
from types import MappingProxyType
from typing import Any

import numpy as np

from vicreg._conventions import Weights
from vicreg.tools.backends import Floats
from vicreg.tools.functions import LossFunction
from vicreg.tools.identification.confirm import confirmed
from vicreg.tools.identification.fitting import fit
from vicreg.tools.identification.measure import measure
from vicreg.tools.identification.model import departing_model, terms_of
from vicreg.tools.identification.probes import (
    NoValueError,
    Pair,
    Probed,
    Shape,
    ordinary_pairs,
    valued,
)
from vicreg.tools.identification.reading import Reading, nearest_reading
from vicreg.tools.identification.result import Identification, short
from vicreg.tools.identification.terms import Measured
from vicreg.tools.identification.wrapped import wrapped

__all__ = ["identified"]


def identified(function: LossFunction) -> Identification:
    """Return what `function` is."""
    with warnings.catch_warnings():
        # A function may overflow or divide by zero for a probe: its values show that.
        warnings.simplefilter("ignore")
        try:
            return _identified(Probed(function))
        except NoValueError as error:
            return Identification(
                convention=None,
                weights=(None, None, None),
                gamma=None,
                eps=None,
                nearest=None,
                departures=(str(error),),
                explained=False,
                residual=math.nan,
            )


def _identified(f: Probed) -> Identification:
    if _precision(f) == "half precision":
        raise NoValueError(
            "it follows no change of its input below a hundredth, as in half precision: too "
            "coarse to identify"
        )
    measured = measure(f)
    reading, readings = nearest_reading(measured)
    pairs, values = _random_values(f, reading.gamma)
    if np.ptp(f.seen) <= f.slack * np.max(np.abs(f.seen)):
        raise NoValueError(f"it is constant: {short(values[0])} for all arrays")
    if not reading.departures:
        terms = terms_of(reading.convention, reading.gamma, reading.eps, pairs)
        model = terms @ _full(reading)
        if _agree(f, model, values, reading):
            same = {
                other.convention.name: _full(other)
                for other in readings
                if not other.departures
                and (other.gamma, other.eps) == (reading.gamma, reading.eps)
            }
            return _answer(
                f,
                reading,
                convention=reading.convention.name,
                departures=_of_eps(reading),
                equivalents=MappingProxyType(same),
                residual=_largest(model, values),
            )
    return _departing(f, measured, reading, pairs, values)


def _departing(
    f: Probed, measured: Measured, reading: Reading, pairs: list[Pair], values: Floats
) -> Identification:
    explained = False
    model = departing_model(measured, reading) if reading.departures else None
    if model is not None:
        d = f.shapes[0].d  # of others an uneven covariance is not known
        seen = [i for i, (z, _) in enumerate(pairs) if measured.covariance.even or z.shape[1] == d]
        modelled = np.asarray([model(*pairs[i]) for i in seen])
        explained = _agree(f, modelled, values[seen], reading, 8.0)
    if not explained:
        within = wrapped(f, measured, reading, pairs)
        reading, explained = within or (confirmed(f, measured, reading), False)
    departures = reading.departures
    if not explained and not any("not recognised" in departure for departure in departures):
        departures += (
            "and more that is not recognised: this does not give its values"
            if departures
            else "something is not recognised: on random arrays these numbers do not give its "
            "values",
        )
    terms = terms_of(reading.convention, reading.gamma, reading.eps, pairs)
    return _answer(
        f,
        reading,
        convention=None,
        departures=departures,
        explained=explained,
        residual=_largest(_nearest_values(terms, values), values),
    )


def _answer(f: Probed, reading: Reading, **fields: Any) -> Identification:
    return Identification(
        weights=reading.weights,
        gamma=reading.gamma,
        eps=reading.eps,
        nearest=reading.convention.name,
        precision=_precision(f),
        notes=_notes(f),
        **fields,
    )


def _random_values(f: Probed, gamma: float | None) -> tuple[list[Pair], Floats]:
    """Return random pairs of more shapes than it was measured at, and its values for them."""
    base = f.shapes[0]
    size = gamma if gamma is not None and 1e-3 < gamma < 1e3 else 1.0
    measured = [pair for shape in f.shapes for pair in ordinary_pairs(shape, size)]
    more = (Shape(4, base.d), Shape(11, base.d), Shape(base.n, 3), Shape(6, 9))
    others = [pair for shape in more for pair in ordinary_pairs(shape, size)]
    z1, z2 = (2.0**10 * z for z in measured[0])  # a bound may be large
    values = [f(*pair) for pair in measured]
    taken, others_values = valued(f, [*others, (z1, z2)])
    return [*measured, *taken], np.asarray([*values, *others_values])


def _agree(
    f: Probed, model: Floats, values: Floats, reading: Reading, factor: float = 1.0
) -> bool:
    """Return whether the differences are roundings, of the values and of the γ of a hinge.

    A weight is known to 1e-12 and rounded by as much; a loss has three of them, and γ.
    """
    tolerance = factor * max(2.0**12 * f.roundoff, 4e-12)
    hinge = abs((reading.weights[1] or 0.0) * (reading.gamma or 0.0))
    return bool(np.all(np.abs(model - values) <= tolerance * (np.abs(values) + hinge)))


def _nearest_values(terms: Floats, values: Floats) -> Floats:
    """Return the values nearest to `values` that the terms have with weights of 0 or more."""
    nearest = np.zeros(len(values))
    for chosen in itertools.product((0.0, 1.0), repeat=3):
        best = fit(terms * chosen, values)
        nearer = best.residual < np.max(np.abs(nearest - values))
        if nearer and not np.any(best.factors < 0):
            nearest = best.values
    return nearest


def _largest(model: Floats, values: Floats) -> float:
    """Return the largest relative difference; small values count as a thousandth of the median."""
    size = np.maximum(np.abs(values), 1e-3 * np.median(np.abs(values)))
    return float(np.max(np.abs(model - values) / size))


def _precision(f: Probed) -> str:
    if f.roundoff < 1e-12:
        return "float64"
    return "float32" if f.roundoff < 1e-6 else "half precision"


def _notes(f: Probed) -> tuple[str, ...]:
    base = f.shapes[0]
    notes = []
    if f.numbers > 1:
        notes.append(
            f"it returns {f.numbers} numbers, and this is the first: output (--output) names "
            "another, as 1"
        )
    if all(shape.n == base.n for shape in f.shapes):
        notes.append(f"it takes {base.n} samples of those tried: what goes with n is not seen")
    if all(shape.d == base.d for shape in f.shapes):
        notes.append(f"it takes {base.d} features of those tried: what goes with d is not seen")
    if _precision(f) == "float32":
        notes.append("it computes in float32: numbers are good to about five digits")
    return tuple(notes)


def _full(reading: Reading) -> Weights:
    first, second, third = (weight or 0.0 for weight in reading.weights)
    return first, second, third


def _of_eps(reading: Reading) -> tuple[str, ...]:
    name, eps, own = reading.convention.name, reading.eps, reading.convention.eps
    if eps is None or eps == own:
        return ()
    if eps == 0:
        return (f"variance: ε is missing (0, where {name} has {short(own)})",)
    return (f"variance: ε is {short(eps)}, where {name} has {short(own)}",)
