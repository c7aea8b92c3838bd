"""The function that a reading describes, made of the public functions where they have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from vicreg._conventions import Convention, Weights, conventions
from vicreg._losses.vicreg import (
    covariance_loss,
    invariance_loss,
    variance_loss,
    vicreg_terms,
)
from vicreg.tools.backends import Floats
from vicreg.tools.identification.laws import FEATURES, SAMPLES, Law
from vicreg.tools.identification.measure import (
    Covariance,
    Hinge,
    Invariance,
    Measured,
    Variance,
    mean_cosine,
)
from vicreg.tools.identification.probes import Shape
from vicreg.tools.identification.reading import Laws, Reading

__all__ = [
    "Model",
    "best_weights",
    "convention_model",
    "departing_model",
    "term_models",
    "terms_of",
]

Model = Callable[[Floats, Floats], float]

# The plain form of each term; its sums are scaled where they are used.
_STD = replace(conventions["official"], name="std", eps=0.0)
_VARIANCE = replace(_STD, name="variance", hinge_on="variance")
_MANY = 1024


def convention_model(
    convention: Convention, weights: Weights, gamma: float | None, eps: float | None
) -> Model:
    """Return the public loss with these numbers."""

    def loss(z1: Floats, z2: Floats) -> float:
        terms = terms_of(convention, gamma, eps, z1, z2)
        return math.fsum(w * t for w, t in zip(weights, terms, strict=True) if w)

    return loss


def terms_of(
    convention: Convention, gamma: float | None, eps: float | None, z1: Floats, z2: Floats
) -> tuple[float, float, float]:
    """Return the terms of two views, unweighted; where there is no hinge γ does not matter."""
    has_eps = convention.hinge_on == "std"
    terms = vicreg_terms(
        z1,
        z2,
        convention=convention,
        invariance_weight=None if convention.invariance == "none" else 1.0,
        variance_weight=1.0,
        covariance_weight=1.0,
        gamma=1.0 if gamma is None or gamma <= 0 else gamma,
        eps=eps if has_eps else None,
        method=_method(z1.shape[1]),
    )
    return float(terms.invariance), float(terms.variance), float(terms.covariance)


def best_weights(
    reading: Reading, pairs: list[tuple[Floats, Floats]], values: Floats
) -> tuple[Weights, Floats]:
    """Return the weights, none negative, that bring a convention nearest to `values`, and it."""
    terms = np.asarray(
        [terms_of(reading.convention, reading.gamma, reading.eps, *pair) for pair in pairs]
    )
    best: tuple[Weights, Floats] = ((0.0, 0.0, 0.0), np.zeros(len(values)))
    for chosen in range(1, 8):
        columns = [i for i in range(3) if chosen >> i & 1]
        fitted, *_ = np.linalg.lstsq(terms[:, columns], values, rcond=None)
        model = terms[:, columns] @ fitted
        nearer = np.max(np.abs(model - values)) < np.max(np.abs(best[1] - values))
        if nearer and np.all(fitted >= 0):
            weights = np.zeros(3)
            weights[columns] = fitted
            best = cast(Weights, tuple(map(float, weights))), model
    return best


def departing_model(
    measured: Measured, laws: Laws, reading: Reading, base: Shape
) -> tuple[Model, bool] | None:
    """Return the function with its departures, and whether it holds for one d alone.

    None where a term is not recognised.
    """
    parts = term_models(measured, laws, reading)
    if any(weight is None for weight in reading.weights) or None in parts:
        return None
    values = list(measured.constants.values())
    if len(set(values)) > 1 and max(values) - min(values) > laws.slack * max(map(abs, values)):
        return None
    constant = values[0]

    def model(z1: Floats, z2: Floats) -> float:
        return constant + math.fsum(part(z1, z2) for part in parts if part is not None)

    return model, not measured.covariance.even


def term_models(
    measured: Measured, laws: Laws, reading: Reading
) -> tuple[Model | None, Model | None, Model | None]:
    """Return each term as it was measured, departures and all; None where it is not recognised."""
    invariance, variance, covariance = reading.laws
    known = [weight is not None for weight in reading.weights]
    return (
        _invariance_model(measured.invariance, laws, invariance) if known[0] else None,
        _variance_model(measured.variance, laws, variance) if known[1] else None,
        _covariance_model(measured.covariance, laws, covariance) if known[2] else None,
    )


def _nothing(z1: Floats, z2: Floats) -> float:
    return 0.0


def _invariance_model(term: Invariance, laws: Laws, law: Law | None) -> Model:
    if not term.present or law is None:
        return _nothing
    weight = laws.invariance[law]

    def model(z1: Floats, z2: Floats) -> float:
        n, d = z1.shape
        if term.cosine:
            size = n * d / (SAMPLES[law.samples](n) * FEATURES[law.features](d))
            return float(weight * size * (1 - mean_cosine(z1, z2, term.eps)))
        if term.power == 1 and not term.by_feature:
            rows = float(np.sum(np.linalg.norm(z1 - z2, axis=1)))
            return weight * rows / SAMPLES[law.samples](n)
        mean = float(invariance_loss(z1, z2) if term.power == 2 else np.mean(np.abs(z1 - z2)))
        return float(weight * mean * n * d / (SAMPLES[law.samples](n) * FEATURES[law.features](d)))

    return model


def _of_views(first_view: float, term: Callable[[Floats], float]) -> Model:
    def model(z1: Floats, z2: Floats) -> float:
        return first_view * term(z1) + (1 - first_view) * term(z2)

    return model


def _with_divisor(z: Floats, divisor: float, centred: bool) -> tuple[Floats, int]:
    """Return an array whose statistics are those of z over `divisor`, and their correction.

    Beside its own negative a view has mean zero: its second moment is then a variance.
    """
    n = len(z)
    if centred:
        return z * math.sqrt((n - 1) / divisor), 1
    return np.concatenate([z, -z]) * math.sqrt(n / divisor), 0


def _variance_model(term: Variance, laws: Laws, law: Law | None) -> Model:
    if not term.present or law is None:
        return _nothing
    fit = laws.variance[law]

    def of_view(z: Floats) -> float:
        view, correction = _with_divisor(z, SAMPLES[law.samples](len(z)), term.centred)
        convention = replace(
            _STD if term.on == "std" else _VARIANCE, variance_correction=correction
        )
        hinge = _hinge(term, convention, fit)
        d = z.shape[1]
        return float(fit.weight * hinge(view) * d / FEATURES[law.features](d))

    return _of_views(term.first_view, of_view)


def _hinge(term: Variance, convention: Convention, fit: Hinge) -> Callable[[Floats], float]:
    def of(z: Floats, gamma: float) -> float:
        eps = fit.eps if convention.hinge_on == "std" else None
        return float(variance_loss(z, convention=convention, gamma=gamma, eps=eps))

    def unclipped(z: Floats) -> float:
        # A γ that no feature reaches, and what it is too much.
        above = 2.0 + fit.gamma + fit.eps + float(np.max(np.abs(z))) * 2
        above = above if convention.hinge_on == "std" else above**2
        return of(z, above) - (above - fit.gamma)

    def squared(z: Floats) -> float:
        one = of if term.clipped else lambda z, gamma: unclipped(z)
        return float(np.mean([one(z[:, [i]], fit.gamma) ** 2 for i in range(z.shape[1])]))

    if term.squared:
        return squared
    return (lambda z: of(z, fit.gamma)) if term.clipped else unclipped


def _covariance_model(term: Covariance, laws: Laws, law: Law | None) -> Model:
    if not term.present or law is None:
        return _nothing
    weight = laws.covariance[law]

    def of_view(z: Floats) -> float:
        n, d = z.shape
        if term.power == 0:
            view, correction = _with_divisor(z, n - 1, term.centred)
            view = view / np.sqrt(np.diag(_second_moments(view, correction)))
        else:
            view, correction = _with_divisor(z, SAMPLES[law.samples](n), term.centred)
        return weight * _entries(term, view, correction) / FEATURES[law.features](d)

    return _of_views(term.first_view, of_view)


def _method(d: int) -> str:
    """Return the plain definition, but not the matrix of thousands of features."""
    return "covariance" if d <= _MANY else "auto"


def _second_moments(z: Floats, correction: int) -> Floats:
    deviations = z - np.mean(z, axis=0)
    moments: Floats = np.abs(deviations.T @ deviations) / (len(z) - correction)
    return moments


def _entries(term: Covariance, z: Floats, correction: int) -> float:
    """Return the sum over the entries that count."""
    d = z.shape[1]
    off = ~np.eye(d, dtype=bool)
    if term.even and term.entries is None and term.power != 2:
        convention = replace(_STD, covariance_correction=correction)
        return float(d * covariance_loss(z, convention=convention, method=_method(d)))
    moments = _second_moments(z, correction)
    if term.power == 2:
        return float(np.sum(moments[off]) if term.additive else np.linalg.norm(moments[off]))
    shares = np.full((d, d), float(any(term.coefficients.values())))
    if not term.even and term.pairs is not None:
        shares = term.pairs / np.max(term.pairs)
    diagonal = np.zeros(d)
    if term.entries is not None:
        # In units of an entry that counts in full; evenly, of whichever d.
        entry = next(iter(term.entry_coefficients().values()))
        diagonal = term.entries / entry
        diagonal = np.full(d, diagonal[0]) if term.even else diagonal
    np.fill_diagonal(shares, diagonal)
    return float(np.sum(shares * moments**2))
