"""The ways that large views take through the core, on small ones: each gives what the others do.

Values and gradients of the loss, of each term alone and of each pair of terms, on every library.
"""

from __future__ import annotations

import functools
import itertools

import definition
import numpy as np
import pytest
from backends import Backend
from errors import largest_error, rounding

from vicreg.verification.paths import PATHS, Path

SHAPES = [(13, 21), (21, 13), (9, 2, 16)]
TERMS = ("invariance", "variance", "covariance")
WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")

#: The loss, each term alone, and each pair of them.
CHOICES = [choice for choice in itertools.product((0.0, 1.0), repeat=3) if any(choice)]


@pytest.fixture(params=PATHS, ids=str)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def draw(shape: tuple[int, ...], views: int) -> list[np.ndarray]:
    """Return views with one feature 100 times as large, and stds on both sides of the hinge."""
    arrays = np.random.default_rng(0).standard_normal((views, *shape))
    arrays *= np.linspace(0.5, 1.5, shape[-1])
    arrays[..., 3] *= 100
    return list(arrays)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_path_gives_the_definition(
    xp: Backend, path: Path, shape: tuple[int, ...], method: str, views: int
) -> None:
    arrays = draw(shape, views)
    given = [xp.asarray(array) for array in arrays]
    for weights in CHOICES:
        settings = dict(zip(WEIGHTS, weights, strict=True)) | {"method": method}
        loss, gradients = path.vicreg_value_and_grad(*given, **settings)
        wanted = definition.loss(arrays, weights=weights)
        right = truth(shape, views, weights)
        bound = 4 * rounding(xp.dtypes[0], shape[0], shape[-1])
        assert largest_error(xp.numpy(loss), wanted) <= bound, weights
        assert largest_error(xp.numpy(path.vicreg_loss(*given, **settings)), wanted) <= bound
        for gradient, of_view in zip(gradients, right, strict=True):
            assert largest_error(xp.numpy(gradient), of_view) <= bound, weights
    for array, view in zip(arrays, given, strict=True):
        assert np.array_equal(xp.numpy(view), array.astype(xp.dtypes[0]))  # left as they were


@functools.cache
def truth(shape: tuple[int, ...], views: int, weights: tuple[float, ...]) -> list[np.ndarray]:
    """Return the gradients of the definition."""
    return definition.gradients(
        lambda given: definition.loss(given, weights=weights), draw(shape, views)
    )
