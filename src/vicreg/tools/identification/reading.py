"""What was measured, read as one convention: the weights it needs, and what departs from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vicreg._conventions import Convention, conventions
from vicreg.tools.identification.laws import (
    Law,
    covariance_laws,
    invariance_laws,
    law_of,
    snapped,
    variance_laws,
)
from vicreg.tools.identification.measure import Covariance, Hinge, Invariance, Measured, Variance
from vicreg.tools.identification.probes import Probed
from vicreg.tools.identification.result import short

__all__ = ["Laws", "Reading", "laws_of", "nearest_reading", "read_as", "signs"]

_NO_SUCH_TERM = "has no such term"
_OUTSIDE = (1e-3, *sorted({c.eps for c in conventions.values() if c.eps}), 1e-6, 1e-8)


@dataclass(frozen=True)
class Laws:
    """Each term's weights, by every law that fits what was measured."""

    invariance: Mapping[Law, float]
    variance: Mapping[Law, Hinge]
    covariance: Mapping[Law, float]
    slack: float
    error: float  # the relative error of a weight
    roundoff: float


def laws_of(measured: Measured, f: Probed) -> Laws:
    """Return the laws of the three terms."""
    return Laws(
        invariance=invariance_laws(measured.invariance, f.slack),
        variance=variance_laws(measured.variance, f.slack),
        covariance=covariance_laws(measured.covariance, f.slack),
        slack=f.slack,
        error=max(64 * f.roundoff, 1e-12) * f.resolution / f.roundoff,
        roundoff=f.roundoff,
    )


@dataclass(frozen=True)
class Reading:
    """The function as one convention would have it.

    A weight is None where its term is not recognised, `gamma` and `eps` where there is no hinge.
    """

    convention: Convention
    weights: tuple[float | None, float | None, float | None]
    laws: tuple[Law | None, Law | None, Law | None]
    gamma: float | None
    eps: float | None
    departures: tuple[str, ...]

    @property
    def score(self) -> tuple[int, int]:
        """How far it is from what is published: terms that depart, then numbers that differ.

        An ε counts twice: a weight is tuned, an ε seldom.
        """
        published = self.convention.weights
        if published is None:
            differ = 3 if None in self.weights else 1
        else:
            differ = sum(a != b for a, b in zip(self.weights, published, strict=True))
        if self.eps is not None:
            differ += 2 * (self.eps != self.convention.eps) + (self.gamma != 1)
        terms = {text.partition(":")[0] for text in self.departures}
        foreign = any(text.endswith(_NO_SUCH_TERM) for text in self.departures)
        return len(terms) + foreign, differ


def nearest_reading(measured: Measured, laws: Laws) -> tuple[Reading, list[Reading]]:
    """Return the reading that departs least, and all; equal ones are in the table's order."""
    readings = [read_as(convention, measured, laws) for convention in conventions.values()]
    return min(readings, key=lambda reading: reading.score), readings


def read_as(convention: Convention, measured: Measured, laws: Laws) -> Reading:
    """Return the function as `convention` would have it."""
    own = law_of(convention)
    invariance = _read_invariance(measured.invariance, laws, convention, own[0])
    variance = _read_variance(measured.variance, laws, convention, own[1])
    covariance = _read_covariance(measured.covariance, laws, convention, own[2])
    hinge = variance[3]
    found = (invariance[0], variance[0], covariance[0])
    weights = _published_or(found, convention.weights, laws.error)
    departures = [*invariance[2], *variance[2], *covariance[2]]
    departures += signs(weights)
    if None not in weights:
        departures += _constant(measured, laws)
    return Reading(
        convention=convention,
        weights=weights,
        laws=(invariance[1], variance[1], covariance[1]),
        gamma=hinge.gamma if hinge else None,
        eps=hinge.eps if hinge else None,
        departures=tuple(departures),
    )


def _published_or(
    weights: tuple[float | None, float | None, float | None],
    published: tuple[float, float, float] | None,
    error: float,
) -> tuple[float | None, float | None, float | None]:
    """Return the published weights where what was found is within the error of them."""
    if published is None:
        return weights
    first, second, third = (
        own if weight is not None and abs(weight - own) <= error * own else weight
        for weight, own in zip(weights, published, strict=True)
    )
    return first, second, third


def signs(weights: tuple[float | None, float | None, float | None]) -> list[str]:
    """Return what is negative of what is to be made small."""
    negative = [weight is not None and weight < 0 for weight in weights]
    if any(negative) and all(weight is None or weight <= 0 for weight in weights):
        return ["sign: the whole loss is negative, as for something to be maximised"]
    names = ("invariance", "variance", "covariance")
    return [
        f"{name}: its sign is negative"
        for name, is_negative in zip(names, negative, strict=True)
        if is_negative
    ]


def _constant(measured: Measured, laws: Laws) -> list[str]:
    values = list(measured.constants.values())
    if not any(values):
        return []
    if max(values) - min(values) <= laws.slack * max(map(abs, values)):
        return [f"constant: {short(snapped(values[0], laws.error))} is added"]
    return ["constant: something is added that depends on n or d alone"]


# --- invariance ---------------------------------------------------------------------------


def _read_invariance(
    term: Invariance, laws: Laws, convention: Convention, own: Law | None
) -> tuple[float | None, Law | None, list[str]]:
    if not term.present:
        return 0.0, own, []
    if term.unrecognised:
        return None, None, [f"invariance: not recognised: {term.unrecognised}"]
    law = own if own in laws.invariance and not term.cosine else next(iter(laws.invariance), None)
    departures = _invariance_form(term, law)
    if law is None:
        departures = departures or ["invariance: its size goes with n or d in no known way"]
        return None, None, departures
    if own is None:
        departures.append(f"invariance: {convention.name} {_NO_SUCH_TERM}")
    elif law != own and term.power == 2:
        departures += _sums("invariance", law, own, convention.name)
    weight = laws.invariance[law]
    if _of_normalised(term, law):
        weight /= 2  # |a - b|² is 2 - 2 cos
    known = term.cosine or term.power in (1, 2)
    return (snapped(weight, laws.error) if known else None), law, departures


def _of_normalised(term: Invariance, law: Law | None) -> bool:
    """Whether a cosine is the mean square of the difference, of samples of norm 1."""
    return term.cosine and law is not None and law.features == "d²"


def _invariance_form(term: Invariance, law: Law | None) -> list[str]:
    if _of_normalised(term, law):
        return ["invariance: of samples normalised to norm 1, where it is of samples as they are"]
    if term.cosine:
        total = law is not None and law.samples == "1"
        return [
            f"invariance: a cosine, the {'sum' if total else 'mean'} over the samples of 1 - cos, "
            "where it is the square of the difference"
        ]
    if term.power == 1:
        kind = "an absolute difference (L1)" if term.by_feature else "a norm"
        return [f"invariance: {kind}, where it is the square of the difference"]
    if term.power != 2:
        return [
            "invariance: what compares the two views is not recognised: it does not grow as the "
            "square of their difference"
        ]
    if not term.by_feature:
        return ["invariance: not recognised: it is no sum over features"]
    return []


def _sums(term: str, law: Law, own: Law, name: str) -> list[str]:
    """Return how the two sums of the invariance term depart."""
    found = []
    for what, here, there in (
        ("samples", law.samples, own.samples),
        ("features", law.features, own.features),
    ):
        if here != there:
            how = f"summed over the {what}" if here == "1" else f"divided by {here}"
            instead = "sums" if there == "1" else f"divides by {there}"
            times = f" ({there} times as much)" if here == "1" else ""
            found.append(f"{term}: {how}, where {name} {instead}{times}")
    return found


# --- variance -----------------------------------------------------------------------------


def _read_variance(
    term: Variance, laws: Laws, convention: Convention, own: Law
) -> tuple[float | None, Law | None, list[str], Hinge | None]:
    if not term.present:
        return 0.0, own, [], None
    if term.unrecognised:
        return None, None, [f"variance: not recognised: {term.unrecognised}"], None
    law = own if own in laws.variance else next(iter(laws.variance), None)
    if law is None:
        return None, None, ["variance: its size goes with n or d in no known way"], None
    hinge = _snapped_hinge(laws.variance[law], convention, laws)
    weight = _of_one_view(hinge.weight, term.first_view)
    if convention.variance_over_views == "sum":
        weight /= 2
    weight = snapped(weight, laws.error)
    departures = _variance_form(term, hinge, convention)
    departures += _variance_sums(law, own, convention.name)
    if outside := _outside(hinge, term.on):  # as it is meant, and so as it is published
        hinge = Hinge(hinge.weight, snapped(hinge.gamma + outside, laws.error), outside)
    return weight, law, departures, hinge


def _snapped_hinge(hinge: Hinge, convention: Convention, laws: Laws) -> Hinge:
    root = math.sqrt(hinge.eps)
    # √ε is measured beside γ: its error is γ's.
    error = 2 * laws.error * max(abs(hinge.gamma) / root, 1.0) if root else 0.0
    eps = snapped(hinge.eps, error)
    if abs(hinge.eps - convention.eps) <= error * hinge.eps:
        eps = convention.eps
    gamma = snapped(hinge.gamma, laws.error)
    return Hinge(snapped(hinge.weight, laws.error), gamma, eps)


def _variance_form(term: Variance, hinge: Hinge, convention: Convention) -> list[str]:
    found = []
    name = convention.name
    if term.on != convention.hinge_on:
        found.append(f"the hinge is on the {term.on}, where {name} has the {convention.hinge_on}")
    elif outside := _outside(hinge, term.on):
        found.append(
            f"ε {short(outside)} is added outside the root, where {name} has it inside: the "
            f"same as γ {short(hinge.gamma)} and no ε"
        )
    if not term.clipped:
        found.append("no hinge: it is not clipped at zero, and rewards a large variance")
    if term.squared:
        found.append(f"the hinge is squared, where {name} has it as it is")
    if not term.by_feature:
        found.append("the hinge is not taken feature by feature")
    if not term.centred:
        found.append("the mean is not removed")
    found += _views(term.first_view, name)
    return [f"variance: {text}" for text in found]


def _outside(hinge: Hinge, on: str) -> float | None:
    """Return an ε beyond the root: γ falls short of a round number by it."""
    if on != "std" or hinge.eps or _digits(hinge.gamma) < 3:
        return None
    return next((eps for eps in _OUTSIDE if _digits(hinge.gamma + eps) <= 2), None)


def _digits(value: float) -> int:
    return len(f"{value:.9e}".partition("e")[0].replace(".", "").lstrip("-").rstrip("0"))


def _views(first_view: float, name: str) -> list[str]:
    if first_view == 0.5:
        return []
    if first_view in (0.0, 1.0):
        only = "first" if first_view else "second"
        return [f"of the {only} view alone, where {name} has both"]
    less, more = sorted((first_view, 1 - first_view))
    which = "first" if first_view == less else "second"
    return [f"the {which} view has {less / more:.3g} of the other's weight, in {name} the same"]


def _of_one_view(weight: float, first_view: float) -> float:
    """Return the weight as the view that counts more has it: the other may be left out."""
    return weight * 2 * max(first_view, 1 - first_view)


def _variance_sums(law: Law, own: Law, name: str) -> list[str]:
    found = []
    if law.samples != own.samples:
        found.append(f"variance: {_statistic(law.samples, own.samples, name, 'variance')}")
    if law.features != own.features:
        how = "summed over the features" if law.features == "1" else f"divided by {law.features}"
        times = " (d times as much)" if law.features == "1" else ""
        found.append(f"variance: {how}, where {name} divides by {own.features}{times}")
    return found


def _statistic(here: str, there: str, name: str, what: str) -> str:
    kinds = {"n": f"population {what}", "n - 1": f"sample {what}", "1": "sum of squares"}
    if what == "covariance":
        kinds["1"] = "sum of products"
    how = "not divided" if here == "1" else f"divided by {here}"
    return (
        f"a {kinds.get(here, what)} ({how}), where {name} has the "
        f"{kinds.get(there, what)} (divided by {there})"
    )


# --- covariance ---------------------------------------------------------------------------


def _read_covariance(
    term: Covariance, laws: Laws, convention: Convention, own: Law
) -> tuple[float | None, Law | None, list[str]]:
    if not term.present:
        return 0.0, own, []
    if term.unrecognised:
        return None, None, [f"covariance: not recognised: {term.unrecognised}"]
    departures = [f"covariance: {text}" for text in _covariance_form(term, convention.name)]
    law = own if own in laws.covariance else next(iter(laws.covariance), None)
    # A correlation has no divisor of its own: each fits.
    if law is None:
        departures = departures or ["covariance: its size goes with n or d in no known way"]
        return None, None, departures
    departures += _covariance_sums(law, own, convention.name)
    weight = _of_one_view(laws.covariance[law], term.first_view)
    if convention.covariance_over_views == "sum":
        weight /= 2
    return (
        (None if term.power not in (0, 2, 4) else snapped(weight, laws.error)),
        law,
        departures,
    )


def _covariance_form(term: Covariance, name: str) -> list[str]:
    found = []
    if not any(term.coefficients.values()):
        return ["the squared variances, the diagonal, and no covariance"]
    if term.power == 0:
        found.append("a correlation, which no scale changes, where it is a covariance")
    elif term.power == 2:
        found.append("the covariances are not squared")
    elif term.power != 4:
        return ["not recognised: it does not grow as the square of a covariance"]
    if not term.additive:
        found.append("it is no sum over pairs of features")
    if not term.centred:
        found.append("the mean is not removed")
    found += _diagonal(term)
    found += _views(term.first_view, name)
    return found


def _diagonal(term: Covariance) -> list[str]:
    """Return which entries count that should not, and which do not that should."""
    if term.pairs is None or term.power != 4:
        return ["the diagonal is not removed"] if any(term.diagonal.values()) else []
    d = len(term.pairs)
    entry = next(iter(term.entry_coefficients().values()))
    off_diagonal = float(np.sum(term.pairs) / np.max(term.pairs))
    diagonal = 0.0 if term.entries is None else float(np.sum(term.entries) / entry)
    all_pairs = abs(off_diagonal - d * (d - 1)) < 1e-3 * d
    if all_pairs and not abs(diagonal) > 1e-3:
        return []
    if all_pairs and abs(diagonal - d) < 1e-3 * d:
        return ["the diagonal is included"]
    if all_pairs:
        return [f"the diagonal is included, with {short(diagonal / d)} of the weight"]
    return [
        f"a wrong diagonal is removed: of the {d * (d - 1)} off-diagonal entries of {d} features "
        f"{off_diagonal:.4g} count, of the {d} on the diagonal {diagonal:.4g}"
    ]


def _covariance_sums(law: Law, own: Law, name: str) -> list[str]:
    found = []
    if law.samples != own.samples:
        found.append(f"covariance: {_statistic(law.samples, own.samples, name, 'covariance')}")
    if law.features != own.features:
        how = "not divided by d" if law.features == "1" else f"divided by {law.features}"
        found.append(f"covariance: {how}, where {name} divides by {own.features}")
    return found
