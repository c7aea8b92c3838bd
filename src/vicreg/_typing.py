"""The types in the signatures of public functions, for type checkers and editors."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

__all__ = ["Array", "ArrayT", "CovarianceGradient", "Method", "Penalty"]

Method = Literal["auto", "gram", "covariance"]
Penalty = Literal["square", "smooth_l1"]
CovarianceGradient = Literal["exact", "published"]


class Array(Protocol):
    """An array of any library: what all their types have, and lists and numbers have not."""

    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> Any: ...


#: The arrays that come in, and so those that go out: no library's type is named.
ArrayT = TypeVar("ArrayT", bound=Array)
