"""Every published convention returns what its source's own code returned, on every library."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from backends import Backend
from errors import UNIT_ROUNDOFF, largest_error

from vicreg import conventions, vicreg_terms, vicreg_value_and_grad

# Relative to the largest value.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
#: The inputs of the golden data.
INPUTS = (
    "more samples than features",
    "more features than samples",
    "square",
    "wide",
    "a dead feature",
    "positions",
)
#: What JAX, which compiles each anew, is given by default: each route by its own inputs.
ON_JAX = [
    (INPUTS[0], "float64", "covariance"),
    (INPUTS[1], "float64", "gram"),
    *itertools.product(("positions",), TOLERANCES, ("gram", "covariance")),
]


def marked(name: str, dtype: str, method: str) -> list[pytest.MarkDecorator]:
    marks = [] if (name, dtype, method) in ON_JAX else [pytest.mark.long_on("jax")]
    if (name, dtype) == ("positions", "float64"):  # whose sources are the fewest
        marks.append(pytest.mark.representative)
    return marks


@pytest.mark.parametrize(
    ("name", "dtype", "method"),
    [
        pytest.param(*case, marks=marked(*case))
        for case in itertools.product(INPUTS, TOLERANCES, ("gram", "covariance"))
    ],
)
def test_value_and_gradient_are_those_published(
    xp: Backend, published: list[dict], name: str, dtype: str, method: str
) -> None:
    if dtype not in xp.dtypes:
        pytest.skip(f"the library has no {dtype}")
    (case,) = (case for case in published if case["name"] == name)
    views = [xp.asarray(case[view], dtype) for view in ("z1", "z2")]

    @functools.cache
    def computed(convention: str, *weights: float) -> tuple:
        settings = named(weights) | {"convention": convention, "method": method}
        return vicreg_value_and_grad(*views, **settings)

    for source in case["published"]:
        loss, gradients = computed(source["convention"], *source["weights"])
        error = largest_error(xp.numpy(loss), source["loss"])
        assert error <= TOLERANCES[dtype], source["source"]
        for gradient, wanted in zip(gradients, ("grad1", "grad2"), strict=True):
            error = largest_error(xp.numpy(gradient), source[wanted])
            assert error <= TOLERANCES[dtype], source["source"]


@pytest.mark.long_on("jax")
def test_the_loss_is_the_weighted_sum_of_its_terms(xp: Backend, published: list[dict]) -> None:
    for case in published[:1]:
        views = [xp.asarray(case[name]) for name in ("z1", "z2")]
        for source in case["published"]:
            terms = vicreg_terms(
                *views, convention=source["convention"], **named(source["weights"])
            )
            parts = [float(xp.numpy(part)) for part in terms]
            total = np.dot(source["weights"], parts[1:])
            # Three products and two sums, against the same in float64.
            assert parts[0] == pytest.approx(total, rel=5 * UNIT_ROUNDOFF[xp.dtypes[0]])
            assert parts[0] == pytest.approx(source["loss"], rel=TOLERANCES[xp.dtypes[0]])


@pytest.mark.long_on("jax")
def test_eb_jepas_five_axes(xp: Backend, published: list[dict]) -> None:
    """Videos (B, C, T, H, W), whose channels are features, and everything else samples."""
    case = published[0]
    (source,) = (one for one in case["published"] if one["convention"] == "eb-jepa")

    def video(rows: list) -> np.ndarray:
        return np.moveaxis(np.reshape(rows, (2, 2, 1, 2, 5)), -1, 1)

    views = [xp.asarray(video(case[view])) for view in ("z1", "z2")]
    loss, gradients = vicreg_value_and_grad(
        *views, convention="eb_jepa", feature_axis=1, sample_axis=(0, 2, 3, 4)
    )
    tolerance = TOLERANCES[xp.dtypes[0]]
    assert largest_error(xp.numpy(loss), source["loss"]) <= tolerance
    for gradient, wanted in zip(gradients, ("grad1", "grad2"), strict=True):
        assert largest_error(xp.numpy(gradient), video(source[wanted])) <= tolerance


def test_the_golden_data_covers_every_two_view_convention(published: list[dict]) -> None:
    assert [case["name"] for case in published] == list(INPUTS)
    named = {source["convention"] for case in published for source in case["published"]}
    assert named == set(conventions) - {"vcreg"}


def named(weights: Sequence[float]) -> dict[str, float]:
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    return dict(zip(names, weights, strict=True))
