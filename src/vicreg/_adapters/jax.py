"""JAX: a custom JVP rule, from which JAX derives reverse mode and every higher order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vicreg._core import collapse, engine, local, ranks, sample_weights, sums
from vicreg._core.communicator import Communicator
from vicreg._core.layout import Axes
from vicreg._core.library import Library, Part
from vicreg._core.objective import Objective

Array = Any


class _JAX(Library):
    updates_in_place = False
    fuses = True
    sums_pairwise = True

    #: Of places that are in bounds, which costs less to trace and to compile.
    take_along_axis = staticmethod(
        functools.partial(jnp.take_along_axis, mode="promise_in_bounds")
    )  # from Python 3.14 on, a partial would take the instance as its first argument

    @property
    def strip_length(self) -> int:  # type: ignore[override]
        """As in `Library`. Of several devices, each strip would be sent from one to another."""
        return 640 if _is_one_cpu() else 0

    @property
    def sums_by_products(self) -> int:  # type: ignore[override]
        """As in `Library`: more would be too many runs for one program."""
        return 2**13 if _is_one_cpu() else 0

    def take_sample(self, array: Array, place: Array) -> Array:
        return self.take_along_axis(array, place, axis=-2)

    @staticmethod
    def top_k_indices(values: Array, k: int) -> Array:
        return jax.lax.top_k(values, k)[1]

    def without_gradient(self, array: Array) -> Array:
        return jax.lax.stop_gradient(array)

    def thin_product(self, left: Array, right: Array) -> Array:
        """Return what the default does as a sum of outer products.

        The compiler forms it where it is added. A product would be one more array of that size,
        and on a CPU one of few columns is slow.
        """
        columns = range(left.shape[-1])
        return sums.total(left[..., :, i : i + 1] * right[..., i : i + 1, :] for i in columns)

    def can_choose(self, array: Array) -> bool:
        return True

    def sum_of_blocks(
        self, wanted: Array, otherwise: Array, array: Array, scale: Any, part: Part, length: int
    ) -> Array:
        """Return what the default does, chosen on the device.

        A loop of no rounds where the sum is not wanted: where one is mapped, `lax.cond` becomes
        a select and computes both. Nothing is differentiated through it.
        """
        d = array.shape[-1]
        array = jax.lax.stop_gradient(array)
        if length >= d:
            # Two blocks. One would be the same in each round, and the compiler moves what is the
            # same out of a loop: it would be computed even where there are no rounds.
            length = (d + 1) // 2

        def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
            start, total = state
            first = start
            if d % length:  # the last block begins in the one before it: nothing counts twice
                first = jnp.minimum(start, d - length)
            block = jax.lax.dynamic_slice_in_dim(array, first, length, axis=-1)
            if d % length:
                block = jnp.where(first + jnp.arange(length) < start, 0, block)
            return start + length, total + part(self, array, block, first, scale)

        begin = jnp.where(wanted, jnp.int32(0), jnp.int32(d)), jnp.where(wanted, 0, otherwise)
        _, value = jax.lax.while_loop(lambda state: state[0] < d, add, begin)
        return _with_derivative_of(otherwise, value)


def _is_one_cpu() -> bool:
    return jax.device_count() == 1 and jax.default_backend() == "cpu"


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
    comm, (own, weight) = _OnMesh(mesh), objective.split(views)
    rows = jnp.stack([objective.axes.in_order(xp, view) for view in own])
    each = None
    if weight is not None:
        each = comm.all_gather(sample_weights.of_each(xp, weight, own[0], objective.axes))[0]
    everyone = comm.all_gather(rows)[0]
    batch = ranks.gathered_batch(xp, comm, (n,), everyone, each, objective)
    return dataclasses.replace(objective, batch=batch)


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


@jax.custom_jvp
def _constant_weights(weights: Array) -> Array:
    """Return the weights of samples, which nothing may be differentiated by."""
    return weights


def _refused(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (weights,), (tangent,) = primals, tangents
    if not isinstance(tangent, jax.custom_derivatives.SymbolicZero):
        raise ValueError(
            "sample_weight must not be differentiated by: pass jax.lax.stop_gradient of it"
        )
    return weights, jnp.zeros_like(weights)


_constant_weights.defjvp(_refused, symbolic_zeros=True)


def _refusing(arrays: tuple[Array, ...], objective: Objective) -> tuple[Array, ...]:
    """Return `arrays`, of which the weights of samples are refused a derivative."""
    views, weight = objective.split(arrays)
    if weight is None or not jnp.issubdtype(weight.dtype, jnp.inexact):
        return arrays
    return (*views, _constant_weights(weight))


@functools.partial(jax.jit, static_argnums=1)
def evaluate(
    views: tuple[Array, ...], objective: Objective, weights: tuple[Any, ...]
) -> tuple[Array, ...]:
    """Return the loss, and after it each term where it is wanted, differentiable."""

    def outputs(views: tuple[Array, ...], weights: tuple[Any, ...]) -> engine.Values:
        views = engine.with_constant_weights(xp, _refusing(views, objective), objective)
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
        views = _refusing(views, objective)
        batch = _joined(views, objective)
        outputs, gradients = engine.value_and_grad(xp, views, weights, batch)
        return _of_all_ranks(_share(outputs, objective), objective), gradients

    own, _ = objective.split(views)
    result: tuple[engine.Values, tuple[Array, ...]] = _sharded_by_jax(
        of_views, tuple(own), views, weights, gradients=True
    )
    return result


@functools.partial(jax.jit, static_argnums=(0, 3))
@_as_written
def apply(function: Any, arrays: local.Views, weights: tuple[Any, ...], settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses, as one program."""
    run = local.Run(xp, evaluate, value_and_grad)
    return function(run, arrays, weights, settings)


def floats(arrays: Sequence[Array]) -> list[float]:
    """Return the values of arrays of shape ()."""
    return [float(value) for value in jax.device_get(arrays)]


def without_gradient(array: Array) -> Array:
    """Return `array` as a constant of differentiation."""
    constant: Array = xp.without_gradient(array)
    return constant


def rows(array: Array, axes: Axes) -> Array:
    """Return `array` as ``(n, d)``, a constant of differentiation."""
    return axes.in_order(xp, without_gradient(array))


def wrong_count(weight: Array, like: Array) -> None:
    """Return None, whatever the values: a device would be waited for."""


@functools.partial(jax.jit, static_argnums=1)
@_as_written
def measure(array: Array, axes: Axes, weight: Array | None = None) -> collapse.Measures:
    """Return how far the batch `array` has collapsed, whose samples count as `weight` says."""
    measures: collapse.Measures = _sharded_by_jax(
        lambda array, weight: collapse.measure(xp, array, axes, jnp.linalg.svdvals, weight=weight),
        (array,),
        array,
        weight,
    )
    return measures


@functools.cache
def register(record: type, constants: tuple[str, ...]) -> None:
    """Make `record` a pytree: what a compiled or mapped function may return.

    What is no number or name in a field of `constants` is an array like the other fields.
    """
    names = [field.name for field in dataclasses.fields(record)]

    def flatten_with_keys(one: Any) -> tuple[list[tuple[Any, Any]], Any]:
        fixed = {name for name in constants if isinstance(getattr(one, name), (int, str))}
        arrays = tuple(name for name in names if name not in fixed)
        children = [(jax.tree_util.GetAttrKey(name), getattr(one, name)) for name in arrays]
        others = tuple((name, getattr(one, name)) for name in names if name in fixed)
        return children, (arrays, others)

    def unflatten(structure: Any, children: Any) -> Any:
        arrays, others = structure
        return record(**dict(zip(arrays, children, strict=True)), **dict(others))

    jax.tree_util.register_pytree_with_keys(record, flatten_with_keys, unflatten)


def regularized(
    arrays: tuple[Array, ...], cotangents: tuple[Any, ...], objective: Objective
) -> Array:
    """Return the view; backwards, add the gradient by it of the terms, each times its cotangent.

    `arrays` are the view, and the weights of its samples where the objective has them.
    """
    arrays = engine.with_constant_weights(xp, _refusing(arrays, objective), objective)
    result: Array = _regularized(arrays, cotangents, objective)
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _regularized(
    arrays: tuple[Array, ...], cotangents: tuple[Any, ...], objective: Objective
) -> Array:
    return arrays[0]


def _forwards(arrays: Any, cotangents: Any, objective: Objective) -> tuple[Array, Any]:
    return arrays[0], (arrays, cotangents)


@functools.partial(jax.jit, static_argnums=0)
@_as_written
def _backwards(objective: Objective, saved: Any, incoming: Array) -> tuple[Array, Any]:
    arrays, cotangents = saved
    # As if the loss were added to that of each device, of which the mean is taken.
    size = 1 if objective.comm is None else objective.comm.size
    of_ranks = jax.tree.map(lambda cotangent: size * cotangent, cotangents)

    def gradient(arrays: tuple[Array, ...], cotangents: Any) -> tuple[Array, tuple[Array]]:
        batch = _joined(arrays, objective)
        samples = functools.partial(engine.number_of_samples, xp, arrays, batch)
        weights = batch.in_gradient(cotangents, samples)
        wanted = (True,) * len(arrays)
        _, (own, *_) = engine.value_and_gradients(xp, arrays, weights, batch, wanted)
        return jnp.zeros(()), (engine.like_its_view(xp, own, arrays[0], objective),)

    _, (own,) = _sharded_by_jax(gradient, arrays[:1], arrays, of_ranks, gradients=True)
    no_gradient = jax.tree.map(jnp.zeros_like, (arrays[1:], cotangents))
    return (incoming + own, *no_gradient[0]), no_gradient[1]


_regularized.defvjp(_forwards, _backwards)
