"""Optional packages, and the errors for missing ones."""

from __future__ import annotations

import importlib

from vicreg.tools.libraries import LIBRARIES

__all__ = ["RequirementError", "ToolError", "require"]

#: The title of each package, and what ``pip install`` takes.
_PACKAGES = {name: (library.title, library.package) for name, library in LIBRARIES.items()} | {
    "sklearn": ("scikit-learn", "scikit-learn"),
    "matplotlib": ("matplotlib", "matplotlib"),
    "optax": ("optax", "optax"),
}


class ToolError(Exception):
    """A tool cannot go on; the message is one line."""


class RequirementError(ToolError):
    """Something that a tool needs is missing or unusable; raised before any work."""


def require(*packages: str) -> None:
    """Import `packages`, or raise an error that says how to install the one that is missing.

    Parameters
    ----------
    *packages : str
        The names of the packages, as in an import statement.

    Raises
    ------
    RequirementError
        A package is not installed, or its import fails.
    """
    for package in packages:
        name, wanted = _PACKAGES[package]
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise RequirementError(_import_failed(name, error)) from error
            raise RequirementError(f"{name} is not installed: pip install {wanted}") from error
        except Exception as error:  # an import may raise anything
            raise RequirementError(_import_failed(name, error)) from error


def _import_failed(name: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{name} cannot be imported: {reason}"
