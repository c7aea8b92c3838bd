"""The types in the signatures of public functions, for type checkers and editors."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

__all__ = ["Array", "ArrayT", "CovarianceGradient", "Method", "Penalty"]

Method = Literal["auto", "gram", "covariance"]
Penalty = Literal["square", "smooth_l1"]
CovarianceGradient = Literal["exact", "published"]


class Array(Protocol):
    """An array of any library: the attributes that every array type has."""

    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> Any: ...


#: The type of the arrays that are passed, which is also the type of those that are returned.
ArrayT = TypeVar("ArrayT", bound=Array)
