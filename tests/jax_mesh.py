"""What `test_jax_mesh.py` runs on eight devices of JAX: of one process, or of two.

python jax_mesh.py
python jax_mesh.py PROCESS ADDRESS
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from errors import largest_error, rounding
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from vicreg import (
    diagnose,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.jax import vcreg

WEIGHTS = {"variance_weight": 0.7, "covariance_weight": 1.3}
ROWS = Spec(("batch", "model"))
LARGE = (16, 160)  # more than what is summed by the definition
COLLECTIVES = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"


def at_once(x: jax.Array, y: jax.Array) -> tuple[object, ...]:
    """Return what is called without a compiled function around it too."""
    return (
        vicreg_value_and_grad(x, y, terms=True),
        jax.grad(lambda x: vcreg(x, **WEIGHTS).sum())(x),
    )


def everything(x: jax.Array, y: jax.Array, weight: jax.Array) -> tuple[object, ...]:
    """Return all values and gradients, to be compiled as one."""

    def weighted(x: jax.Array, y: jax.Array) -> jax.Array:
        absent = weight.reshape(-1, *(1,) * (x.ndim - 1)) == 0
        x, y = (jnp.where(absent, jnp.nan, view) for view in (x, y))
        return vicreg_loss(x, y, sample_weight=weight)

    return (
        jax.value_and_grad(weighted, argnums=(0, 1))(x, y),
        jax.grad(lambda x: vcreg(x, sample_weight=weight, **WEIGHTS).sum())(x),
        *at_once(x, y),
        jax.value_and_grad(vicreg_loss, argnums=(0, 1))(x, y),
        vicreg_terms(x, y),
        jax.grad(lambda y: vicreg_terms(x, y).loss)(y),
        jax.value_and_grad(vcreg_loss)(x, **WEIGHTS),
    )


def truth(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[object, ...]:
    """Return the same as `everything`, by NumPy."""
    loss, gradients = vicreg_value_and_grad(x, y)
    value, own = vcreg_value_and_grad(x, **WEIGHTS)
    _, own_weighted = vcreg_value_and_grad(x, sample_weight=weight, **WEIGHTS)
    terms = vicreg_terms(x, y)
    return (
        vicreg_value_and_grad(x, y, sample_weight=weight),
        1 + own_weighted,
        (terms, gradients),
        1 + own,
        (loss, gradients),
        terms,
        gradients[1],
        (value, own),
    )


def place(view: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Return `view` on the mesh; of several processes each knows its own rows alone."""
    count = jax.process_count()
    own = np.split(view, count)[jax.process_index()]
    return jax.make_array_from_process_local_data(sharding, own, view.shape)


def check_numbers(
    mesh: Mesh, shape: tuple[int, ...], spec: Spec, uncompiled: bool = False
) -> None:
    """Each number is NumPy's, and each gradient is sharded as its view is."""
    # The means differ from device to device.
    shift = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)) / 4
    views = np.random.default_rng(0).standard_normal((2, *shape)) + shift
    sharding = NamedSharding(mesh, spec)
    weight = np.resize([0.0, 1.5, 1.0, 0.0, 0.3], (shape[0], *(1,) * (len(shape) - 2)))
    given = [place(view, sharding) for view in views]
    given.append(place(weight, NamedSharding(mesh, Spec(spec[0]))))
    bound = 4 * rounding("float64", shape[0], math.prod(shape[1:]))

    def check(got: tuple, wanted: tuple) -> None:
        for array, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert array.ndim == 0 or array.sharding.is_equivalent_to(sharding, array.ndim)
            reach = bound * np.max(np.abs(right))
            for shard in array.addressable_shards:
                difference = np.asarray(shard.data) - np.asarray(right)[shard.index]
                assert np.max(np.abs(difference)) <= reach

    # JAX differentiates nothing on a mesh of explicit axes that is not set.
    is_explicit = AxisType.Explicit in mesh.axis_types
    with jax.set_mesh(mesh) if is_explicit else contextlib.nullcontext():
        # Without LLVM's optimisations, which take longer than all else.
        quickly = {"xla_backend_optimization_level": "0"}
        check(jax.jit(everything, compiler_options=quickly)(*given), truth(*views, weight))
        if uncompiled:
            check(at_once(*given[:2]), truth(*views, weight)[2:4])
    if uncompiled:
        got, right = diagnose(given[0]), diagnose(views[0])
        for name in ("std", "mean_abs_correlation", "effective_rank"):
            assert largest_error(getattr(got, name), getattr(right, name)) <= bound


def gradient(x: jax.Array, y: jax.Array) -> object:
    return jax.value_and_grad(vicreg_loss, argnums=(0, 1))(x, y)


def arrays(text: str) -> Iterator[tuple[int, int]]:
    """Yield the number of elements of each array in `text`, and its bytes."""
    for bits, lengths in re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", text):
        count = math.prod(int(length) for length in lengths.split(",") if length)
        yield count, count * int(bits) // 8


def check_module(mesh: Mesh, n: int, d: int, function: Callable[..., object]) -> None:
    """The compiled module moves the two views once, and holds nothing larger than they are."""
    sharding = NamedSharding(mesh, Spec(mesh.axis_names))
    view = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=sharding)
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(view, view).compile().as_text()
    moved = re.findall(rf"= (.*?) (?:{COLLECTIVES})(?:-start)?\(", text)
    views = 2 * n * d
    share = sum(size for output in moved for _, size in arrays(output)) / (4 * views)
    assert 1 <= share < 1.01, share
    assert max(count for count, _ in arrays(text)) == views < d * d


def masked(x: jax.Array, y: jax.Array) -> object:
    return vicreg_value_and_grad(x, y, sample_weight=jnp.arange(len(x)) % 3)


def check_mapped_rows(mesh: Mesh) -> None:
    """Inside `shard_map` over one of two axes the loss is that of the rows there."""
    spec = Spec("batch")
    views = np.random.default_rng(0).standard_normal((2, 4, 3, 5))
    rows = (place(view.reshape(12, 5), NamedSharding(mesh, spec)) for view in views)

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return vicreg_loss(x, y)[None]

    mapped = jax.shard_map(loss, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"batch"})
    wanted = [vicreg_loss(x, y) for x, y in zip(*views, strict=True)]
    assert largest_error(jax.jit(mapped)(*rows), wanted) <= 4 * rounding("float64", 3, 5)


def in_one_process(automatic: Mesh, explicit: Mesh) -> None:
    for mesh in (automatic, explicit):
        check_numbers(mesh, LARGE, ROWS)
        check_module(mesh, 256, 1024, vicreg_value_and_grad)
        check_module(mesh, 2048, 8192, gradient)
    check_module(automatic, 256, 1024, masked)
    check_numbers(automatic, (8, 2, 12), ROWS)
    check_numbers(explicit, (8, 16), Spec("batch", "model"), uncompiled=True)
    check_numbers(explicit, (16, 8), ROWS)
    check_mapped_rows(explicit)


def in_each_of_two(automatic: Mesh, explicit: Mesh) -> None:
    check_numbers(automatic, LARGE, ROWS)
    check_numbers(explicit, (16, 8), ROWS, uncompiled=True)


def main(process: str | None = None, address: str | None = None) -> None:
    jax.config.update("jax_enable_x64", True)
    if process is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 2, int(process), initialization_timeout=60)
    meshes = (
        jax.make_mesh((4, 2), ("batch", "model"), axis_types=2 * (kind,))
        for kind in (AxisType.Auto, AxisType.Explicit)
    )
    (in_one_process if process is None else in_each_of_two)(*meshes)
    print("right on a mesh")


if __name__ == "__main__":
    main(*sys.argv[1:])
