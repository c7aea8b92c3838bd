"""Features and samples on any axes, in any order: values, and gradients at their own places."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import definition
import numpy as np
import pytest
from backends import Backend
from errors import largest_error, rounding
from one_graph import in_one_graph

from vicreg import (
    covariance_loss,
    diagnose,
    invariance_loss,
    variance_loss,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg._core.layout import Axes
from vicreg.tools.verification.paths import PATHS, Path

Axis = int | tuple[int, ...]

#: (shape, feature_axis, sample_axis): lengths that tell the axes apart where that can be.
CASES: list[tuple[tuple[int, ...], Axis, Axis]] = [
    ((6, 5), -1, 0),
    ((5, 7), -2, -1),
    ((5, 7), (0,), (1,)),
    ((4, 3, 5), 1, 2),  # positions first
    ((4, 3, 5), (2, 0), 1),
    ((4, 3, 5), -1, (1, 0)),
    ((3, 4, 2, 5), (2, 0), (3, 1)),
    ((3, 4, 2, 5), 3, (2, 0)),
    ((3, 4, 2, 5), (-1, 1), -2),
    ((3, 2, 4, 2), 2, 1),  # positions on two axes
    ((2, 5, 3, 1, 2), 1, (0, 2, 3, 4)),  # EB-JEPA's
    ((4, 3, 2, 2, 2), (1, 3, 4), 0),  # a set of statistics a time step
    ((3, 2, 2, 3, 2), (4, 1), (3, 0)),
]
#: What runs on every library; JAX compiles each anew, and by default is given these alone.
REPRESENTATIVE = (CASES[6], CASES[11])
EVERY_CASE = [
    pytest.param(
        *case,
        marks=pytest.mark.representative if case in REPRESENTATIVE else pytest.mark.long_on("jax"),
        id="{}-{}-{}".format(*case),
    )
    for case in CASES
]
WEIGHTS = (3.0, 5.0, 0.7)
NAMED = dict(
    zip(("invariance_weight", "variance_weight", "covariance_weight"), WEIGHTS, strict=True)
)
OF_VCREG = {name: NAMED[name] for name in ("variance_weight", "covariance_weight")}


def drawn(shape: tuple[int, ...], count: int = 2) -> list[np.ndarray]:
    """Views with stds of 0.7 to 1.3: the hinge is at work on some features and not on others."""
    rng = np.random.default_rng(shape)
    scale = rng.uniform(0.7, 1.3, shape)
    common = rng.standard_normal(shape)
    return [1 + scale * (common + 0.3 * rng.standard_normal(shape)) for _ in range(count)]


def by_samples(view: np.ndarray, features: Axis, samples: Axis) -> np.ndarray:
    """Return `view` as ``(samples, positions, features)``, one axis each."""
    features, samples = np.atleast_1d(features), np.atleast_1d(samples)
    first = range(len(samples))
    moved = np.moveaxis(view, [*samples, *features], [*first, *range(-len(features), 0)])
    n = np.prod(moved.shape[: len(samples)], dtype=int)
    d = np.prod(moved.shape[view.ndim - len(features) :], dtype=int)
    return moved.reshape(n, -1, d)


@functools.cache
def vicregs(shape: tuple, features: Axis, samples: Axis) -> tuple[float, list[np.ndarray]]:
    """Return the loss of two views by its definition, and its gradients."""

    def loss(views: Sequence[np.ndarray]) -> complex:
        sets = [by_samples(view, features, samples) for view in views]
        return definition.loss(sets, weights=WEIGHTS)

    return loss(drawn(shape)), definition.gradients(loss, drawn(shape))


@functools.cache
def vcregs(
    shape: tuple, features: Axis, samples: Axis, delta: float | None = None
) -> tuple[float, np.ndarray]:
    """Return VCReg's loss of one view by its definition, and its gradient."""

    def loss(views: Sequence[np.ndarray]) -> complex:
        sets = by_samples(views[0], features, samples)
        return definition.vcreg(sets, WEIGHTS[1:], delta=delta, pooled=False)

    views = drawn(shape, 1)
    return loss(views), definition.gradients(loss, views)[0]


def bound_of(dtype: str, shape: tuple[int, ...], features: Axis, samples: Axis) -> float:
    n, _, d = by_samples(np.empty(shape), features, samples).shape
    return rounding(dtype, n, d)


def compare(
    xp: Backend, bound: float, got: Any, gradients: Sequence[Any], truth: tuple[Any, Any]
) -> None:
    wanted, right = truth
    assert largest_error(xp.numpy(got), wanted) <= bound
    for gradient, its_own in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), its_own) <= bound


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize(("shape", "features", "samples"), EVERY_CASE)
def test_vicreg(xp: Backend, shape: tuple[int, ...], features: Axis, samples: Axis) -> None:
    axes = {"feature_axis": features, "sample_axis": samples}
    views = drawn(shape)
    arrays = [xp.asarray(view) for view in views]
    truth = vicregs(shape, features, samples)
    bound = bound_of(xp.dtypes[0], shape, features, samples)
    for method in ("gram", "covariance"):
        got, gradients = vicreg_value_and_grad(*arrays, method=method, **axes, **NAMED)
        compare(xp, bound, got, gradients, truth)
    assert largest_error(xp.numpy(vicreg_loss(*arrays, **axes, **NAMED)), truth[0]) <= bound
    for array, view in zip(arrays, views, strict=True):
        np.testing.assert_array_equal(xp.numpy(array), view.astype(xp.dtypes[0]))


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize("delta", [None, 0.3], ids=["square", "smooth L1"])
@pytest.mark.parametrize(("shape", "features", "samples"), EVERY_CASE)
def test_vcreg(
    xp: Backend, shape: tuple[int, ...], features: Axis, samples: Axis, delta: float | None
) -> None:
    settings = {"feature_axis": features, "sample_axis": samples, **OF_VCREG}
    if delta is not None:
        settings |= {"penalty": "smooth_l1", "delta": delta}
    array = xp.asarray(drawn(shape, 1)[0])
    wanted, right = vcregs(shape, features, samples, delta)
    bound = bound_of(xp.dtypes[0], shape, features, samples)
    got, gradient = vcreg_value_and_grad(array, **settings)
    compare(xp, bound, got, [gradient], (wanted, [right]))
    assert largest_error(xp.numpy(vcreg_loss(array, **settings)), wanted) <= bound


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize(("shape", "features", "samples"), EVERY_CASE)
def test_terms(xp: Backend, shape: tuple[int, ...], features: Axis, samples: Axis) -> None:
    axes = {"feature_axis": features, "sample_axis": samples}
    views = drawn(shape)
    first, second = (xp.asarray(view) for view in views)
    sets = [by_samples(view, features, samples) for view in views]
    bound = bound_of(xp.dtypes[0], shape, features, samples)
    terms = vicreg_terms(first, second, **axes)[1:]
    for got, wanted in zip(terms, definition.terms(sets, "official"), strict=True):
        assert largest_error(xp.numpy(got), wanted) <= bound

    invariance, variance, covariance, *_ = definition.CONVENTIONS["official"]
    of_first = [sets[0][:, place] for place in range(sets[0].shape[1])]
    of_second = [sets[1][:, place] for place in range(sets[1].shape[1])]
    for got, each in (
        (invariance_loss(first, second, **axes), map(invariance, of_first, of_second)),
        (variance_loss(first, gamma=1.2, **axes), [variance(one, 1.2) for one in of_first]),
        (covariance_loss(first, **axes), map(covariance, of_first)),
    ):
        assert largest_error(xp.numpy(got), np.mean([*each])) <= bound


def test_samples_are_on_the_first_axis_without_features_or_pooled_on_all() -> None:
    assert Axes((-1,)).split(3) == ((1,), (0,), (2,))
    assert Axes((0,)).split(3) == ((2,), (1,), (0,))
    assert Axes((-1,), pooled=True).split(3) == ((), (0, 1), (2,))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_each_path(xp: Backend, path: Path) -> None:
    """Views that are stacked and views one by one, sums and products in parts."""
    if xp.name == "jax" and path is not PATHS[-1]:
        pytest.skip("compiled anew for each path: one of them is enough")
    on_two_axes = CASES[9]
    for shape, features, samples in (*REPRESENTATIVE, on_two_axes):
        axes = {"feature_axis": features, "sample_axis": samples}
        arrays = [xp.asarray(view) for view in drawn(shape)]
        bound = 4 * bound_of(xp.dtypes[0], shape, features, samples)
        truth = vicregs(shape, features, samples)
        compare(xp, bound, *path.vicreg_value_and_grad(*arrays, **axes, **NAMED), truth)


@pytest.mark.representative
def test_half_precision(xp: Backend) -> None:
    """Computed in float32 whatever the axes; each gradient of its view's shape and dtype."""
    dtype = xp.dtypes[-1]
    shape, features, samples = REPRESENTATIVE[0]
    axes = {"feature_axis": features, "sample_axis": samples}
    arrays = [xp.asarray(view, dtype) for view in drawn(shape)]
    exact = [xp.numpy(array).astype(np.float64) for array in arrays]
    truth = vicreg_value_and_grad(*exact, **axes)
    loss, gradients = vicreg_value_and_grad(*arrays, **axes)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert (gradient.shape, gradient.dtype) == (array.shape, array.dtype)
    compare(xp, bound_of(dtype, shape, features, samples), loss, gradients, truth)


def test_none_is_the_first_axis_without_features_or_in_vcreg_each_of_them() -> None:
    z, other = drawn((3, 4, 2, 5))
    for features, first, all_others in (
        (-1, 0, (0, 1, 2)),
        (1, 0, (0, 2, 3)),
        ((0, 2), 1, (1, 3)),
        ((3, 1, 0), 2, 2),
    ):
        got = vicreg_loss(z, other, feature_axis=features)
        assert got == vicreg_loss(z, other, feature_axis=features, sample_axis=first)
        got = vcreg_loss(z, feature_axis=features, **OF_VCREG)
        wanted = vcreg_loss(z, feature_axis=features, sample_axis=all_others, **OF_VCREG)
        assert got == wanted


def test_axes_are_taken_together_in_the_order_given() -> None:
    (z,) = drawn((3, 4, 2, 5), 1)
    for features, samples in itertools.product([(0, 2), (2, 0)], [(1, 3), (3, 1)]):
        wanted = np.transpose(z, (*samples, *features)).reshape(20, 6)
        np.testing.assert_array_equal(Axes(features, samples).laid_out(np, z), wanted)


def test_published_values_of_samples_on_four_axes(xp: Backend, published: list[dict]) -> None:
    """The samples of the golden data as videos ``(2, d, 2, 1, 2)``: EB-JEPA's arrangement."""
    (case,) = (case for case in published if case["name"] == "more samples than features")

    def as_videos(rows: Any) -> np.ndarray:
        return np.moveaxis(np.asarray(rows).reshape(2, 2, 1, 2, -1), -1, 1)

    views = [xp.asarray(as_videos(case[name])) for name in ("z1", "z2")]
    bound = 1e-12 if xp.dtypes[0] == "float64" else 1e-5
    for source in case["published"][:1] if xp.name == "jax" else case["published"]:
        weights = dict(zip(NAMED, source["weights"], strict=True))
        got, gradients = vicreg_value_and_grad(
            *views,
            convention=source["convention"],
            feature_axis=1,
            sample_axis=(0, 2, 3, 4),
            **weights,
        )
        right = [as_videos(source[name]) for name in ("grad1", "grad2")]
        compare(xp, bound, got, gradients, (source["loss"], right))


def test_diagnose() -> None:
    """Of samples and features on several axes as of those on one."""
    z, other = drawn((3, 4, 2, 5))
    features, samples = (2, 0), (3, 1)
    wanted = diagnose(by_samples(z, features, samples)[:, 0], other=None)
    got = diagnose(z, other=other, feature_axis=features, sample_axis=samples)
    assert (got.n, got.d) == (20, 6)
    for name in ("std", "singular_values", "mean_abs_correlation", "covariance", "variance"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-12)
    first, second = (by_samples(view, features, samples) for view in (z, other))
    np.testing.assert_allclose(got.invariance, invariance_loss(first, second), rtol=1e-12)


class TestTorch:
    """By autograd, in every mode, and of the modules."""

    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        return pytest.importorskip("torch")

    @pytest.fixture
    def close(self) -> Callable[[Any, Any], None]:
        def close(got: Any, wanted: Any) -> None:
            wanted = wanted.detach().numpy() if hasattr(wanted, "detach") else wanted
            assert largest_error(got.detach().numpy(), wanted) <= 8 * rounding("float64", 20, 24)

        return close

    @pytest.mark.parametrize(("shape", "features", "samples"), CASES, ids=str)
    def test_losses_and_modules(self, torch, close, shape, features, samples) -> None:
        from vicreg.torch import VCReg, VICRegLoss, attach_vcreg

        axes = {"feature_axis": features, "sample_axis": samples}
        views = [torch.tensor(view, requires_grad=True) for view in drawn(shape)]
        wanted, right = vicregs(shape, features, samples)
        module = VICRegLoss(**axes, **NAMED)
        functions = (functools.partial(vicreg_loss, **axes, **NAMED), module)
        for function in (*functions, lambda *views: module.terms(*views).loss):
            loss = function(*views)
            close(loss, wanted)
            for got, its_own in zip(torch.autograd.grad(loss, views), right, strict=True):
                close(got, its_own)

        (z,) = (torch.tensor(view, requires_grad=True) for view in drawn(shape, 1))
        value, right = vcregs(shape, features, samples)
        layer, model = VCReg(**axes, **OF_VCREG), torch.nn.Sequential(torch.nn.Identity())
        attached = attach_vcreg(model, "0", **axes, **OF_VCREG)
        for one, log in ((layer, layer), (model, attached.layers["0"])):
            (got,) = torch.autograd.grad((2 * one(z)).sum(), z)
            close(got - 2, right)
            close(log.last_terms.loss, value)

    def test_the_published_gradient_counts_samples_on_all_axes(self, torch, close) -> None:
        from vicreg.torch import VCReg

        (z,) = (torch.tensor(view, requires_grad=True) for view in drawn((3, 4, 2, 5), 1))
        axes = {"feature_axis": (2, 0), "sample_axis": (3, 1)}
        weights = {"variance_weight": 0.0, "covariance_weight": 1.0}
        layer = VCReg(**axes, **weights, covariance_gradient="published")
        (got,) = torch.autograd.grad(layer(z).sum(), z)
        (loss,) = torch.autograd.grad(vcreg_loss(z, **axes, **weights), z)
        close(got - 1, (5 * 4 - 1) * loss)

    @pytest.mark.parametrize(("features", "samples"), [((2, 0), (3, 1)), ((-1, 1), -2)], ids=str)
    def test_transformations_and_second_derivatives(self, torch, close, features, samples) -> None:
        a, b = (torch.tensor(view) for view in drawn((2, 3, 2, 3)))
        loss = functools.partial(vicreg_loss, feature_axis=features, sample_axis=samples)
        assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))
        assert torch.autograd.gradgradcheck(loss, (a, b))
        a, b = a.detach(), b.detach()
        stack = torch.stack([a, 2 * a])
        got = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(stack, b)
        close(got, torch.stack([torch.func.grad(loss)(one, b) for one in stack]))
        _, change = torch.func.jvp(loss, (a, b), (b, a))
        gradients = torch.func.grad(loss, argnums=(0, 1))(a, b)
        close(change, (gradients[0] * b + gradients[1] * a).sum())

    @pytest.mark.parametrize(
        ("features", "samples"),
        [(1, (0, 2, 3)), pytest.param((1, 3), 0, marks=pytest.mark.long)],
        ids=str,
    )
    def test_one_program_for_any_batch(self, torch, close, features, samples) -> None:
        """Sizes are symbols in it, and products of them."""
        axes = {"feature_axis": features, "sample_axis": samples, "method": "covariance"}

        class Loss(torch.nn.Module):
            def forward(self, a, b):
                return vicreg_loss(a, b, **axes), vicreg_value_and_grad(a, b, **axes)[1][0]

        def batch(n: int) -> list:
            return [torch.tensor(view) for view in drawn((n, 3, 2, 5))]

        batches = {0: torch.export.Dim("n", min=2)}
        program = torch.export.export(
            Loss(), tuple(batch(6)), dynamic_shapes=(batches, batches), strict=False
        )
        run = in_one_graph(Loss(), dynamic=True, backend="aot_eager")
        for n in (6, 4, 9):
            wanted = Loss()(*batch(n))
            for got in (program.module()(*batch(n)), run(*batch(n))):
                for one, right in zip(got, wanted, strict=True):
                    close(one, right)


class TestJAX:
    """By `jax.grad`, compiled and not, and of the layer."""

    @pytest.mark.parametrize(("shape", "features", "samples"), CASES[6:9], ids=str)
    def test_losses_and_the_layer(self, shape, features, samples) -> None:
        jax = pytest.importorskip("jax")
        from vicreg.jax import vcreg

        axes = {"feature_axis": features, "sample_axis": samples}
        views = [jax.numpy.asarray(view) for view in drawn(shape)]
        wanted, right = vicregs(shape, features, samples)
        bound = 8 * bound_of("float64", shape, features, samples)
        function = jax.jit(
            jax.value_and_grad(functools.partial(vicreg_loss, **axes, **NAMED), (0, 1))
        )
        loss, gradients = function(*views)
        assert largest_error(np.asarray(loss), wanted) <= bound
        for got, its_own in zip(gradients, right, strict=True):
            assert largest_error(np.asarray(got), its_own) <= bound

        z = jax.numpy.asarray(drawn(shape, 1)[0])
        _, right = vcregs(shape, features, samples)
        added = jax.grad(lambda z: vcreg(z, **axes, **OF_VCREG).sum())(z) - 1
        assert largest_error(np.asarray(added), right) <= bound

    def test_under_vmap(self) -> None:
        jax = pytest.importorskip("jax")
        shape, features, samples = REPRESENTATIVE[0]
        axes = {"feature_axis": features, "sample_axis": samples}
        views = [jax.numpy.stack([jax.numpy.asarray(view)] * 2) for view in drawn(shape)]
        mapped = jax.vmap(functools.partial(vicreg_value_and_grad, **axes, **NAMED))
        loss, gradients = mapped(*views)
        wanted, right = vicregs(shape, features, samples)
        bound = bound_of("float64", shape, features, samples)
        assert largest_error(np.asarray(loss), [wanted, wanted]) <= bound
        for got, its_own in zip(gradients, right, strict=True):
            assert largest_error(np.asarray(got), [its_own, its_own]) <= bound


def test_mlx_differentiates_along_any_axes() -> None:
    mx = pytest.importorskip("mlx.core")
    shape, features, samples = REPRESENTATIVE[0]
    axes = {"feature_axis": features, "sample_axis": samples}
    views = [mx.array(view, dtype=mx.float64) for view in drawn(shape)]
    function = functools.partial(vicreg_loss, **axes, **NAMED)
    loss, gradients = mx.value_and_grad(function, argnums=(0, 1))(*views)
    wanted, right = vicregs(shape, features, samples)
    bound = bound_of("float64", shape, features, samples)
    assert largest_error(np.asarray(loss), wanted) <= bound
    for got, its_own in zip(gradients, right, strict=True):
        assert largest_error(np.asarray(got), its_own) <= bound
