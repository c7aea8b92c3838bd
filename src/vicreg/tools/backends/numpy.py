"""NumPy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from vicreg.tools.backends.base import Array, Backend, Floats

__all__ = ["NumpyBackend", "backends"]


class NumpyBackend(Backend):
    """NumPy, which has no device but the CPU and no bfloat16."""

    def asarray(self, values: Floats, dtype: str) -> Array:
        return np.array(values, dtype=dtype)

    def to_numpy(self, array: Array) -> Floats:
        return np.asarray(array, dtype=np.float64)

    def on_one_thread(self) -> AbstractContextManager[Any]:
        try:
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
        except ImportError:
            return nullcontext()
        limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
        return limits

    @property
    def threads(self) -> int | None:
        try:
            from threadpoolctl import threadpool_info
        except ImportError:
            return None
        libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
        # Other packages load a BLAS of their own: NumPy's is inside its package.
        own = [library for library in libraries if "numpy" in library["filepath"]]
        return max((library["num_threads"] for library in own or libraries), default=None)


def backends(name: str) -> list[Backend]:
    """Return NumPy."""
    return [NumpyBackend(name, "cpu", ("float64", "float32", "float16"))]
