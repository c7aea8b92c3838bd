"""Which library an array belongs to, and the adapter that serves it."""

from __future__ import annotations

from typing import Any

Array = Any

#: The package that defines an array type, and its library. Others are known by the standard's
#: ``__array_namespace__``.
_LIBRARIES = {
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "mlx": "mlx",
    "numpy": "numpy",
    "cupy": "cupy",
    "dask": "dask",
}


def library_of(array: object) -> str | None:
    """Return the name of the library of `array`, None where it is not an array.

    Nothing is imported to find out: the name is that of the package which defines the type, or
    a type it inherits from.
    """
    for kind in type(array).__mro__:
        library = _LIBRARIES.get(kind.__module__.partition(".")[0])
        if library is not None:
            return library if hasattr(array, "shape") else None
    if hasattr(array, "__array_namespace__"):
        return type(array).__module__.partition(".")[0]
    return None


def adapter_for(library: str) -> Any:
    """Return the adapter module that serves `library`, importing it when first asked."""
    if library == "torch":
        from vicreg.adapters import torch

        return torch
    if library == "jax":
        from vicreg.adapters import jax

        return jax
    if library == "mlx":
        from vicreg.adapters import mlx

        return mlx
    from vicreg.adapters import standard

    return standard


def device_of(array: Array, library: str) -> object:
    """Return the device that binds `array`, None where it is free to be on any."""
    if library == "jax":
        return adapter_for(library).committed_devices(array)
    return getattr(array, "device", None)
