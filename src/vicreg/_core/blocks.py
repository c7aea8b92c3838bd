"""Blocks of a large array, worked on one after another.

An array as large as a view that only lives for a moment is memory that the system hands out anew
at each call: a page fault for every few KiB of it takes longer than the arithmetic. What is formed
of one block instead stays in the processor's cache, and its memory serves the next.

It is for libraries that compute at once and update a slice in place, on a CPU. Their namespace
offers ``in_blocks``, which says of an array whether it is so. Elsewhere there is one block, the
whole: a compiler forms its own, a GPU's library keeps the memory that it was handed once, and
NumPy's products of blocks are slower than they save.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from vicreg._core.sizes import Sizes

Array = Any
Namespace = Any

#: The blocks of what is worked on all at once.
WHOLE = (slice(None),)


def blocks(xp: Namespace, array: Array, axis: int, sizes: Sizes) -> tuple[slice, ...]:
    """Return the slices of `axis`, one of the last two, that are worked on at once."""
    in_blocks = getattr(xp, "in_blocks", None)
    length = array.shape[axis]
    # Of a length that stands for any, where a library has such, nothing is asked.
    if in_blocks is None or length < 2 * sizes.block_length:
        return WHOLE
    elements = math.prod(array.shape)
    count = min(length // sizes.block_length, elements // sizes.block_elements)
    if count < 2 or not in_blocks(array):
        return WHOLE
    edges = [length * i // count for i in range(count + 1)]
    return tuple(slice(*ends) for ends in itertools.pairwise(edges))


def split(xp: Namespace, array: Array, axis: int, sizes: Sizes) -> list[Array]:
    """Return the blocks themselves, slices of `array`."""
    found = blocks(xp, array, axis, sizes)
    return [part(array, block, axis) for block in found]


def updated(
    xp: Namespace,
    owned: Array,
    axis: int,
    update: Callable[[Array, slice], Array],
    sizes: Sizes,
) -> Array:
    """Return `owned`, of which nothing else is left, with each block `update`d.

    `update` is called with a block and its slice of `axis`, and returns the block, updated in
    place where there is more than one.
    """
    found = blocks(xp, owned, axis, sizes)
    if len(found) == 1:
        return update(owned, found[0])
    for block in found:
        update(part(owned, block, axis), block)
    return owned


def part(array: Array, block: slice, axis: int) -> Array:
    """Return that `block` of `axis`, one of the last two, of `array`; the whole is `array`."""
    if block == WHOLE[0]:
        return array
    return array[(..., block) if axis == -1 else (..., block, slice(None))]
