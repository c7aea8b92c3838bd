"""Matches of places: each place of one map with the nearest of another, and selections by them.

A selection is a matrix with a single 1 in each row, ``(n, M, P)``: its product with a map picks
M of the P places, and the product with its transpose puts gradients back. So one way serves every
library, a derivative included. The indices themselves have no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vicreg._core import largest, sums
from vicreg._core.library import Library
from vicreg._typing import FeatureDistance, MatchOrder

Array = Any
Selection = Array | None  # (n, M, P); None selects every place


class Matches(NamedTuple):
    """Which places of one map belong to which of another, sample by sample."""

    own: Selection
    other: Selection


def nearest(
    xp: Library, distances: Array, count: int, match_order: MatchOrder, dtype: Any
) -> Matches:
    """Return the nearest match of each place, of the `count` places whose match is nearest.

    Parameters
    ----------
    xp : Library
        Of the arrays.
    distances : array, shape (n, P, P')
        Between the places of one map and those of another; anything that grows with them.
    count : int
        How many places are kept.
    match_order : {"place", "distance"}
        Whether they are in the order of the places, or the nearest matches first.
    dtype : dtype
        Of the selections.
    """
    places, others = distances.shape[-2:]
    match = xp.argmin(distances, axis=-1)
    if count == places and match_order == "place":
        return Matches(None, xp.astype(_is_at(xp, match, others, distances), dtype))
    kept = xp.argsort(xp.min(distances, axis=-1), axis=-1)[:, :count]
    if match_order == "place":
        kept = xp.sort(kept, axis=-1)
    own = xp.astype(_is_at(xp, kept, places, distances), dtype)
    # As numbers of the map's dtype, which are exact: a map has far fewer places than 2**24.
    match = xp.matmul(own, xp.astype(match, dtype)[..., None])[..., 0]
    return Matches(own, xp.astype(_is_at(xp, match, others, distances), dtype))


def _is_at(xp: Library, index: Array, size: int, like: Array) -> Array:
    """Return where the last axis, of `size`, is at `index`: one more axis, of booleans."""
    return index[..., None] == xp.astype(largest.indices(xp, size, like=like), index.dtype)


def between_features(xp: Library, features: Array, others: Array) -> Array:
    """Return squared distances of ``(n, P, c)`` from ``(n, P', c)``, as ``(n, P, P')``.

    From a product, which needs no array of all differences. Both are counted from the mean of
    one, so that a common offset costs no digits.
    """
    centre = xp.mean(others, axis=-2, keepdims=True)
    features, others = features - centre, others - centre
    products = xp.matmul(features, xp.matrix_transpose(others))
    squares = xp.sum(features * features, axis=-1)[..., :, None]
    of_others = xp.sum(others * others, axis=-1)[..., None, :]
    return squares - 2.0 * products + of_others


def between_directions(xp: Library, features: Array, others: Array) -> Array:
    """Return what `between_features` does, of features of length 1: 1 less their cosine.

    The cosine with features that are all 0 is 0.
    """
    products = xp.matmul(_directions(xp, features), xp.matrix_transpose(_directions(xp, others)))
    return 1.0 - products


def _directions(xp: Library, features: Array) -> Array:
    length = xp.sqrt(xp.sum(features * features, axis=-1, keepdims=True))
    return features / xp.where(length == 0, xp.ones_like(length), length)


FEATURE_DISTANCES: dict[FeatureDistance, Callable[[Library, Array, Array], Array]] = {
    "euclidean": between_features,
    "cosine": between_directions,
}


def between_locations(xp: Library, locations: Array, others: Array) -> Array:
    """Return what `between_features` does, of two coordinates: from their differences."""
    differences = (
        locations[..., :, None, axis] - others[..., None, :, axis]
        for axis in range(locations.shape[-1])
    )
    return sums.total(difference * difference for difference in differences)


def select(xp: Library, selection: Selection, places: Array) -> Array:
    """Return the selected `places`, ``(n, P, c)`` to ``(n, M, c)``."""
    return places if selection is None else xp.matmul(selection, places)


def put_back(xp: Library, selection: Selection, selected: Array) -> Array:
    """Return the transpose of `select`: what was selected from a place is summed there."""
    if selection is None:
        return selected
    return xp.matmul(xp.matrix_transpose(selection), selected)
