"""The array libraries of this machine and their devices.

A :class:`Backend` is one library on one device. Each module here is for one library; `standard` is
for any other that follows the array API standard. A library is imported when its backends are
requested, not before.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from vicreg.tools.backends.base import Array, Backend, Floats
from vicreg.tools.libraries import NAMES, names_where
from vicreg.tools.requirements import RequirementError

__all__ = [
    "NAMES",
    "Array",
    "Backend",
    "Floats",
    "backend_named",
    "backends_of",
    "find_backends",
    "importing_from",
]

#: The libraries that have a module here.
_WITH_A_MODULE = names_where("has_backend")


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
    if name in NAMES:
        return _imported(name)
    with importing_from(""):
        return _imported(name)


def _imported(name: str) -> list[Backend]:
    if not _is_installed(name):
        raise RequirementError(f"{name} is not installed")
    module = (
        f"vicreg.tools.backends.{name}"
        if name in _WITH_A_MODULE
        else "vicreg.tools.backends.standard"
    )
    try:
        backends: list[Backend] = importlib.import_module(module).backends(name)
    except RequirementError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import may raise anything, or exit
        lines = str(error).strip().splitlines()
        reason = ": ".join([type(error).__name__, *lines[:1]])
        raise RequirementError(f"{name} cannot be imported: {reason}") from error
    return backends


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
    """Return the backends that can run here, and why the others cannot.

    Parameters
    ----------
    names : sequence of str
        Libraries, each as in `backends_of`.
    devices : sequence of str
        The devices to use, such as "cpu", "cuda" or "cuda:0"; all of them if empty.

    Returns
    -------
    list of Backend, dict of str to str
        The second maps each library that is left out, or its device, to the reason.
    """
    backends: list[Backend] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            candidates = backends_of(name)
        except RequirementError as error:
            left_out[name] = str(error)
            continue
        for backend in candidates:
            if not devices or any(_matches(backend.device, device) for device in devices):
                backends.append(backend)
            else:
                wanted = " or ".join(devices)
                left_out[str(backend)] = f"it is on {backend.device}, not on {wanted}"
    return backends, left_out


@contextmanager
def importing_from(*folders: str) -> Iterator[None]:
    """Import from these folders first, inside the block; after the block, last.

    "" is the current directory.
    """
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            with suppress(ValueError, OSError):  # the import may have changed the path
                sys.path.remove(folder)
                # A function may import more when it is called; by then it must shadow nothing.
                if os.path.abspath(folder) not in sys.path:
                    sys.path.append(os.path.abspath(folder))


def _matches(device: str, wanted: str) -> bool:
    return device == wanted or device.partition(":")[0] == wanted


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
