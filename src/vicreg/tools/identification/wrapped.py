"""Losses with something done before or after: normalised inputs, or a bounded result.

No term of such a function can be measured alone: normalised inputs have no scale, and a bounded
loss has no values beyond its bound. So it is recognised by what does not change it, and the
conventions are fitted to its values on ordinary arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vicreg._conventions import Convention, conventions
from vicreg.tools.backends import Floats
from vicreg.tools.functions import FunctionError
from vicreg.tools.identification.fitting import fit
from vicreg.tools.identification.model import terms_of
from vicreg.tools.identification.probes import (
    NoValueError,
    Pair,
    Probed,
    ordinary_pairs,
    uncorrelated,
    valued,
)
from vicreg.tools.identification.reading import Reading, signs
from vicreg.tools.identification.result import MaybeWeights, short
from vicreg.tools.identification.terms import Measured, snapped

__all__ = ["wrapped"]

# Powers of two: larger than anything that is added to a norm, and than usual bounds.
_FAR, _BEYOND = 2.0**20, 2.0**16
#: How many values three weights do not fit by chance.
_ENOUGH = 8
_EPS = (0.0, 1e-3, 1e-5, 1e-6, 1e-8)


class _Observed(NamedTuple):
    """Values of the function, and of the loss within it that they are taken to come from."""

    text: str  # what is done before or after
    pairs: list[Pair]
    values: Floats
    inside: npt.NDArray[np.bool_]  # where a value determines the loss
    loss: Floats
    output: Callable[[Floats], Floats]  # the values, as a function of the loss


def wrapped(
    f: Probed, measured: Measured, nearest: Reading, pairs: list[Pair]
) -> tuple[Reading, bool] | None:
    """Return the convention within a bound, or of normalised inputs, and whether it is exact.

    Its γ and ε may be those of the `nearest` reading. `pairs` are ordinary arrays of several
    shapes. None if the function is not bounded and depends on the scale of its inputs.
    """
    low, high = _bounds(f, measured)
    if low > -math.inf or high < math.inf:
        words = [f"never above {short(high)}"] if high < math.inf else []
        words += [f"never below {short(low)}"] if low > -math.inf else []
        text = f"the loss is bounded: it is {' and '.join(words)}"
        within = _nearest_within(
            f, list(_within_bounds(f, low, high, text, nearest, pairs)), nearest
        )
        if within is not None:
            return within, True
        if 0 not in (low, high):  # 0 bounds any loss
            return _unknown(nearest, text), False
    of = _scale_free(f)
    if of is None:
        return None
    within = _nearest_within(f, list(_of_normalised(f, of, pairs)), nearest)
    if within is not None:
        return within, True
    text = f"the inputs are normalised: the scale of a {of} changes nothing"
    return _unknown(nearest, text), False


def _unknown(nearest: Reading, departure: str) -> Reading:
    return replace(
        nearest, weights=(None, None, None), gamma=None, eps=None, departures=(departure,)
    )


# --- a bounded loss -----------------------------------------------------------------------


def _bounds(f: Probed, measured: Measured) -> tuple[float, float]:
    """Return the numbers that no value is below, and none above."""
    limits = [_far_out(f), _near_the_least(f, measured)]

    def is_limit(value: float) -> bool:
        return any(
            limit is not None and abs(limit - value) <= f.slack * abs(value) for limit in limits
        )

    least, most = min(f.seen), max(f.seen)
    return least if is_limit(least) else -math.inf, most if is_limit(most) else math.inf


def _far_out(f: Probed) -> float | None:
    """Return the value of very large arrays, if all have the same."""
    pairs = ordinary_pairs(f.shapes[0])
    _, values = valued(f, ((_BEYOND * z1, _BEYOND * z2) for z1, z2 in pairs))
    if len(values) < len(pairs) or np.ptp(values) > f.slack * abs(values[0]):
        return None
    return float(values[0]) or None  # a hinge is 0 there without a bound


def _near_the_least(f: Probed, measured: Measured) -> float | None:
    """Return the value where no term acts, if it is the same where one acts a little."""
    shape = f.shapes[0]
    coefficients = (
        *measured.invariance.coefficients.values(),
        *measured.covariance.coefficients.values(),
    )
    strength = max(map(abs, coefficients), default=0.0)
    if not strength:
        return None
    # A change well above the rounding, by the stronger term.
    step = max(2.0**-12, math.sqrt(2.0**8 * f.noise / strength))
    z = 8 * uncorrelated(shape)
    changes = [np.random.default_rng(seed).standard_normal((2, *shape)) for seed in range(3)]
    pairs = [(z, z), *((z + step * first, z + step * second) for first, second in changes)]
    _, values = valued(f, pairs)
    if len(values) < len(pairs):
        return None
    limit = float(values[0])
    return limit if np.all(np.abs(values - limit) <= 4 * f.roundoff * abs(limit)) else None


def _within_bounds(
    f: Probed, low: float, high: float, text: str, nearest: Reading, pairs: list[Pair]
) -> Iterator[_Observed]:
    """Yield what was observed of the loss, for everything that may bound it."""
    pairs, values = valued(f, [*pairs, *_small_losses(f, nearest.gamma or 1.0)])
    inside = (values > low + f.noise) & (values < high - f.noise)
    yield _Observed(text, pairs, values, inside, values, lambda loss: np.clip(loss, low, high))
    if 0 < high < math.inf and low == -math.inf:
        text = f"the loss is bounded: it is {short(high)} tanh(loss / {short(high)})"
        inside = np.abs(values) < 0.9 * high
        loss = high * np.arctanh(np.where(inside, values, 0.0) / high)
        yield _Observed(text, pairs, values, inside, loss, lambda x: high * np.tanh(x / high))


def _small_losses(f: Probed, gamma: float) -> Iterator[Pair]:
    """Yield pairs of a small loss, below a bound that ordinary pairs exceed."""
    for shape in f.shapes:
        rng = np.random.default_rng(shape.n * 1000 + shape.d)
        for step in (0.5, 0.25, 0.12, 0.06, 0.03, 0.01):
            scales = gamma * rng.uniform(1 - step, 2, shape.d)
            z = uncorrelated(shape) * scales + step * gamma * rng.standard_normal(shape)
            yield z, z + 0.5 * step * gamma * rng.standard_normal(shape)


# --- normalised inputs --------------------------------------------------------------------

Normaliser = Callable[[Floats, int | None], Floats]


def _by(size: Callable[..., Any], *, centred: bool = False) -> Normaliser:
    """Return the division of an array by its size along an axis, of None as a whole."""

    def normalised(z: Floats, axis: int | None) -> Floats:
        mean = np.mean(z, axis=axis, keepdims=True) if centred else 0.0
        result: Floats = (z - mean) / size(z, axis=axis, keepdims=True)
        return result

    return normalised


_sample_std = partial(np.std, ddof=1)
_by_root_mean_square = _by(lambda z, **along: np.sqrt(np.mean(z**2, **along)))
_AXES = {"sample": 1, "feature": 0, "view": None}
#: What may be done to a sample, a feature or a view.
_NORMALISED: Mapping[str, Mapping[str, Normaliser]] = {
    "sample": {
        "is divided by its norm": _by(np.linalg.norm),
        "is divided by its root mean square": _by_root_mean_square,
        "has its mean removed and is divided by its std": _by(np.std, centred=True),
        "has its mean removed and is divided by its std (n - 1)": _by(_sample_std, centred=True),
        "is divided by the sum of its magnitudes": _by(partial(np.linalg.norm, ord=1)),
        "is divided by its largest magnitude": _by(partial(np.linalg.norm, ord=math.inf)),
    },
    "feature": {
        "has its mean removed and is divided by its std": _by(np.std, centred=True),
        "has its mean removed and is divided by its sample std": _by(_sample_std, centred=True),
        "is divided by its std": _by(np.std),
        "is divided by its sample std": _by(_sample_std),
        "is divided by its norm over the samples": _by(np.linalg.norm),
        "is divided by its root mean square": _by_root_mean_square,
    },
    "view": {
        "is divided by its norm": _by(np.linalg.norm),
        "is divided by its root mean square": _by_root_mean_square,
        "has its mean removed and is divided by its std": _by(np.std, centred=True),
        "is divided by its std": _by(np.std),
    },
}


def _scale_free(f: Probed) -> str | None:
    """Return of what the scale changes nothing: a sample, a feature, or a whole view."""
    shape = f.shapes[0]
    rng = np.random.default_rng(0)
    factors = {
        "sample": np.exp(rng.uniform(0, 3, (2, shape.n, 1))),
        "feature": np.exp(rng.uniform(0, 3, (2, 1, shape.d))),
        "view": np.asarray([[[3.0]], [[20.0]]]),
    }
    return next((name for name, each in factors.items() if _unchanged(f, *each)), None)


def _unchanged(f: Probed, first: Floats, second: Floats) -> bool:
    """Return whether multiplying the views by these factors changes nothing.

    At a large scale nothing but rounding; at scale 1 an ε that is added to a norm may act.
    """
    values = []
    try:
        for z1, z2 in ordinary_pairs(f.shapes[0]):
            for scale, slack in ((_FAR, f.slack), (1.0, 0.02)):
                a, b = scale * z1, scale * z2
                before, after = f(a, b), f(first * a, second * b)
                if abs(after - before) > max(slack * abs(before), f.noise):
                    return False
            values.append(before)
    except (FunctionError, NoValueError):
        return False
    return max(values) - min(values) > f.noise


def _of_normalised(f: Probed, of: str, pairs: list[Pair]) -> Iterator[_Observed]:
    """Yield what was observed of the loss, for everything that may be done to the inputs."""
    pairs, values = valued(f, [(_FAR * z1, _FAR * z2) for z1, z2 in pairs])
    everywhere = np.ones(len(values), dtype=bool)
    for how, by in _NORMALISED[of].items():
        inputs = [(by(z1, _AXES[of]), by(z2, _AXES[of])) for z1, z2 in pairs]
        if all(np.all(np.isfinite(z)) for pair in inputs for z in pair):
            text = f"the inputs are normalised: each {of} {how}"
            yield _Observed(text, inputs, values, everywhere, values, lambda loss: loss)


# --- the convention within ----------------------------------------------------------------


def _nearest_within(f: Probed, ways: list[_Observed], nearest: Reading) -> Reading | None:
    """Return a convention that gives all values in one of these ways; None if none does.

    Of several conventions it is the one whose published numbers are met.
    """
    for gamma, eps in _hinges(nearest):
        tried = (
            _within(f, observed, convention, gamma, eps)
            for observed in ways
            for convention in conventions.values()
            if eps is None or convention.hinge_on == "std"
        )
        readings = [reading for reading in tried if reading is not None]
        if readings:
            return min(readings, key=lambda reading: reading.score)
    return None


def _hinges(nearest: Reading) -> Iterator[tuple[float, float | None]]:
    """Yield the γ and ε to try; an ε of None is the convention's own."""
    yield 1.0, None
    if nearest.gamma is not None and nearest.gamma > 0 and nearest.eps is not None:
        yield nearest.gamma, nearest.eps
    for eps in _EPS:
        yield 1.0, eps


def _within(
    f: Probed, observed: _Observed, convention: Convention, gamma: float, eps: float | None
) -> Reading | None:
    """Return a convention with the weights that give all values; None if there are none."""
    usable = np.flatnonzero(observed.inside)
    if len(usable) < _ENOUGH:
        return None
    eps = convention.eps if eps is None else eps
    # A few values are enough to exclude most conventions.
    for places in (usable[:: len(usable) // _ENOUGH], np.arange(len(observed.values))):
        terms = terms_of(convention, gamma, eps, [observed.pairs[place] for place in places])
        inside, values = observed.inside[places], observed.values[places]
        weights = _weights(f, terms[inside], observed.loss[places][inside], convention)
        first, hinge, third = (weight or 0.0 for weight in weights)
        modelled = observed.output(terms @ [first, hinge, third])
        size = np.abs(values) + abs(hinge) * gamma
        if np.any(np.abs(modelled - values) > 2.0**15 * f.roundoff * size):
            return None
    if convention.invariance == "none":
        weights = (0.0, *weights[1:])
    departures = (observed.text, *signs(weights))
    if hinge:
        return Reading(convention, weights, gamma, eps, departures)
    return Reading(convention, weights, None, None, departures)


def _weights(f: Probed, terms: Floats, loss: Floats, convention: Convention) -> MaybeWeights:
    """Return the weights that fit best, the published ones if they are within the error.

    None for a term that is 0 everywhere, or too small to have one.
    """
    size = np.abs(loss) + 1e-3 * np.median(np.abs(loss))
    factors = fit(terms, loss, size, smallest=2.0**10 * f.roundoff).factors
    largest = np.max(np.abs(terms) / size[:, None], axis=0)
    weights: list[float | None] = [None, None, None]
    for place in np.flatnonzero(~np.isnan(factors)):
        weight = float(factors[place])
        error = 2.0**10 * f.roundoff / max(abs(weight * largest[place]), 1e-300)
        own = convention.weights[place] if convention.weights else weight
        if error >= 1:
            weights[place] = 0.0
        elif abs(weight - own) <= error * abs(weight):
            weights[place] = own if convention.weights else snapped(weight, error)
        elif error < 0.1:
            weights[place] = snapped(weight, error)
    return weights[0], weights[1], weights[2]
