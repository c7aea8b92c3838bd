"""CuPy, on every CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import cupy
import numpy as np

from vicreg.tools.backends.base import Array, Backend, Floats
from vicreg.tools.requirements import RequirementError

__all__ = ["CupyBackend", "backends"]


class CupyBackend(Backend):
    """CuPy on one CUDA device."""

    def __init__(self, name: str, index: int) -> None:
        super().__init__(name, f"cuda:{index}", ("float64", "float32", "float16"))
        self._index = index

    def active(self) -> AbstractContextManager[Any]:
        scope: AbstractContextManager[Any] = cupy.cuda.Device(self._index)
        return scope

    def asarray(self, values: Floats, dtype: str) -> Array:
        return cupy.asarray(values.astype(dtype))

    def to_numpy(self, array: Array) -> Floats:
        return np.asarray(array.get(), dtype=np.float64)

    def synchronise(self, output: Any) -> None:
        cupy.cuda.get_current_stream().synchronize()

    def watch_memory(self) -> Callable[[], int] | None:
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        # The pool never shrinks by itself, so its size is the peak.
        held = pool.total_bytes()
        return lambda: int(pool.total_bytes() - held)

    @property
    def device_name(self) -> str | None:
        name = cupy.cuda.runtime.getDeviceProperties(self._index)["name"]
        return name.decode() if isinstance(name, bytes) else str(name)


def backends(name: str) -> list[Backend]:
    """Return CuPy on each CUDA device."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RequirementError(f"CuPy finds no CUDA device: {error}") from error
    if not count:
        raise RequirementError("CuPy finds no CUDA device")
    return [CupyBackend(name, index) for index in range(count)]
