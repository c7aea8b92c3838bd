"""Load a user's function by the name of its module or file, with the user's arguments."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from vicreg.tools.backends import importing_from
from vicreg.tools.functions import FunctionError, error_line
from vicreg.tools.requirements import RequirementError

__all__ = ["Target", "arguments_of", "load_function"]

_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Target:
    """A user's function, as it is given to a command.

    Parameters
    ----------
    path : str
        As in `load_function`.
    arguments : sequence of str
        As in `arguments_of`.
    output, shape : str, optional
        As in `LossFunction`.
    """

    path: str
    arguments: Sequence[str] = ()
    output: str | None = None
    shape: str | None = None

    def load(self) -> Callable[..., Any]:
        """Return the function."""
        return load_function(self.path, arguments_of(self.arguments))


def load_function(path: str, arguments: Mapping[str, Any] = _NONE) -> Callable[..., Any]:
    """Return the function named ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.

    Parameters
    ----------
    path : str
        The module as in an import statement, which may be in the current directory, or the path
        of a file; and a name in it. A class is called to make the function, and so is the class
        of a method.
    arguments : mapping
        Keyword arguments: of that class, or of each call of a function.

    Returns
    -------
    callable

    Raises
    ------
    FunctionError
        There is no such module or function, its import fails, it does not take these arguments,
        or it cannot be called.

    Examples
    --------
    >>> load_function("math:hypot")(3, 4)
    5.0
    """
    module_name, colon, name = path.rpartition(":")
    is_file = module_name.endswith(".py")
    if not (colon and module_name and name) or ("/" in module_name and not is_file):
        raise FunctionError(f"{path!r} must be MODULE:FUNCTION or FILE.py:FUNCTION")
    module = _imported(module_name, _from_file if is_file else importlib.import_module)
    value, is_made = cast(Any, module), False
    for part in name.split("."):
        if isinstance(value, type) and inspect.isfunction(
            inspect.getattr_static(value, part, None)
        ):
            value, is_made = _made(value, path, arguments), True
        try:
            value = getattr(value, part)
        except AttributeError:
            raise FunctionError(
                f"module {module_name!r} has no {name!r}{_what_it_has(module)}"
            ) from None
        except Exception as error:  # a module may define __getattr__
            raise FunctionError(f"{path!r} cannot be had: {error_line(error)}") from error
    if isinstance(value, type):
        value, is_made = _made(value, path, arguments), True
    if not callable(getattr(value, "forward", value)):
        raise FunctionError(f"{path} is no function: it is of type {type(value).__name__}")
    return value if is_made or not arguments else _with(value, path, arguments)


def arguments_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments in texts such as ``std_coeff=1, eps=1e-3``.

    Raises
    ------
    RequirementError
        A text is something else: each value must be a literal of Python.

    Examples
    --------
    >>> arguments_of(["std_coeff=1, shape=(2, 3)", "mode='mean'"])
    {'std_coeff': 1, 'shape': (2, 3), 'mode': 'mean'}
    """
    return {name: value for text in texts for name, value in _arguments_in(text)}


def _arguments_in(text: str) -> list[tuple[str, Any]]:
    try:
        call = ast.parse(f"dict({text})", mode="eval").body
        # Text with a bracket of its own may be more than the arguments of one call.
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            given = [(one.arg, ast.literal_eval(one.value)) for one in call.keywords if one.arg]
            if given and len(given) == len(call.keywords):
                return given
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    raise RequirementError(
        "--kwargs must be NAME=VALUE, where the value is a number, a quoted string, True, None or "
        f"a list of such: --kwargs \"std_coeff=1, mode='mean'\"; got {text!r}"
    )


def _imported(name: str, how: Callable[[str], ModuleType]) -> ModuleType:
    try:
        with importing_from(""):
            return how(name)
    except FunctionError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise FunctionError(f"there is no module {name!r}") from error
        raise FunctionError(f"module {name!r} cannot be imported: {error_line(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import may raise anything, even SystemExit
        raise FunctionError(f"module {name!r} cannot be imported: {error_line(error)}") from error


def _from_file(path: str) -> ModuleType:
    """Return the module in a file, which may import other modules of its folder."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise FunctionError(f"there is no file {path!r}")
    folder, parts = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():  # in a package, which its imports may be relative to
        folder, parts = folder.parent, [folder.name, *parts]
    with importing_from(str(folder)):
        known = sys.modules.get(parts[0])
        if len(parts) > 1 and (known is None or _is_below(known, folder)):
            return importlib.import_module(".".join(parts))
        name = file.stem
        while name in sys.modules:  # another module has the name of the file: vicreg.py
            name += "_"
        spec: Any = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def _what_it_has(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return f"; it has {', '.join(own[:8])}" if own else ""


def _is_below(module: ModuleType, folder: Path) -> bool:
    return any(Path(path).parent == folder for path in getattr(module, "__path__", ()))


def _made(kind: type, path: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a constructor may raise anything
        how = f"with {_listed(arguments)}" if arguments else "without arguments"
        hint = "" if arguments else "; --kwargs 'NAME=VALUE' gives it some"
        raise FunctionError(
            f"{path} is a class that cannot be made {how}: {error_line(error)}{hint}"
        ) from error


def _with(
    function: Callable[..., Any], path: str, arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    try:
        inspect.signature(getattr(function, "forward", function)).bind_partial(**arguments)
    except TypeError as error:
        raise FunctionError(f"{path} does not take {_listed(arguments)}: {error}") from error
    except ValueError:  # it has no signature
        pass
    return functools.partial(function, **arguments)


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
