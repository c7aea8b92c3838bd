"""JAX: every transformation gives the closed form, and exports for devices that are not here."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import definition as plain
import numpy as np
import pytest
from errors import rounding

from vicreg import (
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
    vicregl_loss,
)
from vicreg._core.library import Library
from vicreg.tools.verification.paths import Path

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402

from vicreg._adapters import jax as adapter  # noqa: E402

N, D = 5, 11


def definition(x, y):
    """The official loss by its definition, for JAX to differentiate."""
    return plain.loss([x, y])


def truth(transformed, *arguments):
    """Return what a transformation of a definition gives.

    Compiled as one, since JAX compiles each of its many operations by itself otherwise, which
    takes ten times as long.
    """
    return jax.jit(transformed)(*arguments)


def close(got: object, wanted: object) -> None:
    bound = 4 * rounding("float64", N, D)  # both sides round, and a second derivative twice
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound * np.max(np.abs(b))),
        got,
        wanted,
    )


@pytest.fixture(scope="module")
def views() -> list:
    rng = np.random.default_rng(0)
    return [jnp.asarray(view) for view in 0.8 * rng.standard_normal((2, N, D))]


@pytest.fixture(params=["gram", "covariance"])
def loss(request: pytest.FixtureRequest):
    return lambda x, y: vicreg_loss(x, y, method=request.param)


def test_value_gradient_and_jvp(loss, views) -> None:
    a, b = views
    value, wanted = truth(jax.value_and_grad(definition, (0, 1)), a, b)
    close(loss(a, b), value)
    close(jax.grad(loss, (0, 1))(a, b), wanted)
    close(jax.grad(loss)(a, b), wanted[0])
    close(jax.jit(jax.grad(loss, 1))(a, b), wanted[1])
    change = truth(lambda a, b: jax.jvp(definition, (a, b), (b, a)), a, b)
    close(jax.jvp(loss, (a, b), (b, a)), change)
    close(vicreg_value_and_grad(a, b)[1], wanted)


def test_second_derivatives_in_every_order_of_modes(loss, views) -> None:
    a, b = views
    wanted = truth(jax.hessian(definition, (0, 1)), a, b)
    close(jax.hessian(loss, (0, 1))(a, b), wanted)
    close(jax.jacrev(jax.jacrev(loss))(a, b), wanted[0][0])
    close(jax.jacfwd(jax.jacfwd(loss))(a, b), wanted[0][0])


def test_vmap(loss, views) -> None:
    a, b = views
    s, t = jnp.stack([a, b, a + b]), jnp.stack([b, a, a - b])
    value, gradient = truth(jax.vmap(jax.value_and_grad(definition)), s, t)
    close(jax.vmap(loss)(s, t), value)
    close(jax.jit(jax.vmap(jax.grad(loss)))(s, t), gradient)
    close(jax.grad(lambda s: jax.vmap(loss)(s, t).sum())(s), gradient)


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_each_term(method: str, views) -> None:
    a, b = views

    def terms(x):
        return tuple(vicreg_terms(x, b, method=method))

    jacobian = jax.jacrev(terms)(a)
    close(jax.jacfwd(terms)(a), jacobian)
    loss, invariance, variance, covariance = jacobian
    close(loss, 25 * invariance + 25 * variance + covariance)
    close(loss, truth(jax.grad(definition), a, b))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 2, 9)])
def test_export_for_devices_that_are_not_here(shape: tuple[int, ...]) -> None:
    pytest.importorskip("flatbuffers")
    view = jax.ShapeDtypeStruct(shape, jnp.float32)
    function = jax.jit(jax.value_and_grad(vicreg_loss, (0, 1)))
    exported = export.export(function, platforms=("cpu", "cuda", "tpu"))(view, view)
    again = export.deserialize(exported.serialize())
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(z, jnp.float32) for z in rng.standard_normal((2, *shape)))
    got, wanted = again.call(x, y), vicreg_value_and_grad(x, y)
    bound = rounding("float32", shape[0], shape[-1])
    np.testing.assert_allclose(got[0], wanted[0], rtol=bound)
    assert [out.dtype for out in exported.out_avals] == [jnp.float32] * 3


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, y, n: vicreg_loss(x, y, sample_weight=n), [(4, 9), (4, 9), (4,)]),
        (
            lambda x: vcreg_loss(x, variance_weight=1, covariance_weight=1, penalty="smooth_l1"),
            [(9, 4)],
        ),
        pytest.param(
            lambda x, y, at: vicregl_loss(
                [x[:, 0], y[:, 0]], [x, y], [at, at], num_matches=(4, 2)
            ),
            [(4, 9, 8), (4, 9, 8), (4, 9, 2)],
            marks=pytest.mark.long,
        ),
    ],
    ids=["weights", "smooth L1", "VICRegL"],
)
def test_others_are_lowered_for_devices_that_are_not_here(function, shapes) -> None:
    views = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    exported = export.export(jax.jit(jax.value_and_grad(function)), platforms=("cuda", "tpu"))
    assert [out.dtype for out in exported(*views).out_avals] == [jnp.float32] * 2


def test_no_method_is_a_bare_partial() -> None:
    """From Python 3.14 on, a `functools.partial` in a class would be passed the instance too."""
    assert type(adapter.xp) in Library.__subclasses__()
    for kind in Library.__subclasses__():
        bare = [name for name, at in vars(kind).items() if isinstance(at, functools.partial)]
        assert bare == [], kind


def test_products_ask_for_the_precision_of_their_inputs(views) -> None:
    """JAX's default would let a GPU or TPU multiply float32 in fewer bits."""
    for function in (vicreg_loss, jax.grad(vicreg_loss), vicreg_value_and_grad):
        text = jax.jit(function).lower(*views).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all("HIGHEST" in line for line in products)


def test_a_gradient_has_two_products_a_view(views) -> None:
    """One of n · d · min(n, d) forwards, one backwards, and a thin one of the split forwards."""

    def products(function) -> int:
        closed = jax.jit(function).lower(*views).as_text()
        return sum("dot_general" in line for line in closed.splitlines())

    gram, covariance = ({"method": method} for method in ("gram", "covariance"))
    # Of views as small as these the covariance is formed by default.
    assert products(jax.grad(vicreg_loss)) == 2
    # And one in a loop of no rounds, where the value is wanted.
    assert products(lambda x, y: vicreg_loss(x, y, **gram)) == 1 + 1 + 1
    assert products(jax.grad(lambda x, y: vicreg_loss(x, y, **gram))) == 2 + 1
    assert products(lambda x, y: vicreg_loss(x, y, **covariance)) == 1
    assert products(jax.grad(lambda x, y: vicreg_loss(x, y, **covariance))) == 2
    assert products(jax.grad(lambda x, y: vicreg_loss(x, y, covariance_weight=0))) == 0


WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_may_be_traced_and_differentiated_by(views, name: str) -> None:
    """Its derivative is its term, and the views' gradient is linear in it."""

    def loss(weight, *views):
        return vicreg_loss(*views, **{name: weight})

    value, (by_weight, by_view) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(3.0, *views)
    wanted, gradients = vicreg_value_and_grad(*views, **{name: 3.0})
    close(value, wanted)
    close(by_view, gradients[0])
    close(by_weight, getattr(vicreg_terms(*views), name.removesuffix("_weight")))
    closed = jax.jit(lambda w: vicreg_value_and_grad(*views, **{name: w}))(jnp.float32(3.0))
    close(closed[0], wanted)
    assert closed[0].dtype == views[0].dtype  # which a weight does not decide
    assert closed[1][0].dtype == views[0].dtype


def test_no_value_of_a_weight_compiles_anew(views) -> None:
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for weight in (2.0, 3.0, 0.5, 7):
        for function in (vicreg_loss, vicreg_value_and_grad, vicreg_terms):
            function(*views, covariance_weight=weight)
        assert compiled if weight == 2.0 else not compiled
        compiled.clear()


TWO_DEVICES = """
import jax, jax.numpy as jnp
from vicreg import vicreg_loss
first, second = jax.devices()
x = jnp.ones((4, 3))
here, there = jax.device_put(x, first), jax.device_put(x, second)
assert vicreg_loss(there, there).devices() == {second}
assert vicreg_loss(x, there).devices() == {second}  # x is not committed to any device
mesh = jax.make_mesh((2,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("samples")))
assert abs(vicreg_loss(spread, spread) - vicreg_loss(x, x)) < 1e-5
try:
    vicreg_loss(here, there)
except ValueError as error:
    print(error)
"""


def test_devices() -> None:
    """In a process of its own: the number of JAX's CPU devices is fixed when it starts."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("views[1] must have the device of views[0]; got")


VCREG = {"variance_weight": 2.0, "covariance_weight": 30.0, "feature_axis": 1}
SMOOTH_L1 = {"penalty": "smooth_l1", "delta": 0.2}


def vcreg_definition(z, delta=None):
    """VCReg's pooled loss of ``(n, d, positions)`` by its definition."""
    return plain.vcreg(jnp.moveaxis(z, 1, -1), (2.0, 30.0), delta=delta)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        pytest.param({}, (2, 11, 2), id="square, Gram"),
        # By the same code as VICReg's, whose every transformation is above.
        pytest.param({}, (6, 5, 2), id="square, covariance", marks=pytest.mark.long),
        pytest.param(SMOOTH_L1, (2, 11, 2), id="smooth L1, in blocks"),
        pytest.param(SMOOTH_L1, (6, 5, 2), id="smooth L1, whole", marks=pytest.mark.long),
    ],
)
def test_every_transformation_of_vcreg(
    in_small_blocks: Path, shape: tuple[int, ...], settings: dict
) -> None:
    z, other = 0.8 * jax.random.normal(jax.random.key(0), (2, *shape), jnp.float64)

    def loss(z):
        return in_small_blocks.vcreg_loss(z, **VCREG, **settings)

    def wanted(z):
        return vcreg_definition(z, settings.get("delta"))

    value, gradient = truth(jax.value_and_grad(wanted), z)
    close(loss(z), value)
    close(in_small_blocks.vcreg_value_and_grad(z, **VCREG, **settings), (value, gradient))
    close(jax.grad(loss)(z), gradient)
    close(jax.jit(jax.value_and_grad(loss))(z), (value, gradient))
    change = truth(lambda z, other: jax.jvp(wanted, (z,), (other,)), z, other)
    close(jax.jvp(loss, (z,), (other,)), change)
    hessian = truth(jax.hessian(wanted), z)
    close(jax.hessian(loss)(z), hessian)
    close(jax.jacrev(jax.jacrev(loss))(z), hessian)
    s = jnp.stack([z, other, z - other])
    values, gradients = truth(jax.vmap(jax.value_and_grad(wanted)), s)
    close(jax.vmap(loss)(s), values)
    close(jax.jit(jax.vmap(jax.grad(loss)))(s), gradients)


def test_smooth_l1_has_two_products_a_block_and_its_value_one(in_small_blocks: Path) -> None:
    z = jnp.ones((2, 12, 2))
    vcreg_loss, vcreg_value_and_grad = (
        in_small_blocks.vcreg_loss,
        in_small_blocks.vcreg_value_and_grad,
    )

    def products(function) -> int:
        text = jax.jit(function).lower(z).as_text()
        return sum("dot_general" in line for line in text.splitlines())

    blocks = 12 // 4
    assert products(lambda z: vcreg_loss(z, **VCREG, **SMOOTH_L1)) == blocks
    assert products(jax.grad(lambda z: vcreg_loss(z, **VCREG, **SMOOTH_L1))) == 2 * blocks
    assert products(lambda z: vcreg_value_and_grad(z, **VCREG, **SMOOTH_L1)) == 2 * blocks


def sizes(jaxpr) -> set[int]:
    """Return the sizes of all arrays in `jaxpr` and what it calls."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {var.aval.size for var in equation.outvars}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= sizes(inner)
    return found


def test_on_one_cpu_a_product_with_its_own_transpose_is_formed_in_strips() -> None:
    """What is below the diagonal is a mirror image. Several devices would send each strip."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        pytest.skip("JAX has another device, or several")
    view = jax.ShapeDtypeStruct((1280, 2560), jnp.float32)
    graph = str(jax.make_jaxpr(lambda *z: vicreg_loss(*z, method="gram"))(view, view))
    products = re.findall(r"f32\[([\d,]*)\] = dot_general", graph)
    assert {"640,1280", "640,640"} < set(products)
    assert "1280,1280" not in products


def test_the_gram_route_forms_one_product_as_large_as_the_views() -> None:
    """That of few columns is added as outer products: on a CPU it would be slow, and one more."""
    view = jax.ShapeDtypeStruct((64, 512), jnp.float32)
    graph = str(jax.make_jaxpr(lambda *z: vicreg_value_and_grad(*z, method="gram"))(view, view))
    products = re.findall(r"f32\[([\d,]*)\] = dot_general", graph)
    assert products.count("2,64,512") == 1
    assert products.count("2,8,512") == 1


@pytest.mark.parametrize("settings", [{}, {"penalty": "smooth_l1"}], ids=["square", "smooth_l1"])
@pytest.mark.parametrize("axis", [1, -1])
def test_pooled_images_make_no_array_larger_than_they_are(axis: int, settings: dict) -> None:
    """A block of a network: many positions, of few features."""
    weights = {"variance_weight": 1.0, "covariance_weight": 1.0}
    shape = (8, 14, 14, 32) if axis == -1 else (8, 32, 14, 14)
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    for function in (vcreg_value_and_grad, jax.value_and_grad(vcreg_loss), vcreg_loss):
        jaxpr = jax.make_jaxpr(
            lambda z, f=function: f(z, feature_axis=axis, **weights, **settings)
        )
        found = sizes(jaxpr(z).jaxpr)
        assert 32 * 32 in found
        assert max(found) == 8 * 14 * 14 * 32


@pytest.mark.parametrize("function", ["value", "gradient", "closed form"])
def test_smooth_l1_takes_no_memory_for_all_blocks_at_once(function: str) -> None:
    """At 256 × 8192 as XLA says it: 200 MiB at most, where the covariance is 256."""
    settings = {"penalty": "smooth_l1", "variance_weight": 1.0, "covariance_weight": 1.0}
    compiled = {
        "value": lambda z: vcreg_loss(z, **settings),
        "gradient": jax.grad(lambda z: vcreg_loss(z, **settings)),
        "closed form": lambda z: vcreg_value_and_grad(z, **settings),
    }[function]
    z = jax.ShapeDtypeStruct((256, 8192), jnp.float32)
    taken = jax.jit(compiled).lower(z).compile().memory_analysis()
    assert taken.temp_size_in_bytes + taken.output_size_in_bytes <= 200 * 2**20
