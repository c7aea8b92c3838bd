"""The number in what a function returns: a dict, a tuple, an object with a loss, or the number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["described", "number_in", "numbers_of", "part_of"]

#: The names of the loss, in a dict or as an attribute.
_NAMES = ("loss", "total_loss")
#: How the names of dtypes begin, in every library, that are not of real numbers.
_NO_NUMBERS = ("complex", "bool", "str", "object", "<U", "|S", "datetime", "timedelta")


def number_in(output: Any) -> Any:
    """Return the loss in an output; None if there is none.

    It is the output itself, if that is a number or an array with one element. Otherwise it is in
    what a dict or an object calls ``loss`` or ``total_loss``, in the only entry of a dict, or in
    the first element of a tuple or list that has one.
    """
    if _is_number(output):
        return output
    if output is None or isinstance(output, str) or hasattr(output, "dtype"):
        return None
    return next((loss for loss in map(number_in, _candidates(output)) if loss is not None), None)


def numbers_of(output: Any) -> int:
    """Return how many numbers a tuple or list has."""
    return sum(map(_is_number, output)) if type(output) in (tuple, list) else 0


def _candidates(output: Any) -> Iterable[Any]:
    named = [part_of(output, name) for name in _NAMES]
    if isinstance(output, Mapping):
        return [*named, *(output.values() if len(output) == 1 else ())]
    return [*named, *(output if isinstance(output, (tuple, list)) else ())]


def part_of(output: Any, name: str) -> Any:
    """Return an entry of a dict, an element of a tuple or an attribute; None if there is none.

    In a nested output, `name` may be several names with dots in between.
    """
    try:
        if isinstance(output, Mapping):
            return output[name] if name in output else output[int(name)]
        return output[int(name)] if name.lstrip("-").isdigit() else getattr(output, name)
    except (AttributeError, LookupError, TypeError, ValueError):
        first, dot, rest = name.partition(".")
        return part_of(part_of(output, first), rest) if dot else None


def _is_number(output: Any) -> bool:
    shape = getattr(output, "shape", () if isinstance(output, (int, float)) else None)
    dtype = str(getattr(output, "dtype", "")).rpartition(".")[2]
    return not (
        shape is None
        or isinstance(output, bool)
        or math.prod(shape) != 1
        or dtype.startswith(_NO_NUMBERS)
    )


def described(output: Any) -> str:
    """Return in a few words what an output is, with what it contains."""
    kind = type(output).__name__
    named = output
    if is_dataclass(output) and not isinstance(output, type):
        named = {field.name: getattr(output, field.name, None) for field in fields(output)}
    if isinstance(named, Mapping) and named:
        parts = [f"{key!r}: {_array(value)}" for key, value in named.items()]
    elif isinstance(output, (tuple, list)) and output:
        parts = [_array(value) for value in output]
    else:
        return _array(output)
    return f"{kind} ({', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''})"


def _array(value: Any) -> str:
    dtype, shape = str(getattr(value, "dtype", "")), tuple(getattr(value, "shape", ()))
    what = type(value).__name__ + (f" of {dtype}" if dtype else "")
    return what + (f" and shape {shape}" if shape else "")
