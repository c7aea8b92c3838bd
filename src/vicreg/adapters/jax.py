"""JAX: a custom JVP rule, from which JAX derives reverse mode and every higher order."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vicreg.core import terms
from vicreg.core.objective import Objective

Array = Any


def committed_devices(array: Array) -> frozenset[Any] | None:
    """Return the devices that `array` is bound to; None where JAX may still place it."""
    if isinstance(array, jax.core.Tracer) or not array.committed:
        return None
    return frozenset(array.devices())


def _compiled(function: Any) -> Any:
    """Return `function` compiled, its objective static, with products in the inputs' precision.

    JAX's default lets accelerators multiply float32 matrices in fewer bits.
    """

    @functools.partial(jax.jit, static_argnums=1)
    @functools.wraps(function)
    def wrapped(views: tuple[Array, ...], objective: Objective) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(views, objective)

    return wrapped


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _outputs(views: tuple[Array, ...], objective: Objective) -> terms.Outputs:
    outputs, _ = terms.evaluate(jnp, views, objective)
    return outputs


def _jvp(objective: Objective, primals: Any, tangents: Any) -> tuple[terms.Outputs, terms.Outputs]:
    (views,), (directions,) = primals, tangents
    # A view that nothing is differentiated by has a symbolic zero for its tangent.
    known_zero = jax.custom_derivatives.SymbolicZero
    moving = [None if isinstance(t, known_zero) else t for t in directions]
    outputs, residuals = terms.evaluate(jnp, views, objective)
    return outputs, terms.pushforward(jnp, residuals, moving, objective)


_outputs.defjvp(_jvp, symbolic_zeros=True)


@_compiled
def evaluate(views: tuple[Array, ...], objective: Objective) -> terms.Outputs:
    """Return the objective's outputs, differentiable."""
    return _outputs(views, objective)


@_compiled
def value_and_grad(
    views: tuple[Array, ...], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    """Return the loss and the gradient of each view."""
    return terms.value_and_grad(jnp, views, objective)
