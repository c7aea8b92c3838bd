"""JAX: a custom JVP rule, from which JAX derives reverse mode and every higher order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vicreg._core import collapse, engine, local, ranks
from vicreg._core.communicator import Communicator
from vicreg._core.layout import Axes, as_computed
from vicreg._core.library import Library, Part
from vicreg._core.objective import Objective

Array = Any


class _JAX(Library):
    sums_pairwise = True

    #: Of places that are in bounds, which costs less to trace and to compile.
    take_along_axis = functools.partial(jnp.take_along_axis, mode="promise_in_bounds")

    @property
    def strip_length(self) -> int:  # type: ignore[override]
        """As in `Library`. Of several devices, each strip would be sent from one to another."""
        return 640 if jax.device_count() == 1 and jax.default_backend() == "cpu" else 0

    @staticmethod
    def top_k_indices(values: Array, k: int) -> Array:
        return jax.lax.top_k(values, k)[1]

    def can_choose(self, array: Array) -> bool:
        return True

    def sum_of_blocks(
        self, wanted: Array, otherwise: Array, array: Array, part: Part, length: int
    ) -> Array:
        """Return what the default does, chosen on the device.

        A loop of no rounds where the sum is not wanted: where one is mapped, `lax.cond` becomes
        a select and computes both. Nothing is differentiated through it.
        """
        d = array.shape[-1]
        array, length = jax.lax.stop_gradient(array), min(length, d)

        def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
            start, total = state
            first = start
            if d % length:  # the last block begins in the one before it: nothing counts twice
                first = jnp.minimum(start, d - length)
            block = jax.lax.dynamic_slice_in_dim(array, first, length, axis=-1)
            if d % length:
                block = jnp.where(first + jnp.arange(length) < start, 0, block)
            return start + length, total + part(self, array, block, first)

        begin = jnp.where(wanted, jnp.int32(0), jnp.int32(d)), jnp.where(wanted, 0, otherwise)
        _, value = jax.lax.while_loop(lambda state: state[0] < d, add, begin)
        return _with_derivative_of(otherwise, value)


@jax.custom_jvp
def _with_derivative_of(other: Array, value: Array) -> Array:
    return value


_with_derivative_of.defjvps(lambda change, *_: change, None)

xp = _JAX(jnp)


def committed_devices(array: Array) -> frozenset[Any] | None:
    """Return the devices that `array` is bound to; None where JAX may still place it."""
    if isinstance(array, jax.core.Tracer) or not getattr(array, "committed", False):
        return None
    return frozenset(array.devices())


def _as_written(function: Any) -> Any:
    """Return `function` with its operations as the core means them, whatever JAX is set to.

    Products are in the precision of their inputs: JAX's default lets accelerators multiply float32
    matrices in fewer bits. A row broadcasts over a matrix, as the standard has it. The rule of a
    derivative is traced when something is differentiated, which is not where the value is: each
    has its own.
    """

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            return function(*args)

    return wrapped


def _sharded_by_jax(
    function: Callable[..., Any], like: tuple[Array, ...], *arrays: Any, gradients: bool = False
) -> Any:
    """Return `function` of `arrays`, its own shardings left to the compiler.

    On a mesh of explicit axes an array's type has its sharding, and each operation must say what
    it makes of it. Here only the result does: values are on every device, and the `gradients` in
    the second place are as the views `like` which they are of.
    """
    mesh = jax.typeof(like[0]).sharding.mesh
    # Where nothing is sharded, as over the axes that `shard_map` leaves, there is nothing to say.
    if AxisType.Explicit not in mesh.axis_types or not any(map(_is_sharded, like)):
        return function(*arrays)
    sharding: Any = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    if gradients:
        sharding = (sharding, tuple(jax.typeof(view).sharding for view in like))
    axes = mesh.explicit_axes
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=sharding)(*arrays)


def _is_sharded(array: Array) -> bool:
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


@dataclasses.dataclass(frozen=True)
class _OnMesh(Communicator):
    """The devices of a mesh, on which an array is whole: its sums are over all of them already."""

    mesh: Any

    rank, size, libraries = 0, 1, ("jax",)

    def all_gather(self, array: Array) -> Array:
        """Return `array`, its samples on each device, its other axes left to the compiler."""
        anything = PartitionSpec.UNCONSTRAINED
        axes = (*(anything,) * (array.ndim - 2), None, anything)
        sharding: Any = NamedSharding(self.mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
        return jax.lax.with_sharding_constraint(array, sharding)[None, ...]  # type: ignore[no-untyped-call]

    def all_reduce(self, array: Array) -> Array:
        return array


def _on_each_device(views: tuple[Array, ...], objective: Objective) -> Objective:
    """Return `objective` with the samples of `views` on each device of their mesh.

    That is for terms that multiply each sample with each other. The samples are then sent once;
    the compiler by itself would send them for each product.
    """
    mesh = jax.typeof(views[0]).sharding.mesh
    *_, n, d = objective.axes.core_shape(views[0].shape)
    is_sharded = AxisType.Auto in mesh.axis_types and mesh.size > 1
    if not is_sharded or not ranks.gathers(objective, (n,), d):
        return objective
    comm, own = _OnMesh(mesh), jnp.stack([objective.axes.in_order(xp, view) for view in views])
    everyone = as_computed(xp, comm.all_gather(own)[0])
    return dataclasses.replace(objective, batch=ranks.Batch(comm, (n,), everyone))


def axis_rank(axis_name: Any) -> Array:
    """Return the place of this device along a mapped axis."""
    return jax.lax.axis_index(axis_name)


def axis_size(axis_name: Any) -> int:
    """Return the number of devices along a mapped axis.

    Raises
    ------
    ValueError
        No axis of that name is mapped.
    """
    try:
        size: int = jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"comm must be used where its axis is mapped, inside jax.shard_map; got the axis "
            f"{axis_name!r}, which is not"
        ) from None
    return size


def all_gather(axis_name: Any, array: Array) -> Array:
    """Return the arrays of all devices along a mapped axis, ``(size, *array.shape)``."""
    return jax.lax.all_gather(array, axis_name)


def all_reduce(axis_name: Any, array: Any) -> Any:
    """Return the sum of the arrays of all devices along a mapped axis."""
    return jax.lax.psum(array, axis_name)  # type: ignore[no-untyped-call]


def _joined(views: tuple[Array, ...], objective: Objective) -> Objective:
    """Return `objective` for the batch of all ranks, or of all devices of a mesh."""
    joined = ranks.joined(xp, views, objective, ())
    return _on_each_device(views, joined) if joined.comm is None else joined


def _share(values: engine.Values, objective: Objective) -> engine.Values:
    """Return this rank's share in `values`, which each rank has: all of it, or nothing.

    The sum of the shares is then differentiated by JAX: a share counts as a function of the
    rank's own rows, with the gradient of the whole by them.
    """
    if objective.comm is None:
        return values
    return _where(objective.comm.rank == 0, values)


def _own(changes: engine.Values, objective: Objective) -> engine.Values:
    """Return `changes` as the rank's own, which those along views that all ranks share are too."""
    return changes if objective.comm is None else _where(objective.comm.rank >= 0, changes)


def _where(condition: Array, values: engine.Values) -> engine.Values:
    return tuple(None if v is None else jnp.where(condition, v, jnp.zeros_like(v)) for v in values)


def _of_all_ranks(shares: engine.Values, objective: Objective) -> engine.Values:
    return shares if objective.comm is None else objective.comm.all_reduce(shares)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@_as_written
def _terms(views: tuple[Array, ...], objective: Objective) -> engine.Values:
    values, _ = engine.forward(xp, views, _joined(views, objective), differentiated=False)
    return _share(values, objective)


@_as_written
def _jvp(objective: Objective, primals: Any, tangents: Any) -> tuple[engine.Values, engine.Values]:
    (views,), (directions,) = primals, tangents
    # A view that nothing is differentiated by has a symbolic zero for its tangent.
    known_zero = jax.custom_derivatives.SymbolicZero
    moving = [None if isinstance(t, known_zero) else t for t in directions]
    batch = _joined(views, objective)
    values, saved = engine.forward(xp, views, batch)
    changes = engine.pushforward(xp, views, saved, moving, batch)
    return _share(values, objective), _own(changes, objective)


_terms.defjvp(_jvp, symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=1)
def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted, differentiable."""

    def outputs(views: tuple[Array, ...], weights: tuple[Any, ...]) -> engine.Values:
        terms = _of_all_ranks(_terms(views, objective), objective)
        return engine.outputs(xp, weights, terms, objective)

    result: tuple[Array, ...] = _sharded_by_jax(outputs, views, views, weights)
    return result


@functools.partial(jax.jit, static_argnums=1)
@_as_written
def value_and_grad(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[engine.Values, tuple[Array, ...]]:
    """Return what `evaluate` does, and the gradient of the loss by each view."""

    def of_views(
        views: tuple[Array, ...], weights: tuple[Any, ...]
    ) -> tuple[engine.Values, tuple[Array, ...]]:
        batch = _joined(views, objective)
        outputs, gradients = engine.value_and_grad(xp, views, weights, batch)
        return _of_all_ranks(_share(outputs, objective), objective), gradients

    result: tuple[engine.Values, tuple[Array, ...]] = _sharded_by_jax(
        of_views, views, views, weights, gradients=True
    )
    return result


@functools.partial(jax.jit, static_argnums=(0, 3))
@_as_written
def apply(function: Any, arrays: local.Views, weights: tuple[Any, ...], settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses, as one program."""
    run = local.Run(xp, evaluate, value_and_grad, without_gradient)
    return function(run, arrays, weights, settings)


def floats(arrays: Sequence[Array]) -> list[float]:
    """Return the values of arrays of shape ()."""
    return [float(value) for value in jax.device_get(arrays)]


def without_gradient(array: Array) -> Array:
    """Return `array` as a constant of differentiation."""
    return jax.lax.stop_gradient(array)


def rows(array: Array, axes: Axes) -> Array:
    """Return `array` as ``(n, d)``, a constant of differentiation."""
    return axes.in_order(xp, without_gradient(array))


@functools.partial(jax.jit, static_argnums=1)
@_as_written
def measure(array: Array, axes: Axes) -> collapse.Measures:
    """Return how far the batch `array` has collapsed."""
    measures: collapse.Measures = _sharded_by_jax(
        lambda array: collapse.measure(xp, array, axes, jnp.linalg.svdvals),
        (array,),
        array,
    )
    return measures


@functools.cache
def register(record: type, constants: tuple[str, ...]) -> None:
    """Make `record` a pytree: what a compiled or mapped function may return."""
    names = [field.name for field in dataclasses.fields(record)]
    arrays = [name for name in names if name not in constants]
    jax.tree_util.register_dataclass(record, arrays, list(constants))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def regularized(z: Array, cotangents: tuple[Any, ...], objective: Objective) -> Array:
    """Return `z`; backwards, add the gradient by it of the terms, each times its cotangent."""
    return z


def _forwards(z: Array, cotangents: Any, objective: Objective) -> tuple[Array, Any]:
    return z, (z, cotangents)


@functools.partial(jax.jit, static_argnums=0)
@_as_written
def _backwards(objective: Objective, saved: Any, incoming: Array) -> tuple[Array, Any]:
    z, cotangents = saved
    # As if the loss were added to that of each device, of which the mean is taken.
    size = 1 if objective.comm is None else objective.comm.size
    of_ranks = jax.tree.map(lambda cotangent: size * cotangent, cotangents)

    def gradient(z: Array, cotangents: Any) -> tuple[Array, tuple[Array]]:
        batch = _joined((z,), objective)
        weights = batch.in_gradient(cotangents, z)
        _, (own,) = engine.value_and_gradients(xp, (z,), weights, batch, (True,))
        return jnp.zeros(()), (engine.like_its_view(xp, own, z, objective),)

    _, (own,) = _sharded_by_jax(gradient, (z,), z, of_ranks, gradients=True)
    return incoming + own, jax.tree.map(jnp.zeros_like, cotangents)


regularized.defvjp(_forwards, _backwards)
