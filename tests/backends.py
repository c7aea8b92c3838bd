"""The libraries under test: those of `vicreg.tools.libraries`, each as a backend of the tools."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vicreg.tools import backends
from vicreg.tools.libraries import LIBRARIES, NAMES
from vicreg.tools.requirements import RequirementError

Array = Any


@dataclass(frozen=True)
class Backend:
    """A library on one device. Nothing is imported before it is used."""

    name: str
    device: str | None = None  # None: the library's default
    #: Whether only the tests marked `representative` run on it by default, because each call
    #: takes a good part of a second, or because another device shows the same.
    sampled: bool = False

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.name) is not None

    @property
    def in_testing(self) -> bool:
        """Whether `array_api_extra.testing` knows the library."""
        return self.name not in ("mlx", "ndonnx", "mparray")

    @property
    def xp(self) -> Any:
        return importlib.import_module(LIBRARIES[self.name].namespace)

    @cached_property
    def tools_backend(self) -> backends.Backend:
        """The backend of the tools."""
        available = backends.backends_of(self.name)
        return next(one for one in available if self.device in (None, one.device))

    @property
    def dtypes(self) -> tuple[str, ...]:
        return self.tools_backend.dtypes

    def asarray(self, values: Any, dtype: str | None = None) -> Array:
        """Return `values` as an array of the library, by default in its widest dtype."""
        return self.tools_backend.asarray(np.asarray(values, np.float64), dtype or self.dtypes[0])

    def numpy(self, array: Array) -> np.ndarray:
        """Return the values of `array` in float64."""
        return self.tools_backend.to_numpy(array)

    def __str__(self) -> str:
        return self.name if self.device is None else f"{self.name}:{self.device}"


def _of(name: str) -> list[Backend]:
    if name == "array_api_strict":
        # An array made on the default device by mistake shows on another one. The last two have no
        # float64, and no_x64 no 64-bit integers either.
        whole = ("device1", "no_x64")
        devices = ("cpu", "device1", "device2", "no_float64", "no_x64")
        return [Backend(name, device, sampled=device not in whole) for device in devices]
    return [Backend(name, sampled=name in ("dask", "ndonnx", "mparray"))]


BACKENDS = tuple(backend for name in NAMES for backend in _of(name))


def on_device(chosen: Iterable[Backend], device: str) -> list[Backend]:
    """Return each library of `chosen` that has such a device, there: "cuda" is its first GPU."""
    names = dict.fromkeys(backend.name for backend in chosen)
    found, _ = backends.find_backends(names, [device])
    first = {one.name: one.device for one in reversed(found)}
    return [Backend(name, first[name]) for name in names if name in first]


def why_not(backend: Backend) -> str | None:
    """Return why `backend` cannot run here, None where it can."""
    try:
        backends.backends_of(backend.name)
    except RequirementError as error:
        return str(error)
    return None
