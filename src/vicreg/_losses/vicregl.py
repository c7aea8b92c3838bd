"""The public functions of VICRegL: whole embeddings, and matched places of their maps."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from vicreg._adapters.dispatch import adapter_for, device_of, library_of
from vicreg._checks import (
    CheckedWeights,
    check_values_of_weight,
    checked_library,
    checked_objective,
    checked_sample_weight,
    with_weights,
)
from vicreg._conventions import checked_number
from vicreg._core import local
from vicreg._core.communicator import Communicator, Local
from vicreg._core.local import Regional, Views
from vicreg._typing import (
    Array,
    ArrayT,
    Counts,
    FeatureDistance,
    MatchOrder,
    Method,
    Statistics,
)

__all__ = ["vicregl_loss", "vicregl_value_and_grad"]


def vicregl_loss(
    embeddings: Sequence[ArrayT],
    maps: Sequence[ArrayT],
    locations: Sequence[ArrayT] | None,
    *,
    num_global: int = 2,
    alpha: float = 0.75,
    num_matches: Counts = (20, 4),
    feature_matches: Counts = None,
    match_order: MatchOrder = "place",
    feature_distance: FeatureDistance = "euclidean",
    statistics: Statistics = "place",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    sample_weight: Array | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the loss of VICRegL: of embeddings of whole views, and of places of their maps.

    The loss is ``alpha`` times the global part plus ``1 - alpha`` times the local part. In both,
    each of the first `num_global` views is paired with each other view.

    - Global: the invariance is averaged over the pairs, the variance and the covariance over the
      views.
    - Local: each place of one map is matched with the nearest place of the other, once by their
      features and once by their locations. The matches are taken as samples' positions: the k-th
      match of every sample has statistics of its own. The terms are averaged over the matches,
      the directions and the pairs; those by features and those by locations are added.

    It can be differentiated as `vicreg_loss` can, by the embeddings and the maps. The choice of
    matches has no derivative.

    Parameters
    ----------
    embeddings : sequence of arrays, each of shape (n, d)
        One for each view of the same n samples, the global views first.
    maps : sequence of arrays, each of shape (n, height, width, c) or (n, places, c)
        The feature maps of the same views. They may differ in the number of places.
    locations : sequence of arrays, each of shape (n, height, width, 2) or (n, places, 2), or None
        Where each place of a map is in the whole image. It may be None where `num_matches` is
        (0, 0).
    num_global : int, optional
        How many of the views, the first ones, are global.
    alpha : float, optional
        The share of the global part, from 0 to 1. A part whose share is 0 is not computed.
    num_matches : tuple of two, each int or None, optional
        How many places are matched by location: of the first view of a pair, and of the other.
        They are those with the nearest matches. A map with fewer places keeps all, and None is
        all; a direction of 0 is left out. (0, 0) leaves out the matches by location, as
        stable-pretraining does.
    feature_matches : tuple of two, each int or None, optional
        Likewise by features; None keeps all places both ways. lightly keeps as many as by
        location: ``feature_matches=(20, 4)``. stable-pretraining matches one way alone:
        ``feature_matches=(None, 0)``, with a `num_global` of 1.
    match_order : {"place", "distance"}, optional
        In which order the kept matches are, and so which of them share statistics: in the order
        of the places of the first map, or the nearest first. lightly and jolibrain/vicreg-loss
        order them by distance.
    feature_distance : {"euclidean", "cosine"}, optional
        Which features are the nearest: those of the least Euclidean distance, or of the largest
        cosine. stable-pretraining takes the cosine.
    statistics : {"place", "all", "sample"}, optional
        Of what the variance and the covariance are: of each match by itself, over the samples; of
        all matches of two maps together, in one direction, as in stable-pretraining; or of each
        sample by itself, over its matches, as in jolibrain/vicreg-loss. "sample" needs two or
        more matches, and takes no `sample_weight` and no `comm` but ``LOCAL``.
    invariance_weight, variance_weight, covariance_weight : float or array of shape (), optional
        As in `vicreg_loss`. None is 25, 25 and 1.
    gamma, eps, method : optional
        As in `vicreg_loss`. None is an `eps` of 1e-4.
    sample_weight : array, shape (n,), optional
        How often each sample occurs, as in `vicreg_loss`: in both parts, and with all its places.
    comm : Communicator, optional
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The loss, on the device of the arrays and in their dtype; in float32 for float16 or
        bfloat16.

    Raises
    ------
    TypeError
        An argument is no sequence of arrays; the arrays differ in library or dtype; a count is
        no integer; all else as in `vicreg_loss`.
    ValueError
        There are fewer than two views; the sequences differ in length; `num_global` is not from 1
        to the number of views; `alpha` is not from 0 to 1; a count is below 0, or all are 0;
        `match_order`, `feature_distance` or `statistics` is none of its choices; `statistics` is
        "sample" where a map or a count has one match, or with `sample_weight` or `comm`; the
        shapes do not go together; all else as in `vicreg_loss`.

    Notes
    -----
    The source is Bardes, Ponce, LeCun, "VICRegL: Self-Supervised Learning of Local Visual
    Features", arXiv 2210.01571, as facebookresearch/VICRegL computes it. Others compute other
    functions:

    - lightly's ``VICRegLLoss`` is ``match_order="distance", feature_matches=num_matches``.
    - stable-pretraining's ``VICRegL``, which has two views, is ``num_global=1, num_matches=(0, 0),
      feature_matches=(None, 0), feature_distance="cosine", statistics="all"`` and, since it adds
      the covariance of two views up, ``covariance_weight=2``.
    - jolibrain/vicreg-loss is ``match_order="distance", statistics="sample", eps=0`` with both
      counts of matches (10, 10). It takes the mean of the matches by features and by location,
      where they are added here. So its weights of 25, 15 and 1 and its share of the embeddings a,
      which is 0.75, are ``alpha=2 * a / (1 + a)`` and its weights times ``(1 + a) / 2``.

    A `sample_weight` is of whole samples: the places of one sample all have the same weight.

    Where several matches by location are equally near the first place is taken, and of equal
    distances the first places are kept. Distances of features are rounded: of places with the
    same features any may be taken, and of two equal maps any places kept, as each library rounds.

    With P the places of the largest map, the matching makes no array larger than the distances,
    (n, P, P), or that map, (n, P, c), and the terms are of at most P matches at once.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicregl_loss
    >>> rng = np.random.default_rng(0)
    >>> embeddings = rng.standard_normal((2, 32, 16))
    >>> maps = rng.standard_normal((2, 32, 7, 7, 8))
    >>> locations = rng.uniform(size=(2, 32, 7, 7, 2))
    >>> print(f"{vicregl_loss(list(embeddings), list(maps), list(locations)):.3f}")
    53.205
    """
    matching = (num_matches, feature_matches, match_order, feature_distance, statistics)
    given = (invariance_weight, variance_weight, covariance_weight)
    views, settings, weights = _checked(
        (embeddings, maps, locations),
        sample_weight,
        *(num_global, alpha, matching, given, gamma, eps, method, comm),
    )
    loss: ArrayT = adapter_for(settings.library).apply(local.value, views, weights, settings)
    return loss


def vicregl_value_and_grad(
    embeddings: Sequence[ArrayT],
    maps: Sequence[ArrayT],
    locations: Sequence[ArrayT] | None,
    *,
    num_global: int = 2,
    alpha: float = 0.75,
    num_matches: Counts = (20, 4),
    feature_matches: Counts = None,
    match_order: MatchOrder = "place",
    feature_distance: FeatureDistance = "euclidean",
    statistics: Statistics = "place",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    sample_weight: Array | None = None,
    comm: Communicator | None = None,
) -> tuple[ArrayT, tuple[tuple[ArrayT, ...], tuple[ArrayT, ...]]]:
    """Return the loss of VICRegL and its exact gradients.

    The gradients are computed in closed form, without automatic differentiation, so that every
    library has them.

    Parameters
    ----------
    embeddings : sequence of arrays, each of shape (n, d)
        As in `vicregl_loss`.
    maps, locations : sequence of arrays; None for no locations
        As in `vicregl_loss`.
    num_global, alpha, num_matches, feature_matches, match_order, feature_distance, \
statistics : optional
        As in `vicregl_loss`.
    invariance_weight, variance_weight, covariance_weight : float or array of shape (), optional
        As in `vicregl_loss`.
    gamma, eps, method, sample_weight, comm : optional
        As in `vicregl_loss`.

    Returns
    -------
    loss : array, shape ()
        What `vicregl_loss` returns.
    gradients : tuple of two tuples of arrays, of the shapes of `embeddings` and `maps`
        One for each embedding, and one for each map, in its dtype and on its device.

    Raises
    ------
    TypeError, ValueError
        As in `vicregl_loss`.

    Notes
    -----
    This is the derivative of the loss of Bardes, Ponce, LeCun (arXiv 2210.01571). The choice of
    matches has no derivative, and nor have the locations.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicregl_value_and_grad
    >>> rng = np.random.default_rng(0)
    >>> embeddings = rng.standard_normal((2, 32, 16))
    >>> maps = rng.standard_normal((2, 32, 7, 7, 8))
    >>> locations = rng.uniform(size=(2, 32, 7, 7, 2))
    >>> loss, (of_embeddings, of_maps) = vicregl_value_and_grad(
    ...     list(embeddings), list(maps), list(locations)
    ... )
    >>> of_maps[1].shape
    (32, 7, 7, 8)
    """
    matching = (num_matches, feature_matches, match_order, feature_distance, statistics)
    given = (invariance_weight, variance_weight, covariance_weight)
    views, settings, weights = _checked(
        (embeddings, maps, locations),
        sample_weight,
        *(num_global, alpha, matching, given, gamma, eps, method, comm),
    )
    adapter = adapter_for(settings.library)
    loss, gradients = adapter.apply(local.value_and_grad, views, weights, settings)
    return loss, gradients


def checked_settings(
    library: str,
    num_global: Any,
    alpha: Any,
    matching: tuple[Any, Any, Any, Any, Any],
    *of_objective: Any,
    weighted: bool = False,
) -> tuple[Regional, CheckedWeights]:
    """Return what these settings of VICRegL describe, and the terms' weights.

    `matching` are `num_matches`, `feature_matches`, `match_order`, `feature_distance` and
    `statistics`. `weighted` says whether there is a `sample_weight`.
    """
    weights, gamma, eps, method, comm = of_objective
    objective, checked = checked_objective(
        *("vicregl", weights, gamma, eps, method, (-1, 0), comm), weighted=weighted
    )
    share = checked_number(alpha, "alpha")
    if share > 1:
        raise ValueError(f"alpha must be from 0 to 1; got {alpha!r}")
    by_location, by_features, match_order, feature_distance, statistics = matching
    settings = Regional(
        library,
        objective,
        _checked_count(num_global, "num_global", least=1),
        share,
        _checked_counts(by_location, "num_matches"),
        _checked_counts(by_features, "feature_matches"),
        _checked_choice(match_order, "match_order", get_args(MatchOrder)),
        _checked_choice(feature_distance, "feature_distance", get_args(FeatureDistance)),
        _checked_choice(statistics, "statistics", get_args(Statistics)),
    )
    if share < 1 and not settings.matches_by_location and settings.feature_matches == (0, 0):
        raise ValueError(
            "num_matches and feature_matches must not both be (0, 0) where alpha is below 1, as "
            f"nothing would be matched; got alpha={alpha!r}"
        )
    if settings.statistics == "sample":
        _check_of_each_sample(settings)
    return settings, checked


_OF_EACH_SAMPLE = "where statistics is 'sample', those of each sample over its matches"


def _check_of_each_sample(settings: Regional) -> None:
    if settings.objective.weighted:
        raise ValueError(f"sample_weight must be None {_OF_EACH_SAMPLE}")
    comm = settings.objective.comm
    if not (comm is None or isinstance(comm, Local)):
        raise ValueError(f"comm must be None or LOCAL {_OF_EACH_SAMPLE}; got {comm!r}")
    for argument, counts in (
        ("num_matches", settings.location_matches),
        ("feature_matches", settings.feature_matches),
    ):
        if 1 in counts:
            raise ValueError(f"{argument} must not have a 1 {_OF_EACH_SAMPLE}; got {counts!r}")


def _checked_choice(given: Any, argument: str, choices: tuple[Any, ...]) -> Any:
    if not isinstance(given, str) or given not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{argument} must be {', '.join(others)} or {last}; got {given!r}")
    return given


def _checked_counts(given: Any, argument: str) -> tuple[int | None, int | None]:
    if given is None:
        return (None, None)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{argument} must be two integers, or None for all; got {given!r}")
    if len(given) != 2:
        raise ValueError(f"{argument} must be two integers, or None for all; got {given!r}")
    one, other = (
        None if count is None else _checked_count(count, argument, least=0) for count in given
    )
    return one, other


def _checked_count(given: Any, argument: str, least: int) -> int:
    try:
        count = operator.index(given)
    except TypeError:
        raise TypeError(f"{argument} must be of integers; got {given!r}") from None
    if count < least:
        raise ValueError(f"{argument} must be {least} or more; got {given!r}")
    return count


_NAMES = ("embeddings", "maps", "locations")


def _checked(
    given: tuple[Any, Any, Any], sample_weight: Array | None, *settings: Any
) -> tuple[Views, Regional, CheckedWeights]:
    for name, arrays in zip(_NAMES, given, strict=True):
        if name == "locations" and arrays is None:
            continue
        if not isinstance(arrays, (list, tuple)):
            raise TypeError(
                f"{name} must be a list or a tuple of arrays, one for each view; got "
                f"{type(arrays).__name__}"
            )
        if len(arrays) != len(given[0]):
            raise ValueError(
                f"{name} must be as many as embeddings, {len(given[0])}; got {len(arrays)}"
            )
    embeddings, maps, locations = (tuple(arrays or ()) for arrays in given)
    of_samples = () if sample_weight is None else (sample_weight,)
    views = Views(embeddings, maps, locations, of_samples)
    if len(views.embeddings) < 2:
        raise ValueError(f"embeddings must be of two or more views; got {len(views.embeddings)}")
    library = library_of(views.embeddings[0])
    regional, weights = checked_settings(str(library), *settings, weighted=bool(of_samples))
    if regional.num_global > len(views.embeddings):
        raise ValueError(
            f"num_global must be at most the number of views, {len(views.embeddings)}; got "
            f"{regional.num_global}"
        )
    if regional.matches_by_location and not views.locations:
        raise TypeError(
            "locations must be a list or a tuple of arrays, one for each view, unless num_matches "
            "is (0, 0); got None"
        )
    _check_arrays(views, regional, weights)
    for weight in of_samples:
        regional = replace(regional, objective=with_weights(regional.objective, weight))
    return views, regional, weights


def _check_arrays(views: Views, regional: Regional, weights: CheckedWeights) -> None:
    names = [f"embeddings[{place}]" for place in range(len(views.embeddings))]
    objective = regional.objective
    library = checked_library(views.embeddings, names, objective, weights)
    first = views.embeddings[0]
    if first.ndim != 2:
        raise ValueError(f"embeddings must have the shape (n, d); got {tuple(first.shape)}")
    for weight in views.sample_weight:
        checked_sample_weight(weight, first, names[0], objective.axes, library)
    for view, (array, places) in enumerate(itertools.zip_longest(views.maps, views.locations)):
        for name, one in ((f"maps[{view}]", array), (f"locations[{view}]", places)):
            if one is None:
                continue
            # By itself, as the shapes differ from view to view.
            its_library = checked_library((one,), (name,), objective)
            if its_library != library:
                raise TypeError(
                    f"{name} must have the library of embeddings[0], {library}; got {its_library}"
                )
            here, there = device_of(first, library), device_of(one, library)
            if here is not None and there is not None and here != there:
                raise ValueError(
                    f"{name} must have the device of embeddings[0], {here}; got {there}"
                )
            if one.ndim not in (3, 4):
                raise ValueError(
                    f"{name} must have the axes of samples, of one or two of places, and of "
                    f"features; got shape {tuple(one.shape)}"
                )
        if array.dtype != views.maps[0].dtype:
            raise TypeError(
                f"maps[{view}] must have the dtype of maps[0], {views.maps[0].dtype}; got "
                f"{array.dtype}"
            )
        n, c = first.shape[0], views.maps[0].shape[-1]
        if array.shape[0] != n or array.shape[-1] != c:
            raise ValueError(
                f"maps[{view}] must be of {n} samples, as embeddings[0] is, and of {c} features, "
                f"as maps[0] is; got shape {tuple(array.shape)}"
            )
        if regional.statistics == "sample" and math.prod(array.shape[1:-1]) < 2:
            raise ValueError(
                f"maps[{view}] must have two places or more {_OF_EACH_SAMPLE}; got shape "
                f"{tuple(array.shape)}"
            )
        wanted = (*array.shape[:-1], 2)
        if places is not None and tuple(places.shape) != wanted:
            raise ValueError(
                f"locations[{view}] must have the shape {wanted}, two coordinates for each place "
                f"of maps[{view}]; got {tuple(places.shape)}"
            )
    for weight in views.sample_weight:  # the maps may be of a narrower dtype
        check_values_of_weight(weight, views.maps[0], library)
