"""The conventions are data, and weights translate where one function can express the other."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from vicreg import (
    Convention,
    conventions,
    covariance_loss,
    diagnose,
    invariance_loss,
    translate_weights,
    variance_loss,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg._conventions import (
    ConventionName,
    both_names,
    codebases,
    codebases_of,
    convention_named,
)

NAMES = ("invariance_weight", "variance_weight", "covariance_weight")


def test_the_mapping_is_read_only_and_named() -> None:
    assert list(conventions) == [
        "official",
        "paper",
        "algorithm1",
        "article",
        "vicregl",
        "jolibrain",
        "tensorflow-similarity",
        "eb-jepa",
        "tensorflow-gnn",
        "vcreg",
    ]
    assert all(name == convention.name for name, convention in conventions.items())
    with pytest.raises(TypeError):
        conventions["mine"] = conventions["paper"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        conventions["paper"].eps = 0.0  # type: ignore[misc]


def test_the_names_for_type_checkers_are_the_data() -> None:
    also = [name for codebase in codebases.values() for name in codebase.also]
    assert get_args(ConventionName) == (*conventions, *codebases, *also, "eb_jepa")


@pytest.mark.parametrize("codebase", codebases)
def test_a_codebase_is_named_in_any_spelling(codebase: str) -> None:
    wanted = conventions[codebases[codebase].convention]
    for name in (codebase, *codebases[codebase].also):
        for spelt in (name, name.upper(), name.replace("_", "-"), name.replace("-", "_")):
            assert convention_named(spelt) is wanted
            assert both_names(spelt) == f"{wanted.name} ({spelt})"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("EB_JEPA", "eb-jepa"), ("tensorflow_gnn", "tensorflow-gnn"), ("Official", "official")],
)
def test_a_convention_is_named_in_any_spelling(given: str, wanted: str) -> None:
    assert convention_named(given) is conventions[wanted]
    assert both_names(given) == both_names(conventions[wanted]) == wanted


def test_each_codebase_has_the_convention_of_its_published_values(published: list[dict]) -> None:
    checked = set()
    for source, codebase in itertools.product(published[0]["published"], codebases.values()):
        if codebase.name in source["source"]:
            assert codebase.convention == source["convention"]
            checked.add(codebase.name)
    # The others publish no PyTorch code of a loss of two arrays.
    assert set(codebases) - checked == {"tensorflow/similarity", "tensorflow/gnn", "pldm"}


def test_a_conventions_codebases_are_those_that_compute_it() -> None:
    assert codebases_of("algorithm1") == ("solo-learn",)
    assert codebases_of("eb-jepa") == ("facebookresearch/eb_jepa", "pldm")
    assert codebases_of("paper") == ()


def test_its_arguments_are_those_of_this_package() -> None:
    own = inspect.signature(vicreg_loss).parameters
    for codebase in codebases.values():
        assert {ours.partition("=")[0] for ours in codebase.arguments.values()} <= set(own)
        weights = [ours for ours in codebase.arguments.values() if "weight" in ours]
        assert weights == [f"{name}=" for name in NAMES[-len(weights) :]]


def test_every_function_takes_a_codebases_name() -> None:
    z1, z2 = np.random.default_rng(0).standard_normal((2, 6, 4))
    calls: dict[str, Callable[[str], object]] = {
        "loss": lambda name: vicreg_loss(z1, z2, convention=name),
        "terms": lambda name: vicreg_terms(z1, z2, convention=name),
        "value_and_grad": lambda name: vicreg_value_and_grad(z1, z2, convention=name)[0],
        "invariance": lambda name: invariance_loss(z1, z2, convention=name),
        "variance": lambda name: variance_loss(z1, convention=name),
        "covariance": lambda name: covariance_loss(z1, convention=name),
        "diagnose": lambda name: diagnose(z1, other=z2, convention=name).convention,
        "weights": lambda name: translate_weights((1, 2, 3), name, "paper", d=4),
    }
    for name, call in calls.items():
        assert call("Solo_Learn") == call("algorithm1"), name
        assert call("solo-learn") != call("pldm") or name in ("invariance", "variance")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("oficial", "official"),
        ("ligthly", "lightly"),
        ("facebookresearch/eb-jep", "facebookresearch/eb_jepa"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"got {given!r}: did you mean {nearest!r}\\?$"):
        convention_named(given)


def same_function(source: str, target: str) -> bool:
    """By the table: these five differ in divisors and in sums over views alone."""
    linear = {"official", "paper", "algorithm1", "vicregl", "eb-jepa"}
    return source == target or {source, target} <= linear


@pytest.mark.parametrize(("n", "d"), [(8, 5), (5, 9)])
def test_translated_weights_compute_the_same_function(n: int, d: int) -> None:
    """Every pair of conventions: the same loss, or a ValueError that says why not."""
    views = np.random.default_rng(0).standard_normal((2, n, d))
    weights = (2.0, 3.0, 5.0)
    translated = 0
    for source, target in itertools.product(conventions, repeat=2):
        given = (0.0, *weights[1:]) if source == "vcreg" else weights
        if not same_function(source, target):
            with pytest.raises(ValueError, match=f"'{target}' compute the function of '{source}'"):
                translate_weights(given, source, target, d)
            continue
        got = translate_weights(given, source, target, d)
        translated += 1
        here = vicreg_loss(*views, convention=source, **dict(zip(NAMES, given, strict=True)))
        there = vicreg_loss(*views, convention=target, **dict(zip(NAMES, got, strict=True)))
        # A factor is one multiplication and one division; the sums are the same.
        assert here == pytest.approx(there, rel=1e-14)
    # official, paper, algorithm1, vicregl and eb-jepa among themselves, and each with itself.
    assert translated == 25 + 5


def test_single_terms_translate_where_the_others_differ() -> None:
    assert translate_weights((0, 0, 2), "vcreg", "official", d=5) == (0, 0, 2 / (5 * 4) / 2 * 5)
    assert translate_weights((3, 0, 0), "official", "jolibrain", d=5) == (3, 0, 0)
    # A weight of 0 is one where the other has no such term at all.
    assert translate_weights((0, 0, 2), "official", "vcreg", d=5) == (0, 0, 2 / 5 * 2 * 5 * 4)


@pytest.mark.parametrize(
    ("weights", "source", "target", "reason"),
    [
        ((1, 1, 1), "official", "article", "hinge is on the std"),
        ((0, 1, 0), "official", "tensorflow-similarity", "variance's correction is 1"),
        ((0, 1, 0), "official", "jolibrain", "ε is 0.0001 in 'official' and 0.0"),
        ((0, 0, 1), "paper", "article", "covariance's correction is 1"),
        ((1, 0, 0), "official", "vcreg", "'vcreg' has no invariance term"),
    ],
)
def test_what_cannot_be_translated_says_why(weights, source, target, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        translate_weights(weights, source, target, 8)


def test_bad_arguments_of_translate_weights() -> None:
    for weights in ((1, 1), 3, "abc"):
        with pytest.raises(ValueError, match="weights must be three numbers"):
            translate_weights(weights, "paper", "official", 8)
    with pytest.raises(TypeError, match=r"weights\[1\] must be a number; got str"):
        translate_weights((1, "1", 1), "paper", "official", 8)
    with pytest.raises(
        ValueError, match=r"weights\[1\] must be a finite number of 0 or more; got -1"
    ):
        translate_weights((1, -1, 1), "paper", "official", 8)
    with pytest.raises(ValueError, match="source must be one of"):
        translate_weights((1, 1, 1), "papper", "official", 8)
    with pytest.raises(ValueError, match="target must be one of"):
        translate_weights((1, 1, 1), "paper", "offical", 8)
    with pytest.raises(ValueError, match="d must be at least 1; got 0"):
        translate_weights((1, 1, 1), "paper", "official", 0)
    with pytest.raises(TypeError, match="d must be an integer"):
        translate_weights((1, 1, 1), "paper", "official", 8.0)
    with pytest.raises(ValueError, match="at least 2 features"):
        translate_weights((0, 0, 1), "vcreg", "official", 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("invariance", "sum"),
        ("hinge_on", "stdev"),
        ("variance_over_views", "max"),
        ("covariance_divisor", "d^2"),
        ("variance_correction", -1),
        ("covariance_correction", 0.5),
        ("eps", -1e-4),
        ("weights", (1.0, 2.0)),
        ("invariance", "none"),  # with a weight for it
        ("hinge_on", "variance"),  # with an ε for its root
    ],
)
def test_a_convention_checks_its_fields(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(conventions["official"], **{field: value})


def test_a_convention_without_an_invariance_has_weights_of_the_others() -> None:
    given = {"name": "mine", "source": "here", "invariance": "none"}
    assert Convention(**given, weights=(0.0, 2.0, 1.0)).weights == (0.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="weights must begin with 0"):
        Convention(**given, weights=(1.0, 0.0, 1.0))


def test_a_convention_takes_its_fields_by_name() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        Convention("mine", "here")


def test_the_weights_that_conventions_publish() -> None:
    others = {"jolibrain": (25, 15, 1), "eb-jepa": (1, 1, 1), "vcreg": None}
    for name, convention in conventions.items():
        assert convention.weights == others.get(name, (25, 25, 1))


def test_a_convention_of_ones_own() -> None:
    mine = Convention(name="mine", source="here", eps=0.5, weights=(1.0, 2.0, 3.0))
    views = np.random.default_rng(1).standard_normal((2, 6, 4))
    weights = dict(zip(NAMES, (1.0, 2.0, 3.0), strict=True))
    assert vicreg_loss(*views, convention=mine) == vicreg_loss(*views, eps=0.5, **weights)
