"""A user's function of two arrays: import it by name, call it, and check what it returns."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

from vicreg.tools.backends import Array, Backend, Floats, importing_from_here
from vicreg.tools.requirements import RequirementError

__all__ = ["FunctionError", "LossFunction", "error_line", "load_function"]


#: How the names of dtypes begin, in every library, that are not of real numbers.
_NO_NUMBERS = ("complex", "bool", "str", "object", "<U", "|S", "datetime", "timedelta")


class FunctionError(RequirementError, ValueError):
    """The function does not exist, cannot be called, or does not return one real number."""


def load_function(path: str) -> Callable[..., Any]:
    """Return the function named ``MODULE:FUNCTION``.

    Parameters
    ----------
    path : str
        The module as in an import statement, which may be in the current directory, and a name in
        it. A class is called without arguments to make the function.

    Returns
    -------
    callable

    Raises
    ------
    FunctionError
        There is no such module or function, its import fails, or it cannot be called.

    Examples
    --------
    >>> load_function("math:hypot")(3, 4)
    5.0
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise FunctionError(f"{path!r} must be MODULE:FUNCTION")
    value: Any = _imported(module_name)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise FunctionError(f"module {module_name!r} has no {name!r}") from None
        except Exception as error:  # a module may define __getattr__
            raise FunctionError(f"{path!r} cannot be had: {error_line(error)}") from error
    if isinstance(value, type):
        value = _made(value, path)
    if not callable(value):
        raise FunctionError(f"{path} is no function: it is of type {type(value).__name__}")
    function: Callable[..., Any] = value
    return function


def _imported(name: str) -> Any:
    try:
        with importing_from_here():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise FunctionError(f"there is no module {name!r}") from error
        raise FunctionError(f"module {name!r} cannot be imported: {error_line(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import may raise anything, even SystemExit
        raise FunctionError(f"module {name!r} cannot be imported: {error_line(error)}") from error


def _made(kind: type, path: str) -> Any:
    try:
        return kind()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a constructor may raise anything
        raise FunctionError(
            f"{path} is a class that cannot be made without arguments: {error_line(error)}"
        ) from error


class LossFunction:
    """A function of two arrays of one library, which should return one number.

    Parameters
    ----------
    function : callable
        Called with two arrays of shape (n, d). If it has a parameter ``ref_emb``, like the losses
        of pytorch-metric-learning, the second array is passed as that.
    backend : Backend
        The library of the arrays.

    Raises
    ------
    TypeError
        `function` cannot be called.
    """

    def __init__(self, function: Callable[..., Any], backend: Backend) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable; got {type(function).__name__}")
        self.backend = backend
        self._function = function
        self._by_name = _takes_ref_emb(function)

    @property
    def name(self) -> str:
        """The name of the function."""
        name = getattr(self._function, "__name__", None) or type(self._function).__name__
        return str(name)

    def on_arrays(self, z1: Array, z2: Array) -> Array:
        """Return the output of the function for two arrays of the library: one number.

        Raises
        ------
        FunctionError
            The function raises, or does not return one real number.
        """
        try:
            views, named = ((z1,), {"ref_emb": z2}) if self._by_name else ((z1, z2), {})
            output = self._function(*views, **named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # even SystemExit
            raise FunctionError(
                f"{self.name} raised {error_line(error)} (for two {self.backend.name} arrays of "
                f"{z1.dtype} and shape {tuple(z1.shape)})"
            ) from error
        shape = getattr(output, "shape", () if isinstance(output, (int, float)) else None)
        dtype = str(getattr(output, "dtype", ""))
        if (
            shape is None
            or isinstance(output, bool)
            or math.prod(shape) != 1
            or dtype.rpartition(".")[2].startswith(_NO_NUMBERS)
        ):
            what = type(output).__name__ + (f" of {dtype}" if dtype else "")
            what += f" and shape {tuple(shape)}" if shape else ""
            raise FunctionError(f"{self.name} must return one real number; it returned {what}")
        return output

    def __call__(self, z1: Floats, z2: Floats, dtype: str | None = None) -> float:
        """Return the value of the function for two NumPy arrays, converted to `dtype`.

        Parameters
        ----------
        z1, z2 : array of float64, shape (n, d)
            The views. The function gets copies, so they are never modified.
        dtype : str, optional
            The widest of the library by default.

        Returns
        -------
        float

        Raises
        ------
        FunctionError
            As in `on_arrays`.
        """
        backend = self.backend
        dtype = dtype or backend.dtypes[0]
        with backend.active():
            output = self.on_arrays(backend.asarray(z1, dtype), backend.asarray(z2, dtype))
            return self.number(output)

    def number(self, output: Array) -> float:
        """Return the output of `on_arrays` as a float.

        Raises
        ------
        FunctionError
            It is not a real number.
        """
        try:
            return float(self.backend.to_numpy(output).reshape(()))
        except Exception:
            pass
        try:  # not an array of the library
            return float(output)
        except Exception as error:
            raise FunctionError(
                f"{self.name} must return a real number; it returned {type(output).__name__}"
            ) from error


def _takes_ref_emb(function: Callable[..., Any]) -> bool:
    # The __call__ of a PyTorch module takes anything; the signature is that of forward.
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return False
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return "ref_emb" in parameters and not takes_more


def error_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # __str__ may raise
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
