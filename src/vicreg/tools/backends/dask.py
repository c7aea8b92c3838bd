"""Dask."""

from __future__ import annotations

from typing import Any

import dask
from dask import array as da

from vicreg.tools.backends.base import Array, Backend, Floats

__all__ = ["DaskBackend", "backends"]


class DaskBackend(Backend):
    """Dask over NumPy, with the samples in two chunks, so that code must handle several."""

    def asarray(self, values: Floats, dtype: str) -> Array:
        chunks = tuple(
            (length + 1) // 2 if axis == 0 else length for axis, length in enumerate(values.shape)
        )
        from_array: Any = da.from_array  # it has no type hints
        return from_array(values.astype(dtype), chunks=chunks)

    def to_numpy(self, array: Array) -> Floats:
        computed: Floats = array.compute()
        return computed.astype("float64")

    def synchronise(self, output: Any) -> None:
        compute: Any = getattr(dask, "compute")  # noqa: B009 - untyped, installed or not
        compute(output)


def backends(name: str) -> list[Backend]:
    """Return Dask."""
    return [DaskBackend(name, "cpu", ("float64", "float32", "float16"))]
