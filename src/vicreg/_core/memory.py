"""Updates in place of arrays that the core has made and that nothing else refers to.

A new array of n × d costs several times what an update does: the system hands out its memory
page by page. Immutable libraries give a new array for ``a += b``. Where an update would be
recorded or batched (PyTorch under its own transforms), the library's ``updates_in_place`` is
False and each function here returns a new array.
"""

from __future__ import annotations

from typing import Any

Array = Any
Library = Any  # vicreg._core.library.Library, which uses these functions


def add(xp: Library, own: Array, other: Any) -> Array:
    """Return `own` + `other`. `own` must not be used again."""
    if not xp.updates_in_place:
        return own + other
    own += other
    return own


def subtract(xp: Library, own: Array, other: Any) -> Array:
    """Return `own` - `other`. `own` must not be used again."""
    if not xp.updates_in_place:
        return own - other
    own -= other
    return own


def multiply(xp: Library, own: Array, other: Any) -> Array:
    """Return `own` * `other`. `own` must not be used again."""
    if not xp.updates_in_place:
        return own * other
    own *= other
    return own
