"""What holds for every batch and every setting, on every path through the core.

Hypothesis draws the batches and the settings: a few by default, many in the long variants. It
draws the same ones each time.

Values stand on a grid, multiples of 2⁻⁸ below 16, so that float32 has them exactly, and their
sums with small integers and products with powers of two as well.

The bound of an error is that of `rounding`, relative to the sum of the absolute values of what a
result is the sum of (`scales`): a result may be far smaller, as its parts cancel. Where two
results are compared, both err. The Gram route adds the diagonal and subtracts it again, so that
its share counts twice. That is a factor of four.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import definition
import numpy as np
import pytest
from backends import Backend
from errors import rounding
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from one_graph import in_one_graph

from vicreg import Convention, conventions
from vicreg.distributed import LOCAL, Communicator
from vicreg.tools.dtypes import HALF, UNIT_ROUNDOFF
from vicreg.tools.verification.paths import PATHS, Path

Views = list[np.ndarray]

WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")
GRID = 2.0**-8

#: How many examples are drawn.
FEW_OR_MANY = pytest.mark.parametrize(
    "count", [pytest.param(2, id="few"), pytest.param(40, id="many", marks=pytest.mark.long)]
)


def holds_for(count: int, *drawn: st.SearchStrategy) -> Callable[[Callable], None]:
    """Run the decorated check for `count` examples."""

    def run(check: Callable) -> None:
        too_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
        setup = settings(
            max_examples=count,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=too_slow,
        )
        setup(given(*drawn)(check))()

    return run


@dataclass(frozen=True)
class Batch:
    """Views (n, ..., d) of a seed, and with which settings they are asked of."""

    shape: tuple[int, ...]
    count: int
    seed: int
    convention: Convention
    weights: tuple[float, float, float]
    method: str

    @functools.cached_property
    def views(self) -> Views:
        """Features of mean and scale of about 1, of views that are alike."""
        rng = np.random.default_rng([self.seed, *self.shape])
        scale = rng.uniform(0.5, 1.5, self.shape[-1])
        common = rng.standard_normal(self.shape)
        noise = rng.standard_normal((self.count, *self.shape))
        views = np.clip(1 + scale * (common + 0.3 * noise), -15, 15)
        return list(np.round(views / GRID) * GRID)

    @property
    def settings(self) -> dict[str, Any]:
        named = dict(zip(WEIGHTS, self.weights, strict=True))
        return {"convention": self.convention, "method": self.method} | named


SHAPES = st.tuples(st.integers(2, 10), st.integers(2, 12)) | st.tuples(
    st.integers(2, 6), st.integers(1, 3), st.integers(2, 8)
)
#: Of the terms: 0 leaves one out.
TERM_WEIGHTS = st.tuples(*[st.sampled_from([1.0, 0.0, 0.5, 25.0])] * 3).filter(any)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    convention = conventions[draw(st.sampled_from(sorted(conventions)))]
    weights = draw(TERM_WEIGHTS)
    if convention.invariance == "none":
        weights = (0.0, *weights[1:]) if any(weights[1:]) else (0.0, 1.0, 1.0)
    return Batch(
        shape=draw(SHAPES),
        count=draw(st.integers(2, 3)),
        seed=draw(st.integers(0, 2**16)),
        convention=convention,
        weights=weights,
        method=draw(st.sampled_from(["auto", "gram", "covariance"])),
    )


class Scales(NamedTuple):
    """The sums of absolute values of each term, and the largest of an element of its gradient."""

    terms: np.ndarray
    gradients: np.ndarray

    def of_loss(self, weights: Sequence[float]) -> float:
        return float(np.dot(weights, self.terms))

    def of_gradient(self, weights: Sequence[float]) -> float:
        return float(np.dot(weights, self.gradients))


def scales(views: Sequence[np.ndarray], convention: Convention, gamma: float = 1.0) -> Scales:
    """Return the scales of rounding of (invariance, variance, covariance)."""
    n, d = views[0].shape[0], views[0].shape[-1]
    z = np.stack([view.reshape(n, -1, d) for view in views])  # (k, n, positions, d)
    positions = z.shape[2]
    # The core takes the deviations from the mean of the views, less the first view.
    apart = np.abs(z - z[:1])
    between = 2 * (apart + apart.mean(axis=0)) ** 2
    of_pair = 1 if convention.invariance == "squared norm" else d
    slope = 4 * (apart + apart.mean(axis=0)).max() / (n * of_pair * positions)
    invariance = len(views) * between.mean() * d / of_pair

    zc = np.abs(z - z.mean(axis=1, keepdims=True))
    variance = (zc**2).sum(axis=1, keepdims=True) / (n - convention.variance_correction)
    if convention.hinge_on == "std":
        root = np.sqrt(variance + convention.eps)
        hinge, steep = gamma + root, np.divide(zc, root, out=0 * zc, where=root > 0)
    else:
        hinge, steep = gamma + variance, 2 * zc
    each = 2 if convention.variance_over_views == "sum" else 1
    by_view = each / ((n - convention.variance_correction) * d * len(views) * positions)

    m = n - convention.covariance_correction
    products = np.einsum("knpi,knpj->kpij", zc, zc) / m
    divisor = d if convention.covariance_divisor == "d" else d * (d - 1)
    factor = (2 if convention.covariance_over_views == "sum" else 1) / divisor
    along = np.einsum("knpi,kpij->knpj", zc, products).max()
    return Scales(
        np.array(
            [
                invariance,
                each * hinge.mean(),
                factor * (products**2).sum(axis=(2, 3)).mean(),
            ]
        ),
        np.array(
            [slope, by_view * steep.max(), 4 * factor / (m * len(views) * positions) * along]
        ),
    )


def has_one_derivative(views: Views, convention: Convention, gamma: float) -> bool:
    """Whether no feature is at the kink of the hinge, nor dead under a root without ε."""
    variances = [view.var(axis=0, ddof=convention.variance_correction) for view in views]
    if convention.hinge_on == "variance":
        return all((np.abs(v - gamma) > 1e-3 * gamma).all() for v in variances)
    return all(
        (np.abs(np.sqrt(v + convention.eps) - gamma) > 1e-3 * gamma).all()
        and (v + convention.eps > 0).all()
        for v in variances
    )


class Asked(NamedTuple):
    """A library by one path."""

    xp: Backend
    path: Path

    def terms(self, views: Views, batch: Batch, **others: Any) -> np.ndarray:
        """Return the loss, the invariance, the variance and the covariance."""
        given = [self.xp.asarray(view) for view in views]
        terms = self.path.vicreg_terms(*given, **batch.settings | others)
        return np.array([self.xp.numpy(term) for term in terms])

    def gradients(self, views: Views, batch: Batch, **others: Any) -> Views:
        given = [self.xp.asarray(view) for view in views]
        _, gradients = self.path.vicreg_value_and_grad(*given, **batch.settings | others)
        return [self.xp.numpy(gradient) for gradient in gradients]

    def close(self, got: Any, wanted: Any, views: Views, batch: Batch, times: float = 1.0) -> None:
        """Check terms, (4,), or gradients, like the views, which are `times` as large as those."""
        scale, weights = scales(views, batch.convention), batch.weights
        bound = 4 * times * self.rounding(views)
        if np.shape(got) == (4,):
            of_each = np.array([scale.of_loss(weights), *scale.terms])
            assert (np.abs(got - wanted) <= bound * of_each).all(), (got, wanted)
            return
        for gradient, right in zip(got, wanted, strict=True):
            assert gradient.shape == right.shape
            assert np.abs(gradient - right).max() <= bound * scale.of_gradient(weights)

    def rounding(self, views: Views) -> float:
        return rounding(self.xp.dtypes[0], views[0].shape[0], views[0].shape[-1])


def without_invariance(batch: Batch) -> Batch:
    return dataclasses.replace(batch, weights=(0.0, 1.0, 0.5))


def same_after(asked: Asked, batch: Batch, change: Callable, back: Callable) -> None:
    """Check that a change of every view changes no term, and the gradient as `back` undoes it."""
    views = [change(view) for view in batch.views]
    asked.close(asked.terms(views, batch), asked.terms(batch.views, batch), views, batch)
    gradients = [back(gradient) for gradient in asked.gradients(views, batch)]
    asked.close(gradients, asked.gradients(batch.views, batch), views, batch)


def a_permutation_of_the_samples_changes_nothing(asked: Asked, batch: Batch) -> None:
    order = np.random.default_rng(batch.seed).permutation(batch.shape[0])
    same_after(asked, batch, lambda z: z[order], lambda g: g[np.argsort(order)])


def a_permutation_of_the_features_changes_nothing(asked: Asked, batch: Batch) -> None:
    order = np.random.default_rng(batch.seed).permutation(batch.shape[-1])
    same_after(asked, batch, lambda z: z[..., order], lambda g: g[..., np.argsort(order)])


def the_sign_of_a_feature_changes_nothing(asked: Asked, batch: Batch) -> None:
    sign = np.random.default_rng(batch.seed).choice([-1.0, 1.0], batch.shape[-1])
    sign[0] = -1.0
    same_after(asked, batch, lambda z: sign * z, lambda g: sign * g)


def a_shift_of_a_view_changes_no_variance_and_no_covariance(asked: Asked, batch: Batch) -> None:
    batch = without_invariance(batch)
    shift = np.random.default_rng(batch.seed).integers(-50, 51, batch.shape[1:])
    views = [batch.views[0] + shift, *batch.views[1:]]
    got, wanted = (asked.terms(each, batch) for each in (views, batch.views))
    got[1] = wanted[1] = 0  # the invariance, of weight 0, does change
    asked.close(got, wanted, batch.views, batch)
    asked.close(*(asked.gradients(each, batch) for each in (views, batch.views)), views, batch)


def twice_the_scale_is_a_covariance_of_16_times(asked: Asked, batch: Batch) -> None:
    batch = dataclasses.replace(batch, weights=(0.0, 0.0, 1.0))
    views = [2 * view for view in batch.views]
    got, wanted = (asked.terms(each, batch) for each in (views, batch.views))
    assert got[3] == pytest.approx(
        16 * wanted[3], abs=64 * asked.rounding(views) * scales(views, batch.convention).terms[2]
    )
    gradients = [8 * gradient for gradient in asked.gradients(batch.views, batch)]
    asked.close(asked.gradients(views, batch), gradients, views, batch)


def a_batch_repeated_is_the_same_without_corrections(asked: Asked, batch: Batch) -> None:
    convention = dataclasses.replace(
        batch.convention, name="mine", variance_correction=0, covariance_correction=0
    )
    batch = dataclasses.replace(batch, convention=convention)
    views = [np.concatenate([view, view]) for view in batch.views]
    # Of 2 n samples: the bound is theirs.
    asked.close(asked.terms(views, batch), asked.terms(batch.views, batch), views, batch)
    once = [gradient / 2 for gradient in asked.gradients(batch.views, batch)]
    wanted = [np.concatenate([gradient, gradient]) for gradient in once]
    asked.close(asked.gradients(views, batch), wanted, views, batch)


def a_weight_of_2_is_a_repeated_sample(asked: Asked, batch: Batch) -> None:
    n = batch.shape[0]
    times = np.random.default_rng(batch.seed).integers(1, 3, n)
    views = [np.repeat(view, times, axis=0) for view in batch.views]
    weight = asked.xp.asarray(times.reshape(n, *(1 for _ in batch.shape[1:-1])))
    got = asked.terms(batch.views, batch, sample_weight=weight)
    asked.close(got, asked.terms(views, batch), views, batch)
    wanted = [
        np.add.reduceat(gradient, np.cumsum(times) - times)
        for gradient in asked.gradients(views, batch)
    ]
    gradients = asked.gradients(batch.views, batch, sample_weight=weight)
    asked.close(gradients, wanted, views, batch, times=2)


def the_gradients_of_variance_and_covariance_sum_to_zero(asked: Asked, batch: Batch) -> None:
    batch = without_invariance(batch)
    for gradient in asked.gradients(batch.views, batch):
        total = gradient.sum(axis=0, keepdims=True)
        asked.close([total], [0 * total], batch.views, batch, times=batch.shape[0])


def the_directional_derivative_is_the_gradients_inner_product(asked: Asked, batch: Batch) -> None:
    """The derivative of the definition, by a complex step."""
    rng = np.random.default_rng(batch.seed)
    along = [rng.choice([-1.0, 1.0], batch.shape) for _ in batch.views]
    moved = [z + 1j * definition.STEP * v for z, v in zip(batch.views, along, strict=True)]
    wanted = definition.loss(moved, batch.convention.name, batch.weights).imag / definition.STEP
    gradients = asked.gradients(batch.views, batch)
    got = sum((g * v).sum() for g, v in zip(gradients, along, strict=True))
    size = sum(v.size for v in along)
    of_gradient = scales(batch.views, batch.convention).of_gradient(batch.weights)
    assert abs(got - wanted) <= 4 * asked.rounding(batch.views) * size * of_gradient


def the_terms_gradients_sum_to_the_losss(asked: Asked, batch: Batch) -> None:
    weights = np.diag(batch.weights)[np.flatnonzero(batch.weights)]
    alone = [
        asked.gradients(batch.views, dataclasses.replace(batch, weights=tuple(row.tolist())))
        for row in weights
    ]
    total = [sum(gradients) for gradients in zip(*alone, strict=True)]
    asked.close(total, asked.gradients(batch.views, batch), batch.views, batch)


def the_routes_agree(asked: Asked, batch: Batch) -> None:
    of = {m: dataclasses.replace(batch, method=m) for m in ("auto", "gram", "covariance")}
    terms = {method: asked.terms(batch.views, each) for method, each in of.items()}
    gradients = {method: asked.gradients(batch.views, each) for method, each in of.items()}
    for method in ("auto", "gram"):
        asked.close(terms[method], terms["covariance"], batch.views, batch)
        asked.close(gradients[method], gradients["covariance"], batch.views, batch)


class OneOfOne(Communicator):
    """The batch of one rank, by the ways of several."""

    rank, size = 0, 1

    def all_gather(self, array: Any) -> Any:
        return array[None, ...]

    def all_reduce(self, array: Any) -> Any:
        return array


def a_communicator_of_one_changes_nothing(asked: Asked, batch: Batch) -> None:
    terms, gradients = asked.terms(batch.views, batch), asked.gradients(batch.views, batch)
    np.testing.assert_array_equal(asked.terms(batch.views, batch, comm=LOCAL), terms)
    np.testing.assert_array_equal(asked.gradients(batch.views, batch, comm=LOCAL), gradients)
    if asked.xp.name in ("dask", "jax", "ndonnx"):
        return  # whose arrays have communicators of their own, or none
    comm = OneOfOne()
    asked.close(asked.terms(batch.views, batch, comm=comm), terms, batch.views, batch)
    asked.close(asked.gradients(batch.views, batch, comm=comm), gradients, batch.views, batch)


PROPERTIES = [
    a_permutation_of_the_samples_changes_nothing,
    a_permutation_of_the_features_changes_nothing,
    the_sign_of_a_feature_changes_nothing,
    a_shift_of_a_view_changes_no_variance_and_no_covariance,
    twice_the_scale_is_a_covariance_of_16_times,
    a_batch_repeated_is_the_same_without_corrections,
    a_weight_of_2_is_a_repeated_sample,
    the_gradients_of_variance_and_covariance_sum_to_zero,
    the_directional_derivative_is_the_gradients_inner_product,
    the_terms_gradients_sum_to_the_losss,
    the_routes_agree,
    a_communicator_of_one_changes_nothing,
]


@pytest.mark.long_on("jax")
@FEW_OR_MANY
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(xp: Backend, holds: Callable, path: Path, count: int) -> None:
    # A library that compiles or builds each shape anew takes seconds for an example.
    count = min(count, 3) if xp.name in ("jax", "ndonnx") else count

    @holds_for(count, batches())
    def _(batch: Batch) -> None:
        holds(Asked(xp, path), batch)


@dataclass(frozen=True)
class Configuration:
    """All that a call can differ in."""

    batch: Batch
    path: Path
    dtype: str
    gamma: float
    axes: tuple[int, ...]  # where each axis of (n, ..., d) stands in a view
    times: tuple[int, ...] | None  # how often each sample occurs
    wanted: tuple[bool, ...]  # which views need a gradient
    way: str  # of WAYS
    signs: tuple[float, ...]  # of the terms' cotangents

    @property
    def settings(self) -> dict[str, Any]:
        sample, *_, feature = self.axes
        axes = {"sample_axis": sample, "feature_axis": feature}
        return self.batch.settings | axes | {"gamma": self.gamma}

    def as_called(self, view: np.ndarray) -> np.ndarray:
        """Return a view (n, ..., d) with its axes where they stand."""
        return np.moveaxis(view, range(view.ndim), self.axes)

    def hidden(self, view: np.ndarray) -> np.ndarray:
        """Return a view with NaN where a sample does not occur."""
        if self.times is None:
            return view
        return np.where(np.reshape(self.times, (-1, *[1] * (view.ndim - 1))) > 0, view, np.nan)

    def repeated(self, view: np.ndarray) -> np.ndarray:
        return view if self.times is None else np.repeat(view, self.times, axis=0)

    def sample_weight(self, xp: Backend) -> Any:
        """Return how often each sample occurs, to broadcast to a view without its features."""
        if self.times is None:
            return None
        sample, *_, feature = self.axes
        shape = [1] * (len(self.axes) - 1)
        shape[sample - (sample > feature)] = -1
        return xp.asarray(np.reshape(self.times, shape))


#: How the gradient is had; those after the first need automatic differentiation.
WAYS = ("closed form", "of the loss", "of the terms")
COMPILED = ("of the loss, compiled", "of the terms, compiled")
DIFFERENTIATES = ("torch", "jax", "mlx")


@st.composite
def configurations(draw: st.DrawFn, xp: Backend, ways: Sequence[str]) -> Configuration:
    batch = draw(batches())
    n, places = batch.shape[0], range(len(batch.shape))
    counts = st.lists(st.integers(0, 2), min_size=n, max_size=n).filter(lambda t: sum(t) > 1)
    return Configuration(
        batch=batch,
        path=draw(st.sampled_from(PATHS)),
        dtype=draw(st.sampled_from(xp.dtypes)),
        gamma=draw(st.sampled_from([1.0, 0.5, 2.0])),
        axes=tuple(draw(st.permutations(places))),
        times=draw(st.none() | counts.map(tuple)),
        wanted=tuple(draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any)))
        if batch.count == 3
        else draw(st.sampled_from([(True, True), (True, False), (False, True)])),
        way=draw(st.sampled_from(ways)),
        signs=draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3)),
    )


def computed(
    xp: Backend, drawn: Configuration, views: list[Any]
) -> tuple[Any, Sequence[Any], tuple[float, ...]]:
    """Return what is differentiated, its gradients, and the weight of each term in it."""
    weight = drawn.sample_weight(xp)
    given = drawn.settings | ({} if weight is None else {"sample_weight": weight})
    if drawn.way == "closed form":
        loss, gradients = drawn.path.vicreg_value_and_grad(*views, **given)
        return loss, gradients, drawn.batch.weights
    weights = drawn.batch.weights
    if "terms" in drawn.way:
        weights = tuple(c * w for c, w in zip(drawn.signs, weights, strict=True))

    def function(*views: Any) -> Any:
        if "terms" not in drawn.way:
            return drawn.path.vicreg_loss(*views, **given)
        terms = drawn.path.vicreg_terms(*views, **given)[1:]
        return sum(c * term for c, term in zip(weights, terms, strict=True) if c)

    if "compiled" in drawn.way:
        function = compiled(xp, function)
    return *xp.tools_backend.differentiate(function, views, drawn.wanted), weights


def compiled(xp: Backend, function: Callable) -> Callable:
    xp.tools_backend.forget_compiled()
    if xp.name == "torch":
        return in_one_graph(function, backend="aot_eager")
    if xp.name == "jax":
        import jax

        return jax.jit(function)
    return xp.tools_backend.compiled(function)


@pytest.mark.long_on("jax")
@FEW_OR_MANY
def test_any_configuration_gives_the_definition(xp: Backend, count: int) -> None:
    ways = WAYS if xp.name in DIFFERENTIATES else WAYS[:1]
    count = min(count, 10) if xp.name in ("jax", "ndonnx") else 3 * count

    @holds_for(count, configurations(xp, ways))
    def _(drawn: Configuration) -> None:
        gives_the_definition(xp, drawn)


@pytest.mark.long
def test_any_compiled_configuration_gives_the_definition(xp: Backend) -> None:
    if xp.name not in DIFFERENTIATES:
        pytest.skip(f"{xp} has no compiler here")

    @holds_for(8, configurations(xp, COMPILED))
    def _(drawn: Configuration) -> None:
        gives_the_definition(xp, drawn)


def gives_the_definition(xp: Backend, drawn: Configuration) -> None:
    arrays = [
        xp.asarray(drawn.as_called(drawn.hidden(view)), drawn.dtype) for view in drawn.batch.views
    ]
    back = [np.moveaxis(xp.numpy(array), drawn.axes, range(array.ndim)) for array in arrays]
    views = [np.where(np.isnan(view), 0, view) for view in back]  # as the dtype has them
    name = drawn.batch.convention.name

    def loss(views: Views) -> complex:
        repeated = [drawn.repeated(view) for view in views]
        return definition.loss(repeated, name, weights, drawn.gamma)

    counted = [drawn.repeated(view) for view in views]
    assume(has_one_derivative(counted, drawn.batch.convention, drawn.gamma))
    value, gradients, weights = computed(xp, drawn, arrays)
    size = scales(counted, drawn.batch.convention, drawn.gamma)
    absolute = np.abs(weights)
    n, d = counted[0].shape[0], counted[0].shape[-1]
    dtype = "float32" if drawn.dtype in HALF else drawn.dtype
    bound = 4 * rounding(dtype, n, d)
    assert abs(xp.numpy(value) - loss(views)) <= bound * size.of_loss(absolute)
    if drawn.dtype in HALF:  # to which each gradient is rounded
        bound += UNIT_ROUNDOFF[drawn.dtype]
    right = definition.gradients(loss, views)
    largest = max(drawn.times or [1]) * size.of_gradient(absolute)
    for place, (gradient, wanted) in enumerate(zip(gradients, right, strict=True)):
        if gradient is None:
            assert not drawn.wanted[place]
            continue
        got = np.moveaxis(xp.numpy(gradient), drawn.axes, range(gradient.ndim))
        assert np.abs(got - wanted).max() <= bound * largest
