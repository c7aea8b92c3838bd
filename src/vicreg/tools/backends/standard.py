"""Any namespace of the array API standard, through nothing but the standard."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from vicreg.tools.backends.base import Array, Backend, Floats
from vicreg.tools.dtypes import DTYPES, HALF
from vicreg.tools.requirements import RequirementError

__all__ = ["StandardBackend", "backends"]


class StandardBackend(Backend):
    """A namespace known by nothing but the standard.

    Parameters
    ----------
    namespace : module
        A namespace of the array API standard.
    name : str
        What it is called.
    device : object
        A device of the namespace, or None for its default.
    """

    def __init__(self, namespace: Any, name: str, device: object = None) -> None:
        self.namespace = namespace
        self._device = device
        super().__init__(name, _device_name(device), _dtypes(namespace, device))

    def asarray(self, values: Floats, dtype: str) -> Array:
        placed = {} if self._device is None else {"device": self._device}
        # Numbers of Python, of which every namespace can make an array.
        nested = np.asarray(values, dtype=np.float64).tolist()
        return self.namespace.asarray(nested, dtype=getattr(self.namespace, dtype), **placed)

    def to_numpy(self, array: Array) -> Floats:
        for convert in (np.from_dlpack, np.asarray):
            try:
                values = np.asarray(convert(array))
            except Exception:  # whatever a library raises where it has no such way out
                continue
            if values.dtype.kind == "f" and values.shape == tuple(array.shape):
                return values.astype(np.float64)
        shape = tuple(array.shape)
        values = np.empty(shape)
        for index in np.ndindex(*shape):
            values[index] = float(array[index])
        return values


def backends(name: str) -> list[Backend]:
    """Return the namespace that is imported as `name`, on each of its devices."""
    namespace = importlib.import_module(name)
    if not hasattr(namespace, "asarray"):
        raise RequirementError(f"{name} is no namespace of the array API standard: no asarray")
    return [StandardBackend(namespace, name, device) for device in _devices(namespace)]


def _devices(namespace: Any) -> list[object]:
    """Return its devices as it lists them itself, the default first; [None] where it does not."""
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
    # array-api-strict's devices hold their name inside their representation.
    text = str(device).rpartition("(")[2].strip("()'\"")
    return text.removesuffix("_DEVICE").lower()


def _dtypes(namespace: Any, device: object) -> tuple[str, ...]:
    try:
        info = namespace.__array_namespace_info__()
        listed = info.dtypes(device=device, kind="real floating")
        known = set(listed)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        known = {name for name in DTYPES if hasattr(namespace, name)}
    # The standard lists no half precision; a namespace that has it has it by name.
    if device is None:
        known |= {name for name in HALF if hasattr(namespace, name)}
    return tuple(name for name in DTYPES if name in known)
