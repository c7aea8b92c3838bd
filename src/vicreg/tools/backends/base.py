"""What the tools ask of a library."""

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
        The library, as ``--backend`` calls it.
    device : str
        As ``--device`` calls it: "cpu", "cuda:0".
    dtypes : tuple of str
        The floating-point dtypes it has there, the widest first.
    """

    #: Whether `differentiate` works.
    differentiates = False
    #: Whether `compiled` works.
    compiles = False
    #: Whether it is used under its compiler, so that a time without it would be nobody's.
    always_compiled = False
    #: Whether a product of large matrices takes it ten times as long as others, or more.
    multiplies_slowly = False
    #: Whether large arrays can be asked of it at all.
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
        """Return a context in which the library works in every dtype, on this device."""
        return nullcontext()

    @abstractmethod
    def asarray(self, values: Floats, dtype: str) -> Array:
        """Return `values` as a new array of the library, on this device."""

    @abstractmethod
    def to_numpy(self, array: Array) -> Floats:
        """Return the values of `array` in float64."""

    def differentiate(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Array],
        wanted: Sequence[bool] | None = None,
    ) -> tuple[Any, tuple[Array | None, ...]]:
        """Return what `function` returns for `arrays`, and its gradient by each of them.

        By the library's automatic differentiation. `function` returns a scalar, or a tuple that
        begins with the scalar to differentiate. Where only some gradients are `wanted` the others
        are None, and nothing is differentiated by those arrays.
        """
        raise NotImplementedError(f"{self.name} has no automatic differentiation")

    @property
    def gradient_ways(self) -> Mapping[str, GradientWay]:
        """Other ways to the gradient of a scalar function by its arrays, by name."""
        return {}

    @property
    def forward_ways(self) -> Mapping[str, ForwardWay]:
        """Ways to the derivative of a scalar function along directions, one an array, by name."""
        return {}

    @property
    def second_ways(self) -> Mapping[str, SecondWay]:
        """Ways to the derivative of its gradient along directions, by name."""
        return {}

    def vcreg_layer(self, **settings: Any) -> Callable[[Array], Array] | None:
        """Return VCReg as a layer with these settings; None where there is none."""
        return None

    def as_used(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` of arrays as people run it: compiled, where they compile."""
        return function

    def on_one_thread(self) -> AbstractContextManager[Any]:
        """Return a context in which small arrays are not divided among threads."""
        return nullcontext()

    def synchronise(self, output: Any) -> None:  # noqa: B027 - most libraries have no need
        """Wait until `output`, an array or a nest of tuples of arrays, has been computed.

        A library that returns before its work is done, or does none until it is asked, waits
        here; nothing happens in one that returns what is done.
        """

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` of arrays under the library's compiler."""
        raise NotImplementedError(f"{self.name} has no compiler")

    def compiled_gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what `differentiate` returns for `function`, under the compiler."""
        return self.compiled(lambda *arrays: self.differentiate(function, arrays))

    def compiled_ahead(
        self, function: Callable[..., Any], arrays: Sequence[Array], quickly: bool = False
    ) -> Callable[..., Any]:
        """Return a `compiled` function, compiled for `arrays` without having been run.

        Where it is to be compiled `quickly` the machine code need not be fast.
        """
        return function

    def forget_compiled(self) -> None:  # noqa: B027
        """Drop what was compiled before, so that nothing meets a limit on recompilations."""

    def full_precision(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products are in the precision of their inputs."""
        return nullcontext()

    def watch_memory(self) -> Callable[[], int] | None:
        """Begin to watch the memory of the device.

        Returns
        -------
        callable or None
            Returns by how many bytes the memory held has risen at most since; None on a CPU,
            whose memory is the process's.
        """
        return None

    @property
    def threads(self) -> int | None:
        """How many threads a product is worked on by; None where the library does not say."""
        return None

    @property
    def device_name(self) -> str | None:
        """What the device calls itself; None on a CPU."""
        return None

    @property
    def version(self) -> str:
        """The version of the library; "unknown" where its package does not say."""
        try:
            return version(self.name.partition(".")[0])
        except PackageNotFoundError:
            return "unknown"


def chosen(arrays: Sequence[Array], wanted: Sequence[bool] | None) -> tuple[int, ...]:
    """Return the places of the arrays that are wanted; None wants them all."""
    return tuple(place for place in range(len(arrays)) if wanted is None or wanted[place])


def placed(found: Sequence[Array], places: Sequence[int], count: int) -> tuple[Array | None, ...]:
    """Return `count` arrays, those found in their places and None in the others."""
    by_place = dict(zip(places, found, strict=True))
    return tuple(by_place.get(place) for place in range(count))


def first(output: Any) -> Any:
    """Return the scalar of an output that is one, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output
