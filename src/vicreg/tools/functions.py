"""A user's function of two arrays: found by its name, called, and held to one number."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

from vicreg.tools.backends import Array, Backend, Floats, importing_from_here
from vicreg.tools.requirements import RequirementError

__all__ = ["FunctionError", "LossFunction", "load_function"]


#: What the dtypes of no real number are called, in every library.
_NO_NUMBERS = ("complex", "bool", "str", "object", "<U", "|S", "datetime", "timedelta")


class FunctionError(RequirementError, ValueError):
    """The function cannot be found, cannot be called, or returns no number: in one line."""


def load_function(path: str) -> Callable[..., Any]:
    """Return the function named ``MODULE:FUNCTION``.

    Parameters
    ----------
    path : str
        The module as in an import statement, seen from the current directory too, and a name in
        it; a class is called without arguments to make the function.

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
    found: Any = _imported(module_name)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise FunctionError(f"module {module_name!r} has no {name!r}") from None
        except Exception as error:  # a module's own __getattr__ runs anything
            raise FunctionError(f"{path!r} cannot be had: {_line(error)}") from error
    if isinstance(found, type):
        found = _made(found, path)
    if not callable(found):
        raise FunctionError(f"{path} is no function: it is of type {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _imported(name: str) -> Any:
    try:
        with importing_from_here():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise FunctionError(f"there is no module {name!r}") from error
        raise FunctionError(f"module {name!r} cannot be imported: {_line(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import runs anything, sys.exit() too
        raise FunctionError(f"module {name!r} cannot be imported: {_line(error)}") from error


def _made(kind: type, path: str) -> Any:
    try:
        return kind()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a constructor raises anything
        raise FunctionError(
            f"{path} is a class that cannot be made without arguments: {_line(error)}"
        ) from error


class LossFunction:
    """A function of two arrays of one library, that is to return one number.

    Parameters
    ----------
    function : callable
        Called with two arrays of shape (n, d); where it has a parameter ``ref_emb``, as
        pytorch-metric-learning's losses do, the second goes there.
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
        """What the function is called."""
        name = getattr(self._function, "__name__", None) or type(self._function).__name__
        return str(name)

    def on_arrays(self, z1: Array, z2: Array) -> Array:
        """Return what the function returns for two arrays of the library: one number.

        Raises
        ------
        FunctionError
            The function raises, or what it returns is no number.
        """
        try:
            views, named = ((z1,), {"ref_emb": z2}) if self._by_name else ((z1, z2), {})
            output = self._function(*views, **named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() too: it is no verdict
            raise FunctionError(
                f"{self.name} raised {_line(error)} (for two {self.backend.name} arrays of "
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
        """Return the function's value for two NumPy arrays, given to it in `dtype`.

        Parameters
        ----------
        z1, z2 : array of float64, shape (n, d)
            Unchanged, whatever the function does: it is given arrays of its own.
        dtype : str, optional
            None is the widest of the library.

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
        """Return what `on_arrays` returned as a number.

        Raises
        ------
        FunctionError
            It is none.
        """
        try:
            return float(self.backend.to_numpy(output).reshape(()))
        except Exception:
            pass
        try:  # a number of another kind than the backend's arrays
            return float(output)
        except Exception as error:
            raise FunctionError(
                f"{self.name} must return a real number; it returned {type(output).__name__}"
            ) from error


def _takes_ref_emb(function: Callable[..., Any]) -> bool:
    # A PyTorch module's __call__ takes anything; its forward says what.
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return False
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return "ref_emb" in parameters and not takes_more


def _line(error: BaseException) -> str:
    """Return an error's kind and the first line of its message."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # a message that cannot be had
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
