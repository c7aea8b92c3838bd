"""The terms of a convention, by the public functions, and the terms as they were measured."""

from __future__ import annotations

import numpy as np

from vicreg._conventions import Convention
from vicreg._losses.vicreg import vicreg_terms
from vicreg.tools.backends import Floats
from vicreg.tools.identification.measure import mean_cosine
from vicreg.tools.identification.probes import Model, Pair
from vicreg.tools.identification.reading import Reading
from vicreg.tools.identification.terms import (
    Covariance,
    Hinge,
    Invariance,
    Law,
    Measured,
    Variance,
)

__all__ = ["departing_model", "term_models", "terms_of"]

# Above this many features the covariance matrix is avoided if possible.
_MANY = 1024


def terms_of(
    convention: Convention, gamma: float | None, eps: float | None, pairs: list[Pair]
) -> Floats:
    """Return the unweighted terms of a convention, shape (pairs, 3).

    Without a hinge `gamma` and `eps` may be None.
    """
    rows = []
    for z1, z2 in pairs:
        terms = vicreg_terms(
            z1,
            z2,
            convention=convention,
            invariance_weight=None if convention.invariance == "none" else 1.0,
            variance_weight=1.0,
            covariance_weight=1.0,
            gamma=1.0 if gamma is None or gamma <= 0 else gamma,
            eps=eps if convention.hinge_on == "std" else None,
            method="covariance" if z1.shape[1] <= _MANY else "auto",
        )
        rows.append([float(terms.invariance), float(terms.variance), float(terms.covariance)])
    return np.asarray(rows)


def departing_model(measured: Measured, reading: Reading) -> Model | None:
    """Return the function with its departures; None if a term is not recognised."""
    constant = measured.constant
    first, second, third = term_models(measured, reading)
    if None in reading.weights or constant is None or not (first and second and third):
        return None
    return lambda z1, z2: constant + first(z1, z2) + second(z1, z2) + third(z1, z2)


def term_models(
    measured: Measured, reading: Reading
) -> tuple[Model | None, Model | None, Model | None]:
    """Return each term as it was measured; None for one that is not recognised."""
    models: list[Model | None] = [None if w is None else _nothing for w in reading.weights]
    first, second, third = reading.laws
    if models[0] and measured.invariance.present and first:
        models[0] = _invariance(measured.invariance, first, measured.laws[0][first])
    if models[1] and measured.variance.present and second:
        models[1] = _variance(measured.variance, second, measured.laws[1][second])
    if models[2] and measured.covariance.present and third:
        models[2] = _covariance(measured.covariance, third, measured.laws[2][third])
    return models[0], models[1], models[2]


def _nothing(z1: Floats, z2: Floats) -> float:
    return 0.0


def _invariance(term: Invariance, law: Law, weight: float) -> Model:
    def model(z1: Floats, z2: Floats) -> float:
        n, d = z1.shape
        difference = z1 - z2
        if term.power == 1 and not term.by_feature:
            norms = np.linalg.norm(difference, axis=1)
            return weight * float(np.sum(norms)) / law.over_samples(n)
        total = float(np.sum(np.abs(difference) ** term.power))
        if term.cosine:
            total = z1.size * (1 - mean_cosine(z1, z2, term.eps))
        return weight * total / (law.over_samples(n) * law.over_features(d))

    return model


def _variance(term: Variance, law: Law, hinge: Hinge) -> Model:
    def of_view(z: Floats) -> float:
        z = z - np.mean(z, axis=0) if term.centred else z
        n, d = z.shape
        variances = np.sum(z**2, axis=0) / law.over_samples(n)
        short = hinge.gamma - (np.sqrt(variances + hinge.eps) if hinge.on == "std" else variances)
        if hinge.clipped:
            short = np.maximum(short, 0.0)
        total = np.sum(short ** (2 if hinge.squared else 1))
        return float(hinge.weight * total / law.over_features(d))

    return lambda z1, z2: term.first_view * of_view(z1) + (1 - term.first_view) * of_view(z2)


def _covariance(term: Covariance, law: Law, weight: float) -> Model:
    def of_view(z: Floats) -> float:
        z = z - np.mean(z, axis=0) if term.centred else z
        n, d = z.shape
        scale = np.linalg.norm(z, axis=0) if term.power == 0 else law.over_samples(n) ** 0.5
        return weight * _entries(term, z / scale) / law.over_features(d)

    return lambda z1, z2: term.first_view * of_view(z1) + (1 - term.first_view) * of_view(z2)


def _entries(term: Covariance, z: Floats) -> float:
    """Return what the entries of zᵀz add up to, each with its share."""
    n, d = z.shape
    plain = term.power != 2 and term.even and term.entries is None
    if plain and n < d > _MANY:  # the same sum of squares in a smaller matrix
        return float(np.sum((z @ z.T) ** 2) - np.sum(np.sum(z**2, axis=0) ** 2))
    entries = z.T @ z
    off_diagonal = ~np.eye(d, dtype=bool)
    if term.power == 2:
        sizes = np.abs(entries[off_diagonal])
        return float(np.sum(sizes) if term.additive else np.linalg.norm(sizes))
    shares = np.full((d, d), float(any(term.coefficients.values())))
    if not term.even and term.pairs is not None:
        shares = term.pairs / np.max(term.pairs)
    diagonal = np.zeros(d)
    if term.entries is not None:  # relative to an entry that is not left out
        diagonal = term.entries / next(iter(term.entry_coefficients().values()))
        diagonal = np.full(d, diagonal[0]) if term.even else diagonal
    np.fill_diagonal(shares, diagonal)
    return float(np.sum(shares * entries**2))
