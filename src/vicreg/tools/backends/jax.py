"""JAX, on every device of each of its platforms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vicreg.tools.backends.base import (
    Array,
    Backend,
    Floats,
    ForwardWay,
    SecondWay,
    chosen,
    first,
    placed,
)
from vicreg.tools.dtypes import DTYPES

__all__ = ["JaxBackend", "backends"]


class JaxBackend(Backend):
    """JAX on one device."""

    differentiates = True
    compiles = True
    always_compiled = True

    def __init__(self, name: str, device: Any) -> None:
        platform = "cuda" if device.platform == "gpu" else device.platform
        label = platform if platform == "cpu" and not device.id else f"{platform}:{device.id}"
        super().__init__(name, label, DTYPES)
        self._device = device

    def active(self) -> AbstractContextManager[Any]:
        # By default JAX has no float64. What allows it is experimental before JAX 0.8.
        namespace: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
        scope: AbstractContextManager[Any] = namespace.enable_x64(True)
        return scope

    def asarray(self, values: Floats, dtype: str) -> Array:
        # NumPy has bfloat16 only through JAX's dtype. Always a copy of the values.
        plain = np.array(values, dtype=jnp.dtype(dtype))
        return jax.device_put(plain, self._device)

    def to_numpy(self, array: Array) -> Floats:
        return np.asarray(array).astype(np.float64)

    def differentiate(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Array],
        wanted: Sequence[bool] | None = None,
    ) -> tuple[Any, tuple[Array | None, ...]]:
        def with_output(*views: Array) -> tuple[Array, Any]:
            output = function(*views)
            return first(output), output

        places = chosen(arrays, wanted)
        differentiated = jax.value_and_grad(with_output, argnums=places, has_aux=True)
        (_, output), gradients = differentiated(*arrays)
        return output, placed(gradients, places, len(arrays))

    @property
    def forward_ways(self) -> Mapping[str, ForwardWay]:
        return {"jax.jvp": _forward}

    @property
    def second_ways(self) -> Mapping[str, SecondWay]:
        return {
            "jax.grad of jax.grad": _backward_twice,
            "jax.jvp of jax.grad": _forward_over_backward,
        }

    def vcreg_layer(self, **settings: Any) -> Callable[[Array], Array]:
        from vicreg.jax import vcreg

        return functools.partial(vcreg, **settings)

    def as_used(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.compiled(function)

    def synchronise(self, output: Any) -> None:
        jax.block_until_ready(output)  # type: ignore[no-untyped-call]

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = jax.jit(function)
        return compiled

    def compiled_ahead(
        self, function: Callable[..., Any], arrays: Sequence[Array], quickly: bool = False
    ) -> Callable[..., Any]:
        # Keep the optimisations of XLA, without those of LLVM, which take as long again.
        options: Any = {"xla_backend_optimization_level": "0"} if quickly else None
        lowered = jax.jit(function).lower(*arrays)
        ahead: Callable[..., Any] = lowered.compile(compiler_options=options)
        return ahead

    def forget_compiled(self) -> None:
        jax.clear_caches()  # type: ignore[no-untyped-call]

    def full_precision(self) -> AbstractContextManager[Any]:
        # On some GPUs the default precision is lower than that of the inputs.
        scope: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return scope

    def watch_memory(self) -> Callable[[], int] | None:
        before = self._device.memory_stats()
        if not before:
            return None
        # The peak is that of the whole process: earlier computations have to be small.
        return lambda: int(
            self._device.memory_stats()["peak_bytes_in_use"] - before["bytes_in_use"]
        )

    @property
    def device_name(self) -> str | None:
        return None if self._device.platform == "cpu" else str(self._device.device_kind)


def _gradient(function: Callable[..., Array], arrays: Sequence[Array]) -> Callable[..., Any]:
    gradient: Callable[..., Any] = jax.grad(function, argnums=tuple(range(len(arrays))))
    return gradient


def _forward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> Array:
    return jax.jvp(function, tuple(arrays), tuple(directions))[1]


def _backward_twice(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, ...]:
    def along(*views: Array) -> Array:
        pairs = zip(_gradient(function, arrays)(*views), directions, strict=True)
        return sum(jnp.vdot(gradient, direction) for gradient, direction in pairs)

    changes: tuple[Array, ...] = _gradient(along, arrays)(*arrays)
    return changes


def _forward_over_backward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, ...]:
    gradient = _gradient(function, arrays)
    changes: tuple[Array, ...] = jax.jvp(gradient, tuple(arrays), tuple(directions))[1]
    return changes


def backends(name: str) -> list[Backend]:
    """Return JAX on each device of its default platform, and on the CPU."""
    devices = list(jax.devices())
    if devices[0].platform != "cpu":
        devices.append(jax.devices("cpu")[0])
    return [JaxBackend(name, device) for device in devices]
