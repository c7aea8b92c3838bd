"""Which library an array belongs to, and the adapter that serves it."""

from __future__ import annotations

from collections.abc import Mapping
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

_OF_AN_ARRAY = ("dtype", "ndim")


def library_of(array: object) -> str | None:
    """Return the name of the library of `array`, None where it is not an array.

    Nothing is imported to find out: the name is that of the package which defines the type, or
    a type it inherits from.
    """
    if isinstance(array, type) or not all(hasattr(array, name) for name in _OF_AN_ARRAY):
        return None
    # First the class itself: PyTorch's compiler does not know what `torch.nn.Parameter` inherits
    # from, nor the module of its `type`.
    library = _LIBRARIES.get(array.__class__.__module__.partition(".")[0])
    if library is not None:
        return library
    for kind in type(array).__mro__:
        library = _LIBRARIES.get(kind.__module__.partition(".")[0])
        if library is not None:
            return library
    if hasattr(array, "__array_namespace__"):
        return type(array).__module__.partition(".")[0]
    return None


def unsupported_kind(array: Array, library: str) -> str | None:
    """Return what makes `array` none of the standard's, None where nothing does.

    These types have an array's attributes and other semantics: a mask that functions outside
    their own module half apply, rows that stay two-dimensional, elements that are not stored.
    """
    if library == "torch":
        if array.is_nested:
            return "a nested tensor"
        strided = str(array.layout) == "torch.strided"
        return None if strided else f"a tensor of layout {array.layout}"
    names = {kind.__name__ for kind in type(array).__mro__}
    if "MaskedArray" in names:
        return "a masked array"
    if "matrix" in names:
        return "a matrix"
    return "a shape and dtype without values" if "ShapeDtypeStruct" in names else None


def partition_of(array: Array, library: str) -> str | None:
    """Return how `array` is split over processes, None where each has the whole of it."""
    if library != "torch" or not adapter_for(library).is_distributed(array):
        return None
    if all(placement.is_replicate() for placement in array.placements):
        return None
    return f"a DTensor of placements {array.placements}"


def adapter_for(library: str) -> Any:
    """Return the adapter module that serves `library`, importing it when first asked."""
    if library == "torch":
        from vicreg._adapters import torch

        return torch
    if library == "jax":
        from vicreg._adapters import jax

        return jax
    if library == "mlx":
        from vicreg._adapters import mlx

        return mlx
    if library == "dask":
        from vicreg._adapters import dask

        return dask
    from vicreg._adapters import standard

    return standard


def floats_of(arrays: Mapping[str, Array]) -> dict[str, float]:
    """Return the values of arrays of shape () of one library, by the same names."""
    library = library_of(next(iter(arrays.values())))
    values = adapter_for(str(library)).floats(list(arrays.values()))
    return dict(zip(arrays, values, strict=True))


def device_of(array: Array, library: str) -> object:
    """Return the device that binds `array`, None where it is free to be on any."""
    if library == "jax":
        return adapter_for(library).committed_devices(array)
    if library == "torch" and adapter_for(library).is_distributed(array):
        return array.device_mesh
    return getattr(array, "device", None)
