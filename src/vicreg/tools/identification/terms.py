"""What is measured of each term, and the laws that its size may follow in n and d.

A law says what is averaged, what is summed, and what a sum is divided by. A term has a coefficient
at every shape; under the right law its weight is the same at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vicreg._conventions import Convention
from vicreg.tools.backends import Floats
from vicreg.tools.identification.probes import Shape

__all__ = ["Covariance", "Hinge", "Invariance", "Law", "Measured", "Variance", "law_of", "snapped"]

#: Divisors of a sum over samples. No convention has one of the last three.
_SAMPLES: Mapping[str, Callable[[int], float]] = {
    "n - 1": lambda n: n - 1,
    "n": lambda n: n,
    "1": lambda n: 1,
    "n - 2": lambda n: n - 2,
    "n + 1": lambda n: n + 1,
}
#: Divisors of a sum over features, or over pairs of them.
_FEATURES: Mapping[str, Callable[[int], float]] = {
    "d": lambda d: d,
    "1": lambda d: 1,
    "d(d-1)": lambda d: d * (d - 1),
    "d²": lambda d: d * d,
    "d - 1": lambda d: d - 1,
    "√d": math.sqrt,
}


class Law(NamedTuple):
    """The divisors of a term's sum over features and of its sum over samples."""

    features: str
    samples: str

    def over_samples(self, n: int) -> float:
        """Return the divisor of the sum over samples."""
        return _SAMPLES[self.samples](n)

    def over_features(self, d: int) -> float:
        """Return the divisor of the sum over features."""
        return _FEATURES[self.features](d)


def law_of(convention: Convention) -> tuple[Law | None, Law, Law]:
    """Return the laws of the three terms of a convention; None for a term that it lacks."""
    invariance = {"mean": Law("d", "n"), "squared norm": Law("1", "n"), "none": None}
    samples = {0: "n", 1: "n - 1"}
    return (
        invariance[convention.invariance],
        Law("d", samples[convention.variance_correction]),
        Law(convention.covariance_divisor, samples[convention.covariance_correction]),
    )


def snapped(value: float, error: float) -> float:
    """Return the shortest decimal within the relative `error`, or `value` if there is none.

    A decimal is taken only if its neighbours of the same length are a hundred errors away, so
    that a value is unlikely to be near one by chance.
    """
    for digits in range(1, 10):
        if 10.0**-digits < 100 * error:
            break
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= error * abs(value):
            return short
    return value


def _laws(features: Sequence[str], samples: Sequence[str] = tuple(_SAMPLES)) -> Iterator[Law]:
    return (Law(of_features, of_samples) for of_features in features for of_samples in samples)


def _constant(values: Sequence[float], slack: float) -> float | None:
    """Return the value that all of them have; None if they differ or there are none."""
    if not values or max(values) - min(values) > slack * max(map(abs, values)):
        return None
    return values[0]


def _weights(
    coefficients: Mapping[Shape, float],
    laws: Iterator[Law],
    divisor: Callable[[Law, int, int], float],
    slack: float,
) -> dict[Law, float]:
    """Return the coefficient times a law's divisor, for laws under which all shapes agree."""
    weights = {
        law: _constant([c * divisor(law, n, d) for (n, d), c in coefficients.items()], slack)
        for law in laws
    }
    return {law: weight for law, weight in weights.items() if weight}


@dataclass
class Invariance:
    """The term that compares the views.

    A coefficient is that of the mean square of the difference, or of what replaces it: if the
    term is a cosine, of 1 - cos averaged over the samples.
    """

    coefficients: dict[Shape, float] = field(default_factory=dict)
    power: float = 2.0
    by_feature: bool = True
    cosine: bool = False
    eps: float = 0.0  # added to the product of norms in a cosine
    unrecognised: str = ""

    @property
    def present(self) -> bool:
        """Whether there is such a term."""
        return bool(self.unrecognised or any(self.coefficients.values()))

    def laws(self, slack: float) -> dict[Law, float]:
        """Return the weight by each law that fits: several if n or d could not be varied."""
        features: tuple[str, ...] = ("d", "1", "√d")
        if self.cosine:  # a mean square of normalised samples is a d-th of it
            features += ("d²",)
        if self.power == 1 and not self.by_feature:  # a norm
            features = ("√d",)

        def divisor(law: Law, n: int, d: int) -> float:
            return law.over_features(d) / d * law.over_samples(n) / n

        return _weights(self.coefficients, _laws(features, ("n", "1", "n - 1")), divisor, slack)


class Hinge(NamedTuple):
    """weight · (gamma − sqrt(v + eps)) on a std or weight · (gamma − v), v the sample variance.

    The weight is that of the mean over the features of two equal views, so of both together.
    """

    weight: float = 0.0
    gamma: float = 0.0
    eps: float = 0.0
    on: str = "std"
    clipped: bool = True
    squared: bool = False

    @property
    def form(self) -> tuple[str, bool, bool]:
        """What it is, without the numbers."""
        return self[3:]

    def at(self, v: float) -> float:
        """Return the hinge at a variance, neither clipped nor squared."""
        return self.weight * (self.gamma - (math.sqrt(v + self.eps) if self.on == "std" else v))

    def in_units(self, k: float) -> Hinge:
        """Return the numbers for a variance that is k times the sample variance.

        γ − sqrt(k v + ε) is √k · (γ/√k − sqrt(v + ε/k)), and without a root it is likewise; a
        square has the factor twice.
        """
        root = math.sqrt(k) if self.on == "std" else k
        weight = self.weight / (root**2 if self.squared else root)
        return self._replace(weight=weight, gamma=self.gamma * root, eps=self.eps * k)


@dataclass
class Variance:
    """The term that remains if the views are equal and their features uncorrelated."""

    hinges: dict[Shape, Hinge] = field(default_factory=dict)
    by_feature: bool = True
    centred: bool = True
    first_view: float = 0.5  # the share of the first view
    unrecognised: str = ""

    @property
    def present(self) -> bool:
        """Whether there is such a term."""
        return bool(self.unrecognised or any(hinge.weight for hinge in self.hinges.values()))

    def laws(self, slack: float) -> dict[Law, Hinge]:
        """Return the hinge by each law that fits, with the weight of both views together."""
        laws = {}
        for law in _laws(("d", "1", "√d", "d²")):
            hinges = [
                hinge.in_units((n - 1) / law.over_samples(n))
                for (n, _), hinge in self.hinges.items()
            ]
            weights = [
                hinge.weight * law.over_features(d) / d
                for (_, d), hinge in zip(self.hinges, hinges, strict=True)
            ]
            weight = _constant(weights, slack)
            gamma = _constant([hinge.gamma for hinge in hinges], 4 * slack)
            # √ε has the absolute error of γ.
            roots = [gamma or 0.0, *(math.sqrt(hinge.eps) for hinge in hinges)]
            same_eps = max(roots[1:]) - min(roots[1:]) <= slack * max(map(abs, roots))
            if weight and gamma is not None and same_eps:
                laws[law] = hinges[0]._replace(weight=weight, gamma=gamma)
        return laws


@dataclass
class Covariance:
    """The term that correlations change while the variances stay the same.

    A coefficient is that of a sum over ordered pairs of features in two equal views, of squared
    sample covariances if the power is 4.
    """

    coefficients: dict[Shape, float] = field(default_factory=dict)
    power: float = 4.0
    pairs: Floats | None = None  # the share of each pair at the first shape; 1 if all are equal
    diagonal: dict[Shape, float] = field(default_factory=dict)  # of one squared variance
    entries: Floats | None = None  # of the square of each diagonal entry
    additive: bool = True
    centred: bool = True
    first_view: float = 0.5  # the share of the first view
    unrecognised: str = ""

    @property
    def present(self) -> bool:
        """Whether there is such a term."""
        coefficients = (*self.coefficients.values(), *self.diagonal.values())
        return bool(self.unrecognised or any(coefficients))

    @property
    def even(self) -> bool:
        """Whether all pairs have the same share, and so have all diagonal entries."""
        pairs, entries = self.pairs, self.entries
        if pairs is not None and np.ptp(pairs[~np.eye(len(pairs), dtype=bool)]) > 1e-3:
            return False
        return entries is None or bool(np.ptp(entries) <= 1e-3 * np.max(np.abs(entries)))

    def entry_coefficients(self) -> dict[Shape, float]:
        """Return the coefficient of one entry that is not left out, by shape.

        If some are left out, how many may depend on d in any way: only the first d is used.
        """
        shapes = self.coefficients if any(self.coefficients.values()) else self.diagonal
        if self.even or self.pairs is None:
            return shapes
        largest, base = float(np.max(self.pairs)), next(iter(shapes))
        return {shape: c * largest for shape, c in shapes.items() if shape.d == base.d}

    def laws(self, slack: float) -> dict[Law, float]:
        """Return the weight of both views together by each law that fits."""

        def divisor(law: Law, n: int, d: int) -> float:
            # A square has the divisor twice; a correlation has none.
            squares = math.pow(law.over_samples(n) / (n - 1), self.power / 2)
            return law.over_features(d) * squares

        return _weights(self.entry_coefficients(), _laws(tuple(_FEATURES)), divisor, slack)


@dataclass(frozen=True)
class Measured:
    """All that was measured of a function.

    `slack` is the largest relative error of a measured ratio, `error` that of a weight.
    """

    invariance: Invariance
    variance: Variance
    covariance: Covariance
    constants: dict[Shape, float]
    slack: float
    error: float

    @cached_property
    def laws(self) -> tuple[dict[Law, float], dict[Law, Hinge], dict[Law, float]]:
        """The weights of the three terms by each law that fits."""
        return (
            self.invariance.laws(self.slack),
            self.variance.laws(self.slack),
            self.covariance.laws(self.slack),
        )

    @property
    def constant(self) -> float | None:
        """The constant that is added; None if it depends on n or d."""
        return _constant(list(self.constants.values()), self.slack)
