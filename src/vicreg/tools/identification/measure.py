"""Each term alone: its form, and its size at every shape, from values of the function.

Nothing here knows a convention, nor how a term is computed: a probe has known variances,
covariances and differences, and what the function makes of them is held against powers, sums
and one hinge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.identification.probes import (
    NoValueError,
    Shape,
    Values,
    WithoutSign,
    ordinary_pairs,
    uncorrelated,
)

__all__ = ["Covariance", "Hinge", "Invariance", "Measured", "Variance", "measure"]

# Scales of the probes, all powers of two. The hinge of every ordinary γ is closed at _ABOVE;
# at _LEAST not even an ε of 1e-16 is hidden by the variance.
_ABOVE = 8.0
_LEAST = 2.0**-30
_TAIL = (2.0**10, 2.0**11, 2.0**12)


@dataclass
class Invariance:
    """The term that compares the views.

    A coefficient is that of the mean square of the difference, or of what there is in its place:
    of 1 - cos, the mean over the samples, where it is a cosine.
    """

    coefficients: dict[Shape, float] = field(default_factory=dict)
    power: float = 2.0
    by_feature: bool = True
    cosine: bool = False
    eps: float = 0.0  # added to the product of the norms that a cosine is divided by
    unrecognised: str = ""

    @property
    def present(self) -> bool:
        """Whether there is such a term."""
        return bool(self.unrecognised or any(self.coefficients.values()))


class Hinge(NamedTuple):
    """weight · (gamma − sqrt(v + eps)) or weight · (gamma − v), v the sample variance.

    The weight is that of the mean over features with both views alike, so of both together.
    """

    weight: float
    gamma: float
    eps: float


@dataclass
class Variance:
    """The term that uncorrelated features leave."""

    fits: dict[Shape, Hinge] = field(default_factory=dict)
    on: str = "std"
    clipped: bool = True
    squared: bool = False
    by_feature: bool = True
    centred: bool = True
    first_view: float = 0.5
    unrecognised: str = ""

    @property
    def present(self) -> bool:
        """Whether there is such a term."""
        return bool(self.unrecognised or any(fit.weight for fit in self.fits.values()))


@dataclass
class Covariance:
    """The term that correlations leave at equal variances.

    A coefficient is that of the sum over ordered pairs, of the squares of the sample
    covariances where the power is 4, with both views alike.
    """

    coefficients: dict[Shape, float] = field(default_factory=dict)
    power: float = 4.0
    pairs: Floats | None = None  # each pair's share at the first shape, 1 where all are alike
    diagonal: dict[Shape, float] = field(default_factory=dict)  # of one squared variance
    entries: Floats | None = None  # each diagonal entry's part, as a coefficient of its square
    additive: bool = True
    centred: bool = True
    first_view: float = 0.5
    unrecognised: str = ""

    @property
    def present(self) -> bool:
        """Whether there is such a term."""
        coefficients = (*self.coefficients.values(), *self.diagonal.values())
        return bool(self.unrecognised or any(coefficients))

    @property
    def even(self) -> bool:
        """Whether all pairs count alike, and all or no diagonal entries."""
        pairs, entries = self.pairs, self.entries
        if pairs is not None and np.ptp(pairs[~np.eye(len(pairs), dtype=bool)]) > 1e-3:
            return False
        return entries is None or bool(np.ptp(entries) <= 1e-3 * np.max(np.abs(entries)))

    def entry_coefficients(self) -> dict[Shape, float]:
        """Return the coefficient of one entry that counts in full, by shape.

        Where entries are left out their number goes with d in its own way: one d is then all.
        """
        shapes = self.coefficients if any(self.coefficients.values()) else self.diagonal
        if self.even or self.pairs is None:
            return shapes
        largest, base = float(np.max(self.pairs)), next(iter(shapes))
        return {shape: c * largest for shape, c in shapes.items() if shape.d == base.d}


@dataclass
class Measured:
    """All that was measured."""

    invariance: Invariance
    variance: Variance
    covariance: Covariance
    constants: dict[Shape, float]


class _Profile(NamedTuple):
    """How uncorrelated features of one scale fare, over the scales, at one shape."""

    constant: float
    diagonal: float  # what grows as the fourth power, per feature's squared sample variance
    fit: Hinge
    on: str
    clipped: bool
    squared: bool
    open_at: float  # a scale where the hinge acts, and just above it none
    unrecognised: str


_NO_HINGE = _Profile(0.0, 0.0, Hinge(0.0, 0.0, 0.0), "std", True, False, 1.0, "")


def measure(f: Values) -> Measured:
    """Return what the terms are; one that cannot be probed is unrecognised, with the reason."""
    invariance = Invariance()
    with _recognising(invariance):
        _measure_invariance(f, invariance)
    if invariance.cosine:
        f = WithoutSign(f)
    variance, covariance, constants, base = _measure_profiles(f)
    with _recognising(covariance):
        _measure_covariance(f, covariance)
    for shape, coefficient in covariance.coefficients.items():
        # Where a diagonal is taken off its square, the rounding grows as the square does.
        if abs(covariance.diagonal[shape]) <= f.slack * abs(coefficient):
            covariance.diagonal[shape] = 0.0
    if variance.present and not variance.unrecognised:
        with _recognising(variance):
            _measure_variance_details(f, variance, base, covariance.entries)
    if invariance.cosine:  # without the cosine a weight of 1 - cos is left of it
        for shape, weight in invariance.coefficients.items():
            constants[shape] = _nonzero(f, constants[shape] - weight, weight)
    return Measured(invariance, variance, covariance, constants)


@contextmanager
def _recognising(term: Invariance | Variance | Covariance) -> Iterator[None]:
    try:
        yield
    except NoValueError as error:
        term.unrecognised = str(error)


def _nonzero(f: Values, difference: float, *values: float) -> float:
    """Return `difference`, or 0 where it is no more than the rounding of `values`."""
    size = max((abs(value) for value in values), default=0.0)
    return difference if abs(difference) > max(2.0**8 * f.roundoff * size, f.noise) else 0.0


def _same(a: float, b: float, slack: float) -> bool:
    return abs(a - b) <= slack * max(abs(a), abs(b))


def _alike(shape: Shape) -> Floats:
    """Return features that are all the first: every covariance is the variance."""
    z = uncorrelated(shape)
    z[:, : shape.live] = z[:, :1]
    return z


def _power(small: float, large: float) -> float:
    """Return p where doubling the scale took `small` to 2^p of it."""
    if not small or not large / small > 0:
        return math.nan
    power = math.log2(large / small)
    return float(round(power)) if abs(power - round(power)) < 1e-3 else power


def _rescale(coefficients: dict[Shape, float], power: float, scale: float) -> None:
    """Correct coefficients that were taken to be of a power higher by `power`."""
    if math.isfinite(power) and abs(power) > 0.001:
        for shape in coefficients:
            coefficients[shape] *= scale**power


# --- invariance ---------------------------------------------------------------------------


def _measure_invariance(f: Values, found: Invariance) -> None:
    for shape in f.shapes:
        share = shape.rows * shape.live / (shape.n * shape.d)
        change = _turned(f, shape, _ABOVE, shape.d)
        found.coefficients[shape] = change / share / (2 * _ABOVE) ** 2
    shape = f.shapes[0]
    if found.present:
        change = _turned(f, shape, _ABOVE, shape.d)
        found.power = _power(change, _turned(f, shape, 2 * _ABOVE, shape.d))
        _rescale(found.coefficients, 2 - found.power, 2 * _ABOVE)
        one = _turned(f, shape, _ABOVE, 1)
        found.by_feature = _same(one * shape.live, change, f.slack)
        if found.power == 1 and not found.by_feature:  # a norm goes with the root of them
            for each in found.coefficients:
                found.coefficients[each] *= math.sqrt(each.live / each.d)
        if found.power == 0:
            _measure_cosine(f, found)


def _turned(f: Values, shape: Shape, scale: float, features: int) -> float:
    """Return what turning the sign of the second view's first `features` adds.

    Neither its variances change nor, as they are zero, its covariances.
    """
    z = scale * uncorrelated(shape)
    signs = np.where(np.arange(shape.d) < features, -1.0, 1.0)
    before, after = f(z), f(z, z * signs)
    return _nonzero(f, after - before, after, before)


def _measure_cosine(f: Values, found: Invariance) -> None:
    """See whether the views are compared by the cosine of each sample with itself.

    The coefficients become those of 1 - cos, from what turning a view adds: 1 - cos is 2 then,
    far out, where what is added to the norms is not seen. That is read off near 0.
    """
    far, near, shape = _TAIL[-1], 2.0**-10, f.shapes[0]
    weights = {each: _turned(f, each, far, each.d) / 2 * each.n / each.rows for each in f.shapes}
    weight, eps = weights[shape], 0.0
    if not weight:
        return
    cosine = _turned(f, shape, near, shape.d) / _turned(f, shape, far, shape.d)
    if abs(1 - cosine) > f.slack and cosine:
        eps = shape.live * near**2 * (1 / cosine - 1)
    if _is_cosine(f, weight, eps, shape):
        found.cosine, found.coefficients, found.eps = True, weights, eps


def _is_cosine(f: Values, weight: float, eps: float, shape: Shape) -> bool:
    """Return whether 1 - cos is what the order of one view's samples changes, and no more."""
    for z1, z2 in ordinary_pairs(shape):
        other = np.roll(z2, 1, axis=0)
        before, after = f(z1, z2), f(z1, other)
        change = weight * (mean_cosine(z1, z2, eps) - mean_cosine(z1, other, eps))
        size = max(abs(before), abs(after), abs(weight))
        if abs(after - before - change) > f.slack * size:
            return False
    return True


def mean_cosine(z1: Floats, z2: Floats, eps: float = 0.0) -> float:
    """Return the mean cosine of two samples of the same place."""
    norms = np.linalg.norm(z1, axis=1) * np.linalg.norm(z2, axis=1)
    return float(np.mean(np.sum(z1 * z2, axis=1) / (norms + eps)))


# --- variance -----------------------------------------------------------------------------


def _measure_profiles(
    f: Values,
) -> tuple[Variance, Covariance, dict[Shape, float], _Profile]:
    profiles = {shape: _profile(f, shape) for shape in f.shapes}
    base = profiles[f.shapes[0]]
    forms = {(p.on, p.clipped, p.squared) for p in profiles.values() if p.fit.weight}
    variance = Variance(
        fits={shape: p.fit for shape, p in profiles.items()},
        on=base.on,
        clipped=base.clipped,
        squared=base.squared,
        unrecognised=next((p.unrecognised for p in profiles.values() if p.unrecognised), ""),
    )
    if len(forms) > 1 and not variance.unrecognised:
        variance.unrecognised = "its form changes with n or d"
    diagonal = {shape: p.diagonal for shape, p in profiles.items()}
    constants = {shape: _nonzero(f, p.constant) for shape, p in profiles.items()}
    return variance, Covariance(diagonal=diagonal), constants, base


def _profile(f: Values, shape: Shape) -> _Profile:
    try:
        return _measured_profile(f, shape)
    except NoValueError as error:
        return _NO_HINGE._replace(unrecognised=str(error))


def _measured_profile(f: Values, shape: Shape) -> _Profile:
    columns = uncorrelated(shape)

    def at(scale: float) -> float:
        return f(columns * scale)

    tail = [at(scale) for scale in _TAIL]
    growth = _growth(f, tail)
    diagonal = 0.0
    if growth is not None and abs(growth - 4) < 0.01:
        # The difference of two: a constant would be left in the quotient of one.
        diagonal = (tail[2] - tail[1]) / (_TAIL[2] ** 4 - _TAIL[1] ** 4)
        growth = None
    clipped = growth is None

    def left(scale: float) -> float:
        return at(scale) - diagonal * scale**4

    # Of what is large and taken off, the rounding is left: not where all hinges are still closed.
    top = _ABOVE if diagonal and shape.live < shape.d else _TAIL[-1]
    constant = left(min(top, 2.0**6)) if diagonal else tail[-1] if clipped else 0.0
    profile = _hinge_profile(f, shape, left, constant, clipped, top)
    if growth is not None and not profile.unrecognised:
        wanted = 1 if profile.on == "std" else 2
        if abs(growth - wanted) > 0.05:
            profile = profile._replace(unrecognised="it grows as no hinge does")
    profile = _without_dead(f, shape, profile)
    return profile._replace(diagonal=diagonal / (shape.live * shape.unit**2))


def _without_dead(f: Values, shape: Shape, profile: _Profile) -> _Profile:
    """Take off what the features that are 0 at every scale have added."""
    weight, gamma, eps = profile.fit
    dead = shape.d / shape.live - 1
    if not dead or not weight:
        return profile
    if profile.clipped:
        short = gamma - math.sqrt(eps)
        added = dead * weight * (short**2 if profile.squared else short)
        constant = _nonzero(f, profile.constant - added, added)
        profile = profile._replace(constant=constant)
    else:
        gamma = (gamma + dead * math.sqrt(eps)) / (1 + dead)
    return profile._replace(fit=Hinge(weight * (1 + dead), gamma, eps))


def _growth(f: Values, tail: list[float]) -> float | None:
    """Return the power by which the function grows with the scale; None where it is constant."""
    first, second = tail[1] - tail[0], tail[2] - tail[1]
    if not _nonzero(f, second, *tail):
        return None
    return _power(first, second)


def _hinge_profile(
    f: Values,
    shape: Shape,
    at: Callable[[float], float],
    constant: float,
    clipped: bool,
    top: float,
) -> _Profile:
    least = at(_LEAST)
    nothing = _NO_HINGE._replace(constant=constant)
    # Beside a fourth power that was taken off, the constant has its rounding.
    size = max(abs(least), abs(constant))
    if clipped and abs(least - constant) <= f.slack * f.roundoff / f.resolution * size:
        return nothing
    threshold = max(abs(least - constant) * f.slack, f.noise if shape.live < shape.d else 0.0)
    open_at = _open_at(at, constant, threshold, top) if clipped else _ABOVE
    if clipped:
        # Twice as far the hinge may act by less than the threshold.
        constant = _nonzero(f, at(min(4 * open_at, top)), least)

    def hinge(scale: float) -> float:
        return at(scale) - constant

    for squared in (False, True):
        fit = _fitted(f, shape, hinge, open_at, squared)
        if fit is not None:
            return nothing._replace(
                constant=constant,
                fit=fit[1],
                on=fit[0],
                clipped=clipped,
                squared=squared,
                open_at=open_at,
            )
    return nothing._replace(
        constant=constant, open_at=open_at, unrecognised="it is no hinge of a std or a variance"
    )


def _open_at(at: Callable[[float], float], constant: float, threshold: float, top: float) -> float:
    """Return the largest power of two, below `top`, at which the hinge acts."""
    low, high = -30, round(math.log2(top))
    while high - low > 1:
        middle = (low + high) // 2
        if abs(at(2.0**middle) - constant) > threshold:
            low = middle
        else:
            high = middle
    return 2.0**low


def _fitted(
    f: Values, shape: Shape, hinge: Callable[[float], float], top: float, squared: bool
) -> tuple[str, Hinge] | None:
    """Return what the hinge is on, and its numbers; None where it is none.

    A root, y = A − B sqrt(q + e) with q the variance, has in (y0 − y1) / (y0 − y2) neither A nor
    B, and is monotone in e. The second point is best near e, so it is found in two steps.
    """
    sign = math.copysign(1.0, hinge(_LEAST))

    def y(scale: float) -> float:
        value = sign * hinge(scale)
        return math.sqrt(max(value, 0.0)) if squared else value

    def fit(e_scale: float) -> tuple[str, Hinge] | None:
        scales = (_LEAST, e_scale, top)
        q = [scale**2 * shape.unit for scale in scales]
        return _three_points(q, [y(scale) for scale in scales], f)

    found = fit(top / 4)
    for _ in range(2):
        if found is None or found[0] == "variance" or not found[1].eps:
            break
        exponent = round(math.log2(found[1].eps / shape.unit) / 2)
        near = 2.0 ** max(exponent, -28)
        found = fit(min(near, top / 2))
    if found is None or not _holds_between(y, found, shape, top, f.slack):
        return None
    on, (weight, gamma, eps) = found
    return on, Hinge(sign * (weight**2 if squared else weight), gamma, eps)


def _three_points(q: list[float], y: list[float], f: Values) -> tuple[str, Hinge] | None:
    if y[0] == y[2]:
        return None
    ratio = (y[0] - y[1]) / (y[0] - y[2])
    linear = (q[1] - q[0]) / (q[2] - q[0])
    # A rounding of y is this much of the ratio's numerator.
    slack = max(f.slack, 16 * f.resolution * abs(y[0]) / max(abs(y[0] - y[1]), 1e-300))
    if abs(ratio - linear) <= slack * linear:
        weight = (y[0] - y[2]) / (q[2] - q[0])
        return "variance", Hinge(weight, y[0] / weight + q[0], 0.0)
    eps = _eps_of(ratio, q)
    weight = (y[0] - y[2]) / (math.sqrt(q[2] + eps) - math.sqrt(q[0] + eps))
    gamma = y[0] / weight + math.sqrt(q[0] + eps)
    # Roots are seen beside γ, to the roundoff; so is what ε adds to the smallest of them.
    seen = 64 * f.resolution * abs(gamma)
    if eps <= max(seen**2, 2 * seen * math.sqrt(q[0])):
        eps = 0.0
    return "std", Hinge(weight, gamma, eps)


def _eps_of(ratio: float, q: list[float]) -> float:
    def of(e: float) -> float:
        root = [math.sqrt(value + e) for value in q]
        # (sqrt(a) − sqrt(b)) = (a − b) / (sqrt(a) + sqrt(b)), which does not cancel.
        return (q[1] - q[0]) / (q[2] - q[0]) * (root[2] + root[0]) / (root[1] + root[0])

    low, high = math.log(1e-40), math.log(1e8 * q[2])
    if ratio >= of(math.exp(low)):
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if of(math.exp(middle)) > ratio else (low, middle)
    return math.exp(low)


def _holds_between(
    y: Callable[[float], float],
    found: tuple[str, Hinge],
    shape: Shape,
    top: float,
    slack: float,
) -> bool:
    on, (weight, gamma, eps) = found
    for scale in (top / 2, top / 8, top / 64):
        v = scale**2 * shape.unit
        model = weight * (gamma - (math.sqrt(v + eps) if on == "std" else v))
        if abs(y(scale) - model) > 4 * slack * max(abs(weight * gamma), abs(model)):
            return False
    return True


def _measure_variance_details(
    f: Values, variance: Variance, base: _Profile, entries: Floats | None
) -> None:
    shape = f.shapes[0]
    columns = uncorrelated(shape)
    low, high = columns * base.open_at, columns * base.open_at * 2
    one_low = high.copy()
    one_low[:, 0] = low[:, 0]
    whole, one = f(low) - f(high), f(one_low) - f(high)
    if entries is not None:  # a diagonal that is left in has its own features
        squares = (base.open_at**4 - (2 * base.open_at) ** 4) * shape.unit**2
        whole, one = whole - squares * float(np.sum(entries)), one - squares * entries[0]
    variance.by_feature = _same(one * shape.live, whole, f.slack)
    variance.first_view = _share_of_first_view(f, low, high)
    # One feature moved changes its variance, if that is not centred, and no covariance.
    shift = np.where(np.arange(shape.d) == 0, base.open_at, 0.0)
    variance.centred = not _moves(f, low / 2, shift, whole)


def _share_of_first_view(f: Values, changed: Floats, plain: Floats) -> float:
    """Return how much of the change of both views alike is the first's.

    Whatever compares the views is the same for both orders.
    """
    both = f(changed) - f(plain)
    one, other = f(changed, plain), f(plain, changed)
    share = 0.5 + 0.5 * _nonzero(f, one - other, one, other) / both
    return next((exact for exact in (0.0, 1.0) if abs(share - exact) <= f.slack), share)


# --- covariance ---------------------------------------------------------------------------


def _measure_covariance(f: Values, covariance: Covariance) -> None:
    for shape in f.shapes:
        pairs = shape.live * (shape.live - 1)
        change = _correlated(f, shape, _ABOVE, _alike(shape))
        covariance.coefficients[shape] = change / (pairs * _ABOVE**4 * shape.unit**2)
    if any(covariance.coefficients.values()):
        shape = f.shapes[0]
        change = _correlated(f, shape, _ABOVE, _alike(shape))
        covariance.power = _power(change, _correlated(f, shape, 2 * _ABOVE, _alike(shape)))
        # Equal features of variance v have v to the half of that power.
        _rescale(covariance.coefficients, 4 - covariance.power, _ABOVE)
        for shape in f.shapes:
            covariance.coefficients[shape] *= shape.unit ** (2 - covariance.power / 2)
        shape = f.shapes[0]
        covariance.first_view = _share_of_first_view(
            f, _alike(shape) * _ABOVE, uncorrelated(shape) * _ABOVE
        )
        shift = np.where(np.arange(shape.d) < shape.live, 2 * _ABOVE, 0.0)
        covariance.centred = not _moves(f, uncorrelated(shape) * _ABOVE, shift, change)
    if covariance.present:
        _measure_pairs(f, covariance, f.shapes[0])


def _correlated(f: Values, shape: Shape, scale: float, z: Floats) -> float:
    """Return what correlations add where no feature's variance changes."""
    before, after = f(scale * uncorrelated(shape)), f(scale * z)
    return _nonzero(f, after - before, after, before)


def _measure_pairs(f: Values, covariance: Covariance, shape: Shape) -> None:
    if shape.d > 16 or shape.live < shape.d:  # hundreds of pairs, or not all
        if covariance.diagonal[shape]:
            covariance.entries = np.full(shape.live, covariance.diagonal[shape])
        return
    columns, d = uncorrelated(shape), shape.d
    changes = np.zeros((d, d))
    for i, j in itertools.combinations(range(d), 2):
        z = columns.copy()
        z[:, j] = z[:, i]
        changes[i, j] = changes[j, i] = _correlated(f, shape, _ABOVE, z)
    change = _correlated(f, shape, _ABOVE, _alike(shape))
    covariance.additive = _same(changes.sum() / 2, change, f.slack)
    if covariance.additive and change:
        covariance.pairs = changes * (d * (d - 1) / 2) / change
    if any(covariance.diagonal.values()):
        covariance.entries = _diagonal_entries(f, shape)


def _diagonal_entries(f: Values, shape: Shape) -> Floats:
    columns, large, small = uncorrelated(shape), 2.0**7, 2.0**6
    entries = []
    for feature in range(shape.d):
        scales = np.where(np.arange(shape.d) == feature, large, small)
        change = f(columns * scales) - f(columns * small)
        entries.append(change / ((large**4 - small**4) * shape.unit**2))
    return np.asarray(entries)


def _moves(f: Values, z: Floats, shift: Floats, size: float) -> bool:
    """Return whether moving both views alike changes a term that is of that size there."""
    return abs(f(z + shift) - f(z)) > max(f.slack * abs(size), f.noise)
