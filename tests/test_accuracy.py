"""Hard input: the error in float32 is rounding's, and edge input gives finite numbers."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from array_api_compat import array_namespace
from backends import Backend
from errors import UNIT_ROUNDOFF, largest_error, rounding
from one_graph import COMPILES_OPERATIONS, in_one_graph

from vicreg import conventions, covariance_loss, vicreg_loss, vicreg_terms, vicreg_value_and_grad
from vicreg._core import largest
from vicreg._core.library import Library
from vicreg._core.sizes import Sizes
from vicreg.tools.verification.paths import Path

N, D = 48, 160


def _large(features: int) -> np.ndarray:
    scale = np.ones(D)
    scale[:features] = 1000
    return scale


HARD = {
    "one large feature": lambda z, rng: z * _large(1),
    "eight large features": lambda z, rng: z * _large(8),
    "thirty-two large features": lambda z, rng: z * _large(32),
    "scales from 1e-3 to 1e3": lambda z, rng: z * np.logspace(-3, 3, D),
    "log-normal scales": lambda z, rng: z * rng.lognormal(sigma=2.0, size=D),
    "a common offset of 1e4": lambda z, rng: z + 1e4,
    "almost collapsed": lambda z, rng: 1 + 1e-3 * z,
    "a dead feature": lambda z, rng: np.where(np.arange(D) == 5, 0.7, z),
    # Features of one and the same sum of squares, and the largest after them all.
    "codes of two values, and one large feature": lambda z, rng: np.where(
        np.arange(D) < D - 1, np.where(np.argsort(z, axis=0) < N // 2, 1.0, -1.0), 1000 * z
    ),
}


def hard_views(name: str, dtype: str, views: int = 2) -> list[np.ndarray]:
    """Views rounded to `dtype` already, so that the truth is that of the same input."""
    rng = np.random.default_rng(1)
    common = rng.standard_normal((N, D))
    first = [common + 0.3 * rng.standard_normal((N, D)) for _ in range(views)]
    state = rng.bit_generator.state

    def hard(z: np.ndarray) -> np.ndarray:
        rng.bit_generator.state = state
        return HARD[name](z, rng).astype(dtype).astype(np.float64)

    return [hard(z) for z in first]


def condition(views: list[np.ndarray]) -> tuple[float, float]:
    """Return by what rounding is multiplied in the covariance term's value and gradient.

    A sum of products a·b is as exact as its sum of |a||b|, not of a·b. So the entries O of the
    covariance carry the rounding of P, their sums of absolute products; Σ O² that of 2 Σ |O| P,
    and zc O that of |zc| P. Neither an offset nor the centring adds to it.
    """
    of_value, of_gradient = 1.0, 1.0
    for view in views:
        zc = view - view.mean(axis=0)
        off = 1 - np.eye(zc.shape[1])
        o, p = (zc.T @ zc) * off, (np.abs(zc).T @ np.abs(zc)) * off
        of_value = max(of_value, 2 * np.sum(np.abs(o) * p) / np.sum(o * o))
        of_gradient = max(of_gradient, np.max(np.abs(zc) @ p) / np.max(np.abs(zc @ o)))
    return of_value, of_gradient


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("name", HARD)
def test_float32_is_as_accurate_as_rounding_allows(
    xp: Backend, name: str, method: str, views: int
) -> None:
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    exact = hard_views(name, "float32", views)
    wanted, right = vicreg_value_and_grad(*exact, method="covariance")
    loss, gradients = vicreg_value_and_grad(
        *(xp.asarray(view, "float32") for view in exact), method=method
    )
    of_value, of_gradient = condition(exact)
    bound = rounding("float32", N, D)
    assert largest_error(xp.numpy(loss), wanted) <= of_value * bound
    for gradient, truth in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), truth) <= of_gradient * bound


@pytest.mark.parametrize("large", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_samples_are_as_accurate_as_rounding_allows(xp: Backend, n: int, large: int) -> None:
    """Of n - 1 features kept apart, with fewer, as many and more large ones than that."""
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    view = np.random.default_rng(12).standard_normal((n, 40))
    view[:, :large] *= 1e4
    view = view.astype(np.float32).astype(np.float64)
    settings = {"convention": "vicregl", "invariance_weight": 0, "variance_weight": 0}
    wanted, (right, _) = vicreg_value_and_grad(view, view, method="covariance", **settings)
    low = xp.asarray(view, "float32")
    loss, (gradient, _) = vicreg_value_and_grad(low, low, method="gram", **settings)
    of_value, of_gradient = condition([view])
    bound = rounding("float32", n, 40)
    assert largest_error(xp.numpy(loss), wanted) <= of_value * bound
    assert largest_error(xp.numpy(gradient), right) <= of_gradient * bound


@pytest.mark.parametrize(("asks", "most"), [(True, 8), (False, 14)])
def test_two_samples_of_many_features_take_the_memory_of_a_few_views(
    asks: bool, most: int
) -> None:
    """The features that are kept apart have a row of products each, as long as a sample."""
    path = Path("", Sizes(sees_values=asks))
    views = np.random.default_rng(13).standard_normal((2, 2, 100_000))
    path.vicreg_value_and_grad(*views[..., :9])  # loads what a first call loads
    tracemalloc.start()
    path.vicreg_value_and_grad(*views)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= most * views[0].nbytes


@pytest.mark.representative
@pytest.mark.parametrize(("count", "run"), [(1, 64), (3, 64), (8, 64), (1, 2), (3, 4)])
def test_the_largest_are_found_wherever_equals_stand(xp: Backend, count: int, run: int) -> None:
    cases = [
        [5.0, 1, 1, 1, 1, 1, 1, 1, 1, 9],
        [0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        [3.0, 3, 7, 7, 7, 3, 3, 3, 3, 8],
        [9.0, 5, 5, 5, 8, 5, 5, 5, 6, 7],  # the largest begin a run
    ]
    found = xp.numpy(largest.one_hot(namespace(xp), xp.asarray(cases), count, run))
    assert found.shape == (len(cases), count, 10)
    for values, one_hot in zip(cases, found, strict=True):
        assert np.all(one_hot.sum(axis=1) == 1)
        chosen = one_hot.argmax(axis=1)
        assert len(set(chosen)) == count
        assert sorted(np.take(values, chosen)) == sorted(values)[-count:]


def namespace(xp: Backend):
    """The library as the core is given it."""
    if xp.name == "mlx":
        return Library(xp.xp)
    return Library(array_namespace(xp.asarray([0.0])))


def test_the_two_routes_agree_where_the_gram_difference_would_cancel() -> None:
    """The covariance term alone, in float32: without the split it is wrong in its third digit."""
    for name in ("one large feature", "eight large features"):
        view = hard_views(name, "float32")[0]
        weights = {"invariance_weight": 0, "variance_weight": 0, "covariance_weight": 1}
        wanted, (right, _) = vicreg_value_and_grad(view, view, method="covariance", **weights)
        low = view.astype(np.float32)
        loss, (gradient, _) = vicreg_value_and_grad(low, low, method="gram", **weights)
        assert largest_error(loss, wanted) <= rounding("float32", N, D)
        # Column by column: a small feature's gradient is not hidden behind a large one's.
        for column in range(0, D, 10):
            error = largest_error(gradient[:, column], right[:, column])
            assert error <= rounding("float32", N, D), (name, column)


COVARIANCE = {"invariance_weight": 0, "variance_weight": 0, "covariance_weight": 1}


def runaway(count: int, std: float, orthogonal: bool, n: int = 64, d: int = 256) -> np.ndarray:
    """Return a view with `count` features of that std, independent or orthogonal, in float32."""
    rng = np.random.default_rng(7)
    view = rng.standard_normal((n, d))
    view[:, :count] *= std
    if orthogonal:
        basis, _ = np.linalg.qr(np.c_[np.ones(n), view[:, :count]])
        view[:, :count] = basis[:, 1:] * np.sqrt(n - 1) * std
    return view.astype(np.float32).astype(np.float64)


def covariance(*views, method: str = "gram"):
    """The covariance term of the loss and its gradients."""
    return vicreg_value_and_grad(*views, method=method, **COVARIANCE)


def of_pytorch(low: np.ndarray, method: str):
    torch = pytest.importorskip("torch")
    view = torch.tensor(low, requires_grad=True)
    value = vicreg_loss(view, torch.tensor(low), method=method, **COVARIANCE)
    return value.detach(), torch.autograd.grad(value, view)[0]


@functools.cache
def compiled_by_pytorch():
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    return in_one_graph(covariance, backend="aot_eager")


def of_compiled_pytorch(low: np.ndarray, method: str):
    view = pytest.importorskip("torch").tensor(low)
    value, (gradient, _) = compiled_by_pytorch()(view, view.clone(), method=method)
    return value, gradient


def of_mapped_pytorch(low: np.ndarray, method: str):
    torch = pytest.importorskip("torch")
    batch = torch.stack([torch.tensor(low[::-1].copy()), torch.tensor(low)])
    loss = functools.partial(vicreg_loss, method=method, **COVARIANCE)
    derivative = torch.func.grad_and_value(lambda view: loss(view, view.detach()))
    gradients, values = torch.vmap(derivative)(batch)
    return values[1], gradients[1]


def in_closed_form(module: str, asarray: str = "asarray"):
    """Return the value and gradient as the library in `module` computes them, called directly."""

    def of_library(low: np.ndarray, method: str):
        view = getattr(pytest.importorskip(module), asarray)(low)
        value, (gradient, _) = covariance(view, view, method=method)
        return value, gradient

    return of_library


@functools.cache
def differentiated_by_jax(method: str, mapped: bool):
    jax = pytest.importorskip("jax")
    loss = functools.partial(vicreg_loss, method=method, **COVARIANCE)
    derivative = jax.value_and_grad(lambda view, other: loss(view, other))
    return jax.jit(jax.vmap(derivative) if mapped else derivative)


def of_differentiated_jax(low: np.ndarray, method: str):
    return differentiated_by_jax(method, mapped=False)(low, low)


def of_mapped_jax(low: np.ndarray, method: str):
    """In a batch whose other element needs nothing."""
    batch = np.stack([np.random.default_rng(0).standard_normal(low.shape).astype(low.dtype), low])
    values, gradients = differentiated_by_jax(method, mapped=True)(batch, batch)
    return values[1], gradients[1]


def of_compiled_mlx(low: np.ndarray, method: str):
    mx = pytest.importorskip("mlx.core")
    view = mx.array(low)
    value, (gradient, _) = mx.compile(functools.partial(covariance, method=method))(view, view)
    return value, gradient


def of_dask(low: np.ndarray, method: str):
    array = pytest.importorskip("dask.array")
    view = array.from_array(low, chunks=(low.shape[0] // 4, -1))
    value, (gradient, _) = covariance(view, view, method=method)
    return value.compute(), gradient.compute()


def of_ndonnx(low: np.ndarray, method: str):
    view = pytest.importorskip("ndonnx").asarray(low)
    value, (gradient, _) = covariance(view, view, method=method)
    return value.unwrap_numpy(), gradient.unwrap_numpy()


#: Where any number of features may be far larger than the rest, and where 32 may.
ANY_NUMBER = {
    "numpy": in_closed_form("numpy"),
    "pytorch": of_pytorch,
    "jax": in_closed_form("jax.numpy"),
    "jax, differentiated": of_differentiated_jax,
    "jax, mapped": of_mapped_jax,
    "array_api_strict": in_closed_form("array_api_strict"),
    "dask": of_dask,
}
UP_TO_32 = {
    "pytorch, mapped": of_mapped_pytorch,
    "mlx": in_closed_form("mlx.core", "array"),
    "mlx, compiled": of_compiled_mlx,
    "ndonnx": of_ndonnx,
}
(ANY_NUMBER if COMPILES_OPERATIONS else UP_TO_32)["pytorch, compiled"] = of_compiled_pytorch


def check_runaway(way, view: np.ndarray) -> None:
    """Hold value and gradient to the definition's own errors on the same library.

    Of the value four times that, which at the least is what a sum of d numbers one after another
    has, √d roundings. Of the gradient more: the entries of K are sums over d features, those of C
    over n samples.
    """
    exact, (right, _) = covariance(view, view, method="covariance")
    n, d = view.shape
    unit = UNIT_ROUNDOFF["float32"]

    def errors(method: str) -> tuple[float, float]:
        value, gradient = way(view.astype(np.float32), method)
        off = np.linalg.norm(np.asarray(gradient, np.float64) - right) / np.linalg.norm(right)
        return abs(float(value) - exact) / exact, float(off)

    of_value, of_gradient = errors("covariance")
    value, gradient = errors("gram")
    assert value <= 4 * max(of_value, d**0.5 * unit)
    assert gradient <= 8 * (d / n) ** 0.5 * max(of_gradient, unit)


#: What a compiler or an exporter takes seconds for.
SLOW = ("mlx, compiled", "ndonnx")

RUNAWAY = [
    pytest.param(
        way, count, id=f"{name}-{count}", marks=[pytest.mark.long] if name in SLOW else []
    )
    for ways, counts in ((ANY_NUMBER, (1, 8, 9, 20, 60)), (UP_TO_32, (1, 9, 32)))
    for name, way in ways.items()
    for count in counts
]


@pytest.mark.parametrize(
    ("std", "orthogonal"), [(1e2, True), (1e3, True), (1e3, False), (1e4, False), (1e5, True)]
)
@pytest.mark.parametrize(("way", "count"), RUNAWAY)
def test_features_far_larger_than_the_rest(way, count: int, std: float, orthogonal: bool) -> None:
    check_runaway(way, runaway(count, std, orthogonal))


@pytest.mark.parametrize("std", [1e2, 1e5])
@pytest.mark.parametrize("count", [100, 200])
@pytest.mark.parametrize("way", ANY_NUMBER.values(), ids=ANY_NUMBER)
def test_two_hundred_features_far_larger_than_the_rest(way, count: int, std: float) -> None:
    check_runaway(way, runaway(count, std, orthogonal=True, n=256, d=1024))


def test_jax_forms_the_covariance_in_no_more_than_a_loop_of_no_rounds() -> None:
    """Mapped too: nothing as large is formed outside the loop, so none where no round is needed.

    As many columns at a time as do not divide the features.
    """
    jax = pytest.importorskip("jax")
    path = Path("", Sizes(columns=100, defined=0))
    loss = functools.partial(path.vicreg_loss, method="gram", **COVARIANCE)
    batch = np.random.default_rng(0).standard_normal((3, 12, 160)).astype(np.float32)

    def is_program(leaf: object) -> bool:
        return hasattr(leaf, "eqns")

    def sizes(jaxpr, in_loop: bool = False):
        for equation in jaxpr.eqns:
            loop = in_loop or equation.primitive.name == "while"
            for inner in filter(is_program, jax.tree.leaves(equation.params, is_leaf=is_program)):
                yield from sizes(inner, loop)
            yield from ((loop, output.aval.size) for output in equation.outvars)

    for function in (jax.vmap(lambda z: loss(z, z)), jax.vmap(jax.grad(lambda z: loss(z, z)))):
        formed = list(sizes(jax.make_jaxpr(function)(batch).jaxpr))
        assert max(size for in_loop, size in formed if not in_loop) < 3 * 100 * 160
        assert any(size == 3 * 100 * 160 for in_loop, size in formed if in_loop)

    def value_and_gradient(low: np.ndarray, method: str):
        view = jax.numpy.asarray(low)
        value, gradients = path.vicreg_value_and_grad(view, view, method=method, **COVARIANCE)
        return value, gradients[0]

    check_runaway(value_and_gradient, runaway(20, 1e3, orthogonal=True, d=250))


@pytest.mark.parametrize("d", [13, 16])
def test_jaxs_compiler_moves_no_covariance_out_of_the_loop(d: int) -> None:
    """Of few features too, whose columns are all formed at a time."""
    jax = pytest.importorskip("jax")
    loss = functools.partial(Path("", Sizes(defined=0)).vicreg_loss, method="gram", **COVARIANCE)
    view = jax.ShapeDtypeStruct((7, d), np.float32)
    program = jax.jit(lambda z: loss(z, z)).lower(view).compile().as_text()
    _, _, entry = program.partition("\nENTRY ")
    assert " while(" in entry
    assert f"f32[{d},{d}]" not in entry


def test_jax_differentiates_twice_where_the_difference_cancels() -> None:
    """No derivative goes through the loop, by either mode nor nested; the values are right."""
    jax = pytest.importorskip("jax")
    path = Path("", Sizes(defined=0))
    view = runaway(20, 1e3, orthogonal=True, n=32, d=48)
    direction = np.random.default_rng(1).standard_normal(view.shape)

    def results(method: str):
        def loss(z):
            return path.vicreg_loss(z, z, method=method, **COVARIANCE)

        def along(z):
            return jax.jvp(loss, (z,), (direction,))

        value, change = along(view)
        of_value, of_change = jax.jvp(along, (view,), (direction,))[1]
        of_gradient = jax.jvp(jax.grad(loss), (view,), (direction,))[1]
        of_both = jax.grad(lambda z: sum(along(z)))(view)
        return value, change, of_value, of_change, of_gradient, of_both

    for got, wanted in zip(results("gram"), results("covariance"), strict=True):
        assert largest_error(np.asarray(got), np.asarray(wanted)) <= 1e-9


def test_more_large_features_than_are_kept_apart_cost_what_the_docs_say() -> None:
    """Decorrelated, they leave the difference u Σ C_jj² / E where no value can be seen."""
    unseen = Path("", Sizes(sees_values=False))
    view = runaway(60, 1000, orthogonal=True)
    exact = float(covariance_loss(view, method="covariance"))
    energy = np.sum(np.var(view, axis=0, ddof=1) ** 2) / 256
    low = view.astype(np.float32)

    def error(method: str) -> float:
        loss = unseen.vicreg_loss(low, low, method=method, **COVARIANCE)
        return abs(float(loss) / 2 - exact)

    assert error("gram") <= 64 * UNIT_ROUNDOFF["float32"] * energy
    plain = error("covariance")
    assert plain <= condition([view])[0] * rounding("float32", 64, 256) * exact
    assert error("gram") > 10 * plain  # were it not so, the docs would warn of nothing


def test_the_covariance_term_is_never_negative() -> None:
    """Where the exact term is 0 and the Gram route's difference is rounding alone."""
    rng = np.random.default_rng(8)
    for _ in range(20):
        basis, _ = np.linalg.qr(np.c_[np.ones(32), rng.standard_normal((32, 31))])
        view = np.concat([basis[:, 1:] * 28, np.zeros((32, 9))], axis=1).astype(np.float32)
        assert float(covariance_loss(view, method="gram")) >= 0


def test_what_overflows_is_infinite_not_nan(xp: Backend) -> None:
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    view = xp.asarray(np.random.default_rng(9).standard_normal((8, 24)) * 1e12, "float32")
    with np.errstate(over="ignore"):
        value = xp.numpy(covariance_loss(view, method="gram"))
    assert np.isposinf(value)


# Said by NumPy, of the definition too, and for Dask from threads of its own.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("shape", [(2, 5), (8, 24)], ids=str)
@pytest.mark.parametrize("entry", [1.5e19, 2e19, -1e25, 3e38])
def test_an_entry_whose_square_overflows_gives_what_the_definition_gives(
    xp: Backend, entry: float, shape: tuple[int, int]
) -> None:
    """A number or inf: the Gram route makes no NaN of its own."""
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    views = np.random.default_rng(10).standard_normal((2, *shape))
    views[0, 1, 3] = entry
    given = [xp.asarray(view, "float32") for view in views]
    wanted, right = vicreg_value_and_grad(*given, method="covariance")
    loss, gradients = vicreg_value_and_grad(*given, method="gram")
    for got, truth in zip((loss, *gradients), (wanted, *right), strict=True):
        got, truth = xp.numpy(got), xp.numpy(truth)
        is_number, is_infinite = np.isfinite(truth), np.isinf(truth)
        np.testing.assert_array_equal(got[is_infinite], truth[is_infinite])
        if np.any(is_number):
            bound = 2 * rounding("float32", *shape)
            assert largest_error(got[is_number], truth[is_number]) <= bound


def test_sums_of_many_samples_are_as_exact_as_sums_of_few(xp: Backend) -> None:
    """In float32 half a million numbers added one after another are wrong in the fifth digit.

    Added in runs of 512, each number goes through three sums of at most that many. Rounding
    errors that are independent add up to λ √k u (Higham and Mary, "A new approach to probabilistic
    rounding error analysis", 2019), beyond which λ = 8 is never seen.
    """
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    rng = np.random.default_rng(11)
    views = (0.7 * rng.standard_normal((2, 2**19 + 3, 2)) + 0.5).astype(np.float32)
    wanted, right = vicreg_value_and_grad(*views.astype(np.float64))
    loss, gradients = vicreg_value_and_grad(*(xp.asarray(view, "float32") for view in views))
    bound = 8 * (3 * 512) ** 0.5 * UNIT_ROUNDOFF["float32"]
    assert largest_error(xp.numpy(loss), wanted) <= bound
    for gradient, truth in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), truth) <= bound


def test_a_term_of_weight_zero_has_no_part_in_the_loss_however_large() -> None:
    view = (np.random.default_rng(9).standard_normal((8, 5)) * 1e11).astype(np.float32)
    with np.errstate(over="ignore"):
        terms = vicreg_terms(view, -view, covariance_weight=0)
    assert np.isposinf(terms.covariance)
    assert terms.loss == vicreg_loss(view, -view, covariance_weight=0)


def test_whitened_features_have_no_covariance(xp: Backend) -> None:
    """C is the identity but for rounding: nothing may be lost to its diagonal."""
    rng = np.random.default_rng(2)
    z = rng.standard_normal((64, 8))
    q, _ = np.linalg.qr(z - z.mean(axis=0))
    white = q * np.sqrt(63)
    for dtype in set(xp.dtypes) & {"float32", "float64"}:
        view = xp.asarray(white, dtype)
        covariance = float(xp.numpy(vicreg_terms(view, view).covariance))
        # 2/d Σ C_ij² over 56 entries, each rounded by at most about 64 u.
        assert 0 <= covariance <= 2 / 8 * 56 * (64 * UNIT_ROUNDOFF[dtype]) ** 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_half_precision_is_computed_in_float32(xp: Backend, dtype: str, scale: float) -> None:
    """Squares of 300 overflow float16; the value is float32's, each gradient its view's dtype."""
    if dtype not in xp.dtypes:
        pytest.skip(f"the library has no {dtype}")
    rng = np.random.default_rng(3)
    half = [xp.asarray(scale * rng.standard_normal((24, 40)), dtype) for _ in range(2)]
    exact = [xp.numpy(view).astype(np.float64) for view in half]
    # Gradients beyond float16's largest number are infinite in it: scaled to stay below, as a
    # loss scaler does.
    weights = {"covariance_weight": 1.0 if scale < 300 else 1e-3}
    wanted, right = vicreg_value_and_grad(*exact, **weights)
    loss, gradients = vicreg_value_and_grad(*half, **weights)
    assert largest_error(xp.numpy(loss), wanted) <= 1e-4
    for gradient, truth in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), truth) <= rounding(dtype, 24, 40)
    of_value = rounding("float32", 24, 40)
    assert largest_error(xp.numpy(vicreg_loss(*half)), vicreg_loss(*exact)) <= of_value


EDGES = {
    "a constant batch": np.full((4, 6), 0.7),
    "a zero batch": np.zeros((4, 6)),
    "one feature": np.arange(5.0)[:, None],
    "two samples": np.asarray([[1.0, 2.0, 3.0], [3.0, 2.0, 0.5]]),
    "scale 1e8": 1e8 * np.random.default_rng(4).standard_normal((6, 9)),
    "scale 1e8, wide": 1e8 * np.random.default_rng(4).standard_normal((8, 96)),
    "scale 1e-20": 1e-20 * np.random.default_rng(4).standard_normal((6, 9)),
    "a dead feature": np.random.default_rng(4).standard_normal((6, 9)) * (np.arange(9) != 3),
}


@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("name", EDGES)
def test_edge_input_gives_finite_numbers(xp: Backend, name: str, method: str) -> None:
    dtype = "float32" if "float32" in xp.dtypes else "float64"
    view = xp.asarray(EDGES[name], dtype)
    other = xp.asarray(-EDGES[name], dtype)
    # JAX and ndonnx compile or build each anew: the two without ε and the default are enough.
    chosen = conventions if xp.name in ("numpy", "torch", "mlx") else ("official", "jolibrain")
    for convention in chosen:
        if name == "one feature" and conventions[convention].covariance_divisor == "d(d-1)":
            continue  # which is 0, and an error says so
        weights = dict.fromkeys(("variance_weight", "covariance_weight"), 1.0)
        settings = {"convention": convention, "method": method} | weights
        for pair in ((view, view), (view, other)):
            loss, gradients = vicreg_value_and_grad(*pair, **settings)
            for result in (loss, *gradients):
                assert np.all(np.isfinite(xp.numpy(result))), convention


@pytest.mark.parametrize("constant", [0.0, 0.7, 1e4 / 3, -1e-3])
@pytest.mark.parametrize("convention", ["jolibrain", "article"])
def test_a_dead_feature_without_eps_has_no_gradient(
    xp: Backend, convention: str, constant: float
) -> None:
    """Exactly: its centred values are zeros, not the rounding of its mean."""
    values = np.random.default_rng(5).standard_normal((7, 9))
    values[:, 4] = constant
    view = xp.asarray(values)
    _, gradients = vicreg_value_and_grad(view, view, convention=convention)
    for gradient in gradients:
        gradient = xp.numpy(gradient)
        assert np.all(gradient[:, 4] == 0)
        assert np.all(np.any(gradient != 0, axis=0) == (np.arange(9) != 4))


@pytest.mark.long_on("jax")
def test_a_dead_feature_with_an_eps_that_is_0_in_float32_has_no_gradient(xp: Backend) -> None:
    values = np.random.default_rng(5).standard_normal((7, 9))
    values[:, 4] = 0.0
    view = xp.asarray(values, "float32")
    _, gradients = vicreg_value_and_grad(view, view, eps=1e-50)
    for gradient in gradients:
        assert np.all(xp.numpy(gradient)[:, 4] == 0)


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_nan_in_nan_out(xp: Backend, method: str) -> None:
    values = np.random.default_rng(6).standard_normal((4, 9))
    other = values.copy()
    values[1, 2] = np.nan
    loss, gradients = vicreg_value_and_grad(xp.asarray(values), xp.asarray(other), method=method)
    assert np.isnan(xp.numpy(loss))
    assert np.isnan(xp.numpy(gradients[0])[1, 2])
    assert np.isnan(xp.numpy(vicreg_loss(xp.asarray(values), xp.asarray(other), method=method)))
