"""JAX as its users set it up: strict promotion of ranks, and meshes of explicit axes."""

from __future__ import annotations

import os
import subprocess
import sys

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


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from vicreg import diagnose, vcreg_value_and_grad, vicreg_loss, vicreg_terms, vicreg_value_and_grad
from vicreg.jax import vcreg

jax.config.update("jax_enable_x64", True)
explicit = (AxisType.Explicit,)
mesh = jax.make_mesh((4, 2), ("batch", "model"), axis_types=2 * explicit)
weights = {"variance_weight": 0.7, "covariance_weight": 1.3}

def close(got, wanted):
    scale = np.max(np.abs(wanted))
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=0, atol=1e-12 * scale)

for shape, spec in [((8, 16), P("batch", "model")), ((16, 8), P(("batch", "model")))]:
    views = np.random.default_rng(0).standard_normal((3, *shape))
    sharding = NamedSharding(mesh, spec)
    x, y, z = (jax.device_put(jnp.asarray(view), sharding) for view in views)
    wanted, right = vicreg_value_and_grad(*views)
    loss, gradients = vicreg_value_and_grad(x, y, z)
    close(loss, wanted)
    for gradient, truth in zip(gradients, right, strict=True):
        close(gradient, truth)
        assert gradient.sharding.is_equivalent_to(x.sharding, 2)
    close(diagnose(x).std, diagnose(views[0]).std)
    with jax.set_mesh(mesh):  # JAX differentiates nothing on such a mesh without
        step = jax.jit(jax.value_and_grad(lambda x, y, z: vicreg_terms(x, y, z).loss))
        value, gradient = step(x, y, z)
        close(value, wanted)
        close(gradient, right[0])
        close(jax.grad(vicreg_loss)(x, y), vicreg_value_and_grad(*views[:2])[1][0])
        _, own = vcreg_value_and_grad(views[0], **weights)
        close(jax.grad(lambda z: vcreg(z, **weights).sum())(x), own + 1)
print("right on a mesh")
"""


def test_arrays_on_a_mesh_of_explicit_axes() -> None:
    """As `jax.make_mesh` makes them by default; each gradient is sharded as its view is."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", ON_A_MESH]
    ran = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "right on a mesh\n"
