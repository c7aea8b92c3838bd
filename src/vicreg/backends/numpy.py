"""NumPy."""

from __future__ import annotations

import numpy as np

from vicreg.backends.base import Array, Backend, Floats

__all__ = ["NumpyBackend", "backends"]


class NumpyBackend(Backend):
    """NumPy, which has no device but the CPU and no bfloat16."""

    def asarray(self, values: Floats, dtype: str) -> Array:
        return np.array(values, dtype=dtype)

    def to_numpy(self, array: Array) -> Floats:
        return np.asarray(array, dtype=np.float64)


def backends(name: str) -> list[Backend]:
    """Return NumPy."""
    return [NumpyBackend(name, "cpu", ("float64", "float32", "float16"))]
