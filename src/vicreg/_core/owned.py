"""Updates of arrays that the core has made and that nothing else refers to.

A new array of n × d costs several times what an update in place does: its memory has to be found
and, where the system hands it out, filled with zeros first. So what the core owns it updates in
place. Immutable libraries give a new array for ``a += b``; a namespace that is marked
``immutable``, because what it computes is being differentiated or batched, gets ``a + b``.
"""

from __future__ import annotations

import operator
from typing import Any

Array = Any
Namespace = Any


def add(xp: Namespace, owned: Array, other: Any) -> Array:
    """Return `owned` + `other`. Nothing may refer to `owned` any more."""
    return (operator.add if _immutable(xp) else operator.iadd)(owned, other)


def subtract(xp: Namespace, owned: Array, other: Any) -> Array:
    """Return `owned` - `other`. Nothing may refer to `owned` any more."""
    return (operator.sub if _immutable(xp) else operator.isub)(owned, other)


def multiply(xp: Namespace, owned: Array, other: Any) -> Array:
    """Return `owned` * `other`. Nothing may refer to `owned` any more."""
    return (operator.mul if _immutable(xp) else operator.imul)(owned, other)


def add_product(xp: Namespace, owned: Array, a: Array, b: Array) -> Array:
    """Return `owned` + `a` `b`, a matrix product. Nothing may refer to `owned` any more.

    Libraries that add a product where it is computed offer it as ``add_product``.
    """
    offered = getattr(xp, "add_product", None)
    return add(xp, owned, xp.matmul(a, b)) if offered is None else offered(owned, a, b)


def replaces_columns(xp: Namespace) -> bool:
    """Whether the library offers ``replace_columns``, in place; the standard has no such thing."""
    return hasattr(xp, "replace_columns")


def replace_columns(xp: Namespace, owned: Array, places: Array, columns: Any) -> None:
    """Replace, in `owned` itself, the columns at the indices `places`, ``(..., 1, r)``."""
    offered: Any = getattr(xp, "replace_columns", None)
    offered(owned, places, columns)


def _immutable(xp: Namespace) -> bool:
    return getattr(xp, "immutable", False)
