"""Each term alone, from values of the function: its form, and its size at every shape.

Nothing here knows a convention, or how a term is computed. A probe has known variances,
covariances and differences, and the values that the function has for it are compared with powers,
sums and a hinge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.identification.probes import (
    NoValueError,
    Probed,
    Shape,
    WithoutSign,
    ordinary_pairs,
    uncorrelated,
)
from vicreg.tools.identification.terms import Covariance, Hinge, Invariance, Measured, Variance

__all__ = ["mean_cosine", "measure"]

# Scales of the probes, all powers of two. At _ABOVE the hinge of every ordinary γ is closed; at
# _LEAST even an ε of 1e-16 is larger than the variance.
_ABOVE = 8.0
_LEAST = 2.0**-30
_TAIL = (2.0**10, 2.0**11, 2.0**12)


def measure(f: Probed) -> Measured:
    """Return the terms; one that cannot be probed is unrecognised, with the reason."""
    invariance, variance, covariance = Invariance(), Variance(), Covariance()
    with _recognising(invariance):
        _measure_invariance(f, invariance)
    if invariance.cosine:
        f = WithoutSign(f)
    constants, open_at = _measure_hinges(f, variance, covariance)
    with _recognising(covariance):
        _measure_covariance(f, covariance)
    if variance.present and not variance.unrecognised:
        with _recognising(variance):
            _measure_variance_details(f, variance, open_at, covariance.entries)
    if invariance.cosine:  # without the cosine, the weight of 1 - cos remains as a constant
        for shape, weight in invariance.coefficients.items():
            constants[shape] = _nonzero(f, constants[shape] - weight, weight)
    return Measured(invariance, variance, covariance, constants, f.slack, f.error)


@contextmanager
def _recognising(term: Invariance | Variance | Covariance) -> Iterator[None]:
    try:
        yield
    except NoValueError as error:
        term.unrecognised = str(error)


def _nonzero(f: Probed, difference: float, *values: float) -> float:
    """Return `difference`, or 0 if it is no larger than the rounding of `values`."""
    size = max((abs(value) for value in values), default=0.0)
    return difference if abs(difference) > max(2.0**8 * f.roundoff * size, f.noise) else 0.0


def _same(a: float, b: float, slack: float) -> bool:
    return abs(a - b) <= slack * max(abs(a), abs(b))


def _alike(shape: Shape) -> Floats:
    """Return equal features: every covariance is the variance."""
    z = uncorrelated(shape)
    z[:, : shape.live] = z[:, :1]
    return z


def _power(small: float, large: float) -> float:
    """Return p if doubling the scale multiplied `small` by 2^p."""
    if not small or not large / small > 0:
        return math.nan
    power = math.log2(large / small)
    return float(round(power)) if abs(power - round(power)) < 1e-3 else power


def _rescale(coefficients: dict[Shape, float], power: float, scale: float) -> None:
    """Correct coefficients that were computed for a power too high by `power`."""
    if math.isfinite(power) and abs(power) > 0.001:
        for shape in coefficients:
            coefficients[shape] *= scale**power


# --- invariance ---------------------------------------------------------------------------


def _measure_invariance(f: Probed, term: Invariance) -> None:
    for shape in f.shapes:
        share = shape.rows * shape.live / (shape.n * shape.d)
        term.coefficients[shape] = _turned(f, shape, _ABOVE) / share / (2 * _ABOVE) ** 2
    shape = f.shapes[0]
    if not term.present:
        return
    change = _turned(f, shape, _ABOVE)
    term.power = _power(change, _turned(f, shape, 2 * _ABOVE))
    _rescale(term.coefficients, 2 - term.power, 2 * _ABOVE)
    term.by_feature = _same(_turned(f, shape, _ABOVE, 1) * shape.live, change, f.slack)
    if term.power == 1 and not term.by_feature:  # a norm goes with the root of their number
        for each in term.coefficients:
            term.coefficients[each] *= math.sqrt(each.live / each.d)
    if term.power == 0:
        _measure_cosine(f, term)


def _turned(f: Probed, shape: Shape, scale: float, features: int | None = None) -> float:
    """Return what changing the sign of the second view's first `features` (all) adds.

    It changes no variance and, as they are zero, no covariance.
    """
    z = scale * uncorrelated(shape)
    turned = z.copy()
    turned[:, :features] *= -1
    before, after = f(z), f(z, turned)
    return _nonzero(f, after - before, after, before)


def _measure_cosine(f: Probed, term: Invariance) -> None:
    """Measure whether the views are compared by the cosine of each sample with itself.

    Turning a view adds 2 to each 1 - cos. At a large scale that shows the weight, as an ε that is
    added to the norms has no effect there; at a small scale it shows the ε.
    """
    far, near, shape = _TAIL[-1], 2.0**-10, f.shapes[0]
    weights = {each: _turned(f, each, far) / 2 * each.n / each.rows for each in f.shapes}
    weight, eps = weights[shape], 0.0
    if not weight:
        return
    cosine = _turned(f, shape, near) / _turned(f, shape, far)
    if abs(1 - cosine) > f.slack and cosine:
        eps = shape.live * near**2 * (1 / cosine - 1)
    # If so, the order of one view's samples changes 1 - cos and nothing else.
    for z1, z2 in ordinary_pairs(shape):
        other = np.roll(z2, 1, axis=0)
        before, after = f(z1, z2), f(z1, other)
        change = weight * (mean_cosine(z1, z2, eps) - mean_cosine(z1, other, eps))
        size = max(abs(before), abs(after), abs(weight))
        if abs(after - before - change) > f.slack * size:
            return
    term.cosine, term.coefficients, term.eps = True, weights, eps


def mean_cosine(z1: Floats, z2: Floats, eps: float = 0.0) -> float:
    """Return the mean over the samples of the cosine between the two views."""
    norms = np.linalg.norm(z1, axis=1) * np.linalg.norm(z2, axis=1)
    return float(np.mean(np.sum(z1 * z2, axis=1) / (norms + eps)))


# --- variance -----------------------------------------------------------------------------


class _Profile(NamedTuple):
    """What a function of uncorrelated features is, as a function of their scale."""

    constant: float = 0.0
    diagonal: float = 0.0  # of the fourth power, per squared sample variance of a feature
    hinge: Hinge = Hinge()
    open_at: float = 1.0  # the largest power of two at which the hinge acts
    unrecognised: str = ""


def _measure_hinges(
    f: Probed, variance: Variance, covariance: Covariance
) -> tuple[dict[Shape, float], float]:
    """Measure the hinge and the diagonal at every shape; return the constants and `open_at`."""
    profiles = {}
    for shape in f.shapes:
        try:
            profiles[shape] = _profile(f, shape)
        except NoValueError as error:
            profiles[shape] = _Profile(unrecognised=str(error))
    base = profiles[f.shapes[0]]
    forms = {p.hinge.form for p in profiles.values() if p.hinge.weight}
    reasons = [p.unrecognised for p in profiles.values() if p.unrecognised]
    if len(forms) > 1:
        reasons.append("its form changes with n or d")
    variance.unrecognised = reasons[0] if reasons else ""
    for shape, profile in profiles.items():
        variance.hinges[shape] = profile.hinge
        covariance.diagonal[shape] = profile.diagonal
    constants = {shape: _nonzero(f, p.constant) for shape, p in profiles.items()}
    return constants, base.open_at


def _profile(f: Probed, shape: Shape) -> _Profile:
    columns = uncorrelated(shape)
    tail = [f(columns * scale) for scale in _TAIL]
    first, second = tail[1] - tail[0], tail[2] - tail[1]
    # The power by which it grows with the scale; None if it is constant.
    growth = _power(first, second) if _nonzero(f, second, *tail) else None
    diagonal = 0.0
    if growth is not None and abs(growth - 4) < 0.01:
        # A difference of two, in which no constant is left.
        diagonal = second / (_TAIL[2] ** 4 - _TAIL[1] ** 4)
        growth = None

    def rest(scale: float) -> float:
        return f(columns * scale) - diagonal * scale**4

    # A large diagonal leaves its rounding: do not go far beyond where every hinge is closed.
    top = _ABOVE if diagonal and shape.live < shape.d else _TAIL[-1]
    clipped = growth is None
    constant = rest(min(top, 2.0**6)) if diagonal else tail[-1] if clipped else 0.0
    profile = _hinge_profile(f, shape, rest, constant, clipped, top)
    wanted = 1 if profile.hinge.on == "std" else 2
    if growth is not None and abs(growth - wanted) > 0.05 and not profile.unrecognised:
        profile = profile._replace(unrecognised="it grows as no hinge does")
    profile = _without_dead(f, shape, profile)
    return profile._replace(diagonal=diagonal / (shape.live * shape.unit**2))


def _without_dead(f: Probed, shape: Shape, profile: _Profile) -> _Profile:
    """Subtract what the features that are 0 at every scale have added."""
    weight, gamma, eps = profile.hinge[:3]
    dead = shape.d / shape.live - 1
    if not dead or not weight:
        return profile
    if profile.hinge.clipped:
        short = gamma - math.sqrt(eps)
        added = dead * weight * (short**2 if profile.hinge.squared else short)
        constant = _nonzero(f, profile.constant - added, added)
        profile = profile._replace(constant=constant)
    else:
        gamma = (gamma + dead * math.sqrt(eps)) / (1 + dead)
    hinge = profile.hinge._replace(weight=weight * (1 + dead), gamma=gamma)
    return profile._replace(hinge=hinge)


def _hinge_profile(
    f: Probed,
    shape: Shape,
    at: Callable[[float], float],
    constant: float,
    clipped: bool,
    top: float,
) -> _Profile:
    least = at(_LEAST)
    # If a fourth power was subtracted, the constant has the rounding of that.
    size = max(abs(least), abs(constant))
    if clipped and abs(least - constant) <= f.slack * f.roundoff / f.resolution * size:
        return _Profile(constant)
    open_at = _ABOVE
    if clipped:
        threshold = max(abs(least - constant) * f.slack, f.noise if shape.live < shape.d else 0.0)
        open_at = _open_at(at, constant, threshold, top)
        # At twice that scale the hinge may still act by less than the threshold.
        constant = _nonzero(f, at(min(4 * open_at, top)), least)
    for squared in (False, True):
        hinge = _hinge(f, shape, lambda scale: at(scale) - constant, open_at, squared)
        if hinge is not None:
            hinge = hinge._replace(clipped=clipped)
            return _Profile(constant, hinge=hinge, open_at=open_at)
    return _Profile(
        constant, open_at=open_at, unrecognised="it is no hinge of a std or a variance"
    )


def _open_at(at: Callable[[float], float], constant: float, threshold: float, top: float) -> float:
    """Return the largest power of two, below `top`, at which the hinge acts."""
    low, high = -30, round(math.log2(top))
    while high - low > 1:
        middle = (low + high) // 2
        acts = abs(at(2.0**middle) - constant) > threshold
        low, high = (middle, high) if acts else (low, middle)
    return 2.0**low


def _hinge(
    f: Probed, shape: Shape, at: Callable[[float], float], top: float, squared: bool
) -> Hinge | None:
    """Return the hinge; None if it is not one.

    For a root, y = A − B sqrt(q + e) with q the variance, (y0 − y1) / (y0 − y2) contains neither A
    nor B, and is monotone in e. The second point is best near e, so it takes two steps.
    """
    sign = math.copysign(1.0, at(_LEAST))

    def y(scale: float) -> float:
        value = sign * at(scale)
        return math.sqrt(max(value, 0.0)) if squared else value

    def through(scale: float) -> Hinge | None:
        scales = (_LEAST, scale, top)
        q = [each**2 * shape.unit for each in scales]
        return _through_points(q, [y(each) for each in scales], f)

    hinge = through(top / 4)
    for _ in range(2):
        if hinge is None or not hinge.eps:
            break
        exponent = round(math.log2(hinge.eps / shape.unit) / 2)
        hinge = through(min(2.0 ** max(exponent, -28), top / 2))
    if hinge is None:
        return None
    weight = hinge.weight
    for scale in (top / 2, top / 8, top / 64):  # it has to hold between the points too
        model = hinge.at(scale**2 * shape.unit)
        if abs(y(scale) - model) > 4 * f.slack * max(abs(weight * hinge.gamma), abs(model)):
            return None
    return hinge._replace(weight=sign * (weight**2 if squared else weight), squared=squared)


def _through_points(q: list[float], y: list[float], f: Probed) -> Hinge | None:
    """Return the hinge with value y at variance q, for three points."""
    if y[0] == y[2]:
        return None
    ratio = (y[0] - y[1]) / (y[0] - y[2])
    linear = (q[1] - q[0]) / (q[2] - q[0])
    # The relative error that a rounding of y makes in the numerator of the ratio.
    slack = max(f.slack, 16 * f.resolution * abs(y[0]) / max(abs(y[0] - y[1]), 1e-300))
    if abs(ratio - linear) <= slack * linear:
        weight = (y[0] - y[2]) / (q[2] - q[0])
        return Hinge(weight, y[0] / weight + q[0], 0.0, "variance")
    eps = _eps_of(ratio, q)
    weight = (y[0] - y[2]) / (math.sqrt(q[2] + eps) - math.sqrt(q[0] + eps))
    gamma = y[0] / weight + math.sqrt(q[0] + eps)
    # Roots are known to the roundoff of γ; so is what ε adds to the smallest of them.
    seen = 64 * f.resolution * abs(gamma)
    if eps <= max(seen**2, 2 * seen * math.sqrt(q[0])):
        eps = 0.0
    return Hinge(weight, gamma, eps)


def _eps_of(ratio: float, q: list[float]) -> float:
    """Return the ε of the root whose values at the three variances have that ratio."""

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


def _measure_variance_details(
    f: Probed, variance: Variance, open_at: float, entries: Floats | None
) -> None:
    shape = f.shapes[0]
    columns = uncorrelated(shape)
    low, high = columns * open_at, columns * open_at * 2
    one_low = high.copy()
    one_low[:, 0] = low[:, 0]
    whole, one = f(low) - f(high), f(one_low) - f(high)
    if entries is not None:  # subtract a diagonal that is included, which may be of some features
        squares = (open_at**4 - (2 * open_at) ** 4) * shape.unit**2
        whole, one = whole - squares * float(np.sum(entries)), one - squares * entries[0]
    variance.by_feature = _same(one * shape.live, whole, f.slack)
    variance.first_view = _share_of_first_view(f, low, high)
    # Shifting one feature changes no covariance, and its second moment if that is not centred.
    shift = np.where(np.arange(shape.d) == 0, open_at, 0.0)
    variance.centred = not _moves(f, low / 2, shift, whole)


def _share_of_first_view(f: Probed, changed: Floats, plain: Floats) -> float:
    """Return the first view's share of what changing both views adds.

    The invariance is the same whichever of them is changed.
    """
    both = f(changed) - f(plain)
    one, other = f(changed, plain), f(plain, changed)
    share = 0.5 + 0.5 * _nonzero(f, one - other, one, other) / both
    return next((exact for exact in (0.0, 1.0) if abs(share - exact) <= f.slack), share)


def _moves(f: Probed, z: Floats, shift: Floats, size: float) -> bool:
    """Return whether shifting both views changes a term whose size is `size`."""
    return abs(f(z + shift) - f(z)) > max(f.slack * abs(size), f.noise)


# --- covariance ---------------------------------------------------------------------------


def _measure_covariance(f: Probed, covariance: Covariance) -> None:
    changes = {shape: _correlated(f, shape, _ABOVE, _alike(shape)) for shape in f.shapes}
    for shape, change in changes.items():
        pairs = shape.live * (shape.live - 1)
        covariance.coefficients[shape] = change / (pairs * _ABOVE**4 * shape.unit**2)
    shape, change = next(iter(changes.items()))
    if any(changes.values()):
        covariance.power = _power(change, _correlated(f, shape, 2 * _ABOVE, _alike(shape)))
        # Equal features of variance v add v to the half of that power.
        _rescale(covariance.coefficients, 4 - covariance.power, _ABOVE)
        for each in f.shapes:
            covariance.coefficients[each] *= each.unit ** (2 - covariance.power / 2)
        plain = uncorrelated(shape) * _ABOVE
        covariance.first_view = _share_of_first_view(f, _alike(shape) * _ABOVE, plain)
        shift = np.where(np.arange(shape.d) < shape.live, 2 * _ABOVE, 0.0)
        covariance.centred = not _moves(f, plain, shift, change)
    for each, coefficient in covariance.coefficients.items():
        # Where a diagonal is subtracted from its square, the rounding grows like the square.
        if abs(covariance.diagonal[each]) <= f.slack * abs(coefficient):
            covariance.diagonal[each] = 0.0
    if covariance.present:
        _measure_pairs(f, covariance, shape, change)


def _correlated(f: Probed, shape: Shape, scale: float, z: Floats) -> float:
    """Return what the correlations of `z` add to its variances, which are those of the probe."""
    before, after = f(scale * uncorrelated(shape)), f(scale * z)
    return _nonzero(f, after - before, after, before)


def _measure_pairs(f: Probed, covariance: Covariance, shape: Shape, change: float) -> None:
    """Measure what each pair and each diagonal entry adds; `change` is what all pairs add."""
    if shape.d > 16 or shape.live < shape.d:  # hundreds of pairs, or not all of them
        if covariance.diagonal[shape]:
            covariance.entries = np.full(shape.live, covariance.diagonal[shape])
        return
    columns, d = uncorrelated(shape), shape.d
    changes = np.zeros((d, d))
    for i, j in itertools.combinations(range(d), 2):
        z = columns.copy()
        z[:, j] = z[:, i]
        changes[i, j] = changes[j, i] = _correlated(f, shape, _ABOVE, z)
    covariance.additive = _same(changes.sum() / 2, change, f.slack)
    if covariance.additive and change:
        covariance.pairs = changes * (d * (d - 1) / 2) / change
    if any(covariance.diagonal.values()):
        large, small = 2.0**7, 2.0**6
        scales = np.where(np.eye(d, dtype=bool), large, small)
        entries = [f(columns * scale) - f(columns * small) for scale in scales]
        covariance.entries = np.asarray(entries) / ((large**4 - small**4) * shape.unit**2)
