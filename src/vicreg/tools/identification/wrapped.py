"""What is done to a loss before or after: inputs that are normalised, a loss that is bounded.

Neither leaves a term to be measured alone: of an input that is normalised no scale is known, and
of a bounded loss no value beyond the bound. So such a function is seen by what does not change
it, and the conventions are fitted to its values on ordinary arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from vicreg._conventions import Convention, conventions
from vicreg.tools.backends import Floats
from vicreg.tools.functions import FunctionError
from vicreg.tools.identification.laws import snapped
from vicreg.tools.identification.measure import Measured
from vicreg.tools.identification.model import terms_of
from vicreg.tools.identification.probes import NoValueError, Probed, ordinary_pairs, uncorrelated
from vicreg.tools.identification.reading import Reading, signs
from vicreg.tools.identification.result import short

__all__ = ["wrapped"]

Pair = tuple[Floats, Floats]
Normaliser = Callable[[Floats], Floats]
Weights = tuple[float | None, float | None, float | None]

# Powers of two: beyond what a norm has added to it, and beyond every bound that is met.
_FAR, _BEYOND = 2.0**20, 2.0**16
#: How many values tell three weights from chance.
_ENOUGH = 8
_EPS = (0.0, 1e-3, 1e-5, 1e-6, 1e-8)


def wrapped(
    f: Probed, measured: Measured, nearest: Reading, pairs: list[Pair]
) -> tuple[Reading, bool] | None:
    """Return what the function is within a bound, or of normalised inputs.

    Parameters
    ----------
    f : Probed
        The function.
    measured : Measured
        What simple arrays showed of it.
    nearest : Reading
        What that was read as: for its γ and ε.
    pairs : list of pairs of arrays
        Ordinary ones, of several shapes.

    Returns
    -------
    Reading and bool, or None
        The convention within, and whether with it every value is reproduced; None where the
        function is neither bounded nor of normalised inputs.
    """
    bounds = _bounds(f, measured)
    within = _within(f, bounds, nearest, pairs) if bounds is not None else None
    if within is not None:
        return within
    normalised = _scale_free(f)
    if normalised is not None:
        return _of_normalised(f, normalised, nearest, pairs)
    return None


# --- a bounded loss -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Bounds:
    """What no value is below, and none above."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        words = []
        if math.isfinite(self.high):
            words.append(f"never above {short(self.high)}")
        if math.isfinite(self.low):
            words.append(f"never below {short(self.low)}")
        return f"the loss is bounded: it is {' and '.join(words)}"

    @property
    def ordinary(self) -> bool:
        """Whether it is the bound of any loss, 0, that may be reached in other ways."""
        return 0 in (self.low, self.high)


def _bounds(f: Probed, measured: Measured) -> _Bounds | None:
    limits = [_far_out(f), _near_the_least(f, measured)]
    least, most = min(f.seen), max(f.seen)

    def is_limit(value: float) -> bool:
        return any(
            limit is not None and abs(limit - value) <= f.slack * abs(value) for limit in limits
        )

    low = least if is_limit(least) else -math.inf
    high = most if is_limit(most) else math.inf
    return _Bounds(low, high) if -math.inf < low or high < math.inf else None


def _far_out(f: Probed) -> float | None:
    """Return the value that very large arrays have, if all have the same."""
    try:
        values = [f(_BEYOND * z1, _BEYOND * z2) for z1, z2 in ordinary_pairs(f.shapes[0])]
    except (FunctionError, NoValueError):
        return None
    limit = values[0]
    same = max(values) - min(values) <= f.slack * abs(limit)
    return limit if same and limit else None  # a hinge ends at 0 without a bound


def _near_the_least(f: Probed, measured: Measured) -> float | None:
    """Return the value where no term acts, if it stays the same where one does a little."""
    shape = f.shapes[0]
    coefficients = (
        *measured.invariance.coefficients.values(),
        *measured.covariance.coefficients.values(),
    )
    strength = max(map(abs, coefficients), default=0.0)
    if not strength:
        return None
    # A change that is well above the rounding, by the term that acts more.
    step = max(2.0**-12, math.sqrt(2.0**8 * f.noise / strength))
    z = 8 * uncorrelated(shape)
    try:
        limit = f(z)
        values = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            first, second = rng.standard_normal((2, *shape))
            values.append(f(z + step * first, z + step * second))
    except (FunctionError, NoValueError):
        return None
    flat = all(abs(value - limit) <= 4 * f.roundoff * abs(limit) for value in values)
    return limit if flat else None


def _within(
    f: Probed, bounds: _Bounds, nearest: Reading, pairs: list[Pair]
) -> tuple[Reading, bool] | None:
    """Return the convention within the bounds; None where they may be no bounds at all."""
    pairs, values = _valued(f, [*pairs, *_small_losses(f, nearest.gamma or 1.0)])
    inside = (values > bounds.low + f.noise) & (values < bounds.high - f.noise)

    def clipped(loss: Floats) -> Floats:
        return np.clip(loss, bounds.low, bounds.high)

    tried = {str(bounds): _Observed(pairs, values, inside, values, clipped)}
    high = bounds.high
    if 0 < high < math.inf and bounds.low == -math.inf:

        def flattened(loss: Floats) -> Floats:
            return high * np.tanh(loss / high)

        inside = np.abs(values) < 0.9 * high
        loss = high * np.arctanh(np.where(inside, values, 0.0) / high)
        text = f"the loss is bounded: it is {short(high)} tanh(loss / {short(high)})"
        tried[text] = _Observed(pairs, values, inside, loss, flattened)
    found = _fitted(f, tried, nearest)
    if found is not None:
        return found, True
    return None if bounds.ordinary else (_unknown(nearest, str(bounds)), False)


def _small_losses(f: Probed, gamma: float) -> Iterator[Pair]:
    """Yield pairs near those without a loss: below a bound that ordinary ones are above."""
    for shape in f.shapes:
        rng = np.random.default_rng(shape.n * 1000 + shape.d)
        for step in (0.5, 0.25, 0.12, 0.06, 0.03, 0.01):
            scales = gamma * rng.uniform(1 - step, 2, shape.d)
            z = uncorrelated(shape) * scales + step * gamma * rng.standard_normal(shape)
            yield z, z + 0.5 * step * gamma * rng.standard_normal(shape)


def _valued(f: Probed, pairs: list[Pair]) -> tuple[list[Pair], Floats]:
    found, values = [], []
    for pair in pairs:
        try:
            values.append(f(*pair))
        except (FunctionError, NoValueError):
            continue
        found.append(pair)
    return found, np.asarray(values)


# --- inputs that are normalised -----------------------------------------------------------


def _norm(axis: int | None, order: float = 2) -> Normaliser:
    def divided(z: Floats) -> Floats:
        if axis is None:
            return cast(Floats, z / np.linalg.norm(z))
        return cast(Floats, z / np.linalg.norm(z, ord=order, axis=axis, keepdims=True))

    return divided


def _root_mean_square(axis: int | None) -> Normaliser:
    return lambda z: z / np.sqrt(np.mean(z**2, axis=axis, keepdims=True))


def _standardised(axis: int | None, correction: int, *, centred: bool = True) -> Normaliser:
    def divided(z: Floats) -> Floats:
        mean = np.mean(z, axis=axis, keepdims=True) if centred else 0.0
        return cast(Floats, (z - mean) / np.std(z, axis=axis, keepdims=True, ddof=correction))

    return divided


#: By what does not change the function: in words, and what may be done to the inputs.
_NORMALISED: Mapping[str, Mapping[str, Normaliser]] = {
    "sample": {
        "each sample is divided by its norm": _norm(1),
        "each sample is divided by its root mean square": _root_mean_square(1),
        "each sample has its mean removed and is divided by its std": _standardised(1, 0),
        "each sample has its mean removed and is divided by its std (n - 1)": _standardised(1, 1),
        "each sample is divided by the sum of its magnitudes": _norm(1, 1),
        "each sample is divided by its largest magnitude": _norm(1, math.inf),
    },
    "feature": {
        "each feature has its mean removed and is divided by its std": _standardised(0, 0),
        "each feature has its mean removed and is divided by its sample std": _standardised(0, 1),
        "each feature is divided by its std": _standardised(0, 0, centred=False),
        "each feature is divided by its sample std": _standardised(0, 1, centred=False),
        "each feature is divided by its norm over the samples": _norm(0),
        "each feature is divided by its root mean square": _root_mean_square(0),
    },
    "view": {
        "each view is divided by its norm": _norm(None),
        "each view is divided by its root mean square": _root_mean_square(None),
        "each view has its mean removed and is divided by its std": _standardised(None, 0),
        "each view is divided by its std": _standardised(None, 0, centred=False),
    },
}


def _scale_free(f: Probed) -> str | None:
    """Return of what the scale changes nothing: a sample, a feature, a whole view."""
    shape = f.shapes[0]
    rng = np.random.default_rng(0)
    factors = {
        "sample": np.exp(rng.uniform(0, 3, (2, shape.n, 1))),
        "feature": np.exp(rng.uniform(0, 3, (2, 1, shape.d))),
        "view": np.asarray([[[3.0]], [[20.0]]]),
    }
    for name, (first, second) in factors.items():
        if _unchanged(f, first, second):
            return name
    return None


def _unchanged(f: Probed, first: Floats, second: Floats) -> bool:
    """Whether scaling the views by these factors changes nothing: far out to rounding.

    A norm may have something added to it, which is seen near 0 and not far out.
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


def _of_normalised(
    f: Probed, of: str, nearest: Reading, pairs: list[Pair]
) -> tuple[Reading, bool]:
    pairs, values = _valued(f, [(_FAR * z1, _FAR * z2) for z1, z2 in pairs])
    everywhere = np.ones(len(values), dtype=bool)
    tried = {}
    for how, normalise in _NORMALISED[of].items():
        inputs = [(normalise(z1), normalise(z2)) for z1, z2 in pairs]
        if all(np.all(np.isfinite(z)) for pair in inputs for z in pair):
            text = f"the inputs are normalised: {how}"
            tried[text] = _Observed(inputs, values, everywhere, values, lambda loss: loss)
    found = _fitted(f, tried, nearest)
    if found is not None:
        return found, True
    text = f"the inputs are normalised: the scale of a {of} changes nothing"
    return _unknown(nearest, text), False


# --- the convention within ----------------------------------------------------------------


@dataclass(frozen=True)
class _Observed:
    """Values of the function, and what they are taken to be of a loss of the `pairs`."""

    pairs: list[Pair]
    values: Floats
    inside: npt.NDArray[np.bool_]  # where `loss` can be had from the values
    loss: Floats
    output: Callable[[Floats], Floats]  # the values, of the loss


def _fitted(f: Probed, tried: Mapping[str, _Observed], nearest: Reading) -> Reading | None:
    """Return a convention that gives all values in one of the ways `tried`; None if none does.

    What is tried becomes what departs. Of several conventions it is the one whose published
    numbers are met.
    """
    for gamma, given in _hinges(nearest):
        found = []
        for text, observed in tried.items():
            for convention in conventions.values():
                if given is not None and convention.hinge_on == "variance":
                    continue  # it has no ε
                eps = convention.eps if given is None else given
                weights = _fit(f, observed, convention, gamma, eps)
                if weights is not None:
                    departures = (text, *signs(weights))
                    found.append(_reading(convention, weights, gamma, eps, departures))
        if found:
            return min(found, key=lambda reading: reading.score)
    return None


def _fit(
    f: Probed, observed: _Observed, convention: Convention, gamma: float, eps: float
) -> Weights | None:
    """Return the weights with which a convention gives all values; None where none do."""
    every = np.flatnonzero(observed.inside)
    if len(every) < _ENOUGH:
        return None
    some = every[:: len(every) // _ENOUGH]
    weights = None
    # Most conventions are not it, and a few values show that.
    for places in (some, np.arange(len(observed.values))):
        chosen = [observed.pairs[place] for place in places]
        terms = np.asarray([terms_of(convention, gamma, eps, *pair) for pair in chosen])
        inside, values = observed.inside[places], observed.values[places]
        weights = _weights(f, terms[inside], observed.loss[places][inside], convention.weights)
        modelled = observed.output(terms @ [weight or 0.0 for weight in weights])
        size = np.abs(values) + abs(weights[1] or 0.0) * gamma
        if np.any(np.abs(modelled - values) > 2.0**15 * f.roundoff * size):
            return None
    return weights


def _hinges(nearest: Reading) -> Iterator[tuple[float, float | None]]:
    """Yield the γ and ε that are tried; an ε of None is the convention's own."""
    yield 1.0, None
    if nearest.gamma is not None and nearest.gamma > 0 and nearest.eps is not None:
        yield nearest.gamma, nearest.eps
    for eps in _EPS:
        yield 1.0, eps


def _weights(
    f: Probed, terms: Floats, loss: Floats, published: tuple[float, float, float] | None
) -> Weights:
    """Return the weights that fit best, the published ones where those are within the error.

    None where a term is 0 throughout, or too small to tell.
    """
    size = np.abs(loss) + 1e-3 * np.median(np.abs(loss))
    scaled = terms / size[:, None]
    largest = np.max(np.abs(scaled), axis=0)
    acts = np.max(np.abs(terms), axis=0) > 2.0**10 * f.roundoff
    shares, *_ = np.linalg.lstsq(scaled[:, acts] / largest[acts], loss / size, rcond=None)
    weights: list[float | None] = [None, None, None]
    for place, share in zip(np.flatnonzero(acts), shares, strict=True):
        weight = float(share / largest[place])
        error = 2.0**10 * f.roundoff / max(abs(share), 1e-300)
        own = published[place] if published else weight
        if error >= 1:
            weights[place] = 0.0
        elif abs(weight - own) <= error * abs(weight):
            weights[place] = own if published else snapped(weight, error)
        elif error < 0.1:
            weights[place] = snapped(weight, error)
    return weights[0], weights[1], weights[2]


def _reading(
    convention: Convention,
    weights: Weights,
    gamma: float,
    eps: float,
    departures: tuple[str, ...],
) -> Reading:
    first, hinge = weights[0], bool(weights[1])
    return Reading(
        convention=convention,
        weights=(0.0 if convention.invariance == "none" else first, *weights[1:]),
        laws=(None, None, None),
        gamma=gamma if hinge else None,
        eps=eps if hinge else None,
        departures=departures,
    )


def _unknown(nearest: Reading, departure: str) -> Reading:
    return replace(
        nearest, weights=(None, None, None), gamma=None, eps=None, departures=(departure,)
    )
