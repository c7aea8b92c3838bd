"""The interface through which the tools use a library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
Floats = npt.NDArray[np.float64]

#: (function, arrays) -> gradients
GradientWay = Callable[[Callable[..., Array], Sequence[Array]], tuple[Array, ...]]
#: (function, arrays, directions) -> the scalar's derivative
ForwardWay = Callable[[Callable[..., Array], Sequence[Array], Sequence[Array]], Array]
#: (function, arrays, directions) -> the gradients' derivatives
SecondWay = Callable[[Callable[..., Array], Sequence[Array], Sequence[Array]], tuple[Array, ...]]


class Backend(ABC):
    """One library on one device.

    Parameters
    ----------
    name : str
        The name of the library, as in ``--backend``.
    device : str
        The name of the device, as in ``--device``: "cpu", "cuda:0".
    dtypes : tuple of str
        The floating-point dtypes that the library has on the device, the widest first.
    """

    #: Whether it has automatic differentiation.
    differentiates = False
    #: Whether it has a compiler.
    compiles = False
    #: Whether it is normally used with its compiler, so that it is timed with it only.
    always_compiled = False
    #: Whether products of large matrices take at least ten times as long as in other libraries.
    multiplies_slowly = False
    #: Whether it is fast enough for large arrays.
    takes_large = True

    def __init__(self, name: str, device: str, dtypes: tuple[str, ...]) -> None:
        self.name = name
        self.device = device
        self.dtypes = dtypes

    def __str__(self) -> str:
        return self.name if self.device == "cpu" else f"{self.name} {self.device}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def active(self) -> AbstractContextManager[Any]:
        """Return a context in which the library uses this device, with all of its dtypes."""
        return nullcontext()

    @abstractmethod
    def asarray(self, values: Floats, dtype: str) -> Array:
        """Return a new array of the library, on this device, with these values."""

    @abstractmethod
    def to_numpy(self, array: Array) -> Floats:
        """Return the values of `array` in float64."""

    def differentiate(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Array],
        wanted: Sequence[bool] | None = None,
    ) -> tuple[Any, tuple[Array | None, ...]]:
        """Return the output of `function`, and its gradient with respect to each array.

        The gradient is that of the library's automatic differentiation. `function` returns a
        scalar, or a tuple whose first element is the scalar to differentiate. If `wanted` is
        given, arrays for which it is false are not differentiated, and their gradient is None.
        """
        raise NotImplementedError(f"{self.name} has no automatic differentiation")

    @property
    def gradient_ways(self) -> Mapping[str, GradientWay]:
        """Other ways to compute the gradient of a scalar function, by name."""
        return {}

    @property
    def forward_ways(self) -> Mapping[str, ForwardWay]:
        """Ways to compute the derivative of a scalar function along one direction per array."""
        return {}

    @property
    def second_ways(self) -> Mapping[str, SecondWay]:
        """Ways to compute the derivative of its gradient along directions, by name."""
        return {}

    def vcreg_layer(self, **settings: Any) -> Callable[[Array], Array] | None:
        """Return a VCReg layer with these settings; None if the library has no such layer."""
        return None

    def as_used(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, compiled if the library is normally used with its compiler."""
        return function

    def on_one_thread(self) -> AbstractContextManager[Any]:
        """Return a context in which the library uses a single thread."""
        return nullcontext()

    def synchronise(self, output: Any) -> None:  # noqa: B027 - most libraries need nothing
        """Wait until `output`, an array or nested tuples of arrays, has been computed.

        Needed for libraries that compute asynchronously or lazily; does nothing for others.
        """

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, compiled by the library's compiler when it is first called."""
        raise NotImplementedError(f"{self.name} has no compiler")

    def compiled_gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a compiled function that returns what `differentiate` does."""
        return self.compiled(lambda *arrays: self.differentiate(function, arrays))

    def compiled_ahead(
        self, function: Callable[..., Any], arrays: Sequence[Array], quickly: bool = False
    ) -> Callable[..., Any]:
        """Return `function`, compiled for `arrays` but not run.

        If `quickly`, compile faster, to slower code.
        """
        return function

    def forget_compiled(self) -> None:  # noqa: B027
        """Drop all compiled functions, so that no limit on recompilations is reached."""

    def full_precision(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products have the precision of their inputs."""
        return nullcontext()

    def watch_memory(self) -> Callable[[], int] | None:
        """Start to record the peak memory of the device.

        Returns
        -------
        callable or None
            Returns the peak since the start, in bytes above what was in use then. None on a CPU,
            where the memory is that of the process.
        """
        return None

    @property
    def threads(self) -> int | None:
        """The number of threads of a matrix product; None if the library does not tell."""
        return None

    @property
    def device_name(self) -> str | None:
        """The model of the device; None on a CPU."""
        return None

    @property
    def version(self) -> str:
        """The version of the library, or "unknown"."""
        try:
            return version(self.name.partition(".")[0])
        except PackageNotFoundError:
            return "unknown"


def chosen(arrays: Sequence[Array], wanted: Sequence[bool] | None) -> tuple[int, ...]:
    """Return the indices of the arrays that are wanted; all of them if `wanted` is None."""
    return tuple(place for place in range(len(arrays)) if wanted is None or wanted[place])


def placed(
    gradients: Sequence[Array], places: Sequence[int], count: int
) -> tuple[Array | None, ...]:
    """Return `count` gradients: the given ones at the indices `places`, None elsewhere."""
    by_place = dict(zip(places, gradients, strict=True))
    return tuple(by_place.get(place) for place in range(count))


def first(output: Any) -> Any:
    """Return the scalar of an output: itself, or the first element of a tuple."""
    return output[0] if isinstance(output, tuple) else output
