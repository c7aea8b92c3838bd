"""JAX as its users set it up: strict promotion of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from errors import largest_error, rounding

from vicreg import diagnose, vcreg_value_and_grad, vicreg_terms, vicreg_value_and_grad

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from vicreg.jax import vcreg  # noqa: E402

VCREG = {"variance_weight": 0.7, "covariance_weight": 1.3}


@pytest.mark.parametrize("shape", [(5, 11), (11, 5), (4, 2, 6)], ids=str)
def test_ranks_need_not_be_promoted_by_the_user(shape: tuple[int, ...]) -> None:
    views = np.random.default_rng(0).standard_normal((2, *shape))
    wanted, right = vicreg_value_and_grad(*views)
    with jax.numpy_rank_promotion("raise"):
        x, y = map(jnp.asarray, views)
        value, gradient = jax.value_and_grad(lambda x, y: vicreg_terms(x, y).loss)(x, y)
        loss, (closed, _) = vicreg_value_and_grad(x, y)
        for penalty in ("square", "smooth_l1"):
            vcreg_value_and_grad(x, penalty=penalty, **VCREG)
            jax.grad(lambda z, p=penalty: vcreg(z, penalty=p, **VCREG).sum())(x)
        if len(shape) == 2:
            diagnose(x)
    bound = 4 * rounding("float64", shape[0], shape[-1])
    for got in (value, loss):
        assert largest_error(np.asarray(got), wanted) <= bound
    for got in (gradient, closed):
        assert largest_error(np.asarray(got), right[0]) <= bound
