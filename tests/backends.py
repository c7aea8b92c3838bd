"""The libraries under test: the one list that every fixture and every session reads."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class Backend:
    """One library, on one of its devices where it has several."""

    name: str
    module: str  # what is imported, and what has to be installed
    dtypes: tuple[str, ...] = ("float64", "float32")
    device: str | None = None
    to_numpy: Callable[[Array], np.ndarray] = np.asarray
    in_testing: bool = True  # whether array_api_extra.testing knows the library
    #: Whether only the tests marked `representative` run on it by default: each call takes a
    #: second or its fraction, or what is to be seen is seen on another device already.
    sampled: bool = False

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    @property
    def xp(self) -> Any:
        return importlib.import_module(self.module)

    def asarray(self, values: Any, dtype: str | None = None) -> Array:
        """Return `values` as this library's array, on this device, in its widest dtype."""
        xp = self.xp
        dtype = dtype or self.dtypes[0]
        if self.name == "mlx":
            with_dtype = np.asarray(values, dtype=np.float32 if dtype != "float64" else dtype)
            return xp.array(with_dtype, dtype=getattr(xp, dtype))
        plain = np.asarray(values, dtype="float32" if dtype == "bfloat16" else dtype)
        if self.name == "dask":
            # The first axis in two chunks, so that nothing works on one alone.
            halves = [
                (length + 1) // 2 if axis == 0 else -1 for axis, length in enumerate(plain.shape)
            ]
            return xp.from_array(plain, chunks=tuple(halves))
        kind = getattr(xp, dtype)
        if self.device is not None:
            return xp.asarray(plain, dtype=kind, device=xp.Device(self.device))
        return xp.asarray(plain, dtype=kind)

    def numpy(self, array: Array) -> np.ndarray:
        """Return the values of `array` in NumPy."""
        return self.to_numpy(array)

    def __str__(self) -> str:
        return self.name if self.device is None else f"{self.name}:{self.device}"


def _from_torch(array: Array) -> np.ndarray:
    array = array.detach()
    return array.float().numpy() if array.dtype.itemsize < 4 else array.numpy()


def _from_jax(array: Array) -> np.ndarray:
    return np.asarray(array.astype("float32") if array.dtype.itemsize < 4 else array)


def _from_mlx(array: Array) -> np.ndarray:
    import mlx.core as mx

    return np.array(array.astype(mx.float32) if array.dtype.size < 4 else array)


def _from_strict(array: Array) -> np.ndarray:
    import array_api_strict

    return np.asarray(array.to_device(array_api_strict.Device("CPU_DEVICE")))


def _from_mparray(array: Array) -> np.ndarray:
    values = [float(array[index]) for index in np.ndindex(*array.shape)]
    return np.asarray(values).reshape(array.shape)


def _strict(
    device: str, dtypes: tuple[str, ...] = ("float64", "float32"), sampled: bool = False
) -> Backend:
    return Backend(
        "array_api_strict", "array_api_strict", dtypes, device, _from_strict, sampled=sampled
    )


_HALF = ("float64", "float32", "float16", "bfloat16")

BACKENDS = (
    Backend("numpy", "numpy", dtypes=("float64", "float32", "float16")),
    Backend("torch", "torch", dtypes=_HALF, to_numpy=_from_torch),
    Backend("jax", "jax.numpy", dtypes=_HALF, to_numpy=_from_jax),
    # MLX has float64 on the CPU alone, and this project runs it there.
    Backend("mlx", "mlx.core", dtypes=_HALF, to_numpy=_from_mlx, in_testing=False),
    Backend("dask", "dask.array", to_numpy=lambda array: array.compute(), sampled=True),
    # Each of its devices; the last two have no float64, and no_x64 no 64-bit integers either.
    # What is made on the default device shows on another, a dtype that is not there on no_x64.
    _strict("CPU_DEVICE", sampled=True),
    _strict("device1"),
    _strict("device2", sampled=True),
    _strict("no_float64", ("float32",), sampled=True),
    _strict("no_x64", ("float32",)),
    Backend(
        "ndonnx",
        "ndonnx",
        to_numpy=lambda array: array.unwrap_numpy(),
        in_testing=False,
        sampled=True,
    ),
    Backend(
        "mparray", "mparray", ("float64",), to_numpy=_from_mparray, in_testing=False, sampled=True
    ),
    Backend("cupy", "cupy", to_numpy=lambda array: array.get()),
)


def why_not(backend: Backend) -> str | None:
    """Return why `backend` cannot run here, None where it can."""
    if not backend.installed:
        return f"{backend.name} is not installed"
    if backend.name == "cupy":
        import cupy

        try:
            if not cupy.cuda.runtime.getDeviceCount():
                return "CuPy needs a CUDA GPU, and there is none here"
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"CuPy needs a CUDA GPU, and there is none here: {error}"
    return None
