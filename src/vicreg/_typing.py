"""The types in the signatures of public functions, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

__all__ = [
    "Array",
    "ArrayT",
    "Counts",
    "CovarianceGradient",
    "FeatureDistance",
    "MatchOrder",
    "Method",
    "PairsOfViews",
    "Penalty",
    "Statistics",
]

Method = Literal["auto", "gram", "covariance"]
Penalty = Literal["square", "smooth_l1"]
CovarianceGradient = Literal["exact", "published"]
PairsOfViews = Sequence[tuple[int, int]]
Counts = tuple[int | None, int | None] | None  # of matches, one way and the other; None is all
MatchOrder = Literal["place", "distance"]
FeatureDistance = Literal["euclidean", "cosine"]
Statistics = Literal["place", "all", "sample"]


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
