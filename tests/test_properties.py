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
import importlib
import itertools
import math
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


def the_same_each_time(count: int, **others: Any) -> settings:
    """Return the settings of `count` examples, the same ones in each run."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, **others)


def holds_for(count: int, *drawn: st.SearchStrategy) -> Callable[[Callable], None]:
    """Run the decorated check for `count` examples."""

    def run(check: Callable) -> None:
        too_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
        setup = the_same_each_time(count, suppress_health_check=too_slow)
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
class Layout:
    """How a view (n, ..., d) is given: its samples, positions and features on some axes each."""

    samples: tuple[int, ...]
    positions: tuple[int, ...]
    features: tuple[int, ...]
    places: tuple[int, ...]  # where each of these axes stands

    def given(self, view: np.ndarray) -> np.ndarray:
        lengths = self.samples + self.positions + self.features
        return np.moveaxis(view.reshape(lengths), range(len(lengths)), self.places)

    def back(self, view: np.ndarray) -> np.ndarray:
        shape = (math.prod(self.samples), *self.positions, math.prod(self.features))
        return np.moveaxis(view, self.places, range(view.ndim)).reshape(shape)

    def weight(self, times: np.ndarray) -> np.ndarray:
        """Return how often samples occur as what broadcasts to a view without its features."""
        own = self.places[: -len(self.features)]
        lengths = (*self.samples, *(times.shape[1:] or [1 for _ in self.positions]))
        return times.reshape(lengths).transpose(np.argsort(own))

    @property
    def settings(self) -> dict[str, Any]:
        samples, features = self.places[: len(self.samples)], self.places[-len(self.features) :]
        axes = {"sample_axis": samples, "feature_axis": features}
        return {name: own[0] if len(own) == 1 else own for name, own in axes.items()}


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...]) -> Layout:
    samples, features = (draw(axes_of(shape[place])) for place in (0, -1))
    count = len(samples) + len(features) + len(shape) - 2
    places = draw(st.permutations(range(count)))
    return Layout(samples, shape[1:-1], features, tuple(places))


def axes_of(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Return strategies of one axis of this length, or two."""
    parts = [part for part in range(2, length) if length % part == 0]
    return st.sampled_from([(length,), *((part, length // part) for part in parts)])


@dataclass(frozen=True)
class Configuration:
    """All that a call can differ in."""

    batch: Batch
    layout: Layout
    path: Path
    dtype: str
    gamma: float
    eps: float | None
    pairs: tuple[tuple[int, int], ...] | None
    times: np.ndarray | None  # how often each sample occurs, in each position or everywhere
    wanted: tuple[bool, ...]  # which views need a gradient
    way: str  # how the gradient is had
    cotangents: tuple[float | None, ...] | None  # of the loss and the terms; None: of the loss

    @property
    def convention(self) -> Convention:
        own = self.batch.convention
        return own if self.eps is None else dataclasses.replace(own, name="mine", eps=self.eps)

    @property
    def settings(self) -> dict[str, Any]:
        own = {"gamma": self.gamma, "eps": self.eps, "pairs": self.pairs}
        return self.batch.settings | self.layout.settings | own

    def sample_weight(self, xp: Backend) -> Any:
        """Return the weights, as a mask where each sample occurs once or never."""
        if self.times is None:
            return None
        times = self.times > 0 if self.times.max() == 1 else self.times
        return xp.asarray(self.layout.weight(times))

    def given(self) -> Views:
        """Return the views as they are given, NaN where a sample does not occur."""
        views = self.batch.views
        if self.times is not None:
            missing = np.ones((1,) * (views[0].ndim - self.times.ndim))
            absent = np.multiply.outer(self.times, missing) == 0
            views = [np.where(absent, np.nan, view) for view in views]
        return [self.layout.given(view) for view in views]

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the terms in what is differentiated."""
        of_loss, *each = self.cotangents or (1.0, None, None, None)
        return tuple(
            (of_loss or 0.0) * weight + (own or 0.0)
            for weight, own in zip(self.batch.weights, each, strict=True)
        )

    @property
    def directions(self) -> Views:
        rng = np.random.default_rng(self.batch.seed)
        return [rng.choice([-1.0, 1.0], self.batch.shape) for _ in range(self.batch.count)]

    def definition(self, views: Views) -> complex:
        return definition.loss(
            views,
            self.batch.convention.name,
            self.weights,
            self.gamma,
            self.pairs,
            self.eps,
            self.times,
        )


#: How a gradient is had where there is automatic differentiation.
BACKWARD, COMPILED, CLOSED_FORM = "backward", "compiled", "closed form"


def eager_ways(xp: Backend) -> list[str]:
    """Return the ways to a gradient, and to the derivative along a direction."""
    if not xp.tools_backend.differentiates:
        return [CLOSED_FORM]
    others = (xp.tools_backend.gradient_ways, xp.tools_backend.forward_ways, mapped_ways(xp))
    return [CLOSED_FORM, BACKWARD, *(name for ways in others for name in ways)]


def mapped_ways(xp: Backend) -> dict[str, Callable[..., Sequence[Any]]]:
    """Return maps of the gradient over two batches: the gradient by the second."""
    if xp.name not in ("jax", "mlx"):
        return {}  # PyTorch's are in `gradient_ways`
    library = importlib.import_module("jax" if xp.name == "jax" else "mlx.core")

    def of_two(function: Callable, arrays: Sequence[Any]) -> list[Any]:
        gradient = library.grad(function, argnums=tuple(range(len(arrays))))
        both = library.vmap(gradient)(*(xp.xp.stack([0 * array, array]) for array in arrays))
        return [each[1] for each in both]

    return {"vmap of grad": of_two}


@st.composite
def configurations(draw: st.DrawFn, xp: Backend, ways: Sequence[str]) -> Configuration:
    batch = draw(batches())
    n, *positions, _ = batch.shape
    convention = batch.convention
    way = draw(st.sampled_from(ways))
    cotangents = st.tuples(*[st.sampled_from([None, 1.0, -0.5, 0.0])] * 4)
    pairs = list(itertools.combinations(range(batch.count), 2))
    some = st.lists(st.sampled_from(pairs), min_size=1, unique=True).map(tuple)
    return Configuration(
        batch=batch,
        layout=draw(layouts(batch.shape)),
        path=draw(st.sampled_from(PATHS)),
        dtype=draw(st.sampled_from(xp.dtypes)),
        gamma=draw(st.sampled_from([1.0, 0.5, 2.0])),
        eps=draw(st.sampled_from([None, 0.25]) if convention.hinge_on == "std" else st.none()),
        pairs=draw(st.none() if convention.invariance == "none" else st.none() | some),
        times=draw(st.none() | occurrences(n) | occurrences(n, *positions)),
        wanted=tuple(draw(st.lists(st.booleans(), min_size=3, max_size=3)))[: batch.count],
        way=way,
        cotangents=None if way == CLOSED_FORM else draw(st.none() | cotangents.filter(is_some)),
    )


def is_some(cotangents: Sequence[float | None]) -> bool:
    return any(each is not None for each in cotangents)


def occurrences(*shape: int) -> st.SearchStrategy[np.ndarray]:
    """Return how often samples occur: never, once or twice, in each position twice at least."""
    size = math.prod(shape)
    counts, masks = (
        st.lists(st.integers(0, most), min_size=size, max_size=size) for most in (2, 1)
    )
    arrays = (counts | masks).map(lambda times: np.reshape(times, shape))
    return arrays.filter(lambda times: np.all(times.sum(axis=0) > 1))


class Derivatives(NamedTuple):
    """What a way gives."""

    value: Any = None
    gradients: Sequence[Any] = ()
    along: Any = None  # the configuration's directions


def computed(
    xp: Backend, drawn: Configuration, views: Sequence[Any], weight: Any = None
) -> Derivatives:
    """Return what the configuration's way gives of these views."""
    given, tools = drawn.settings, xp.tools_backend
    if weight is not None:
        given["sample_weight"] = weight
    if drawn.way == CLOSED_FORM:
        return Derivatives(*drawn.path.vicreg_value_and_grad(*views, **given))

    def function(*views: Any) -> Any:
        if drawn.cotangents is None:
            return drawn.path.vicreg_loss(*views, **given)
        terms = drawn.path.vicreg_terms(*views, **given)
        pairs = zip(drawn.cotangents, terms, strict=True)
        first, *others = [c * term for c, term in pairs if c is not None]
        return sum(others, first)

    if drawn.way in tools.forward_ways:
        directions = [
            xp.asarray(drawn.layout.given(each), drawn.dtype) for each in drawn.directions
        ]
        return Derivatives(along=tools.forward_ways[drawn.way](function, views, directions))
    others = {**tools.gradient_ways, **mapped_ways(xp)}
    if drawn.way in others:
        return Derivatives(gradients=others[drawn.way](function, views))
    if drawn.way == COMPILED:
        function = compiled(xp, function)
    if not any(drawn.wanted):
        return Derivatives(function(*views))
    return Derivatives(*tools.differentiate(function, views, drawn.wanted))


def compiled(xp: Backend, function: Callable) -> Callable:
    xp.tools_backend.forget_compiled()
    if xp.name == "torch":
        return in_one_graph(function, backend="aot_eager")
    return xp.tools_backend.compiled(function)


@pytest.mark.long_on("jax")
@FEW_OR_MANY
def test_any_configuration_gives_the_definition(xp: Backend, count: int) -> None:
    is_slow = xp.name in ("jax", "dask", "ndonnx", "mparray")
    count = min(3 * count, 10) if is_slow else 10 * count

    @holds_for(count, configurations(xp, eager_ways(xp)))
    def _(drawn: Configuration) -> None:
        gives_the_definition(xp, drawn)


@pytest.mark.long
def test_any_compiled_configuration_gives_the_definition(xp: Backend) -> None:
    if not xp.tools_backend.compiles:
        pytest.skip(f"{xp} has no compiler here")

    @holds_for(12, configurations(xp, [COMPILED]))
    def _(drawn: Configuration) -> None:
        gives_the_definition(xp, drawn)


def gives_the_definition(xp: Backend, drawn: Configuration) -> None:
    arrays = [xp.asarray(view, drawn.dtype) for view in drawn.given()]
    assume(is_smooth(drawn, as_held(xp, drawn, arrays)))
    is_the_definition(xp, drawn, arrays, computed(xp, drawn, arrays, drawn.sample_weight(xp)))


def as_held(xp: Backend, drawn: Configuration, arrays: Sequence[Any]) -> Views:
    """Return the views (n, ..., d) with the values of the arrays, 0 where a sample is absent."""
    return [np.nan_to_num(drawn.layout.back(xp.numpy(array)), nan=0.0) for array in arrays]


def is_smooth(drawn: Configuration, views: Views) -> bool:
    sets = positions_of(views, drawn.times)
    return all(has_one_derivative(each, drawn.convention, drawn.gamma) for each in sets)


def is_the_definition(
    xp: Backend, drawn: Configuration, arrays: Sequence[Any], got: Derivatives
) -> None:
    """Check what has been computed of these arrays."""
    views = as_held(xp, drawn, arrays)
    sets = positions_of(views, drawn.times)
    size = scales_of_sets(sets, drawn.convention, drawn.gamma)
    of_loss, *each = np.abs(np.array(drawn.cotangents or (1.0, None, None, None), float))
    absolute = np.nan_to_num(of_loss) * np.array(drawn.batch.weights) + np.nan_to_num(each)
    dtype = "float32" if drawn.dtype in HALF else drawn.dtype
    bound = 4 * rounding(dtype, max(len(own[0]) for own in sets), views[0].shape[-1])
    if got.value is not None:
        error = abs(xp.numpy(got.value) - drawn.definition(views))
        assert error <= bound * size.of_loss(absolute)
    if drawn.dtype in HALF:  # to which each gradient is rounded
        bound += UNIT_ROUNDOFF[drawn.dtype]
    right = definition.gradients(drawn.definition, views)
    largest = size.of_gradient(absolute) * (1 if drawn.times is None else drawn.times.max())
    if got.along is not None:
        along = drawn.directions
        wanted = sum((g * v).sum() for g, v in zip(right, along, strict=True))
        assert abs(xp.numpy(got.along) - wanted) <= bound * largest * sum(v.size for v in along)
    for place, gradient in enumerate(got.gradients):
        if gradient is None:
            assert not drawn.wanted[place]
            continue
        error = drawn.layout.back(xp.numpy(gradient)) - right[place]
        assert np.abs(error).max() <= bound * largest


def positions_of(views: Views, times: np.ndarray | None) -> list[Views]:
    """Return the views of each position, (n, d) with each sample as often as it occurs."""
    n, *positions, d = views[0].shape
    flat = [view.reshape(n, -1, d) for view in views]
    if times is None:
        times = np.ones(n, dtype=int)
    times = np.broadcast_to(times.reshape(n, -1), flat[0].shape[:2])
    return [
        [np.repeat(view[:, place], times[:, place], axis=0) for view in flat]
        for place in range(math.prod(positions))
    ]


def scales_of_sets(sets: Sequence[Views], convention: Convention, gamma: float) -> Scales:
    """Return the scales of what is the average over sets of samples."""
    of_each = [scales(views, convention, gamma) for views in sets]
    counts = np.array([len(views[0]) for views in sets])
    # The invariance is over all samples, of which a set may have more than another.
    shares = np.stack([counts / counts.sum(), *[np.ones(len(sets)) / len(sets)] * 2], axis=1)
    terms = np.stack([each.terms for each in of_each])
    gradients = np.stack([each.gradients for each in of_each])
    return Scales((shares * terms).sum(axis=0), (shares * gradients).max(axis=0))
