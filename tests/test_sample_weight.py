"""Weights of samples: one of weight 0 is as if it were not there, one of weight 2 as if twice.

What stands under a weight of 0 is NaN or infinite throughout, and its gradient is 0.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import definition
import numpy as np
import pytest
import ranks
from backends import Backend
from errors import UNIT_ROUNDOFF, largest_error, rounding
from ranks import NONE, ONE_ROW, UNEVEN, Thread, on_threads

from vicreg import (
    conventions,
    covariance_loss,
    invariance_loss,
    variance_loss,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg._core.sizes import DEFAULT_SIZES
from vicreg.tools.verification.paths import PATHS, Path

TIMES = np.asarray([0, 1, 2, 0, 1, 3, 1])  # how often each of seven samples occurs
WEIGHTS = (3.0, 5.0, 0.7)
NAMED = dict(
    zip(("invariance_weight", "variance_weight", "covariance_weight"), WEIGHTS, strict=True)
)
#: The loss, each term alone, and each pair of them.
CHOICES = [WEIGHTS, *(tuple(map(float, choice)) for choice in itertools.product((0, 1), repeat=3))]
CHOICES.remove((0.0, 0.0, 0.0))
OF_VCREG = {name: NAMED[name] for name in ("variance_weight", "covariance_weight")}


def drawn(shape: tuple[int, ...], count: int = 2) -> list[np.ndarray]:
    """Views with stds of 0.7 to 1.3: the hinge is at work on some features and not on others."""
    rng = np.random.default_rng(shape)
    scale = rng.uniform(0.7, 1.3, shape[-1])
    common = rng.standard_normal(shape)
    return [1 + scale * (common + 0.3 * rng.standard_normal(shape)) for _ in range(count)]


def hidden(view: np.ndarray, times: np.ndarray, by: float = np.nan) -> np.ndarray:
    return np.where((times > 0).reshape(times.shape + (1,) * (view.ndim - times.ndim)), view, by)


def repeated(view: np.ndarray, times: np.ndarray = TIMES) -> np.ndarray:
    return np.repeat(view, times, axis=0)


def gathered(gradient: np.ndarray, times: np.ndarray = TIMES) -> np.ndarray:
    """Return the gradient of each sample: the sum of those of what it is repeated as."""
    whole = np.zeros((len(times), *gradient.shape[1:]))
    np.add.at(whole, np.repeat(np.arange(len(times)), times), gradient)
    return whole


def compare(
    got: Any, gradients: Sequence[Any], wanted: float, right: Sequence[Any], bound: float
) -> None:
    assert largest_error(np.asarray(got, dtype=float), wanted) <= bound
    for gradient, its_own in zip(gradients, right, strict=True):
        assert largest_error(gradient, its_own) <= bound


def vicreg_of(
    views: Sequence[np.ndarray], name: str = "official", weights: Sequence[float] = WEIGHTS
) -> tuple[float, list]:
    """Return the loss of the samples that occur by its definition, and its gradients."""

    def loss(views: Sequence[np.ndarray]) -> complex:
        return definition.loss(
            [repeated(view)[:, None] for view in views], weights=weights, convention=name
        )

    return loss(views), definition.gradients(loss, views)


@pytest.mark.representative
@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize("d", [pytest.param(3, marks=pytest.mark.long_on("jax", "mlx")), 12])
def test_a_mask_and_repeated_samples(xp: Backend, d: int) -> None:
    views = drawn((7, d))
    wanted, right = vicreg_of(views)
    arrays = [xp.asarray(hidden(view, TIMES)) for view in views]
    weight = xp.asarray(TIMES)
    bound = rounding(xp.dtypes[0], int(TIMES.sum()), d)
    loss, gradients = vicreg_value_and_grad(*arrays, sample_weight=weight, **NAMED)
    gradients = [xp.numpy(gradient) for gradient in gradients]
    compare(xp.numpy(loss), gradients, wanted, right, bound)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[TIMES == 0], 0)
    value = vicreg_loss(*arrays, sample_weight=weight, **NAMED)
    assert largest_error(xp.numpy(value), wanted) <= bound


@pytest.mark.long
@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("name", [name for name in conventions if name != "vcreg"])
@pytest.mark.parametrize("d", [3, 12])
def test_in_every_convention(xp: Backend, d: int, name: str, views: int, method: str) -> None:
    if xp.name == "ndonnx":
        pytest.skip("its graphs take seconds each, of what test_a_mask_and_repeated_samples has")
    own = drawn((7, d), views)
    arrays = [xp.asarray(hidden(view, TIMES, np.inf)) for view in own]
    weight = xp.asarray(TIMES)
    settings = {"convention": name, "method": method} | NAMED
    loss, gradients = vicreg_value_and_grad(*arrays, sample_weight=weight, **settings)
    plain = vicreg_value_and_grad(*map(repeated, own), **settings | {"method": "covariance"})
    right = [gathered(gradient) for gradient in plain[1]]
    bound = rounding(xp.dtypes[0], int(TIMES.sum()), d)
    compare(xp.numpy(loss), list(map(xp.numpy, gradients)), plain[0], right, bound)


@pytest.mark.parametrize("name", [name for name in conventions if name != "vcreg"])
@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize("views", [2, 3])
def test_in_every_convention_in_numpy(name: str, d: int, views: int) -> None:
    own = drawn((7, d), views)
    wanted, right = vicreg_of(own, name)
    for method in ("gram", "covariance"):
        loss, gradients = vicreg_value_and_grad(
            *(hidden(view, TIMES) for view in own),
            sample_weight=TIMES,
            convention=name,
            method=method,
            **NAMED,
        )
        compare(loss, gradients, wanted, right, rounding("float64", int(TIMES.sum()), d))


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_large_views_as_small_ones(xp: Backend, path: Path, d: int) -> None:
    """On each path through the core: the loss, each term, and each pair of terms."""
    views = drawn((7, d))
    arrays = [xp.asarray(hidden(view, TIMES)) for view in views]
    weight, bound = xp.asarray(TIMES), rounding(xp.dtypes[0], int(TIMES.sum()), d)
    # Where each choice is compiled by itself, the loss alone.
    for weights in [WEIGHTS] if xp.name == "jax" else CHOICES:
        given = {"sample_weight": weight} | dict(zip(NAMED, weights, strict=True))
        loss, gradients = path.vicreg_value_and_grad(*arrays, **given)
        compare(
            *(xp.numpy(loss), list(map(xp.numpy, gradients))),
            *(*vicreg_of(views, weights=weights), bound),
        )


MASK = TIMES > 0
#: Of samples in one position, and in three: enough in the first, one in the second, none in the
#: last.
MASKS = {
    "samples": MASK[:, None],
    "positions": np.stack([MASK, np.arange(7) == 4, 0 * MASK > 0], axis=1),
}


@functools.cache
def masked(kind: str, d: int, weights: tuple[float, ...]) -> tuple[float, list[np.ndarray]]:
    """Return the loss of the samples that a mask leaves by its definition, and its gradients."""
    mask = MASKS[kind]
    views = drawn((7, mask.shape[1], d))
    right = definition.gradients(lambda views: of_positions_complex(views, mask, weights), views)
    return of_positions(views, mask, weights), right


@pytest.mark.long_on("ndonnx", "jax", "dask")
@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_mask_on_each_path(xp: Backend, path: Path, kind: str, d: int) -> None:
    """Of booleans: the loss, each term, and each pair of terms."""
    mask = MASKS[kind]
    views = drawn((7, mask.shape[1], d))
    arrays = [xp.asarray(hidden(view, mask)) for view in views]
    bound = rounding(xp.dtypes[0], mask.size, d)
    # Without positions the axis of them is none of the views given.
    if kind == "samples":
        arrays, weight = [array[:, 0, :] for array in arrays], xp.asarray(mask[:, 0])
    else:
        weight = xp.asarray(mask)
    for weights in [WEIGHTS] if xp.name == "jax" else CHOICES:
        given = {"sample_weight": weight} | dict(zip(NAMED, weights, strict=True))
        loss, gradients = path.vicreg_value_and_grad(*arrays, **given)
        wanted, right = masked(kind, d, weights)
        got = [xp.numpy(gradient).reshape(views[0].shape) for gradient in gradients]
        compare(xp.numpy(loss), got, wanted, right, bound)
        assert all(np.all(gradient[~mask] == 0) for gradient in got)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("d", [3, 12])
def test_a_mask_gives_the_bits_of_gathering(library: str, d: int) -> None:
    """Where the library can be asked at once which samples count."""
    pytest.importorskip(library)
    xp, views = Backend(library), drawn((5, d, 4))  # features 1, samples 0 and 2
    mask = (np.arange(20) % 3 > 0).reshape(5, 4)
    mask[0] = True
    there = np.broadcast_to(mask[:, None], views[0].shape)
    arrays = [xp.asarray(np.where(there, view, np.nan)) for view in views]
    chosen = [xp.asarray(view.transpose(0, 2, 1)[mask]) for view in views]
    axes = {"sample_axis": (0, 2), "feature_axis": 1}
    for weight in (mask, mask.astype(float), mask.astype(int)):
        given = axes | {"sample_weight": xp.asarray(weight)}
        loss, gradients = vicreg_value_and_grad(*arrays, **given)
        wanted, right = vicreg_value_and_grad(*chosen)
        assert xp.numpy(loss) == xp.numpy(wanted)
        assert xp.numpy(vicreg_loss(*arrays, **given)) == xp.numpy(vicreg_loss(*chosen))
        for gradient, own in zip(map(xp.numpy, gradients), map(xp.numpy, right), strict=True):
            np.testing.assert_array_equal(gradient.transpose(0, 2, 1)[mask], own)
            np.testing.assert_array_equal(gradient[~there], 0)


@pytest.mark.parametrize("penalty", ["square", "smooth_l1"])
@pytest.mark.parametrize("d", [3, 12, 300], ids=["narrow", "wide", "in blocks"])
def test_vcreg(penalty: str, d: int) -> None:
    (z,) = drawn((7, d), 1)
    settings = OF_VCREG | {"penalty": penalty}
    wanted, right = vcreg_value_and_grad(repeated(z), **settings)
    given = {"sample_weight": TIMES > 0, **settings}
    loss, gradient = vcreg_value_and_grad(hidden(z, TIMES), **given)
    once = z[TIMES > 0]
    plain, of_once = vcreg_value_and_grad(once, **settings)
    bound = rounding("float64", int(TIMES.sum()), d)
    compare(loss, [gradient], plain, [gathered(of_once, (TIMES > 0).astype(int))], bound)
    loss, gradient = vcreg_value_and_grad(hidden(z, TIMES), sample_weight=TIMES, **settings)
    compare(loss, [gradient], wanted, [gathered(right)], bound)
    value = vcreg_loss(hidden(z, TIMES), sample_weight=TIMES, **settings)
    assert largest_error(value, wanted) <= bound


def of_positions(
    views: Sequence[np.ndarray], weight: np.ndarray, weights: Sequence[float] = WEIGHTS
) -> float:
    """Return the loss by gathering the samples of each position, ``(n, positions, d)``."""
    total, d = weight.sum(), views[0].shape[-1]
    distance = (weight[..., None] * (views[0] - views[1]) ** 2)[weight > 0].sum()
    parts = [
        vicreg_terms(*(view[weight[:, p] > 0, p] for view in views), method="covariance")
        for p in range(weight.shape[1])
        if weight[:, p].sum() > 1
    ]
    invariance = distance / (d * total) if total else 0.0
    variance = np.mean([part.variance for part in parts]) if parts else 0.0
    covariance = np.mean([part.covariance for part in parts]) if parts else 0.0
    return float(np.dot(weights, [invariance, variance, covariance]))


FULL = np.asarray([[1, 0, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]])
ONE = np.where(np.arange(20).reshape(5, 4) == 6, 1, 0)


@pytest.mark.long_on("jax", "ndonnx")
@pytest.mark.parametrize("d", [3, 8])
@pytest.mark.parametrize(
    "weight", [FULL, ONE, 0 * FULL], ids=["too few in some", "too few in all", "none"]
)
def test_positions_without_statistics_are_left_out(xp: Backend, weight: Any, d: int) -> None:
    views = drawn((5, 4, d))
    arrays = [xp.asarray(hidden(view, weight)) for view in views]
    mask = xp.asarray(weight)
    loss, gradients = vicreg_value_and_grad(*arrays, sample_weight=mask, **NAMED)
    bound = rounding(xp.dtypes[0], 20, d)
    assert largest_error(xp.numpy(loss), of_positions(views, weight)) <= bound
    right = definition.gradients(lambda views: of_positions_complex(views, weight), views)
    for gradient, wanted in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), np.where(weight[..., None], wanted, 0)) <= bound


@pytest.mark.long_on("jax", "ndonnx")
@pytest.mark.parametrize("present", [0, 1])
def test_too_few_samples_of_one_position(xp: Backend, present: int) -> None:
    """The invariance is left: of one sample the distance, of none 0."""
    views = drawn((5, 8))
    mask = np.arange(5) < present
    arrays = [xp.asarray(hidden(view, mask)) for view in views]
    loss, gradients = vicreg_value_and_grad(*arrays, sample_weight=xp.asarray(mask), **NAMED)
    first, second = (view[0] for view in views)
    wanted = present * WEIGHTS[0] * ((first - second) ** 2).mean()
    assert largest_error(xp.numpy(loss), wanted) <= rounding(xp.dtypes[0], 5, 8)
    right = np.where(mask[:, None], 2 * WEIGHTS[0] * (first - second) / 8, 0)
    for gradient, own in zip(gradients, (right, -right), strict=True):
        assert largest_error(xp.numpy(gradient), own) <= rounding(xp.dtypes[0], 5, 8)


def test_a_position_without_statistics_may_hold_nan() -> None:
    (z,) = drawn((5, 2, 3), 1)
    weight = np.ones((5, 2))
    weight[1:, 1] = 0
    z[:, 1] = np.nan
    for given, weights in itertools.product(
        ({"method": "gram"}, {"method": "covariance"}, {"penalty": "smooth_l1"}),
        (weight, weight > 0),
    ):
        settings = OF_VCREG | given
        got, gradient = vcreg_value_and_grad(z, sample_axis=0, sample_weight=weights, **settings)
        wanted, right = vcreg_value_and_grad(z[:, 0], **settings)
        assert largest_error(got, wanted) <= rounding("float64", 5, 3)
        assert largest_error(gradient[:, 0], right) <= rounding("float64", 5, 3)
        np.testing.assert_array_equal(gradient[:, 1], 0)


def of_positions_complex(
    views: Sequence[np.ndarray], weight: np.ndarray, weights: Sequence[float] = WEIGHTS
) -> complex:
    """Return `of_positions`, by which a complex step differentiates."""
    total, d = weight.sum(), views[0].shape[-1]
    if not total:
        return 0 * views[0].sum()
    difference = np.where(weight[..., None] > 0, views[0] - views[1], 0)
    invariance = (weight[..., None] * difference**2).sum() / (d * total)
    counted = [p for p in range(weight.shape[1]) if weight[:, p].sum() > 1]
    parts = [
        definition.loss(
            [view[weight[:, p] > 0, p][:, None] for view in views], weights=(0.0, *weights[1:])
        )
        for p in counted
    ]
    return weights[0] * invariance + (sum(parts) / len(counted) if counted else 0)


def test_axes_and_broadcasting() -> None:
    views = drawn((3, 4, 2, 5))  # positions 0, features 3, samples 1 and 2
    weight = np.asarray([1.0, 0.0, 2.0, 1.0])[:, None]  # of axis 1, for every position
    axes = {"feature_axis": -1, "sample_axis": (1, 2)}
    got, gradients = vicreg_value_and_grad(*views, sample_weight=weight, **axes)
    times = np.asarray([1, 0, 2, 1])
    wanted, right = vicreg_value_and_grad(*(np.repeat(v, times, axis=1) for v in views), **axes)
    bound = rounding("float64", 8, 5)
    assert largest_error(got, wanted) <= bound
    for gradient, of_repeated in zip(gradients, right, strict=True):
        folded = np.stack(
            [
                of_repeated[:, 0],
                0 * of_repeated[:, 0],
                of_repeated[:, 1:3].sum(1),
                of_repeated[:, 3],
            ],
            axis=1,
        )
        assert largest_error(gradient, folded) <= bound


def test_each_single_term() -> None:
    z1, z2 = drawn((7, 4))
    masked = hidden(z1, TIMES), hidden(z2, TIMES)
    bound = rounding("float64", int(TIMES.sum()), 4)
    for function, count in ((invariance_loss, 2), (variance_loss, 1), (covariance_loss, 1)):
        wanted = function(*(repeated(view) for view in (z1, z2)[:count]))
        got = function(*masked[:count], sample_weight=TIMES)
        assert largest_error(got, wanted) <= bound, function
    got = vicreg_terms(*masked, sample_weight=TIMES)
    for term, wanted in zip(got, vicreg_terms(repeated(z1), repeated(z2)), strict=True):
        assert largest_error(term, wanted) <= bound


def test_weights_of_one_change_nothing_but_rounding() -> None:
    views = drawn((6, 9))
    got, gradients = vicreg_value_and_grad(*views, sample_weight=np.ones(6))
    wanted, right = vicreg_value_and_grad(*views)
    compare(got, gradients, float(wanted), right, rounding("float64", 6, 9))


@pytest.mark.long_on("ndonnx")
def test_a_constant_feature_has_a_gradient_of_exactly_zero(xp: Backend) -> None:
    """The first sample that counts is subtracted first, not one that stands under a 0."""
    times = TIMES + 2 * (TIMES == 3)  # ten in all, so that their shares are rounded
    for d in (3, 12):
        (z,) = drawn((7, d), 1)
        z[:, 0] = 0.7
        given, weight = xp.asarray(hidden(z, times)), xp.asarray(times)
        _, gradient = vcreg_value_and_grad(given, sample_weight=weight, **OF_VCREG)
        np.testing.assert_array_equal(xp.numpy(gradient)[:, 0], 0)
        assert xp.numpy(gradient)[:, 1].any()


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize("n", [8000, 66000])
def test_long_sums_of_equal_numbers(xp: Backend, n: int) -> None:
    """All but the first sample are the same: each of their differences from it is rounded alike.

    Added one after another they would be right to as many roundings as there are. In runs it is as
    many as a run is long, and as there are runs; and a few for what else there is.
    """
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    run = DEFAULT_SIZES.summed
    z = np.random.default_rng(0).standard_normal((n, 64))
    z[:, 0] = 1.3 * (np.arange(n) > 0)
    given, weight = xp.asarray(z, "float32"), xp.asarray(np.ones(n), "float32")
    _, gradient = vcreg_value_and_grad(given, sample_weight=weight, **OF_VCREG)
    _, right = vcreg_value_and_grad(z.astype(np.float32).astype(float), **OF_VCREG)
    bound = (run + n / run + 8) * UNIT_ROUNDOFF["float32"]
    assert largest_error(xp.numpy(gradient), right) <= bound


@pytest.mark.long_on("jax", "ndonnx")
@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_any_dtype_and_shape_of_weights(xp: Backend, method: str) -> None:
    dtype = xp.dtypes[0]
    views = [xp.asarray(view) for view in drawn((5, 3, 4))]
    settings = {"method": method, "sample_axis": 0, "terms": True} | NAMED

    def both(weight: Any) -> list[np.ndarray]:
        terms, gradients = vicreg_value_and_grad(*views, sample_weight=weight, **settings)
        return [xp.numpy(array) for array in (*terms, *gradients)]

    mask = np.asarray([1, 0, 1, 1, 1])[:, None]
    weight = xp.asarray(np.broadcast_to(mask, (5, 3)))
    wanted = both(weight)
    kinds = [weight > 0, xp.asarray(mask), xp.asarray(mask) > 0]
    kinds += [xp.asarray(mask, narrow) for narrow in xp.dtypes if narrow != dtype]
    bound = rounding(dtype, 5, 4)  # PyTorch sums in the order of memory, which broadcasting sets
    for kind in kinds:
        for got, right in zip(both(kind), wanted, strict=True):
            assert largest_error(got, right) <= bound
    for one in (xp.asarray(2.0), xp.asarray([2.0])):
        for got, right in zip(both(one), both(xp.asarray(np.full((5, 3), 2.0))), strict=True):
            assert largest_error(got, right) <= bound


@pytest.mark.parametrize("d", [3, 12])
@pytest.mark.parametrize(
    "library", ["numpy", "torch", "mlx", pytest.param("jax", marks=pytest.mark.long)]
)
def test_weights_of_any_scale(library: str, d: int) -> None:
    """Nothing overflows: of a large N nothing is subtracted, and a small one has no statistics."""
    pytest.importorskip(library)
    xp, views = Backend(library), drawn((7, d))
    of_ones = invariance_loss(*views, sample_weight=TIMES)

    def found(factor: float, dtype: str) -> Any:
        arrays = [xp.asarray(hidden(view, TIMES), dtype) for view in views]
        return vicreg_value_and_grad(
            *arrays, sample_weight=xp.asarray(factor * TIMES, dtype), terms=True
        )

    rounded = [hidden(view, TIMES).astype(np.float32).astype(float) for view in views]
    wanted, right = vicreg_value_and_grad(*rounded, sample_weight=2.0**60 * TIMES, terms=True)
    bound = rounding("float32", 7, d)
    terms, gradients = found(2.0**100, "float32")
    for term, its_own in zip(terms, wanted, strict=True):
        assert largest_error(xp.numpy(term), its_own) <= bound
    for gradient, its_own in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), its_own) <= bound
    terms, _ = found(2.0**-120, "float32")
    assert largest_error(xp.numpy(terms.invariance), of_ones) <= bound
    assert float(terms.variance) == float(terms.covariance) == 0


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_sample_of_almost_no_weight_far_from_the_others(
    xp: Backend, place: int, method: str
) -> None:
    """It is subtracted from none of them, which would be rounded on its scale, be it the first."""
    d, dtype = 9, xp.dtypes[0]
    views, weight = drawn((7, d)), TIMES.astype(float)
    assert weight[place] == 0
    wanted, right = vicreg_of(views)
    weight[place] = np.finfo(dtype).tiny * 16.0
    for view in views:  # what it adds to any sum is nothing in that dtype
        view[place] = 1e4 / UNIT_ROUNDOFF[dtype]
    loss, gradients = vicreg_value_and_grad(
        *map(xp.asarray, views), sample_weight=xp.asarray(weight), method=method, **NAMED
    )
    bound = rounding(dtype, int(TIMES.sum()), d)
    compare(xp.numpy(loss), map(xp.numpy, gradients), wanted, right, bound)


def test_weights_that_are_parts_of_one_have_no_statistics() -> None:
    """Nor where rounding makes their sum a little more."""
    weight = np.asarray([0.1, 0.2, 0.7], np.float32)
    weight[2] += np.float32(2.0**-22)
    assert weight.sum() > 1
    views = [view.astype(np.float32) for view in drawn((3, 4))]
    terms = vicreg_terms(*views, sample_weight=weight)
    assert terms.variance == terms.covariance == 0
    assert terms.invariance > 0


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("library", ["mlx", pytest.param("jax", marks=pytest.mark.long)])
def test_what_is_no_weight_gives_no_number(library: str, bad: float) -> None:
    """Where no value is waited for, there is no error."""
    pytest.importorskip(library)
    xp = Backend(library)
    weight = np.ones(7)
    weight[3] = bad
    for d in (3, 12):
        terms, gradients = vicreg_value_and_grad(
            *map(xp.asarray, drawn((7, d))), sample_weight=xp.asarray(weight), terms=True
        )
        assert all(np.isnan(xp.numpy(array)).all() for array in (*terms, *gradients))


@pytest.mark.parametrize("d", [40, 5], ids=["wide", "narrow"])
@pytest.mark.parametrize("rows", [UNEVEN, ONE_ROW, NONE], ids=str)
@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("factor", [1.0, 0.25], ids=["counts", "parts"])
def test_over_ranks(rows: tuple[int, ...], d: int, method: str, factor: float) -> None:
    """With parts of 1, a rank's samples may have too few together, and those of all enough."""
    whole = ranks.whole(rows, (3, d))
    weight = np.random.default_rng(rows).integers(0, 3, (sum(rows), 3)).astype(float)
    weight[: rows[0]] = 0  # nothing of the first rank counts
    weight[-5:] = 1
    weight[:, 2] = 0  # nor anything of one position
    weight *= factor
    views = [hidden(view, weight) for view in whole]
    settings = {"method": method} | NAMED

    def of_rank(comm: Thread) -> Any:
        *own, weights = ranks.own([*views, weight], rows, comm.rank)
        return vicreg_value_and_grad(*own, sample_weight=weights, comm=comm, **settings)

    wanted, right = vicreg_value_and_grad(*views, sample_weight=weight, **settings)
    results = on_threads(len(rows), of_rank)
    for result in results:
        if isinstance(result, Exception):
            raise result
    bound = rounding("float64", sum(rows), d)
    for place, gradient in enumerate(right):
        got = np.concatenate([gradients[place] for _, gradients in results])
        assert largest_error(got, gradient) <= bound
    assert all(largest_error(value, wanted) <= bound for value, _ in results)


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_nan_in_a_position_without_statistics_over_ranks(method: str) -> None:
    (z,) = drawn((8, 2, 3), 1)
    weight = np.ones((8, 2))
    weight[1:, 1] = 0
    z[:, 1] = np.nan
    settings = OF_VCREG | {"method": method, "sample_axis": 0}

    def of_rank(comm: Thread) -> Any:
        own, weights = ranks.own([z, weight], (4, 4), comm.rank)
        return vcreg_value_and_grad(own, sample_weight=weights, comm=comm, **settings)

    wanted, right = vcreg_value_and_grad(z[:, :1], **settings)
    results = on_threads(2, of_rank)
    for result in results:
        if isinstance(result, Exception):
            raise result
    gradient = np.concatenate([own for _, own in results])
    assert largest_error(gradient[:, :1], right) <= rounding("float64", 8, 3)
    np.testing.assert_array_equal(gradient[:, 1], 0)
    assert all(largest_error(value, wanted) <= rounding("float64", 8, 3) for value, _ in results)


def test_ranks_with_weights_and_without_are_told() -> None:
    views = ranks.whole((4, 4), (5,))

    def of_rank(comm: Thread) -> Any:
        weight = np.ones(4) if comm.rank else None
        return vicreg_loss(*ranks.own(views, (4, 4), comm.rank), sample_weight=weight, comm=comm)

    for result in on_threads(2, of_rank):
        assert isinstance(result, ValueError)
        assert "whether sample_weight is given must be the same on every rank" in str(result)


class TestPyTorch:
    """What differentiates it, and its modules."""

    @pytest.fixture
    def torch(self) -> Any:
        return pytest.importorskip("torch")

    @pytest.fixture
    def arrays(self, torch: Any) -> list[Any]:
        return [torch.tensor(hidden(view, TIMES), requires_grad=True) for view in drawn((7, 9))]

    def test_automatic_differentiation(self, torch: Any, arrays: list[Any]) -> None:
        from vicreg.torch import VICRegLoss

        wanted, right = vicreg_of(drawn((7, 9)))
        weight, criterion = torch.tensor(TIMES), VICRegLoss(**NAMED)
        for loss in (
            vicreg_loss(*arrays, sample_weight=weight, **NAMED),
            vicreg_terms(*arrays, sample_weight=weight, **NAMED).loss,
            criterion(*arrays, sample_weight=weight.float()),
            criterion.terms(*arrays, sample_weight=weight).loss,
        ):
            gradients = torch.autograd.grad(loss, arrays)
            compare(loss.detach(), gradients, wanted, right, rounding("float64", 8, 9))

    def test_second_derivatives_and_maps(self, torch: Any, arrays: list[Any]) -> None:
        weight = torch.tensor(TIMES)
        clean = [z.detach().nan_to_num(0.5).requires_grad_() for z in arrays]

        def loss(*views: Any) -> Any:
            return vicreg_loss(*views, sample_weight=weight, **NAMED)

        assert torch.autograd.gradgradcheck(loss, clean, fast_mode=True)
        detached = [z.detach() for z in arrays]
        hessian = torch.func.hessian(loss)(*detached)
        assert torch.isfinite(hessian).all()
        assert not hessian[0].any()  # of an absent sample

        def mapped(a: Any, b: Any, weight: Any) -> Any:
            return vicreg_loss(a, b, sample_weight=weight, **NAMED)

        batches = [torch.stack([z, z]) for z in (*detached, weight)]
        got = torch.func.vmap(torch.func.grad(mapped))(*batches)
        _, right = vicreg_of(drawn((7, 9)))
        assert largest_error(got[1], right[0]) <= rounding("float64", 8, 9)

    @pytest.mark.parametrize("method", ["gram", "covariance"])
    def test_a_penalty_of_a_masked_gradient(self, torch: Any, method: str) -> None:
        """Its cotangent is 0 times NaN where a sample is absent."""
        weight = torch.tensor(TIMES)

        def penalty(*views: Any, sample_weight: Any = None, times: Any = 1) -> Any:
            views = [view.detach().requires_grad_() for view in views]
            loss = vicreg_loss(*views, sample_weight=sample_weight, method=method, **NAMED)
            (gradient,) = torch.autograd.grad(loss, views[0], create_graph=True)
            product = gradient * views[0]
            present = ~views[0].isnan()
            (torch.where(present, product, 0.0) * times).sum().backward()
            return views[0].grad

        views = [torch.tensor(view) for view in drawn((7, 9))]
        masked = [torch.tensor(hidden(view.numpy(), TIMES)) for view in views]
        got = penalty(*masked, sample_weight=weight)
        right = penalty(*(view.repeat_interleave(weight, dim=0) for view in views))
        wanted = gathered(right.numpy())[TIMES == 1]
        assert largest_error(got[TIMES == 1], wanted) <= 10 * rounding("float64", 8, 9)

    @pytest.mark.parametrize("scale", ["exact", "published"])
    def test_the_layer(self, torch: Any, scale: str) -> None:
        from vicreg.torch import VCReg

        (z,) = drawn((7, 9), 1)
        weight = torch.tensor(TIMES)
        regularize = VCReg(covariance_gradient=scale, **OF_VCREG)
        masked = torch.tensor(hidden(z, TIMES), requires_grad=True)
        regularize(masked, weight).backward(torch.zeros_like(masked))
        plain = torch.tensor(repeated(z), requires_grad=True)
        wanted = VCReg(covariance_gradient=scale, **OF_VCREG)
        wanted(plain).backward(torch.zeros_like(plain))
        bound = rounding("float64", 8, 9)
        assert largest_error(masked.grad, gathered(plain.grad.numpy())) <= bound
        for term, other in zip(regularize.last_terms, wanted.last_terms, strict=True):
            assert largest_error(term, other) <= bound

    def test_no_gradient_by_the_weights(self, torch: Any, arrays: list[Any]) -> None:
        weight = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
        with pytest.raises(ValueError, match="sample_weight must not require a gradient"):
            vicreg_loss(*arrays, sample_weight=weight)

    def test_no_derivative_by_the_weights_in_any_mode(self, torch: Any) -> None:
        func, forward_ad = torch.func, torch.autograd.forward_ad
        z1, z2 = map(torch.tensor, drawn((7, 3)))
        weight = torch.tensor(TIMES, dtype=torch.float64)
        several = torch.stack([weight, weight])

        def loss(weight: Any) -> Any:
            return vicreg_loss(z1, z2, sample_weight=weight)

        def of_several(weights: Any) -> Any:
            return torch.vmap(loss)(weights).sum()

        def of_dual() -> Any:
            with forward_ad.dual_level():
                return loss(forward_ad.make_dual(weight, weight))

        for derivative in (
            of_dual,
            lambda: func.jvp(loss, (weight,), (weight,)),
            lambda: func.jacfwd(loss)(weight),
            lambda: func.grad(of_several)(several),
            lambda: func.jvp(of_several, (several,), (several,)),
            lambda: of_several(several.clone().requires_grad_()),
        ):
            with pytest.raises(ValueError, match="sample_weight must not require a gradient"):
                derivative()
        # Derivatives by the views alone, of several weights or under either mode, are no error.
        of_views = func.grad(lambda z, weight: vicreg_loss(z, z2, sample_weight=weight))
        each = torch.vmap(of_views, in_dims=(None, 0))(z1, several)
        bound = rounding("float64", 8, 3)
        assert largest_error(each[1].numpy(), of_views(z1, weight).numpy()) <= bound
        _, change = func.jvp(lambda z: vicreg_loss(z, z2, sample_weight=weight), (z1,), (z1,))
        wanted = float((of_views(z1, weight) * z1).sum())
        assert largest_error(np.asarray(change), wanted) <= 10 * bound

    @pytest.mark.parametrize("dynamic", [None, True])
    def test_one_graph(self, torch: Any, arrays: list[Any], dynamic: bool | None) -> None:
        """Of views whose size stands for any after the first call, and weights that are new."""
        torch.compiler.reset()
        settings = {"backend": "aot_eager", "fullgraph": True, "dynamic": dynamic}
        function = torch.compile(vicreg_loss, **settings)
        function(*(view.detach()[:5].requires_grad_() for view in arrays), **NAMED)
        loss = function(*arrays, sample_weight=torch.tensor(TIMES), **NAMED)
        wanted, right = vicreg_of(drawn((7, 9)))
        gradients = torch.autograd.grad(loss, arrays)
        compare(loss.detach(), gradients, wanted, right, rounding("float64", 8, 9))


class TestJAX:
    """What differentiates it, and its layer."""

    def test_under_jit(self) -> None:
        jax = pytest.importorskip("jax")
        views = [jax.numpy.asarray(hidden(view, TIMES)) for view in drawn((7, 9))]
        weight = jax.numpy.asarray(TIMES)

        @jax.jit
        def both(z1: Any, z2: Any, weight: Any) -> Any:
            return jax.value_and_grad(
                lambda *views: vicreg_loss(*views, sample_weight=weight, **NAMED), (0, 1)
            )(z1, z2)

        loss, gradients = both(*views, weight)
        wanted, right = vicreg_of(drawn((7, 9)))
        compare(loss, gradients, wanted, right, rounding("float64", 8, 9))

    @pytest.mark.parametrize("penalty", ["square", "smooth_l1"])
    def test_the_layer(self, penalty: str) -> None:
        jax = pytest.importorskip("jax")
        from vicreg.jax import vcreg

        settings = OF_VCREG | {"penalty": penalty}
        (z,) = drawn((7, 9), 1)
        _, right = vcreg_value_and_grad(repeated(z), **settings)
        masked, weight = jax.numpy.asarray(hidden(z, TIMES)), jax.numpy.asarray(TIMES)
        _, pullback = jax.vjp(lambda x: vcreg(x, sample_weight=weight, **settings), masked)
        (got,) = pullback(jax.numpy.zeros_like(masked))
        assert largest_error(got, gathered(right)) <= rounding("float64", 8, 9)

    def test_no_gradient_by_the_weights(self) -> None:
        jax = pytest.importorskip("jax")
        z1, z2 = (jax.numpy.asarray(view) for view in drawn((7, 3)))
        weight = jax.numpy.ones(7)
        for function in (vicreg_loss, lambda *v, **s: vicreg_value_and_grad(*v, **s)[0]):
            with pytest.raises(ValueError, match="sample_weight must not be differentiated by"):
                jax.grad(lambda w, f=function: f(z1, z2, sample_weight=w))(weight)

    @pytest.mark.long
    @pytest.mark.parametrize("way", ["closed form", "differentiated twice"])
    def test_a_penalty_of_a_masked_gradient(self, way: str) -> None:
        """Its cotangent is 0 times NaN where a sample is absent."""
        jax = pytest.importorskip("jax")

        def penalty(z1: Any, z2: Any, weight: Any = None) -> Any:
            given = {"sample_weight": weight, **NAMED}
            if way == "closed form":
                gradient = vicreg_value_and_grad(z1, z2, **given)[1][0]
            else:
                gradient = jax.grad(lambda z: vicreg_loss(z, z2, **given))(z1)
            return jax.numpy.where(jax.numpy.isnan(z1), 0, gradient * z1).sum()

        views = drawn((7, 9))
        masked = [hidden(view, TIMES) for view in views]
        got = jax.grad(penalty)(*map(jax.numpy.asarray, (*masked, TIMES)))
        right = jax.grad(penalty)(*(jax.numpy.asarray(repeated(view)) for view in views))
        assert largest_error(got, gathered(right)) <= 10 * rounding("float64", 8, 9)


class TestMLX:
    """What differentiates and maps it."""

    def test_the_change_of_a_masked_gradient(self) -> None:
        """In forward mode, of the closed form; what is absent changes nothing."""
        mx = pytest.importorskip("mlx.core")

        def change(views: Sequence[Any], along: Any, **given: Any) -> Any:
            z1, z2, along = (mx.array(array, dtype=mx.float64) for array in (*views, along))

            def gradient(z: Any) -> Any:
                return vicreg_value_and_grad(z, z2, **given, **NAMED)[1][0]

            return np.asarray(mx.jvp(gradient, [z1], [along])[1][0])

        views, along = drawn((7, 9)), drawn((7, 9), 3)[2]
        masked = [hidden(view, TIMES) for view in views]
        got = change(masked, hidden(along, TIMES), sample_weight=mx.array(TIMES > 0))
        present = TIMES > 0
        right = change([view[present] for view in views], along[present])
        assert largest_error(got[present], right) <= 10 * rounding("float64", 8, 9)
        np.testing.assert_array_equal(got[~present], 0)

    def test_what_mlx_does_not_do(self) -> None:
        """The guide says it: in time this test will fail, and the guide can be shorter."""
        mx = pytest.importorskip("mlx.core")
        z1, z2 = (mx.array(view) for view in drawn((7, 9)))
        weight = mx.array(TIMES.astype("float32"))

        def loss(z: Any, weight: Any) -> Any:
            return vicreg_loss(z, z2, sample_weight=weight)

        def of_several(weights: Any) -> Any:
            return mx.vmap(lambda weight: loss(z1, weight))(weights).sum()

        assert mx.abs(mx.grad(of_several)(mx.stack([weight, weight]))).max() == 0

        def twice(z: Any) -> Any:
            return mx.grad(lambda z: mx.grad(loss)(z, weight).square().sum())(z)

        assert mx.isfinite(twice(z1)).all()
        with pytest.raises(IndexError):
            mx.eval(mx.compile(twice)(z1))

    @pytest.mark.parametrize("kind", ["mask", "weights"])
    def test_mapped_over_batches(self, kind: str) -> None:
        """The closed form, of weights for each batch, and of views for each or for all."""
        mx = pytest.importorskip("mlx.core")
        times = [TIMES, TIMES[::-1]]
        weights = [each > 0 if kind == "mask" else each.astype("float32") for each in times]
        views = [
            mx.stack([mx.array(hidden(view, each)) for each in times]) for view in drawn((7, 9))
        ]

        def gradient(z1: Any, z2: Any, weight: Any) -> Any:
            return vicreg_value_and_grad(z1, z2, sample_weight=weight, **NAMED)[1][0]

        several = mx.array(np.stack(weights))
        mapped = mx.vmap(gradient)(*views, several)
        wanted = [gradient(*(z[i] for z in views), several[i]) for i in range(2)]
        bound = rounding("float32", 8, 9)
        assert largest_error(np.asarray(mapped), np.stack(wanted)) <= bound
        whole = [mx.array(view) for view in drawn((7, 9))]
        mapped = mx.vmap(lambda weight: gradient(*whole, weight))(several)
        wanted = [gradient(*whole, each) for each in several]
        assert largest_error(np.asarray(mapped), np.stack(wanted)) <= bound

    @pytest.mark.parametrize("way", ["closed form", "differentiated twice"])
    @pytest.mark.parametrize("method", ["gram", "covariance"])
    def test_a_penalty_of_a_masked_gradient(self, method: str, way: str) -> None:
        mx = pytest.importorskip("mlx.core")

        def penalty(z1: Any, z2: Any, weight: Any = None) -> Any:
            given = {"sample_weight": weight, "method": method, **NAMED}
            if way == "closed form":
                gradient = vicreg_value_and_grad(z1, z2, **given)[1][0]
            else:
                gradient = mx.grad(lambda z: vicreg_loss(z, z2, **given))(z1)
            return mx.where(mx.isnan(z1), 0, gradient * z1).sum()

        views = drawn((7, 9))
        masked = [mx.array(hidden(view, TIMES), dtype=mx.float64) for view in views]
        got = mx.grad(penalty)(*masked, mx.array(TIMES))
        right = mx.grad(penalty)(*(mx.array(repeated(v), dtype=mx.float64) for v in views))
        assert largest_error(got, gathered(np.asarray(right))) <= 10 * rounding("float64", 8, 9)

    def test_no_gradient_by_the_weights(self) -> None:
        mx = pytest.importorskip("mlx.core")
        z1, z2 = (mx.array(view) for view in drawn((7, 3)))
        weight = mx.array(drawn((7, 3), 1)[0][:, 0] ** 2)

        def loss(z: Any, weight: Any) -> Any:
            return vicreg_loss(z, z2, sample_weight=weight)

        for differentiate in (
            lambda: mx.grad(loss, argnums=1)(z1, weight),
            lambda: mx.grad(lambda z: loss(z, abs(z[:, 0])))(z1),
            lambda: mx.jvp(loss, [z1, weight], [z1, weight]),
        ):
            with pytest.raises(ValueError, match="sample_weight must not be differentiated by"):
                differentiate()
        # What is no function of the views, or has no derivative by them, is no error.
        for function in (lambda z: loss(z, z[:, 0] > 1), lambda z: loss(z, weight)):
            assert mx.abs(mx.grad(function)(z1)).max() > 0
