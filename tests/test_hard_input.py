"""Hard input: the error is at most four times that of the plain definition in the same dtype.

The yardstick is `plain`: the published formula as users write it, in the same library. It is not
``method="covariance"``, which centres as carefully as the default does. Both errors are from exact
arithmetic, of the loss, of each term and of their gradients, the latter in the norm of a view.
Where few numbers decide, the largest of several draws is compared with the largest. Of
`TO_THE_LETTER`, more than forty families, nothing is allowed beside the four times but u, the
rounding of the result itself. Of the others, and in all but a direct call in float32, these are:

- **The last places.** The plain definition's error may by chance be nothing. So it counts as a
  last place more: u of a value, which is the size of the result, and for the variance of the γ of
  each feature that the std is subtracted from. A gradient is many numbers, whose errors leave
  little to chance, but they are multiplied by one rounded factor and may be equal: u/2 more. Four
  times that are 4 u and 2 u.
- **Sums of d numbers.** In the covariance's value by the Gram route n² products are sums of d
  numbers each, by the definition d² are sums of n. Errors of longer sums, and of fewer, average
  out less: 4 √d roundings of the term. If all numbers of a sum are equal, each is rounded alike
  (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2): d roundings, and n in the
  gradient, whose second product is a sum over the samples.
- **Roots of weights.** Rows are multiplied by the root of their sample's weight, the gradient's
  once more: u for each, of a gradient.
- **Underflow.** A square below the smallest normal number may be 0: there are up to d² of them.

Two limits are documented, and nothing is asserted of them. Where no value can be asked for (a
mapped PyTorch, MLX, GPUs) and more than 32 uncorrelated features are far larger than the rest, the
value of the covariance may have any error. And where the gradient is not by the definition in such
a case (there, in a compiled PyTorch, and in JAX and Dask), it is held to 8 √(d/n) times. On GPUs
and in Dask, where each call costs much, the sample that is subtracted before the mean is taken is
the first, and may be the one that is far from all others: 2 √n times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from backends import Backend
from errors import UNIT_ROUNDOFF
from exact import integer_product, truth
from hard_errors import CHOICES, WEIGHTS, Result, Wanted, exactly, given, in_numpy, norm, settings
from hard_input import FAMILIES, Family
from one_graph import COMPILES_OPERATIONS, in_one_graph
from plain import plain

from vicreg import vcreg_value_and_grad, vicreg_loss, vicreg_value_and_grad
from vicreg._core.sizes import DEFAULT_SIZES
from vicreg._core.terms.covariance import uses_gram
from vicreg.tools.benchmark.published import published_formula
from vicreg.tools.dtypes import HALF
from vicreg.tools.verification.cases import rounded_to
from vicreg.tools.verification.definition import DEFINITIONS, Definition, Terms, Views

U = UNIT_ROUNDOFF["float32"]

#: Libraries that can be asked for a value at once, and those that choose on their device.
ASKED = ("numpy", "torch", "array_api_strict", "mparray")
CHOOSING = ("jax", "dask")

BY_NAME = {family.name: family for family in FAMILIES}

#: Those held to the four times and u on every library on a CPU. On some libraries others are as
#: good.
TO_THE_LETTER = (
    "1 runaway feature, std 1e6",
    "9 runaway features",
    "100 runaway features",
    "runaway copies",
    "a ladder of features",
    "8 runaway features, tall",
    "two close runaway features",
    "2 orthogonal runaway features",
    "4 orthogonal runaway features",
    "8 orthogonal runaway features",
    "9 orthogonal runaway features",
    "9 orthogonal runaway features, tall",
    "20 orthogonal runaway features",
    "33 orthogonal runaway features",
    "40 orthogonal runaway features",
    "47 orthogonal runaway features",
    "100 orthogonal runaway features",
    "200 orthogonal runaway features",
    "stds of 12 decades",
    "stds of 12 decades, tall",
    "log-normal stds",
    "Cauchy",
    "an offset of 1e6, tall",
    "an offset of -1e6, std 0.1",
    "offsets of either sign",
    "an offset of 1e6 and 4 runaway features",
    "an offset of 1e4 and 8 runaway features",
    "half dead",
    "rank one",
    "rank one and noise",
    "whitened",
    "whitened, wide",
    "whitened, stds of 6 decades",
    "a far first sample",
    "a far first sample, tall",
    "a far last sample",
    "one large entry",
    "one large entry, tall",
    "repeated samples",
    "repeated features",
    "two clusters",
    "groups of features",
    "one-hot",
    "rising",
    "a random walk",
    "bytes",
    "at the kink, tall",
    "near overflow, one feature",
    "near overflow, 6 features",
    "near views",
    "near views, 4 runaway features",
    "equal views",
    "opposite views",
    "far views",
)

#: Of every kind one or two, which run by default.
CHOSEN = (
    "8 runaway features",
    "9 orthogonal runaway features",
    "47 orthogonal runaway features",
    "an offset of 1e6",
    "orthogonal samples",
    "a first sample of 1e3",
    "a far first sample, tall",
    "codes that are rounded",
    "tiny",
    "near overflow",
)
IN_HALF = ("8 runaway features", "an offset of 1e6", "near overflow")
LONG = [pytest.param(name, marks=pytest.mark.long) for name in BY_NAME if name not in CHOSEN]
EVERY = [*CHOSEN, *LONG]


class Promise:
    """What is promised: so many times the plain definition's error, and allowances.

    Parameters
    ----------
    family : Family
    kept_apart : int or None
        How many features the library keeps apart; None if it takes the definition where that is
        not enough.
    sees_values : bool
        Whether the value is then by the definition, be the gradient so or not.
    """

    def __init__(self, family: Family, kept_apart: int | None, sees_values: bool) -> None:
        self.family = family
        n, d = family.shape
        by_gram = uses_gram("auto", family.shape, DEFAULT_SIZES)
        is_left = kept_apart is not None and family.uncorrelated > kept_apart and by_gram
        # Both gradients are rounding there: of entries that are sums of d numbers, or of n.
        self.times = 8 * (d / n) ** 0.5 if is_left else 4.0
        #: Nothing is promised of the value where more uncorrelated features are far larger than
        #: the rest than are kept apart, and no value can be asked for.
        self.has_value = sees_values or not is_left
        self._of_sums = (d if family.equal else 4 * d**0.5) * U if by_gram else 0.0
        self._of_product = n * U if by_gram and family.equal else 0.0
        self._of_roots = 0.0
        self._last_places = 4 * U, 2 * U

    def to_the_letter(self) -> None:
        """Allow nothing beside the four times but the rounding of the result."""
        self._last_places = U, U
        self._of_sums = self._of_product = 0.0

    def subtracts_first(self) -> None:
        """Let the first sample be subtracted before the mean is taken, be it far from the others.

        Each of n differences is then rounded as that one is.
        """
        if self.family.far_first:
            self.times = max(self.times, 2 * self.family.shape[0] ** 0.5)

    def has_weights(self) -> None:
        """Let the root of each weight be rounded, and that of a gradient's row once more."""
        self._of_roots = 2 * U

    def allowed(self, wanted: Wanted) -> tuple[float, float]:
        """Return what a value and a gradient may be wrong by beside, relative to their sizes."""
        of_value, of_gradient = wanted.covariance()
        lost, lost_of_gradient = wanted.underflow(self.family.shape[1])
        last_of_value, last_of_gradient = self._last_places
        return (
            last_of_value + self._of_sums * of_value + lost,
            last_of_gradient + self._of_roots + self._of_product * of_gradient + lost_of_gradient,
        )


def check(
    promise: Promise, draws: Sequence[tuple[Wanted, Result, Result]], what: object = None
) -> None:
    """Hold the largest error of the draws to the largest of the plain definition's."""
    got = np.max([wanted.errors(*result) for wanted, result, _ in draws], axis=0)
    plainly = np.max([wanted.errors(*result) for wanted, _, result in draws], axis=0)
    allowed = np.max([promise.allowed(wanted) for wanted, _, _ in draws], axis=0)
    if promise.has_value:
        assert got[0] <= 4 * plainly[0] + allowed[0], (what, "value")
    assert got[1] <= promise.times * plainly[1] + allowed[1], (what, "gradient")


def is_on_gpu(library: Backend) -> bool:
    name = library.name
    return name == "cupy" or (name == "torch" and library.tools_backend.device != "cpu")


def promise_of(library: Backend, family: Family) -> Promise:
    """Return what is promised on a library, called directly."""
    name, on_gpu = library.name, is_on_gpu(library)
    if name in ASKED and not on_gpu:
        return Promise(family, None, sees_values=True)
    chooses = name in CHOOSING
    kept = DEFAULT_SIZES.kept_apart if chooses else DEFAULT_SIZES.kept_apart_unseen
    promise = Promise(family, kept, sees_values=chooses)
    if on_gpu or name == "dask":
        promise.subtracts_first()
    return promise


# Said by NumPy of numbers at the ends of the dtype, of the definition too.
quiet = pytest.mark.filterwarnings("ignore:(overflow|underflow|invalid value):RuntimeWarning")


@quiet
@pytest.mark.long_on("dask", "ndonnx", "mparray")
@pytest.mark.parametrize("name", EVERY)
def test_four_times_the_plain_definition(xp: Backend, name: str) -> None:
    check_family(xp, BY_NAME[name])


def check_family(library: Backend, family: Family) -> None:
    if "float32" not in library.dtypes:
        pytest.skip("the library has no float32")
    inputs = [
        [library.asarray(view, "float32") for view in given(family, "float32", draw)]
        for draw in range(family.draws)
    ]
    yardsticks = [plain(library, views) for views in inputs]
    promise = promise_of(library, family)
    if family.name in TO_THE_LETTER and not is_on_gpu(library):
        promise.to_the_letter()
    for what, weights in CHOICES.items():
        draws = []
        for draw, (views, yardstick) in enumerate(zip(inputs, yardsticks, strict=True)):
            result = vicreg_value_and_grad(*views, **settings(library, weights))
            wanted = Wanted(exactly(family, "float32", draw), weights)
            plainly = yardstick.loss(weights), yardstick.gradient(weights)
            draws.append((wanted, in_numpy(library, *result), in_numpy(library, *plainly)))
        check(promise, draws, what)


@quiet
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.long_on("jax", "mlx", "array_api_strict", "dask", "ndonnx", "mparray")
@pytest.mark.parametrize(
    "name",
    [*IN_HALF, *(pytest.param(n, marks=pytest.mark.long) for n in BY_NAME if n not in IN_HALF)],
)
def test_four_times_the_plain_definition_in_half_precision(
    xp: Backend, name: str, dtype: str
) -> None:
    """Of the definition in float32 of the same numbers, each gradient rounded once.

    The weights are multiplied by a power of two that keeps the gradients within the dtype, as a
    loss scaler does.
    """
    if dtype not in xp.dtypes:
        pytest.skip(f"the library has no {dtype}")
    family = BY_NAME[name]
    for what, chosen in CHOICES.items():
        draws = []
        for draw in range(family.draws):
            exact, right = given(family, dtype, draw), exactly(family, dtype, draw)
            views = [xp.asarray(view, dtype) for view in exact]
            yardstick = plain(xp, [xp.asarray(view, "float32") for view in exact])
            largest = max(np.max(np.abs(g)) for g in Wanted(right, chosen).gradients)
            scale = 2.0 ** min(0.0, 14 - np.ceil(np.log2(largest))) if largest else 1.0
            weights = [float(scale * weight) for weight in chosen]
            result = vicreg_value_and_grad(*views, **settings(xp, weights))
            value, full = in_numpy(xp, yardstick.loss(weights), yardstick.gradient(weights))
            plainly = value, [rounded_to(dtype, gradient) for gradient in full]
            draws.append((Wanted(right, weights), in_numpy(xp, *result), plainly))
        check(promise_of(xp, family), draws, what)


@pytest.mark.parametrize("name", ["orthogonal samples", "a tight frame"])
def test_sums_of_equal_squares_in_numpy(name: str) -> None:
    """The diagonal of K holds almost equal numbers, which NumPy adds up in pairs of short sums.

    One after another they would be wrong by some n/2 roundings. Here no allowance is made.
    """
    library, family, alone = Backend("numpy"), BY_NAME[name], CHOICES["covariance"]
    views = [library.asarray(view, "float32") for view in given(family, "float32", 0)]
    result = vicreg_value_and_grad(*views, **settings(library, alone))
    wanted, yardstick = Wanted(exactly(family, "float32", 0), alone), plain(library, views)
    of_value, _ = wanted.errors(*in_numpy(library, *result))
    plainly, _ = wanted.errors(
        *in_numpy(library, yardstick.loss(alone), yardstick.gradient(alone))
    )
    assert of_value <= 4 * plainly + 8 * U


# Compiled and mapped.


def of_mapped_pytorch(loss: Callable, *views: np.ndarray):
    torch = pytest.importorskip("torch")
    stacks = [torch.stack([torch.tensor(view), torch.tensor(view)]) for view in views]
    gradients, values = torch.vmap(torch.func.grad_and_value(loss, (0, 1)))(*stacks)
    return values[1], [gradient[1] for gradient in gradients]


@functools.cache
def compiled_by_pytorch():
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    return in_one_graph(vicreg_value_and_grad, backend="aot_eager")


def of_compiled_pytorch(loss: Callable, *views: np.ndarray):
    torch = pytest.importorskip("torch")
    return compiled_by_pytorch()(*(torch.tensor(view) for view in views))


@functools.cache
def of_jax(loss: Callable, mapped: bool):
    jax = pytest.importorskip("jax")
    derivative = jax.value_and_grad(loss, (0, 1))
    return jax.jit(jax.vmap(derivative) if mapped else derivative)


def of_differentiated_jax(loss: Callable, *views: np.ndarray):
    return of_jax(loss, mapped=False)(*views)


def of_mapped_jax(loss: Callable, *views: np.ndarray):
    """In a batch whose other element needs nothing."""
    rng = np.random.default_rng(0)
    stacks = [np.stack([rng.standard_normal(z.shape).astype(z.dtype), z]) for z in views]
    values, gradients = of_jax(loss, mapped=True)(*stacks)
    return values[1], [gradient[1] for gradient in gradients]


#: Each way to call a library: its name, how, how many features are kept apart, and whether the
#: value is summed by the definition where that is not enough.
WAYS = {
    "pytorch, mapped": ("torch", of_mapped_pytorch, 32, False),
    "pytorch, compiled": ("torch", of_compiled_pytorch, 32, COMPILES_OPERATIONS),
    "jax, differentiated": ("jax", of_differentiated_jax, 8, True),
    "jax, mapped": ("jax", of_mapped_jax, 8, True),
}


@quiet
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "way", [way if "mapped" in way else pytest.param(way, marks=pytest.mark.long) for way in WAYS]
)
def test_compiled_and_mapped(way: str, name: str) -> None:
    """The loss and its gradients."""
    library_name, call, kept_apart, sees_values = WAYS[way]
    pytest.importorskip(library_name)
    library, family = Backend(library_name), BY_NAME[name]
    draws = []
    for draw in range(family.draws):
        low = [view.astype(np.float32) for view in given(family, "float32", draw)]
        result = call(vicreg_loss, *low)
        yardstick = plain(library, [library.asarray(view, "float32") for view in low])
        plainly = yardstick.loss(WEIGHTS), yardstick.gradient(WEIGHTS)
        wanted = Wanted(exactly(family, "float32", draw), WEIGHTS)
        draws.append((wanted, in_numpy(library, *result), in_numpy(library, *plainly)))
    check(Promise(family, kept_apart, sees_values), draws)


# Weights of samples, and smooth L1.


@quiet
@pytest.mark.long_on("jax", "array_api_strict", "dask", "ndonnx", "mparray")
@pytest.mark.parametrize("kind", ["a mask", pytest.param("weights", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [
        "8 runaway features",
        pytest.param("30 orthogonal runaway features", marks=pytest.mark.long),
        pytest.param("an offset of 1e6, tall", marks=pytest.mark.long),
        pytest.param("a far first sample, tall", marks=pytest.mark.long),
    ],
)
def test_weights_of_samples(xp: Backend, name: str, kind: str) -> None:
    """What stands under a weight of 0 is as large as anything."""
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    family = BY_NAME[name]
    rng = np.random.default_rng(0)
    each = rng.permutation(np.arange(family.shape[0]) % 8 != 0).astype(float)
    each[0] = 1.0
    if kind == "weights":
        each *= rng.choice([0.25, 0.7, 1.0, 3.0], each.shape)
    each = each.astype(np.float32).astype(float)
    weight = xp.asarray(each, "float32")
    column = xp.asarray(each[:, None], "float32")
    draws = []
    for draw in range(family.draws):
        exact = given(family, "float32", draw)
        right = truth(exact, sample_weight=each)
        wrong = [np.where(each[:, None] == 0, 1e30, view) for view in exact]
        views = [xp.asarray(view, "float32") for view in wrong]
        result = vicreg_value_and_grad(*views, **settings(xp, WEIGHTS, sample_weight=weight))
        yardstick = plain(xp, [xp.asarray(view, "float32") for view in exact], column)
        plainly = yardstick.loss(WEIGHTS), yardstick.gradient(WEIGHTS)
        draws.append((Wanted(right, WEIGHTS), in_numpy(xp, *result), in_numpy(xp, *plainly)))
    promise = promise_of(xp, family)
    if kind == "weights":  # the roots of a mask are exact
        promise.has_weights()
    # Of weighted samples the first that counts is subtracted before the mean is taken.
    promise.subtracts_first()
    check(promise, draws)


SMALL = (24, 48)
SMOOTH = Definition(None, True, 1e-5, 1, 1, False, False, DEFINITIONS["vcreg"].divide, (0, 1, 1))


@functools.cache
def smooth_l1(name: str, delta: float, draw: int) -> tuple[np.ndarray, tuple[float, np.ndarray]]:
    """Return a view, the exact term and its gradient."""
    drawn = BY_NAME[name].view(np.random.default_rng(draw), *SMALL)
    view = rounded_to("float32", drawn)
    terms, alone = Terms(Views([view], twice=False), replace(SMOOTH, delta=delta)), (0, 0, 1.0)
    return view, (float(terms.value(alone).high), terms.gradients(alone)[0].high)


@quiet
@pytest.mark.long_on("jax", "array_api_strict", "dask", "ndonnx", "mparray")
@pytest.mark.parametrize("delta", [0.1, pytest.param(100.0, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [
        "8 runaway features",
        "an offset of 1e6",
        pytest.param("9 orthogonal runaway features", marks=pytest.mark.long),
        pytest.param("softmax", marks=pytest.mark.long),
    ],
)
def test_smooth_l1(xp: Backend, name: str, delta: float) -> None:
    """VCReg's covariance of one view, whose entries are clipped to ±δ."""
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    (n, d), library = SMALL, xp.xp
    got, plainly = [], []
    for draw in range(4):
        view, right = smooth_l1(name, delta, draw)
        z = xp.asarray(view, "float32")
        result = vcreg_value_and_grad(
            z,
            variance_weight=0.0,
            covariance_weight=1.0,
            penalty="smooth_l1",
            delta=delta,
        )
        centred = z - library.mean(z, axis=0)
        c = centred.T @ centred / (n - 1)
        c = library.where(xp.asarray(np.eye(d), "float32") > 0.5, library.zeros_like(c), c)
        limit = library.zeros_like(c) + delta
        clipped = library.minimum(library.maximum(c, -limit), limit)
        value = library.sum(clipped * (2 * c - clipped)) / (d * (d - 1))
        gradient = centred @ (4 * clipped) / ((n - 1) * d * (d - 1))
        gradient = gradient - library.mean(gradient, axis=0)
        for errors, (one, other) in ((got, result), (plainly, (value, gradient))):
            off = abs(float(xp.numpy(one)) - right[0]) / right[0]
            errors.append((off, norm(xp.numpy(other) - right[1]) / norm(right[1])))
    of_value, of_gradient = np.max(got, axis=0)
    plain_value, plain_gradient = np.max(plainly, axis=0)
    assert of_value <= 4 * plain_value + 8 * U
    assert of_gradient <= 4 * plain_gradient + 4 * U


# What the comparison rests on.


@pytest.mark.parametrize("shape", [(7, 11), (11, 7)], ids=str)
@pytest.mark.parametrize("name", ["normal", "stds of 12 decades", "whitened", "an offset of 1e6"])
def test_the_truth_is_that_of_the_definition(name: str, shape: tuple[int, int]) -> None:
    """But for rounding to float64: a sum of two views once more, a product thrice."""
    views = replace(BY_NAME[name], shape=shape).draw()
    right, terms = truth(views), Terms(Views(views, twice=False), DEFINITIONS["official"])
    for place, weights in enumerate(np.eye(3)):
        wanted = float(terms.value(tuple(weights)).high)
        assert abs(right.values[place] - wanted) <= 2**-52 * wanted
        for got, of_view in zip(
            right.gradients[place], terms.gradients(tuple(weights)), strict=True
        ):
            assert np.all(abs(got - of_view.high) <= 4 * 2**-53 * abs(of_view.high))


def test_the_truth_of_weights_is_that_of_repeated_samples() -> None:
    views = [np.random.default_rng(0).standard_normal((5, 8)) for _ in range(2)]
    counts = np.asarray([1, 0, 3, 2, 1])
    repeated = truth([np.repeat(view, counts, axis=0) for view in views])
    weighted = truth(views, sample_weight=counts)
    first = np.cumsum(counts) - counts
    for place in range(3):
        assert abs(weighted.values[place] - repeated.values[place]) <= 1e-15
        for got, of_view in zip(weighted.gradients[place], repeated.gradients[place], strict=True):
            each = of_view[np.minimum(first, len(of_view) - 1)] * counts[:, None]
            assert np.max(abs(got - each)) <= 1e-15


def test_products_of_integers_are_exact() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        np.asarray([[int(x) ** 7 for x in row] for row in rng.integers(-(2**20), 2**20, shape)])
        for shape in ((5, 300), (300, 4))
    )
    assert a.dtype == object
    assert np.array_equal(integer_product(a, b), a @ b)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_yardstick_is_what_pytorch_differentiates(name: str) -> None:
    """Neither is worse than the other but by chance, on any family."""
    torch = pytest.importorskip("torch")
    library, family = Backend("torch"), BY_NAME[name]
    written, differentiated = [], []
    for draw in range(family.draws):
        views = [library.asarray(z, "float32") for z in given(family, "float32", draw)]
        wanted = Wanted(exactly(family, "float32", draw), WEIGHTS)
        yardstick = plain(library, views)
        loss, gradients = yardstick.loss(WEIGHTS), yardstick.gradient(WEIGHTS)
        written.append(wanted.errors(*in_numpy(library, loss, gradients)))
        published = published_formula("torch")
        leaves = [view.requires_grad_() for view in views]
        loss = published(*leaves)
        gradients = torch.autograd.grad(loss, leaves)
        differentiated.append(wanted.errors(*in_numpy(library, loss.detach(), gradients)))
    ours, theirs = np.max(written, axis=0)[1], np.max(differentiated, axis=0)[1]
    assert ours <= 2 * theirs + 2 * U
    assert theirs <= 2 * ours + 2 * U


def test_there_are_forty_families_and_more() -> None:
    for module in ("torch", "mlx.core", "jax", "dask.array"):
        pytest.importorskip(module)
    assert len(BY_NAME) == len(FAMILIES) >= 40
    assert {*CHOSEN, *TO_THE_LETTER} <= set(BY_NAME)
    letter = [BY_NAME[name] for name in set(TO_THE_LETTER)]
    # Of which neither the features kept apart nor the sample subtracted is a limit anywhere.
    everywhere = [
        family for family in letter if all(is_within(library, family) for library in CPU)
    ]
    assert len(everywhere) >= 40


#: Of each kind one: what is promised is the same of the others.
CPU = tuple(map(Backend, ("numpy", "torch", "mlx", "jax", "dask")))


def is_within(library: Backend, family: Family) -> bool:
    """Whether four times is promised of a family, of its value and of its gradient."""
    promise = promise_of(library, family)
    return promise.has_value and promise.times == 4
