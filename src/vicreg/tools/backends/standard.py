"""Any namespace of the array API standard, used through the standard alone."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from vicreg.tools.backends.base import Array, Backend, Floats
from vicreg.tools.dtypes import DTYPES, HALF
from vicreg.tools.requirements import RequirementError

__all__ = ["StandardBackend", "backends"]


class StandardBackend(Backend):
    """A namespace of the array API standard.

    Parameters
    ----------
    namespace : module
        A namespace of the array API standard.
    name : str
        Its name.
    device : object
        A device of the namespace, or None for its default.
    """

    def __init__(self, namespace: Any, name: str, device: object = None) -> None:
        self.namespace = namespace
        self._device = device
        super().__init__(name, _device_name(device), _dtypes(namespace, device))

    def asarray(self, values: Floats, dtype: str) -> Array:
        placed = {} if self._device is None else {"device": self._device}
        settings = {"dtype": getattr(self.namespace, dtype), **placed}
        if not values.size:  # whose shape nested lists do not have
            return self.namespace.zeros(values.shape, **settings)
        # Every namespace can convert nested lists of floats.
        return self.namespace.asarray(values.tolist(), **settings)

    def to_numpy(self, array: Array) -> Floats:
        for convert in (np.from_dlpack, np.asarray):
            try:
                values = np.asarray(convert(array))
            except Exception:  # a library may raise anything here
                continue
            if values.dtype.kind == "f" and values.shape == tuple(array.shape):
                return values.astype(np.float64)
        shape = tuple(array.shape)
        values = np.empty(shape)
        for index in np.ndindex(*shape):
            values[index] = float(array[index])
        return values


def backends(name: str) -> list[Backend]:
    """Return the namespace with the import path `name`, on each of its devices."""
    namespace = importlib.import_module(name)
    if not hasattr(namespace, "asarray"):
        raise RequirementError(f"{name} is no namespace of the array API standard: no asarray")
    return [StandardBackend(namespace, name, device) for device in _devices(namespace)]


def _devices(namespace: Any) -> list[object]:
    """Return the devices, the default first; [None] if the namespace does not list several."""
    try:
        info = namespace.__array_namespace_info__()
        listed = [device for device in info.devices() if device is not None]
        default = info.default_device()
    except (AttributeError, NotImplementedError):
        return [None]
    if len(listed) < 2:
        return [None]
    return sorted(listed, key=lambda device: device != default)


def _device_name(device: object) -> str:
    if device is None:
        return "cpu"
    # As in "array_api_strict.Device('CPU_DEVICE')".
    text = str(device).rpartition("(")[2].strip("()'\"")
    return text.removesuffix("_DEVICE").lower()


def _dtypes(namespace: Any, device: object) -> tuple[str, ...]:
    try:
        info = namespace.__array_namespace_info__()
        listed = info.dtypes(device=device, kind="real floating")
        known = set(listed)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        known = {name for name in DTYPES if hasattr(namespace, name)}
    # The standard has no half precision: a namespace may have it without listing it.
    if device is None:
        known |= {name for name in HALF if hasattr(namespace, name)}
    return tuple(name for name in DTYPES if name in known)
