"""The array libraries of this machine and their devices: what the tools run on.

A :class:`Backend` is one library on one device. Each module here knows one library; whatever
follows the array API standard and has no module is served by `standard`. Nothing is imported
before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

from vicreg.backends.base import Array, Backend, Floats
from vicreg.requirements import RequirementError

__all__ = [
    "NAMES",
    "Array",
    "Backend",
    "Floats",
    "backend_named",
    "backends_of",
    "find_backends",
]

#: Every library that the tools know, and the package it comes in.
_PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax",
    "mlx": "mlx",
    "cupy": "cupy",
    "dask": "dask",
    "array_api_strict": "array_api_strict",
    "ndonnx": "ndonnx",
    "mparray": "mparray",
}

NAMES = tuple(_PACKAGES)

_WITH_A_MODULE = ("numpy", "torch", "jax", "mlx", "cupy", "dask", "ndonnx", "mparray")


def backends_of(name: str) -> list[Backend]:
    """Return the library `name` on each of its devices here, its default device first.

    Parameters
    ----------
    name : str
        A library of `NAMES`, or the import path of any namespace of the array API standard.

    Returns
    -------
    list of Backend
        At least one.

    Raises
    ------
    RequirementError
        The library is not installed, its import fails, or it has no device to run on here.
    """
    package = _PACKAGES.get(name, name)
    if not _is_installed(package):
        raise RequirementError(f"{name} is not installed")
    module = f"vicreg.backends.{name}" if name in _WITH_A_MODULE else "vicreg.backends.standard"
    try:
        found: list[Backend] = importlib.import_module(module).backends(name)
    except RequirementError:
        raise
    except Exception as error:  # an import may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequirementError(f"{name} cannot be imported: {reason}") from error
    return found


def backend_named(name: str) -> Backend:
    """Return the library `name` on its default device.

    Parameters
    ----------
    name : str
        As in `backends_of`.

    Returns
    -------
    Backend

    Raises
    ------
    RequirementError
        As in `backends_of`.
    """
    return backends_of(name)[0]


def find_backends(
    names: Sequence[str] = NAMES, devices: Sequence[str] = ()
) -> tuple[list[Backend], dict[str, str]]:
    """Return what can run here of the libraries `names`, and why the others cannot.

    Parameters
    ----------
    names : sequence of str
        Libraries, each as in `backends_of`.
    devices : sequence of str
        Only these: "cpu", "cuda", "cuda:0". None given is all.

    Returns
    -------
    list of Backend, dict of str to str
        The second maps a library, with its device where that is what is left out, to the reason.
    """
    found: list[Backend] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            candidates = backends_of(name)
        except RequirementError as error:
            left_out[name] = str(error)
            continue
        for backend in candidates:
            if not devices or any(_matches(backend.device, device) for device in devices):
                found.append(backend)
            else:
                left_out[str(backend)] = "its device was not asked for"
    return found, left_out


def _matches(device: str, wanted: str) -> bool:
    return device == wanted or device.partition(":")[0] == wanted


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
