"""The order of it: measure each term, read them as a convention, compare on random arrays."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from vicreg._conventions import Weights, conventions
from vicreg.tools.backends import Floats
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.identification.confirm import confirmed
from vicreg.tools.identification.measure import Measured, measure
from vicreg.tools.identification.model import (
    Model,
    best_weights,
    convention_model,
    departing_model,
)
from vicreg.tools.identification.probes import NoValueError, Probed, Shape, ordinary_pairs
from vicreg.tools.identification.reading import Laws, Reading, laws_of, nearest_reading
from vicreg.tools.identification.result import Identification, short
from vicreg.tools.identification.wrapped import wrapped

__all__ = ["identified"]


class _Values(NamedTuple):
    """The function on random arrays."""

    pairs: list[tuple[Floats, Floats]]
    values: Floats


def identified(function: LossFunction) -> Identification:
    """Return what `function` is."""
    with warnings.catch_warnings():
        # Probes go where a function may overflow or divide by zero: that is seen in its values.
        warnings.simplefilter("ignore")
        return _identified_quietly(function)


def _identified_quietly(function: LossFunction) -> Identification:
    try:
        f = Probed(function)
    except NoValueError as error:
        return _unusable(str(error))
    if _precision(f) == "half precision":
        return _unusable(
            "it follows no change of its input below a hundredth, as in half precision: too "
            "coarse to identify"
        )
    measured = measure(f)
    laws = laws_of(measured, f)
    nearest, readings = nearest_reading(measured, laws)
    try:
        values = _values(f, nearest.gamma)
    except NoValueError as error:
        return _unusable(str(error))
    if np.ptp(f.seen) <= f.slack * np.max(np.abs(f.seen)):
        return _unusable(f"it is constant: {short(values.values[0])} for all arrays")
    if not nearest.departures:
        model = _values_of(_model_of(nearest), values)
        if _agree(model, values.values, nearest, _tolerance(f)):
            residual = _largest(model, values.values)
            return _identified(nearest, readings, residual, f)
    return _departing(measured, laws, nearest, values, f)


def _unusable(reason: str) -> Identification:
    """Return the answer for a function without terms, or without values."""
    return Identification(
        convention=None,
        weights=(None, None, None),
        gamma=None,
        eps=None,
        nearest=None,
        departures=(reason,),
        explained=False,
        residual=math.nan,
    )


def _values(f: Probed, gamma: float | None) -> _Values:
    """Return its values on random arrays, of more shapes than it was measured at."""
    base = f.shapes[0]
    shapes = [*f.shapes, Shape(4, base.d), Shape(11, base.d), Shape(base.n, 3), Shape(6, 9)]
    size = gamma if gamma is not None and 1e-3 < gamma < 1e3 else 1.0
    pairs, values = [], []
    for shape in shapes:
        for z1, z2 in ordinary_pairs(shape, size):
            try:
                values.append(f(z1, z2))
            except (FunctionError, NoValueError):
                if shape in f.shapes:
                    raise
                continue  # it takes no such shape
            pairs.append((z1, z2))
    z1, z2 = (2.0**10 * z for z in pairs[0])  # a bound may be far beyond what is ordinary
    with suppress(FunctionError, NoValueError):
        values.append(f(z1, z2))
        pairs.append((z1, z2))
    return _Values(pairs, np.asarray(values))


def _tolerance(f: Probed) -> float:
    """Return the relative difference that is rounding: of some sums, and of what was fitted.

    A weight is known to 1e-12 and rounded by as much; a loss has three of them, and γ.
    """
    return max(2.0**12 * f.roundoff, 4e-12)


def _model_of(reading: Reading) -> Model:
    first, second, third = (weight or 0.0 for weight in reading.weights)
    return convention_model(reading.convention, (first, second, third), reading.gamma, reading.eps)


def _agree(model: Floats, values: Floats, reading: Reading, tolerance: float) -> bool:
    """Return whether the differences are roundings: a hinge has those of its γ."""
    hinge = abs((reading.weights[1] or 0.0) * (reading.gamma or 0.0))
    return bool(np.all(np.abs(model - values) <= tolerance * (np.abs(values) + hinge)))


def _values_of(model: Model, values: _Values) -> Floats:
    return np.asarray([model(*pair) for pair in values.pairs])


def _largest(model: Floats, values: Floats) -> float:
    """Return the largest difference, each relative to its value, or at least to a small one."""
    size = np.maximum(np.abs(values), 1e-3 * np.median(np.abs(values)))
    return float(np.max(np.abs(model - values) / size))


def _precision(f: Probed) -> str:
    if f.roundoff < 1e-12:
        return "float64"
    return "float32" if f.roundoff < 1e-6 else "half precision"


def _notes(f: Probed) -> tuple[str, ...]:
    base = f.shapes[0]
    one_n = all(shape.n == base.n for shape in f.shapes)
    one_d = all(shape.d == base.d for shape in f.shapes)
    notes = []
    if one_n:
        notes.append(f"it takes {base.n} samples of those tried: what goes with n is not seen")
    if one_d:
        notes.append(f"it takes {base.d} features of those tried: what goes with d is not seen")
    if _precision(f) == "float32":
        notes.append("it computes in float32: numbers are good to about five digits")
    return tuple(notes)


def _identified(
    reading: Reading, readings: list[Reading], residual: float, f: Probed
) -> Identification:
    equivalents = {
        other.convention.name: _full(other.weights)
        for other in readings
        if not other.departures and _same_hinge(other, reading)
    }
    return Identification(
        convention=reading.convention.name,
        weights=reading.weights,
        gamma=reading.gamma,
        eps=reading.eps,
        nearest=reading.convention.name,
        departures=_of_eps(reading),
        equivalents=MappingProxyType(equivalents),
        residual=residual,
        precision=_precision(f),
        notes=_notes(f),
    )


def _same_hinge(one: Reading, other: Reading) -> bool:
    return (one.gamma, one.eps) == (other.gamma, other.eps)


def _full(weights: tuple[float | None, float | None, float | None]) -> Weights:
    first, second, third = (weight or 0.0 for weight in weights)
    return first, second, third


def _of_eps(reading: Reading) -> tuple[str, ...]:
    own = conventions[reading.convention.name].eps
    if reading.eps is None or reading.eps == own:
        return ()
    if reading.eps == 0:
        return (f"variance: ε is missing (0, where {reading.convention.name} has {short(own)})",)
    return (
        f"variance: ε is {short(reading.eps)}, where {reading.convention.name} has {short(own)}",
    )


def _departing(
    measured: Measured, laws: Laws, reading: Reading, values: _Values, f: Probed
) -> Identification:
    found = departing_model(measured, laws, reading, f.shapes[0]) if reading.departures else None
    explained = False
    if found is not None:
        model, one_d = found
        seen = _of_features(values, f.shapes[0].d) if one_d else values
        explained = _agree(_values_of(model, seen), seen.values, reading, 8 * _tolerance(f))
    if not explained:
        within = wrapped(f, measured, reading, values.pairs)
        reading, explained = within or (confirmed(f, measured, laws, reading), False)
    departures = reading.departures
    if not explained:
        departures += _unexplained(reading)
    _, model_values = best_weights(reading, values.pairs, values.values)
    return Identification(
        convention=None,
        weights=reading.weights,
        gamma=reading.gamma,
        eps=reading.eps,
        nearest=reading.convention.name,
        departures=departures,
        explained=explained,
        residual=_largest(model_values, values.values),
        precision=_precision(f),
        notes=_notes(f),
    )


def _of_features(values: _Values, d: int) -> _Values:
    chosen = [i for i, (z1, _) in enumerate(values.pairs) if z1.shape[1] == d]
    return _Values([values.pairs[i] for i in chosen], values.values[chosen])


def _unexplained(reading: Reading) -> tuple[str, ...]:
    if any("not recognised" in departure for departure in reading.departures):
        return ()
    if reading.departures:
        return ("and more that is not recognised: this does not give its values",)
    return ("something is not recognised: on random arrays these numbers do not give its values",)
