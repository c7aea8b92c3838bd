"""identify: the published conventions are found, and what departs from them is named.

Every loss here is written out plainly, and shares nothing with the package.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from definition import CONVENTIONS, terms

from vicreg import (
    Identification,
    conventions,
    identify,
    invariance_loss,
    translate_weights,
    vicreg_loss,
)
from vicreg._conventions import codebases_of
from vicreg.tools.backends import backend_named
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.identification.probes import takes_nothing
from vicreg.tools.identification.result import short
from vicreg.tools.requirements import RequirementError

Loss = Callable[[np.ndarray, np.ndarray], Any]
PUBLISHED = {
    name: convention.weights or (0.0, 3.0, 0.7) for name, convention in conventions.items()
}
NUMPY = backend_named("numpy")
WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")


def written_out(name: str, weights: tuple[float, ...], gamma: float = 1.0) -> Loss:
    def loss(z1: np.ndarray, z2: np.ndarray) -> float:
        found = terms([z1, z2], name, gamma)
        return float(sum(w * term for w, term in zip(weights, found, strict=True)))

    return loss


def off_diagonal(C: np.ndarray) -> np.ndarray:
    return C[~np.eye(len(C), dtype=bool)]


def squares(C: np.ndarray) -> float:
    return (off_diagonal(C) ** 2).sum() / len(C)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, x)


def plain(
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    corrections: tuple[int, int] = (1, 1),
    centred: tuple[bool, bool] = (True, True),
    invariance: Loss = lambda a, b: ((a - b) ** 2).mean(),
    hinge: Callable[[np.ndarray], float] | None = None,
    covariance: Callable[[np.ndarray], float] = squares,
    variance_of: tuple[float, float] = (0.5, 0.5),
    covariance_of: tuple[float, float] = (1.0, 1.0),
) -> Loss:
    """The official loss, each choice of which can be replaced; the hinge is of the std."""
    hinge = hinge or (lambda std: relu(gamma - std).mean())

    def second_moments(z: np.ndarray, which: int) -> np.ndarray:
        zc = z - z.mean(axis=0) if centred[which] else z
        return zc.T @ zc / (len(z) - corrections[which])

    def of_view(z: np.ndarray, variance: float, covariance_: float) -> float:
        std = np.sqrt(np.diag(second_moments(z, 0)) + eps)
        return weights[1] * variance * hinge(std) + weights[2] * covariance_ * covariance(
            second_moments(z, 1)
        )

    def loss(z1: np.ndarray, z2: np.ndarray) -> float:
        return (
            weights[0] * invariance(z1, z2)
            + of_view(z1, variance_of[0], covariance_of[0])
            + of_view(z2, variance_of[1], covariance_of[1])
        )

    return loss


official = plain()


def same_function(found: Identification, loss: Loss) -> None:
    """Every named convention gives the values of `loss` on arrays that were not probed."""
    rng = np.random.default_rng(99)
    for n, d in ((7, 4), (40, 11), (5, 13)):
        z1, z2 = rng.standard_normal((2, n, d)) * rng.uniform(0.1, 2, d)
        for name, weights in found.equivalents.items():
            eps = found.eps if conventions[name].hinge_on == "std" else None
            given = dict(zip(WEIGHTS, weights, strict=True))
            got = vicreg_loss(z1, z2, convention=name, gamma=found.gamma or 1, eps=eps, **given)
            assert got == pytest.approx(loss(z1, z2), rel=1e-10)


# --- what is identified -------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVENTIONS)
def test_published_conventions_with_their_published_weights(name: str) -> None:
    loss = written_out(name, PUBLISHED[name])
    found = identify(loss)
    assert found.convention == name
    assert found.identified
    assert found.weights == PUBLISHED[name]
    assert found.gamma == 1
    assert found.eps == conventions[name].eps
    assert found.departures == ()
    assert found.residual < 1e-12
    assert found.precision == "float64"
    assert found.equivalents[name] == found.weights
    same_function(found, loss)
    published = "its published " if conventions[name].weights else ""
    assert str(found).startswith(f"{name}, with {published}weights ")
    assert found.codebases == codebases_of(name)
    assert all(codebase in str(found) for codebase in found.codebases)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_weights_and_gamma_are_found_to_six_digits(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(-4, 4, 3)) * [name != "vcreg", 1, 1]
    gamma = float(np.exp(rng.uniform(-2, 1.5)))
    loss = written_out(name, tuple(weights), gamma)
    found = identify(loss)
    assert found.identified
    assert found.equivalents[name] == pytest.approx(weights, rel=1e-9)
    assert found.gamma == pytest.approx(gamma, rel=1e-9)
    assert found.eps == conventions[name].eps
    same_function(found, loss)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize(
    "present", [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str
)
def test_terms_of_weight_zero(name: str, present: tuple[int, int, int]) -> None:
    weights = tuple(w * p for w, p in zip(PUBLISHED[name], present, strict=True))
    if not any(weights):
        pytest.skip("vcreg has no invariance term")
    loss = written_out(name, weights)
    found = identify(loss)
    assert found.identified
    assert found.equivalents[name] == weights
    assert (found.gamma is None) == (weights[1] == 0)
    assert found.departures == ()
    same_function(found, loss)


@pytest.mark.parametrize("eps", [1.0, 0.1, 3.3e-3, 1e-5, 1e-8, 1e-12, 1e-16])
def test_an_eps_of_ones_own(eps: float) -> None:
    found = identify(plain((3.7219, 0.731, 0.0123), gamma=1.5, eps=eps))
    assert found.weights == (3.7219, 0.731, 0.0123) or found.convention == "vcreg"
    assert found.gamma == 1.5
    assert found.eps == eps
    if eps != 1e-5:
        assert found.departures == (f"variance: ε is {short(eps)}, where official has 0.0001",)
    assert found.official_weights(d=3) == (3.7219, 0.731, 0.0123)


def test_a_missing_eps() -> None:
    loss = plain(eps=0)
    found = identify(loss)
    assert found.convention == "official"
    assert found.weights == (25, 25, 1)
    assert found.eps == 0
    assert found.departures == ("variance: ε is missing (0, where official has 0.0001)",)
    assert found.equivalents["jolibrain"] == (25, 25, 2)
    assert "same as    jolibrain with 25, 25, 2" in str(found)
    same_function(found, loss)


def test_factors_that_are_another_convention() -> None:
    assert identify(plain((25, 50, 1))).convention == "algorithm1"
    assert identify(plain((25, 25, 0.5))).convention == "vicregl"
    upper = plain(covariance=lambda C: (np.triu(C, 1) ** 2).sum() / len(C))
    assert identify(upper).convention == "vicregl"
    assert identify(plain((25, 25, 0.5), eps=0)).convention == "jolibrain"
    assert identify(plain(corrections=(0, 1))).convention == "tensorflow-similarity"
    squared_norm = plain(invariance=lambda a, b: ((a - b) ** 2).sum(axis=1).mean())
    assert identify(squared_norm).equivalents["paper"] == (25, 12.5, 1)


def test_the_official_weights() -> None:
    paper = identify(written_out("paper", (25, 25, 1)))
    for d in (2, 2048):
        assert paper.official_weights(d) == translate_weights((25, 25, 1), "paper", "official", d)
    assert "official   computes this with weights 25·d, 50, 1 (51200, 50, 1 at d = 2048)" in str(
        paper
    )
    vcreg = identify(written_out("vcreg", (0, 3, 0.7)))
    assert vcreg.official_weights(8) == pytest.approx((0, 3, 0.05), rel=1e-12)
    assert "0.35/(d - 1)" in str(vcreg)
    assert "ε 1e-5 in place of 0.0001" in str(vcreg)
    article = identify(written_out("article", (25, 25, 1)))
    assert article.official_weights(8) is None
    assert "no weights make it compute this: the hinge is on the variance" in str(article)
    assert identify(lambda a, b: float(np.sin(a).sum())).official_weights(8) is None


def test_gamma_is_said() -> None:
    found = identify(plain(gamma=0.5))
    assert found.gamma == 0.5
    assert "γ 0.5 in place of 1" in str(found)
    assert identify(plain(gamma=20, eps=0.01)).gamma == 20
    assert identify(plain(gamma=0.01, eps=1e-6)).gamma == 0.01


def test_single_precision_inside_is_seen_and_said() -> None:
    def single(z1: np.ndarray, z2: np.ndarray) -> float:
        return 2.5 * float(plain((10, 10, 0.4))(z1.astype(np.float32), z2.astype(np.float32)))

    found = identify(single)
    assert found.convention == "official"
    assert found.weights == (25, 25, 1)
    assert found.eps == pytest.approx(1e-4, rel=1e-3)
    assert found.precision == "float32"
    assert 1e-9 < found.residual < 1e-5
    assert "computes in float32" in str(found)
    assert not identify(lambda a, b: single(a, b) + 0.1).identified


# --- what departs -------------------------------------------------------------------------

DEPARTURES: dict[str, tuple[Loss, str]] = {
    "population covariance": (plain(corrections=(1, 0)), "covariance: a population covariance"),
    "sum over samples": (
        plain(invariance=lambda a, b: ((a - b) ** 2).mean(axis=1).sum()),
        "invariance: summed over the samples",
    ),
    "sum over all": (
        plain(invariance=lambda a, b: ((a - b) ** 2).sum()),
        "invariance: summed over the features",
    ),
    "L1": (plain(invariance=lambda a, b: np.abs(a - b).mean()), "invariance: an absolute diff"),
    "norm": (
        plain(invariance=lambda a, b: np.linalg.norm(a - b, axis=1).mean()),
        "invariance: a norm",
    ),
    "hinge summed over features": (
        plain(hinge=lambda std: relu(1 - std).sum()),
        "variance: summed over the features",
    ),
    "squared hinge": (plain(hinge=lambda std: (relu(1 - std) ** 2).mean()), "variance: the hinge"),
    "squared hinge of the population std": (
        plain(corrections=(0, 1), hinge=lambda std: (relu(1 - std) ** 2).mean()),
        "variance: the hinge is squared",
    ),
    "no hinge": (plain(hinge=lambda std: (1 - std).mean()), "variance: no hinge"),
    "hinge on the variance": (
        plain(hinge=lambda std: relu(1 - std**2).mean(), eps=0),
        "variance: the hinge is on the variance",
    ),
    "ε outside the root": (
        plain(hinge=lambda std: relu(1 - (std + 1e-4)).mean(), eps=0),
        "variance: ε 0.0001 is added outside the root",
    ),
    "variance of one view": (plain(variance_of=(0.5, 0)), "variance: of the first view alone"),
    "uncentred variance": (plain(centred=(False, True)), "variance: the mean is not removed"),
    "sum of squares": (
        lambda a, b: plain(hinge=lambda std: relu(1 - std * np.sqrt(len(a) - 1)).mean(), eps=0)(
            a, b
        ),
        "variance: a sum of squares",
    ),
    "not divided by d": (
        plain(covariance=lambda C: (off_diagonal(C) ** 2).sum()),
        "covariance: not divided by d",
    ),
    "mean over all entries": (
        plain(covariance=lambda C: (off_diagonal(C) ** 2).sum() / C.size),
        "covariance: divided by d²",
    ),
    "diagonal included": (
        plain(covariance=lambda C: (C**2).sum() / len(C)),
        "covariance: the diagonal is included",
    ),
    "wrong diagonal": (
        plain(covariance=lambda C: squares_off_by_one(C)),
        "covariance: a wrong diagonal is removed: of the 20 off-diagonal entries of 5 features "
        "16 count, of the 5 on the diagonal 4",
    ),
    "diagonal alone": (
        plain(covariance=lambda C: (np.diag(C) ** 2).sum() / len(C)),
        "covariance: the squared variances",
    ),
    "uncentred covariance": (plain(centred=(True, False)), "covariance: the mean is not removed"),
    "correlation": (
        plain(
            covariance=lambda C: squares(
                C / np.sqrt(np.diag(C)) / np.sqrt(np.diag(C))[:, None],
            ),
            eps=1e-4,
        ),
        "covariance: a correlation",
    ),
    "not squared": (
        plain(covariance=lambda C: np.abs(off_diagonal(C)).sum() / len(C)),
        "covariance: the covariances are not squared",
    ),
    "covariance of one view": (plain(covariance_of=(0, 1)), "covariance: of the second view"),
    "views with other weights": (
        plain(covariance_of=(1 / 3, 2 / 3)),
        "covariance: the first view has 0.5 of the other's weight",
    ),
    "constant": (lambda a, b: official(a, b) + 3.5, "constant: 3.5 is added"),
    "negated": (lambda a, b: -official(a, b), "sign: the whole loss is negative"),
    "one sign": (plain((25, 25, -1)), "covariance: its sign is negative"),
}


def squares_off_by_one(C: np.ndarray) -> float:
    d = len(C)
    kept = C.flatten()[:-1].reshape(d - 1, d + 1)[:, :-1]  # [:, 1:] is right
    return (kept**2).sum() / d


@pytest.mark.parametrize("name", DEPARTURES)
def test_a_departing_term_is_named_and_explains_every_value(name: str) -> None:
    loss, departure = DEPARTURES[name]
    found = identify(loss)
    assert not found.identified
    assert found.convention is None
    assert any(text.startswith(departure) for text in found.departures), found.departures
    terms = {text.partition(":")[0] for text in found.departures}
    assert terms == {departure.partition(":")[0]}
    assert found.explained
    assert found.nearest == "official"
    assert found.residual > 1e-6
    text = str(found)
    assert text.startswith("None of them. Nearest: official, with ")
    assert "every value compared is reproduced" in text
    assert max(map(len, text.splitlines())) <= 80
    if "sign" not in departure:
        kept = [w for w, t in zip(found.weights, WEIGHTS, strict=True) if t[:5] != departure[:5]]
        assert kept == [
            w for w, t in zip((25, 25, 1), WEIGHTS, strict=True) if t[:5] != departure[:5]
        ]
        assert found.weights[2] == pytest.approx(1, rel=1e-9) or name.startswith("views")


def test_two_departures_at_once() -> None:
    found = identify(plain(corrections=(1, 2), variance_of=(0, 0.5)))
    assert {text.partition(":")[0] for text in found.departures} == {"variance", "covariance"}
    assert found.explained


# --- what is done before and after --------------------------------------------------------


def cosines(a: np.ndarray, b: np.ndarray, eps: float = 0.0) -> np.ndarray:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + eps)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - cosines(a, b).mean()


def rows(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def standardised(z: np.ndarray, axis: int, eps: float = 0.0) -> np.ndarray:
    variance = z.var(axis=axis, keepdims=True)
    return (z - z.mean(axis=axis, keepdims=True)) / np.sqrt(variance + eps)


def in_float32(loss: Loss) -> Loss:
    return lambda a, b: float(loss(a.astype(np.float32), b.astype(np.float32)))


# The weights and what departs. What is wrong of one term says nothing of the others.
COSINES: dict[str, tuple[Loss, tuple[float, float, float], tuple[str, ...]]] = {
    "official": (plain(invariance=cosine), (25, 25, 1), ("a cosine, the mean over",)),
    "other weights": (
        plain((0.3, 7, 0.02), gamma=0.5, eps=1e-3, invariance=cosine),
        (0.3, 7, 0.02),
        ("a cosine, the mean over",),
    ),
    "no covariance": (plain((25, 25, 0), invariance=cosine), (25, 25, 0), ("a cosine",)),
    "no variance": (plain((25, 0, 1), invariance=cosine), (25, 0, 1), ("a cosine",)),
    "alone": (plain((25, 0, 0), invariance=cosine), (25, 0, 0), ("a cosine",)),
    "of 2 - 2 cos": (plain(invariance=lambda a, b: 2 * cosine(a, b)), (50, 25, 1), ("a cosine",)),
    "negative": (
        plain(invariance=lambda a, b: -cosines(a, b).mean()),
        (25, 25, 1),
        ("a cosine", "-25 is added"),
    ),
    "sum": (
        plain(invariance=lambda a, b: (1 - cosines(a, b)).sum()),
        (25, 25, 1),
        ("a cosine, the sum over",),
    ),
    "with an ε": (
        plain(invariance=lambda a, b: 1 - cosines(a, b, 1e-8).mean()),
        (25, 25, 1),
        ("a cosine",),
    ),
    "of normalised samples": (
        plain(invariance=lambda a, b: ((rows(a) - rows(b)) ** 2).mean()),
        (25, 25, 1),
        ("of samples normalised",),
    ),
    "and a population covariance": (
        plain(corrections=(1, 0), invariance=cosine),
        (25, 25, 1),
        ("a cosine", "a population covariance"),
    ),
    "in float32": (in_float32(plain(invariance=cosine)), (25, 25, 1), ("a cosine",)),
}


@pytest.mark.parametrize("name", COSINES)
def test_a_cosine_for_the_invariance_leaves_the_other_terms_as_they_are(name: str) -> None:
    loss, weights, departures = COSINES[name]
    found = identify(loss)
    assert found.nearest == "official"
    assert found.weights == weights
    assert found.explained
    said = [text.partition(": ")[2] for text in found.departures]
    assert [text.startswith(part) for text, part in zip(said, departures, strict=True)]
    if weights[1] == 25:
        assert (found.gamma, found.eps) == (1, pytest.approx(1e-4, rel=1e-3))


NORMALISED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "each sample is divided by its norm": rows,
    "each sample is divided by its root mean square": lambda z: rows(z) * z.shape[1] ** 0.5,
    # As layers do, which add something to the variance.
    "each sample has its mean removed and is divided by its std": (
        lambda z: standardised(z, 1, 1e-5)
    ),
    "each sample is divided by its largest magnitude": (
        lambda z: z / np.abs(z).max(axis=1, keepdims=True)
    ),
    "each feature has its mean removed and is divided by its std": (
        lambda z: standardised(z, 0, 1e-5)
    ),
    "each feature is divided by its sample std": lambda z: z / z.std(axis=0, ddof=1),
    "each feature is divided by its norm over the samples": lambda z: (
        z / np.linalg.norm(z, axis=0)
    ),
    "each view is divided by its norm": lambda z: z / np.linalg.norm(z),
}


@pytest.mark.parametrize("how", NORMALISED)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_inputs_that_are_normalised(how: str, precision: str) -> None:
    normalise = NORMALISED[how]

    def loss(a: np.ndarray, b: np.ndarray) -> float:
        return official(normalise(a), normalise(b))

    found = identify(loss if precision == "float64" else in_float32(loss))
    assert found.departures == (f"the inputs are normalised: {how}",)
    assert found.explained
    assert not found.identified
    assert found.nearest == "official"
    # A std of 1 leaves the hinge nothing to do, whatever its weight is.
    hinge = None if "divided by its" in how and "std" in how and "feature" in how else 25
    assert found.weights == (25, hinge, 1)


def test_normalised_inputs_of_other_losses() -> None:
    paper = written_out("paper", (3, 7, 0.5))
    found = identify(lambda a, b: paper(rows(a), rows(b)))
    assert (found.nearest, found.explained) == ("algorithm1", True) or found.nearest == "paper"
    assert found.departures == ("the inputs are normalised: each sample is divided by its norm",)
    sine = identify(lambda a, b: np.sin(rows(a)).sum() * np.cos(rows(b)).mean())
    assert sine.departures[0] == (
        "the inputs are normalised: the scale of a sample changes nothing"
    )
    assert "not recognised" in sine.departures[1]
    assert not sine.explained


BOUNDED: dict[str, tuple[Loss, str]] = {
    **{
        f"at most {bound:g}": (
            lambda a, b, bound=bound: np.minimum(official(a, b), bound),
            f"it is never above {short(bound)}",
        )
        for bound in (1, 10, 100, 1e4, 1e9)
    },
    **{
        f"at least {bound:g}": (
            lambda a, b, bound=bound: np.maximum(official(a, b), bound),
            f"it is never below {bound:g}",
        )
        for bound in (0.001, 5, 60)
    },
    "both": (
        lambda a, b: np.clip(official(a, b), 0.5, 100),
        "it is never above 100 and never below 0.5",
    ),
    "tanh": (
        lambda a, b: 100 * np.tanh(official(a, b) / 100),
        "it is 100 tanh(loss / 100)",
    ),
    "in float32": (
        in_float32(lambda a, b: np.minimum(official(a, b), 50)),
        "it is never above 50",
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_loss_that_is_bounded(name: str) -> None:
    loss, how = BOUNDED[name]
    found = identify(loss)
    assert found.departures == (f"the loss is bounded: {how}",)
    assert found.explained
    assert not found.identified
    assert found.nearest == "official"
    assert found.weights == (25, 25, 1)
    assert (found.gamma, found.eps) == (1, 1e-4)


def test_bounded_losses_of_other_numbers() -> None:
    loss = plain((3, 10, 0.1), gamma=0.5)
    found = identify(lambda a, b: min(loss(a, b), 100))
    assert (found.weights, found.gamma) == ((3, 10, 0.1), 0.5)
    assert found.departures == ("the loss is bounded: it is never above 100",)
    negative = identify(lambda a, b: -min(official(a, b), 100))
    assert [text.partition(":")[0] for text in negative.departures] == [
        "the loss is bounded",
        "sign",
    ]
    smooth = identify(lambda a, b: official(a, b) / (1 + official(a, b)))
    assert smooth.departures[0] == "the loss is bounded: it is never above 1"
    assert not smooth.explained


# --- what is right is not accused ---------------------------------------------------------


def cross_correlated(a: np.ndarray, b: np.ndarray) -> float:
    return ((((a - a.mean(axis=0)).T @ (b - b.mean(axis=0))) / len(a)) ** 2).mean()


def contrastive(a: np.ndarray, b: np.ndarray) -> float:
    similar = np.exp(rows(a) @ rows(b).T)
    return -np.log(np.diag(similar) / similar.sum(axis=1)).mean()


# None of them; and the weights of what is right all the same, None for what is not recognised.
RIGHT: dict[str, tuple[Loss, tuple[float | None, ...]]] = {
    "means pulled to 0": (
        lambda a, b: official(a, b) + (a.mean(axis=0) ** 2 + b.mean(axis=0) ** 2).mean(),
        (25, 25, 1),
    ),
    "cross-correlation": (lambda a, b: official(a, b) + cross_correlated(a, b), (25, 25, 1)),
    "weight decay": (
        lambda a, b: official(a, b) + 0.01 * (a**2 + b**2).mean(),
        (25, None, 1),
    ),
    "Huber": (
        plain(
            invariance=lambda a, b: np.where(
                abs(a - b) < 1, (a - b) ** 2 / 2, abs(a - b) - 0.5
            ).mean()
        ),
        (None, 25, 1),
    ),
    "bounded covariance": (plain(covariance=lambda C: min(squares(C), 10)), (25, 25, None)),
    "bounded invariance": (
        plain(invariance=lambda a, b: min(((a - b) ** 2).mean(), 10)),
        (None, 25, 1),
    ),
    "cosine of all": (
        plain(invariance=lambda a, b: 1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)),
        (None, 25, 1),
    ),
    "root": (lambda a, b: np.sqrt(official(a, b)), (None, None, None)),
    "tanh of the inputs": (lambda a, b: official(np.tanh(a), np.tanh(b)), (None, None, None)),
    "bounded inputs": (
        lambda a, b: official(np.clip(a, -3, 3), np.clip(b, -3, 3)),
        (None, 25, None),
    ),
    "contrastive": (
        lambda a, b: plain((0, 25, 1))(a, b) + contrastive(a, b),
        (None, None, None),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_that_ordinary_arrays_do_not_show(name: str) -> None:
    loss, weights = RIGHT[name]
    found = identify(loss)
    assert not found.identified
    assert not found.explained
    assert found.weights == weights
    assert found.departures
    for text in found.departures:
        assert "not recognised" in text
        term = text.partition(":")[0]
        assert term not in ("invariance", "variance", "covariance") or None in weights


def test_a_hinge_of_the_mean_is_still_named() -> None:
    found = identify(NONE["hinge of the mean"])
    assert found.departures[0] == "variance: the hinge is not taken feature by feature"


# --- none of them -------------------------------------------------------------------------


def barlow_twins(z1: np.ndarray, z2: np.ndarray) -> float:
    z1, z2 = ((z - z.mean(axis=0)) / z.std(axis=0) for z in (z1, z2))
    C = z1.T @ z2 / len(z1)
    return ((np.diag(C) - 1) ** 2).sum() + 5e-3 * (off_diagonal(C) ** 2).sum()


NONE: dict[str, Loss] = {
    "Barlow Twins": barlow_twins,
    "cosine": lambda a, b: -(a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b),
    "sine": lambda a, b: np.sin(a).sum() * np.cos(b).mean(),
    "logarithm": lambda a, b: np.log1p(official(a, b)),
    "singular logarithm": lambda a, b: np.log(((a - b) ** 2).mean()),
    "soft hinge": plain(hinge=lambda std: np.log1p(np.exp(1 - std)).mean()),
    "hinge of the mean": plain(hinge=lambda std: max(0.0, 1 - std.mean())),
    "two-sided": plain(hinge=lambda std: ((1 - std) ** 2).mean()),
    "signed covariance": plain(covariance=lambda C: off_diagonal(C).sum()),
    "one feature alone": lambda a, b: official(a, b) + 1e-6 * abs(a[0, 0]),
    "nearly": lambda a, b: official(a, b) + 1e-7 * (a**2).mean(),
    # Nothing in the probes, which are symmetric: only random arrays show it.
    "skewness": lambda a, b: official(a, b) + ((a - a.mean(axis=0)) ** 3).mean() ** 2,
    "one": lambda a, b: 1.0,
    "zero": lambda a, b: 0.0,
    "nan": lambda a, b: math.nan,
    "infinite": lambda a, b: np.inf,
    "half precision": lambda a, b: float(official(a.astype(np.float16), b.astype(np.float16))),
}


@pytest.mark.parametrize("name", NONE)
def test_none_of_them_is_said_plainly(name: str) -> None:
    found = identify(NONE[name])
    assert not found.identified
    assert found.convention is None
    assert not found.explained
    assert found.departures
    assert found.equivalents == {}
    text = str(found)
    assert text.startswith("None of them")
    if found.nearest is not None:
        assert f"from {found.nearest} with the weights that fit best" in text.replace(
            "\n           ", " "
        )
        assert found.residual > 0
    json.dumps(found.as_data(), allow_nan=False)


def test_what_cannot_be_compared_says_why() -> None:
    assert "it returns nan for arrays" in str(identify(lambda a, b: math.nan))
    assert "it is constant: 1 for all arrays" in str(identify(lambda a, b: 1.0))
    assert "half precision: too coarse" in str(identify(NONE["half precision"])).replace("\n", " ")
    rng = np.random.default_rng(0)
    noisy = identify(lambda a, b: official(a, b) + 0.01 * rng.random())
    assert not noisy.identified
    assert "it is not deterministic" in str(noisy)


def test_the_rest_is_still_said_where_one_term_is_not_recognised() -> None:
    found = identify(NONE["soft hinge"])
    assert found.weights == (25, None, 1)
    assert found.departures == ("variance: not recognised: it is no hinge of a std or a variance",)
    assert "weights 25, ?, 1" in str(found)


# --- functions of all kinds ---------------------------------------------------------------


def only(n: int | None = None, d: int | None = None) -> Loss:
    def loss(z1: np.ndarray, z2: np.ndarray) -> float:
        if z1.shape != (n or z1.shape[0], d or z1.shape[1]):
            raise ValueError(f"the shape must be {(n, d)}")
        return official(z1, z2)

    return loss


SHAPES = {
    "features": ({"d": 8}, "8 features"),
    "samples": ({"n": 64}, "64 samples"),
    "both": ({"n": 32, "d": 16}, "16 features"),
    "a batch of its own": ({"n": 100}, "100 samples"),
    "a batch for few features": ({"n": 256}, "256 samples"),
    "both of its own": ({"n": 48, "d": 96}, "96 features"),
    "more features than samples": ({"n": 8, "d": 64}, "64 features"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_functions_of_one_shape(name: str) -> None:
    shape, what = SHAPES[name]
    found = identify(only(**shape))
    assert found.convention == "official"
    assert found.weights == (25, 25, 1)
    assert any(what in note for note in found.notes)
    # With this n a population variance of another γ would do.
    assert "tensorflow-similarity" not in found.equivalents
    assert f"it takes {what} of those tried" in str(found)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("d", "n", "dtype"),
    [
        (1024, 128, np.float64),
        pytest.param(1024, None, np.float32, marks=LONG),
        pytest.param(2048, None, np.float64, marks=LONG),
        pytest.param(2048, 256, np.float32, marks=LONG),
        pytest.param(8192, None, np.float64, marks=LONG),
    ],
)
def test_functions_of_many_features(d: int, n: int | None, dtype: type) -> None:
    def loss(z1: np.ndarray, z2: np.ndarray) -> float:
        assert z1.shape == (n or len(z1), d)
        views = z1.astype(dtype), z2.astype(dtype)
        return float(vicreg_loss(*views, convention="paper"))

    found = identify(loss)
    assert found.convention == "paper"
    assert found.weights == (25, 25, 1)
    assert found.gamma == pytest.approx(1, rel=1e-4)
    assert found.departures == () or dtype is np.float32


def test_what_departs_is_named_for_more_features_than_samples_too() -> None:
    def only_wide(loss: Loss) -> Loss:
        def function(z1: np.ndarray, z2: np.ndarray) -> float:
            assert z1.shape == (12, 20)
            return loss(z1, z2)

        return function

    names = ("norm", "no hinge", "uncentred variance", "not squared", "diagonal included")
    for name in names:
        loss, departure = DEPARTURES[name]
        found = identify(only_wide(loss))
        (text,) = found.departures
        # Of many features the pairs are not counted.
        assert text.startswith(departure.replace("is included", "is not removed")), name
        assert found.explained, name
    constant = identify(only_wide(DEPARTURES["constant"][0]))
    assert constant.departures == ("constant: 3.5 is added",)
    gamma = identify(only_wide(plain((3, 4, 5), gamma=0.3, eps=1e-6)))
    assert (gamma.weights, gamma.gamma, gamma.eps) == ((3, 4, 5), 0.3, 1e-6)


def test_what_departs_is_explained_without_the_matrix_of_many_features() -> None:
    def loss(z1: np.ndarray, z2: np.ndarray) -> float:
        assert z1.shape == (64, 1536)
        return 3.5 + float(vicreg_loss(z1, z2))

    found = identify(loss)
    assert found.departures == ("constant: 3.5 is added",)
    assert found.explained


def test_the_error_names_every_shape_that_was_tried() -> None:
    tried = set()

    def never(z1: np.ndarray, z2: np.ndarray) -> float:
        tried.add(z1.shape)
        raise ValueError("not this shape")

    with pytest.raises(FunctionError, match=r"not this shape .*shape \(16, 5\)") as caught:
        identify(never)
    named = re.search(
        r"n samples of d features for n of (.*), d of (.*), n·d up to (\d+)$", str(caught.value)
    )
    n, d = ([int(size) for size in named[group].split(", ")] for group in (1, 2))
    assert tried == {pair for pair in itertools.product(n, d) if math.prod(pair) <= int(named[3])}
    assert {1024, 2048, 8192} < set(d)
    assert {8, 100, 256, 1024} < set(n)


def test_arguments_that_no_shape_makes_right_are_said_alone() -> None:
    said = str(takes_nothing(LossFunction(lambda z1, z2, labels: 0.0, NUMPY)))
    assert "missing 1 required positional argument: 'labels'" in said
    assert said.endswith("shape (16, 5))")

    def of_four_features(z1: np.ndarray, z2: np.ndarray) -> float:
        raise TypeError(f"incompatible shapes: {z1.shape}, (4,)")  # as JAX does

    said = str(takes_nothing(LossFunction(of_four_features, NUMPY)))
    assert "it takes no shape of those tried" in said


def test_the_first_of_several_numbers_is_said_to_be_it() -> None:
    def both(z1: np.ndarray, z2: np.ndarray) -> tuple[np.ndarray, ...]:
        return invariance_loss(z1, z2), vicreg_loss(z1, z2), z1

    found = identify(both)
    assert found.weights == (1, 0, 0)
    assert "returns 2 numbers, and this is the first: output (--output)" in found.notes[0]
    assert not identify(both, output=1).notes
    assert not identify(lambda z1, z2: (vicreg_loss(z1, z2), {"n": len(z1)})).notes


def test_the_function_may_change_its_input() -> None:
    def destructive(z1: np.ndarray, z2: np.ndarray) -> float:
        value = official(z1, z2)
        z1 *= 0
        z2 += 1
        return value

    assert identify(destructive).convention == "official"


@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
def test_other_libraries(name: str) -> None:
    pytest.importorskip(name)
    # JAX compiles for every shape.
    for convention in ("paper", "article")[: 1 if name == "jax" else 2]:
        found = identify(lambda a, b, c=convention: vicreg_loss(a, b, convention=c), backend=name)
        assert found.convention == convention
        assert found.weights == (25, 25, 1)
        assert found.residual < 1e-12


def test_what_is_done_before_and_after_in_pytorch() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def cosine_loss(a: Any, b: Any) -> Any:
        invariance = 25 * (1 - functional.cosine_similarity(a, b).mean())
        return invariance + vicreg_loss(a, b, invariance_weight=0)

    def normalised(a: Any, b: Any) -> Any:
        return vicreg_loss(functional.normalize(a.float()), functional.normalize(b.float()))

    def clamped(a: Any, b: Any) -> Any:
        return torch.clamp(vicreg_loss(a, b), max=100)

    layer = torch.nn.BatchNorm1d(5, affine=False, track_running_stats=False)
    for function, departure in (
        (cosine_loss, "invariance: a cosine"),
        (normalised, "the inputs are normalised: each sample is divided by its norm"),
        (clamped, "the loss is bounded: it is never above 100"),
        (
            lambda a, b: vicreg_loss(layer(a), layer(b)),
            "the inputs are normalised: each feature has its mean removed",
        ),
    ):
        found = identify(function, backend="torch")
        assert [text.startswith(departure) for text in found.departures] == [True]
        assert found.explained
        assert found.weights[::2] == (25, 1)


def test_what_is_done_after_in_jax() -> None:
    jax = pytest.importorskip("jax")

    @jax.jit
    def bounded(a: Any, b: Any) -> Any:
        return jax.numpy.minimum(vicreg_loss(a, b), 100.0)

    found = identify(bounded, backend="jax")
    assert found.departures == ("the loss is bounded: it is never above 100",)
    assert found.weights == (25, 25, 1)


def test_a_module_that_takes_single_precision_alone() -> None:
    torch = pytest.importorskip("torch")
    mix = torch.eye(5)

    def loss(z1: Any, z2: Any) -> Any:
        return vicreg_loss(z1 @ mix, z2 @ mix, convention="algorithm1")

    found = identify(loss, backend="torch")
    assert found.convention == "algorithm1"
    assert found.weights == (25, 25, 1)
    assert found.precision == "float32"


def test_pytorch_metric_learning() -> None:
    pytest.importorskip("torch")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    found = identify(losses.VICRegLoss(), backend="torch")
    assert (found.convention, found.weights) == ("official", (25, 25, 1))
    assert (found.gamma, found.eps, found.departures) == (1, 1e-4, ())
    mine = losses.VICRegLoss(invariance_lambda=7.25, variance_mu=0.3, covariance_v=0.011, eps=1e-3)
    found = identify(mine, backend="torch")
    assert found.convention == "official"
    assert found.weights == (7.25, 0.3, 0.011)
    assert found.eps == 1e-3


# --- errors -------------------------------------------------------------------------------


def raises(z1: Any, z2: Any) -> Any:
    raise RuntimeError("no\nsuch thing")


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (raises, "raises raised RuntimeError: no (for two numpy arrays"),
        (lambda a, b: None, "must return one real number; it returned NoneType"),
        (lambda a, b: ("1.0", a), "it returned tuple (str, ndarray of float64 and shape (16, 5))"),
        (lambda a, b: "1.0", "it returned str"),
        (lambda a, b: True, "it returned bool"),
        (lambda a, b: 1 + 2j, "it returned complex"),
        (lambda a, b: np.complex128(1), "it returned complex128"),
        (lambda a, b: (a == b).all(), "it returned bool"),
        (lambda a, b: (a - b).mean(axis=0), "it returned ndarray of float64 and shape (5,)"),
        (lambda a: a.mean(), "raised TypeError: "),
    ],
)
def test_functions_that_cannot_be_used(function: Loss, part: str) -> None:
    with pytest.raises(FunctionError) as caught:
        identify(function)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"^function must be callable; got int"):
        identify(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^backend must be a string; got int"):
        identify(official, backend=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^backend must be one of 'numpy', 'torch'.*'tensor'"):
        identify(official, backend="tensor")
    monkeypatch.setattr("vicreg.tools.backends._is_installed", lambda package: False)
    with pytest.raises(RequirementError, match=r"^torch is not installed"):
        identify(official, backend="torch")


def test_the_answer_is_a_frozen_dataclass_and_data() -> None:
    found = identify(official)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.gamma = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.equivalents["mine"] = (1, 1, 1)  # type: ignore[index]
    data = json.loads(json.dumps(found.as_data()))
    assert data["identified"] is True
    assert data["convention"] == "official"
    assert data["weights"] == [25, 25, 1]
    assert data["equivalents"]["algorithm1"] == [25, 12.5, 1]


# --- the command --------------------------------------------------------------------------

MODULE = """
import numpy as np
def loss(z1, z2):
    off = ~np.eye(z1.shape[1], dtype=bool)
    hinges = [np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)).mean() for z in (z1, z2)]
    covariance = sum((np.cov(z.T)[off] ** 2).sum() / z.shape[1] for z in (z1, z2))
    return 25 * ((z1 - z2) ** 2).mean() + 25 * sum(hinges) + covariance
def other(z1, z2):
    return np.sin(z1).sum()
def broken(z1, z2):
    return 1 / 0
def vector(z1, z2):
    return z1[0]
def for_torch(z1, z2):
    return z1.mean(dim=0).abs().sum()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "probed_losses.py").write_text(MODULE)
    (tmp_path / "probed_torch.py").write_text(f"import torch\n{MODULE}")
    (tmp_path / "probed_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("probed_losses", "probed_torch", "probed_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "probed_losses"


def run(*arguments: str) -> Any:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from vicreg.tools.command import application

    return CliRunner().invoke(application(), ["identify", *arguments])


def test_the_command_identifies(module: str) -> None:
    result = run(f"{module}:loss")
    assert result.exit_code == 0
    assert result.stdout.startswith("algorithm1, with its published weights 25, 25, 1; γ 1, ε")
    data = json.loads(run(f"{module}:loss", "--json").stdout)
    assert data["convention"] == "algorithm1"


def test_the_command_says_none_of_them_with_status_1(module: str) -> None:
    result = run(f"{module}:other")
    assert result.exit_code == 1
    assert result.stdout.startswith("None of them")
    assert "residual" in result.stdout
    assert result.stderr == ""
    result = run(f"{module}:other", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["identified"] is False


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["no_such_module:loss"], "there is no module 'no_such_module'"),
        (["probed_losses:no_such"], "has no 'no_such'"),
        (["probed_losses"], "must be MODULE:FUNCTION"),
        (["probed_losses:number"], "is no function"),
        (["probed_broken:loss"], "cannot be imported"),
        (["probed_losses:broken"], "broken raised ZeroDivisionError"),
        (["probed_losses:vector"], "must return one real number"),
        (["probed_losses:for_torch"], "is it for other arrays? --backend torch"),
        (["probed_losses:loss", "--backend", "nonesuch"], "backend must be one of 'numpy'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_one_line_and_status_2(
    module: str, arguments: list[str], part: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    line = result.stderr.strip()
    assert line.startswith("vicreg: ")
    assert "\n" not in line
    assert part in line


def test_the_command_knows_the_library_a_function_uses(module: str) -> None:
    pytest.importorskip("torch")
    result = run("probed_torch:for_torch")
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("it uses torch: try --backend torch")
    pytest.importorskip("pytorch_metric_learning")
    result = run("pytorch_metric_learning.losses:VICRegLoss", "--backend", "torch")
    assert result.exit_code == 0
    assert result.stdout.startswith("official, with its published weights 25, 25, 1; γ 1, ε")


def test_letters_are_spelled_where_the_terminal_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    from vicreg.tools.command import functions

    class Stream:
        encoding = "ascii"

    monkeypatch.setattr(functions.sys, "stdout", Stream)
    assert functions.printable("γ 1, ε 0; 25·d, √d, d²") == "gamma 1, eps 0; 25*d, sqrt d, d^2"


def test_the_help_teaches() -> None:
    text = run("--help").stdout
    assert "--backend torch" in text
    assert "vicreg identify" in text
