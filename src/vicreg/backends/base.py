"""What the tools ask of a library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
Floats = npt.NDArray[np.float64]

ALL_DTYPES = ("float64", "float32", "bfloat16", "float16")


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
        self, function: Callable[..., Any], arrays: Sequence[Array]
    ) -> tuple[Any, tuple[Array, ...]]:
        """Return what `function` returns for `arrays`, and its gradient by each of them.

        By the library's automatic differentiation. `function` returns a scalar, or a tuple that
        begins with the scalar to differentiate.
        """
        raise NotImplementedError(f"{self.name} has no automatic differentiation")

    @property
    def version(self) -> str:
        """The version of the library; "unknown" where its package does not say."""
        try:
            return version(self.name.partition(".")[0])
        except PackageNotFoundError:
            return "unknown"


def first(output: Any) -> Any:
    """Return the scalar of an output that is one, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output
