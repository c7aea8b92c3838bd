"""``vicreg.jax.vcreg``: the identity, with the gradient of the loss added in reverse mode."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from errors import largest_error, rounding

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from vicreg import vcreg_loss  # noqa: E402
from vicreg.jax import vcreg  # noqa: E402

WEIGHTS = {"variance_weight": 0.7, "covariance_weight": 1.3}


def batch(*shape: int) -> jax.Array:
    return jnp.asarray(0.6 * np.random.default_rng(sum(shape)).standard_normal(shape))


def user_loss(y: jax.Array) -> jax.Array:
    return (y**3).sum() / 7


def close(got: object, wanted: object, dtype: str = "float64") -> None:
    for one, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        bound = 32 * rounding(dtype, 64, 64)
        assert largest_error(np.asarray(one), np.asarray(right)) <= bound


def truth(transformed: Callable, argument: object) -> object:
    """Return what a transformation gives, compiled as one: its operations by themselves are slow.

    What is held to it is not, unless a test says so.
    """
    return jax.jit(transformed)(argument)


def whole(x: jax.Array, **settings) -> jax.Array:
    return user_loss(x) + vcreg_loss(x, **WEIGHTS | settings)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (4, 3, 2, 5)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"penalty": "smooth_l1", "delta": 0.05}, {"sample_axis": 0}, {"feature_axis": 1}],
    ids=str,
)
def test_it_adds_the_gradient_of_the_loss_with_and_without_jit(shape, settings: dict) -> None:
    x = batch(*shape)
    right = truth(jax.grad(functools.partial(whole, **settings)), x)

    def regularized(z):
        return user_loss(vcreg(z, **WEIGHTS | settings))

    assert jnp.array_equal(vcreg(x, **WEIGHTS | settings), x)
    close(jax.grad(regularized)(x), right)
    close(jax.jit(jax.grad(regularized))(x), right)


def test_under_vmap_each_element_is_a_batch() -> None:
    x = batch(3, 9, 5)
    got = jax.vmap(jax.grad(lambda z: user_loss(vcreg(z, **WEIGHTS))))(x)
    close(got, jnp.stack([truth(jax.grad(whole), z) for z in x]))


@pytest.mark.parametrize("shape", [pytest.param((9, 5), marks=pytest.mark.long), (5, 9)], ids=str)
def test_a_gradient_differentiates_as_that_of_the_loss_does(shape) -> None:
    """Once more in each mode; and beside the value, as in a gradient penalty."""
    x = batch(*shape)

    def regularized(z):
        return user_loss(vcreg(z, **WEIGHTS))

    def penalty(function, z):
        return (jax.grad(function)(z) ** 3).sum()

    for derivative in (
        lambda f: jax.grad(lambda z: penalty(f, z)),
        lambda f: jax.jit(jax.grad(lambda z: f(z) + penalty(f, z))),
        lambda f: lambda z: jax.jvp(jax.grad(f), (z,), (z + 1,))[1],
    ):
        close(derivative(regularized)(x), truth(derivative(whole), x))


def test_forward_mode_through_the_function_itself_is_refused() -> None:
    x = batch(9, 5)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda z: vcreg(z, **WEIGHTS), (x,), (x,))


def test_scale_may_be_traced_and_multiplies_what_is_added() -> None:
    x = batch(9, 5)
    got = jax.jit(lambda z, s: jax.grad(lambda z: user_loss(vcreg(z, scale=s, **WEIGHTS)))(z))
    close(got(x, 0.25), jax.grad(user_loss)(x) + 0.25 * jax.grad(vcreg_loss)(x, **WEIGHTS))


def test_the_published_gradient_leaves_out_the_samples() -> None:
    x = batch(9, 5)
    got = jax.grad(lambda z: vcreg(z, covariance_gradient="published", **WEIGHTS).sum())(x) - 1
    right = jax.grad(vcreg_loss)(x, variance_weight=0.7, covariance_weight=1.3 * 8)
    close(got, right)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="scale must be one number"):
        vcreg(batch(9, 5), scale=jnp.ones(2), **WEIGHTS)
    with pytest.raises(TypeError, match="array of JAX"):
        vcreg(np.ones((4, 4)), **WEIGHTS)
    with pytest.raises(ValueError, match="at least 2 samples"):
        vcreg(batch(1, 5), **WEIGHTS)


def test_it_works_inside_a_flax_module() -> None:
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        regularize: bool

        @nn.compact
        def __call__(self, x):
            h = nn.tanh(nn.Dense(6, param_dtype=jnp.float64)(x))
            if self.regularize:
                h = vcreg(h, **WEIGHTS)
            self.sow("intermediates", "hidden", h)
            return nn.Dense(4, param_dtype=jnp.float64)(h)

    x = batch(9, 3)
    parameters = Network(True).init(jax.random.key(0), x)["params"]

    def explicit(p):
        y, kept = Network(False).apply({"params": p}, x, mutable="intermediates")
        return user_loss(y) + vcreg_loss(kept["intermediates"]["hidden"][0], **WEIGHTS)

    got = jax.jit(jax.grad(lambda p: user_loss(Network(True).apply({"params": p}, x))))(parameters)
    close(got, truth(jax.grad(explicit), parameters))


def test_it_works_inside_an_equinox_module() -> None:
    equinox = pytest.importorskip("equinox")

    class Network(equinox.Module):
        first: equinox.nn.Linear
        second: equinox.nn.Linear

        def __call__(self, x, regularize: bool = True):
            h = jnp.tanh(jax.vmap(self.first)(x))
            h = vcreg(h, **WEIGHTS) if regularize else h
            return jax.vmap(self.second)(h), h

    first, second = jax.random.split(jax.random.key(0))
    network = Network(
        equinox.nn.Linear(3, 6, key=first, dtype=jnp.float64),
        equinox.nn.Linear(6, 4, key=second, dtype=jnp.float64),
    )
    x = batch(9, 3)

    def explicit(network):
        y, h = network(x, regularize=False)
        return user_loss(y) + vcreg_loss(h, **WEIGHTS)

    got = equinox.filter_jit(equinox.filter_grad(lambda network: user_loss(network(x)[0])))(
        network
    )
    close(got, equinox.filter_jit(equinox.filter_grad(explicit))(network))
