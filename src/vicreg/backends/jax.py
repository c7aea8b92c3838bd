"""JAX, on every device of each of its platforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vicreg.backends.base import ALL_DTYPES, Array, Backend, Floats, first

__all__ = ["JaxBackend", "backends"]


class JaxBackend(Backend):
    """JAX on one device."""

    differentiates = True

    def __init__(self, name: str, device: Any) -> None:
        platform = "cuda" if device.platform == "gpu" else device.platform
        label = platform if platform == "cpu" and not device.id else f"{platform}:{device.id}"
        super().__init__(name, label, ALL_DTYPES)
        self._device = device

    def active(self) -> AbstractContextManager[Any]:
        # float64 is JAX's choice at startup; here it is there for the time it is needed.
        scope: AbstractContextManager[Any] = jax.enable_x64(True)
        return scope

    def asarray(self, values: Floats, dtype: str) -> Array:
        # bfloat16 is known to NumPy by JAX's own dtype; a copy, never a view of the values.
        plain = np.array(values, dtype=jnp.dtype(dtype))
        return jax.device_put(plain, self._device)

    def to_numpy(self, array: Array) -> Floats:
        return np.asarray(array).astype(np.float64)

    def differentiate(
        self, function: Callable[..., Any], arrays: Sequence[Array]
    ) -> tuple[Any, tuple[Array, ...]]:
        def with_output(*views: Array) -> tuple[Array, Any]:
            output = function(*views)
            return first(output), output

        every = tuple(range(len(arrays)))
        (_, output), gradients = jax.value_and_grad(with_output, argnums=every, has_aux=True)(
            *arrays
        )
        return output, gradients


def backends(name: str) -> list[Backend]:
    """Return JAX on each device, the default first, and on the CPU where that is another."""
    devices = list(jax.devices())
    if devices[0].platform != "cpu":
        devices.append(jax.devices("cpu")[0])
    return [JaxBackend(name, device) for device in devices]
