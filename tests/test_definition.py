"""Values and gradients are those of the plain definition, on every library and shape."""

from __future__ import annotations

import definition
import numpy as np
import pytest
from backends import Backend
from errors import largest_error, rounding

from vicreg import (
    conventions,
    covariance_loss,
    invariance_loss,
    variance_loss,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)

SHAPES = [(2, 3), (3, 2), (5, 5), (12, 4), (4, 21), (6, 2, 3), (3, 2, 2, 9)]
WEIGHTS = (3.0, 5.0, 0.7)
#: Between them each formula and each branch; the other conventions differ in factors alone.
TELLING = ("official", "article", "jolibrain", "vcreg")
REPRESENTATIVE = [("official", (3, 11)), ("article", (7, 3))]


def marked(convention: str, shape: tuple[int, ...] = ()) -> list[pytest.MarkDecorator]:
    """Return the marks of a case: what JAX need not compile, and what each library runs."""
    marks = []
    if convention not in TELLING or (shape in SHAPES and len(shape) == 2):
        marks.append(pytest.mark.long_on("jax"))
    if (convention, shape) in REPRESENTATIVE:
        marks.append(pytest.mark.representative)
    return marks


# Every convention on more samples and on more features; one convention on every shape.
CASES = [(convention, shape) for convention in conventions for shape in ((7, 3), (3, 11))]
CASES += [("official", shape) for shape in SHAPES]
CASES = [pytest.param(*case, marks=marked(*case), id="{}-{}".format(*case)) for case in CASES]
CONVENTIONS = [pytest.param(convention, marks=marked(convention)) for convention in conventions]


def random_views(shape: tuple[int, ...], views: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Features of mean and scale all about 1: the hinge is at work on some and not on others."""
    rng = np.random.default_rng([seed, *shape])
    scale = rng.uniform(0.5, 1.5, shape[-1])
    common = rng.standard_normal(shape)
    return [1 + scale * (common + 0.3 * rng.standard_normal(shape)) for _ in range(views)]


def settings(convention: str) -> dict:
    invariance = 0.0 if conventions[convention].invariance == "none" else WEIGHTS[0]
    return {
        "convention": convention,
        "invariance_weight": invariance,
        "variance_weight": WEIGHTS[1],
        "covariance_weight": WEIGHTS[2],
    }


@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize(("convention", "shape"), CASES)
def test_loss_and_gradients(
    xp: Backend, convention: str, shape: tuple[int, ...], method: str
) -> None:
    views = random_views(shape)
    wanted = definition.loss(views, convention, WEIGHTS)
    wanted_gradients = definition.gradients(
        lambda v: definition.loss(v, convention, WEIGHTS), views
    )
    arrays = [xp.asarray(view) for view in views]
    loss, gradients = vicreg_value_and_grad(*arrays, method=method, **settings(convention))
    bound = rounding(xp.dtypes[0], shape[0], shape[-1])
    assert largest_error(xp.numpy(loss), wanted) <= bound
    for gradient, right in zip(gradients, wanted_gradients, strict=True):
        assert largest_error(xp.numpy(gradient), right) <= bound


@pytest.mark.parametrize(
    ("convention", "views"),
    [
        pytest.param("official", 3, marks=pytest.mark.representative),
        ("article", 4),
        *(
            pytest.param(*case, marks=pytest.mark.long_on("jax"))
            for case in (("official", 4), ("article", 3), ("vicregl", 3), ("vicregl", 4))
        ),
    ],
)
def test_any_number_of_views(xp: Backend, convention: str, views: int) -> None:
    """Invariance is the mean over the pairs; a sum over views is twice the mean."""
    inputs = random_views((5, 7), views)
    arrays = [xp.asarray(view) for view in inputs]
    wanted = definition.gradients(lambda v: definition.loss(v, convention, WEIGHTS), inputs)
    loss, gradients = vicreg_value_and_grad(*arrays, **settings(convention))
    bound = rounding(xp.dtypes[0], 5, 7)
    assert largest_error(xp.numpy(loss), definition.loss(inputs, convention, WEIGHTS)) <= bound
    assert len(gradients) == views
    for gradient, right in zip(gradients, wanted, strict=True):
        assert largest_error(xp.numpy(gradient), right) <= bound


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_terms(xp: Backend, convention: str) -> None:
    views = random_views((6, 9))
    terms = vicreg_terms(*(xp.asarray(view) for view in views), **settings(convention))
    wanted = definition.terms(views, convention)
    names = ("invariance", "variance", "covariance")
    for name, right in zip(names, wanted, strict=True):
        assert largest_error(xp.numpy(getattr(terms, name)), right) <= rounding(xp.dtypes[0], 6, 9)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_single_terms_are_those_of_one_view(xp: Backend, convention: str) -> None:
    first, second = random_views((6, 3, 4))
    z1, z2 = xp.asarray(first), xp.asarray(second)
    invariance, variance, covariance, *_ = definition.CONVENTIONS[convention]
    positions = range(first.shape[1])
    bound = rounding(xp.dtypes[0], 6, 4)
    if invariance is not None:
        wanted = np.mean([invariance(first[:, p], second[:, p]) for p in positions])
        got = invariance_loss(z1, z2, convention=convention)
        assert largest_error(xp.numpy(got), wanted) <= bound
    wanted = np.mean([variance(first[:, p], 1.25) for p in positions])
    got = variance_loss(z1, convention=convention, gamma=1.25)
    assert largest_error(xp.numpy(got), wanted) <= bound
    wanted = np.mean([covariance(first[:, p]) for p in positions])
    for method in ("gram", "covariance"):
        got = covariance_loss(z1, convention=convention, method=method)
        assert largest_error(xp.numpy(got), wanted) <= bound


@pytest.mark.parametrize(
    ("axis", "ndim"),
    [(0, 2), (-2, 2), pytest.param(-3, 4, marks=pytest.mark.representative), (0, 3)],
)
def test_feature_axis(xp: Backend, axis: int, ndim: int) -> None:
    """The features may be on any axis; of the others the first is the samples."""
    shape = (*(5, 2, 3, 4)[: ndim - 1], 6)
    views = random_views(shape)
    wanted, wanted_gradients = vicreg_value_and_grad(*views)
    moved = [np.ascontiguousarray(np.moveaxis(view, -1, axis)) for view in views]
    loss, gradients = vicreg_value_and_grad(
        *(xp.asarray(view) for view in moved), feature_axis=axis
    )
    bound = rounding(xp.dtypes[0], 5, 6)
    assert largest_error(xp.numpy(loss), wanted) <= bound
    for gradient, right in zip(gradients, wanted_gradients, strict=True):
        assert largest_error(xp.numpy(gradient), np.moveaxis(right, -1, axis)) <= bound


def test_gamma_and_eps(xp: Backend) -> None:
    """In the value and, of features of which some are between 1 and gamma, in the gradient."""
    views = random_views((6, 4))
    arrays = [xp.asarray(view) for view in views]
    bound = rounding(xp.dtypes[0], 6, 4)

    def wanted(views: list[np.ndarray]) -> complex:
        return np.mean([definition.hinge_on_std(0.5, 1)(view, 2.0) for view in views])

    got = vicreg_terms(*arrays, gamma=2.0, eps=0.5).variance
    assert largest_error(xp.numpy(got), wanted(views)) <= bound
    weights = {"invariance_weight": 0, "variance_weight": 1, "covariance_weight": 0}
    _, gradients = vicreg_value_and_grad(*arrays, gamma=2.0, eps=0.5, **weights)
    for gradient, right in zip(gradients, definition.gradients(wanted, views), strict=True):
        assert largest_error(xp.numpy(gradient), right) <= bound


def test_a_spread_of_gamma_has_no_slope(xp: Backend) -> None:
    """At its kink the hinge has a derivative of 0, as PyTorch's relu has in the published code."""
    z = xp.asarray([[1.0, -1.0], [-1.0, 1.0]])  # variances over n of exactly 1, which is gamma
    weights = {"invariance_weight": 0, "variance_weight": 1, "covariance_weight": 0}
    _, gradients = vicreg_value_and_grad(z, z, convention="article", **weights)
    assert not any(np.any(xp.numpy(gradient)) for gradient in gradients)


def test_a_weight_of_zero_leaves_the_others(xp: Backend) -> None:
    """Each term alone, and none: value and gradient."""
    views = random_views((5, 8))
    arrays = [xp.asarray(view) for view in views]
    bound = rounding(xp.dtypes[0], 5, 8)
    for weights in ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0)):
        names = ("invariance_weight", "variance_weight", "covariance_weight")
        loss, gradients = vicreg_value_and_grad(*arrays, **dict(zip(names, weights, strict=True)))
        assert largest_error(xp.numpy(loss), definition.loss(views, weights=weights)) <= bound
        right = definition.gradients(lambda v, w=weights: definition.loss(v, weights=w), views)
        for gradient, wanted in zip(gradients, right, strict=True):
            assert largest_error(xp.numpy(gradient), wanted) <= bound


@pytest.mark.representative
def test_the_result_is_a_0d_array_of_the_callers_library_dtype_and_device(xp: Backend) -> None:
    views = random_views((5, 8))
    for dtype in xp.dtypes:
        arrays = [xp.asarray(view, dtype) for view in views]
        loss, gradients = vicreg_value_and_grad(*arrays)
        float32 = xp.asarray(0.0, "float32").dtype
        in_computing = float32 if dtype in ("float16", "bfloat16") else arrays[0].dtype
        for result in (loss, vicreg_loss(*arrays), *vicreg_terms(*arrays)):
            assert type(result) is type(arrays[0])
            assert result.shape == ()
            assert result.dtype == in_computing
            assert getattr(result, "device", None) == getattr(arrays[0], "device", None)
        for gradient, view in zip(gradients, arrays, strict=True):
            assert type(gradient) is type(view)
            assert gradient.shape == view.shape
            assert gradient.dtype == view.dtype
            assert getattr(gradient, "device", None) == getattr(view, "device", None)


def test_the_inputs_stay_as_they_were(xp: Backend) -> None:
    views = random_views((5, 8))
    arrays = [xp.asarray(view) for view in views]
    for method in ("gram", "covariance"):
        vicreg_value_and_grad(*arrays, method=method)
        vicreg_terms(*arrays, method=method)
    for array, view in zip(arrays, views, strict=True):
        np.testing.assert_array_equal(xp.numpy(array), view.astype(xp.dtypes[0]))
