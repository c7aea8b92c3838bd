"""How a term's size goes with n and d: what is averaged, what is summed, what it is divided by.

From the coefficient at each shape to the weight that is the same at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vicreg._conventions import Convention
from vicreg.tools.identification.measure import Covariance, Hinge, Invariance, Variance

__all__ = ["Law", "covariance_laws", "invariance_laws", "law_of", "snapped", "variance_laws"]


class Law(NamedTuple):
    """What a term's sum over features, and its sum over samples, are divided by."""

    features: str
    samples: str


#: What a sum over samples is divided by. The last three are known to no convention.
SAMPLES: Mapping[str, Callable[[int], float]] = {
    "n - 1": lambda n: n - 1,
    "n": lambda n: n,
    "1": lambda n: 1,
    "n - 2": lambda n: n - 2,
    "n + 1": lambda n: n + 1,
}
#: What a sum over features, or over pairs of them, is divided by.
FEATURES: Mapping[str, Callable[[int], float]] = {
    "d": lambda d: d,
    "1": lambda d: 1,
    "d(d-1)": lambda d: d * (d - 1),
    "d²": lambda d: d * d,
    "d - 1": lambda d: d - 1,
    "√d": math.sqrt,
}


def law_of(convention: Convention) -> tuple[Law | None, Law, Law]:
    """Return the laws of the three terms of a convention; None for a term it does not have."""
    invariance = {"mean": Law("d", "n"), "squared norm": Law("1", "n"), "none": None}
    return (
        invariance[convention.invariance],
        Law("d", _SAMPLES_OF[convention.variance_correction]),
        Law(convention.covariance_divisor, _SAMPLES_OF[convention.covariance_correction]),
    )


_SAMPLES_OF = {0: "n", 1: "n - 1"}


def snapped(value: float, error: float) -> float:
    """Return the shortest decimal within the relative `error`, or `value` where there is none.

    A decimal is taken only if those as short are a hundred times as far apart as the error
    reaches: a value is then unlikely to be near one by chance.
    """
    for digits in range(1, 10):
        if 10.0**-digits < 100 * error:
            break
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= error * abs(value):
            return short
    return value


def _constant(values: list[float], slack: float) -> float | None:
    """Return what the values all are; None where they differ, or there are none."""
    if not values or max(values) - min(values) > slack * max(abs(value) for value in values):
        return None
    return values[0]


def invariance_laws(term: Invariance, slack: float) -> dict[Law, float]:
    """Return the weight by each law that fits: more than one where n or d could not be varied."""
    found = {}
    features_tried: tuple[str, ...] = ("d", "1", "√d")
    if term.cosine:  # it has no size that goes with d; of normalised samples it is a d-th
        features_tried += ("d²",)
    if term.power == 1 and not term.by_feature:  # a norm
        features_tried = ("√d",)
    for features in features_tried:
        for samples in ("n", "1", "n - 1"):
            weights = [
                coefficient * (FEATURES[features](d) / d) * (SAMPLES[samples](n) / n)
                for (n, d), coefficient in term.coefficients.items()
            ]
            weight = _constant(weights, slack)
            if weight:
                found[Law(features, samples)] = weight
    return found


def variance_laws(term: Variance, slack: float) -> dict[Law, Hinge]:
    """Return the weight, of both views together, γ and ε by each law that fits."""
    found = {}
    for features in ("d", "1", "√d", "d²"):
        for samples, divisor in SAMPLES.items():
            fits = [
                _in_units(fit, term.on, (shape.n - 1) / divisor(shape.n))
                for shape, fit in term.fits.items()
            ]
            scales = [FEATURES[features](d) / d for _, d in term.fits]
            weight = _constant(
                [fit.weight * scale for fit, scale in zip(fits, scales, strict=True)], slack
            )
            gamma = _constant([fit.gamma for fit in fits], 4 * slack)
            eps = _common_eps(fits, gamma, slack)
            if weight and gamma is not None and eps is not None:
                found[Law(features, samples)] = Hinge(weight, gamma, eps)
    return found


def _in_units(fit: Hinge, on: str, k: float) -> Hinge:
    """Return the numbers for a variance that is k times the sample variance.

    μ (γ − sqrt(k v + ε)) is μ √k (γ/√k − sqrt(v + ε/k)), and so without a root.
    """
    if on == "variance":
        return Hinge(fit.weight / k, fit.gamma * k, 0.0)
    root = math.sqrt(k)
    return Hinge(fit.weight / root, fit.gamma * root, fit.eps * k)


def _common_eps(fits: list[Hinge], gamma: float | None, slack: float) -> float | None:
    if gamma is None:
        return None
    roots = [math.sqrt(fit.eps) for fit in fits]
    # √ε is seen beside γ, and no better.
    if max(roots) - min(roots) > slack * max(abs(gamma), max(roots)):
        return None
    return fits[0].eps


def covariance_laws(term: Covariance, slack: float) -> dict[Law, float]:
    """Return the weight, of both views together, by each law that fits."""
    found: dict[Law, float] = {}
    shapes = term.entry_coefficients()
    for features, divisor in FEATURES.items():
        for samples, size in SAMPLES.items():
            weights = []
            for (n, d), coefficient in shapes.items():
                units = size(n) / (n - 1)
                # A square has the divisor twice; a correlation has none.
                weights.append(coefficient * divisor(d) * units ** (term.power / 2))
            weight = _constant(weights, slack)
            if weight:
                found[Law(features, samples)] = weight
    return found
