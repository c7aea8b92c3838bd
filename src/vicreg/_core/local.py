"""VICRegL: the terms of whole embeddings, and those of matched places of maps.

Matching is a selection in front of the terms, which are those of any views of shape
``(n, M, c)``: each of the M matches is a position, with statistics over the n samples. An
embedding is a map of a single place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vicreg._core import matching, sums
from vicreg._core.layout import as_computed
from vicreg._core.library import Library
from vicreg._core.matching import Selection
from vicreg._core.objective import Objective
from vicreg._core.sample_weights import as_constant
from vicreg._typing import FeatureDistance, MatchOrder, Statistics

Array = Any
Arrays = tuple[Array, ...]
Kept = tuple[int | None, int | None]  # how many matches one way and the other; None is all
Side = list[tuple[int, Selection]]  # the places of views that make one view of the terms


#: Which axes of ``(n, M, c)`` the statistics are over; the other one, if any, is positions.
_SAMPLE_AXES: dict[Statistics, tuple[int, ...]] = {"place": (0,), "all": (0, 1), "sample": (1,)}


class Run(NamedTuple):
    """How the arrays' library computes: what its adapter gives."""

    xp: Library
    evaluate: Callable[..., Any]
    value_and_grad: Callable[..., Any]


@dataclass(frozen=True)
class Regional:
    """What VICRegL computes: hashable, so that a compiler may hold it static.

    Parameters
    ----------
    library : str
        Of the arrays.
    objective : Objective
        The terms, with positions on the axes between the samples and the features.
    num_global : int
        How many of the views, the first ones, are paired with all others.
    alpha : float
        The share of the embeddings in the loss.
    location_matches, feature_matches : tuple of int or None
        How many matches are kept one way and the other; None is all, and a way of 0 has no part.
    match_order : {"place", "distance"}
        In which order they are.
    feature_distance : {"euclidean", "cosine"}
        Which features are near.
    statistics : {"place", "all", "sample"}
        Whether each match has statistics of its own, over the samples, or all have the same, or
        each sample has its own, over its matches.
    """

    library: str
    objective: Objective
    num_global: int
    alpha: float
    location_matches: Kept
    feature_matches: Kept
    match_order: MatchOrder
    feature_distance: FeatureDistance
    statistics: Statistics

    @property
    def matches_by_location(self) -> bool:
        """Whether the locations have a part in the loss."""
        return self.location_matches != (0, 0)

    @property
    def of_matches(self) -> Objective:
        """The terms of matches, ``(n, M, c)``."""
        samples = _SAMPLE_AXES[self.statistics]
        return replace(self.objective, axes=replace(self.objective.axes, samples=samples))

    def pairs(self, views: int) -> Iterator[tuple[int, int]]:
        """Yield each global view with each other view."""
        for view in range(self.num_global):
            yield from ((view, other) for other in range(views) if other != view)


class Views(NamedTuple):
    """An array per view of each kind: ``(n, P, c)``, where an embedding has one place.

    The weights of the samples, ``(n, 1)``, are of all of them; there is one array of them or none.
    """

    embeddings: Arrays
    maps: Arrays
    locations: Arrays
    sample_weight: Arrays


class Part(NamedTuple):
    """A share of the loss: some terms of views that places of `arrays` make."""

    share: float
    is_global: bool
    sides: tuple[Side, ...]
    objective: Objective


def value(run: Run, given: Views, weights: Sequence[Any], settings: Regional) -> Array:
    """Return the loss, differentiable by embeddings and maps where the library differentiates."""
    views = _as_places(run.xp, given)
    return sums.total(
        part.share * run.evaluate(_sides(run.xp, views, part), part.objective, weights)[0]
        for part in _parts(run, views, settings)
    )


def value_and_grad(
    run: Run, given: Views, weights: Sequence[Any], settings: Regional
) -> tuple[Array, tuple[Arrays, Arrays]]:
    """Return the loss, and its gradients by embeddings and by maps, in closed form."""
    views = _as_places(run.xp, given)
    losses: list[Array] = []
    of_embeddings: list[Any] = [None] * len(views.embeddings)
    of_maps: list[Any] = [None] * len(views.maps)
    for part in _parts(run, views, settings):
        sides = _sides(run.xp, views, part)
        (loss,), changes = run.value_and_grad(sides, part.objective, weights)
        losses.append(part.share * loss)
        gradients = of_embeddings if part.is_global else of_maps
        for side, change in zip(part.sides, changes, strict=True):
            _put_back(run.xp, side, part.share * change, gradients)
    return sums.total(losses), (
        _like(run.xp, of_embeddings, given.embeddings),
        _like(run.xp, of_maps, given.maps),
    )


def _as_places(xp: Library, given: Views) -> Views:
    """Return the views as ``(n, P, c)`` in the dtypes of the computation."""
    n = given.embeddings[0].shape[0]
    weights = tuple(xp.broadcast_to(weight, (n,))[:, None] for weight in given.sample_weight)
    return Views(
        tuple(as_computed(xp, array)[:, None, :] for array in given.embeddings),
        tuple(_cleaned(xp, _flat(xp, as_computed(xp, array)), weights) for array in given.maps),
        tuple(
            _cleaned(xp, _flat(xp, as_computed(xp, array)), weights) for array in given.locations
        ),
        weights,
    )


def _cleaned(xp: Library, places: Array, weights: Arrays) -> Array:
    """Return `places` with 0 for samples of weight 0: they have distances from each other too."""
    if not weights:
        return places
    return xp.kept(places, as_constant(xp, weights[0], places)[..., None] != 0)


def _flat(xp: Library, array: Array) -> Array:
    n, *places, c = array.shape
    if len(places) == 1:
        return array
    height, width = places
    return xp.reshape(array, (n, height * width, c))


def _like(xp: Library, gradients: Sequence[Any], given: Arrays) -> Arrays:
    """Return the gradients in the shapes and dtypes of what they are of; None is 0."""
    return tuple(
        xp.zeros_like(array)
        if gradient is None
        else xp.astype(xp.reshape(gradient, tuple(array.shape)), array.dtype)
        for gradient, array in zip(gradients, given, strict=True)
    )


def _parts(run: Run, views: Views, settings: Regional) -> Iterator[Part]:
    if settings.alpha > 0:
        yield _global_part(len(views.embeddings), settings)
    if settings.alpha < 1:
        yield from _local_parts(run, views, settings)


def _global_part(views: int, settings: Regional) -> Part:
    # A pair of global views counts once each way. So where all are global, each counts the same.
    pairs = None if settings.num_global == views else tuple(settings.pairs(views))
    sides = tuple([(view, None)] for view in range(views))
    return Part(settings.alpha, True, sides, replace(settings.objective, pairs=pairs))


class _Matched(NamedTuple):
    """What is kept of the matches of two views, one way."""

    own: tuple[int, Selection]
    other: tuple[int, Selection]
    kept: int
    share: float  # among the ways of its kind


def _local_parts(run: Run, views: Views, settings: Regional) -> Iterator[Part]:
    """Yield the terms of matched places, those of as many matches together.

    Together they are no more than the places of the largest map, so that no array is larger than
    those of one map. Those that have the same statistics are never joined.
    """
    pairs = list(settings.pairs(len(views.maps)))
    most = max(array.shape[1] for array in views.maps) if settings.statistics == "place" else 0
    waiting: dict[tuple[int, float], list[_Matched]] = {}
    for view, other in pairs:
        for matched in _matched(run, views, settings, view, other):
            kind = (matched.kept, matched.share)
            group = waiting.setdefault(kind, [])
            group.append(matched)
            if (len(group) + 1) * matched.kept > most:
                yield _local_part(waiting.pop(kind), len(pairs), settings)
    for group in waiting.values():
        yield _local_part(group, len(pairs), settings)


def _local_part(group: Sequence[_Matched], pairs: int, settings: Regional) -> Part:
    sides = [matched.own for matched in group], [matched.other for matched in group]
    share = (1.0 - settings.alpha) * group[0].share * len(group) / pairs
    return Part(share, False, sides, settings.of_matches)


def _matched(
    run: Run, views: Views, settings: Regional, view: int, other: int
) -> Iterator[_Matched]:
    """Yield the matches of two views by features and by locations, each way that is taken."""
    xp, dtype = run.xp, views.maps[0].dtype
    between_features = matching.FEATURE_DISTANCES[settings.feature_distance]
    for arrays, distances_between, counts in (
        (views.maps, between_features, settings.feature_matches),
        (views.locations, matching.between_locations, settings.location_matches),
    ):
        ways = sum(count != 0 for count in counts)
        if not ways:
            continue
        distances = distances_between(xp, *(xp.without_gradient(arrays[v]) for v in (view, other)))
        for (here, there), count in zip(((view, other), (other, view)), counts, strict=True):
            places = views.maps[here].shape[1]
            kept = places if count is None else min(count, places)
            if kept:
                matches = matching.nearest(xp, distances, kept, settings.match_order, dtype)
                yield _Matched((here, matches.own), (there, matches.other), kept, 1.0 / ways)
            distances = xp.matrix_transpose(distances)


def _sides(xp: Library, views: Views, part: Part) -> Arrays:
    """Return the views ``(n, M, c)`` that the terms of a part are of, and the weights if any."""
    arrays = views.embeddings if part.is_global else views.maps
    return (*(_joined(xp, arrays, side) for side in part.sides), *views.sample_weight)


def _joined(xp: Library, arrays: Arrays, side: Side) -> Array:
    selected = [matching.select(xp, selection, arrays[view]) for view, selection in side]
    return selected[0] if len(selected) == 1 else xp.concat(selected, axis=1)


def _put_back(xp: Library, side: Side, change: Array, gradients: list[Any]) -> None:
    """Add the gradient by one side to those of the views that it is made of."""
    count = change.shape[1] // len(side)
    for place, (view, selection) in enumerate(side):
        own = change[:, place * count : (place + 1) * count, :]
        gradients[view] = sums.plus(gradients[view], matching.put_back(xp, selection, own))
