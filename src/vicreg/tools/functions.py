"""A user's function of two arrays: how it is called, and the number in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np

from vicreg.tools.axes import Axes
from vicreg.tools.backends import Array, Backend, Floats
from vicreg.tools.outputs import described, number_in, numbers_of, part_of
from vicreg.tools.requirements import RequirementError

__all__ = ["FunctionError", "LossFunction", "error_line"]

_NUMBERS = np.random.default_rng(0).standard_normal(1009)


class FunctionError(RequirementError, ValueError):
    """The function does not exist, cannot be called, or does not return one real number."""


class LossFunction:
    """A function of two arrays of one library, whose output has one number in it.

    Parameters
    ----------
    function : callable
        Called with two arrays: by position, or by name where they are parameters that can only be
        given by name, or the second is one named ``ref_emb``, as in pytorch-metric-learning. If
        its parameters are ``batch`` and ``batch_idx``, as those of Lightning's ``training_step``,
        the arrays are the batch.
    backend : Backend
        The library of the arrays.
    output : str or int, optional
        Which part of the output is the number: the key of a dict, the index of an element, the
        name of an attribute. By default as in `number_in`.
    shape : str, optional
        The axes of the arrays, as in `Axes.of`. By default they have the shape (n, d).

    Raises
    ------
    TypeError
        `function` cannot be called, or `output` or `shape` has another type.
    ValueError
        `shape` is no such text.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        backend: Backend,
        output: str | int | None = None,
        shape: str | None = None,
    ) -> None:
        if not callable(function):
            function = getattr(function, "forward", function)
        if not callable(function):
            raise TypeError(f"function must be callable; got {type(function).__name__}")
        if isinstance(output, bool) or not isinstance(output, str | int | None):
            raise TypeError(f"output must be a string or an int; got {type(output).__name__}")
        if not isinstance(shape, str | None):
            raise TypeError(f"shape must be a string; got {type(shape).__name__}")
        self.backend = backend
        self.axes = Axes.of(shape)
        self._output = None if output is None else str(output)
        self._function = function
        self._call = _call_of(function)
        #: Of how many numbers in the output the first is taken, unless `output` names one.
        self.numbers = 0
        #: Called before each call of the function, to show progress.
        self.on_call: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """The name of the function."""
        function = self._function
        function = function.func if isinstance(function, partial) else function
        return str(getattr(function, "__name__", None) or type(function).__name__)

    def arrays(self, views: Sequence[Floats], dtype: str) -> list[Array]:
        """Return views of shape (n, d) as the function takes them, in new arrays of the library.

        Raises
        ------
        FunctionError
            They do not fill the axes that the function takes.
        """
        try:
            arranged = [self.axes.arranged(view) for view in views]
        except ValueError as error:
            raise FunctionError(f"{self.name} cannot be given shape: {error}") from error
        return [self.backend.asarray(view, dtype) for view in arranged]

    def on_arrays(self, z1: Array, z2: Array) -> Array:
        """Return the number in the output of the function for two arrays of the library.

        Raises
        ------
        FunctionError
            The function raises, or there is no real number.
        """
        self.on_call()
        try:
            output = self._call(z1, z2)
            part = output if self._output is None else part_of(output, self._output)
            number = number_in(part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # even SystemExit
            raise FunctionError(
                f"{self.name} raised {error_line(error)} (for two {self.backend.name} arrays of "
                f"{z1.dtype} and shape {tuple(z1.shape)})"
            ) from error
        if number is not None:
            self.numbers = numbers_of(output) if self._output is None else 0
            return number
        said = f"{self.name} must return one real number; it returned {described(output)}"
        if self._output is not None:
            raise FunctionError(f"{said}, with no number at output {self._output!r}")
        has_parts = isinstance(output, (dict, tuple, list)) and len(output) > 0
        has_parts = has_parts or is_dataclass(output)
        raise FunctionError(f"{said}; output (--output) says which part it is" * has_parts or said)

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
        with self.backend.active():
            return self.number(
                self.on_arrays(*self.arrays((z1, z2), dtype or self.backend.dtypes[0]))
            )

    def takes(self, n: int, d: int, dtype: str | None = None) -> bool:
        """Return whether it returns a number, and does not raise, for that shape and dtype.

        Raises
        ------
        FunctionError
            It returns something else.
        """
        z = np.resize(_NUMBERS, (n, d))  # cheap, for a function that takes none of hundreds
        try:
            self(z, z, dtype)
        except FunctionError as error:
            if error.__cause__ is None:  # it did not raise
                raise
            return False
        return True

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


def _call_of(function: Callable[..., Any]) -> Callable[[Array, Array], Any]:
    """Return how the function is called with two views, by the names of its parameters."""
    try:  # the __call__ of a PyTorch module takes anything; its forward has the parameters
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return function
    if list(parameters)[:2] == ["batch", "batch_idx"]:
        return lambda z1, z2: function((z1, z2), 0)
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return function
    if "ref_emb" in parameters:
        return lambda z1, z2: function(z1, ref_emb=z2)
    by_name = [each for each in parameters.values() if each.kind is each.KEYWORD_ONLY]
    needed = [each.name for each in by_name if each.default is each.empty][:2]
    positions = sum(kind < inspect.Parameter.VAR_POSITIONAL for kind in kinds)
    count = min(2 - len(needed), positions)
    names = [*needed, *(each.name for each in by_name if each.name not in needed)][: 2 - count]
    if count + len(names) < 2:
        return function

    def call(*views: Array) -> Any:
        return function(*views[:count], **dict(zip(names, views[count:], strict=True)))

    return call


def error_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # __str__ may raise
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
