"""ndonnx, on onnxruntime."""

from __future__ import annotations

import ndonnx as ndx
import numpy as np

from vicreg.tools.backends.base import Array, Backend, Floats

__all__ = ["NdonnxBackend", "backends"]


class NdonnxBackend(Backend):
    """ndonnx in eager mode."""

    def asarray(self, values: Floats, dtype: str) -> Array:
        return ndx.asarray(values.astype(dtype))

    def to_numpy(self, array: Array) -> Floats:
        return np.asarray(array.unwrap_numpy(), dtype=np.float64)


def backends(name: str) -> list[Backend]:
    """Return ndonnx."""
    return [NdonnxBackend(name, "cpu", ("float64", "float32"))]
