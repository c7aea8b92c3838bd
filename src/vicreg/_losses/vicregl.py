"""The public functions of VICRegL: whole embeddings, and matched places of their maps."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from vicreg._adapters.dispatch import adapter_for, device_of, library_of
from vicreg._checks import CheckedWeights, checked_library, checked_objective
from vicreg._conventions import checked_number
from vicreg._core import local
from vicreg._core.communicator import Communicator
from vicreg._core.local import Regional, Views
from vicreg._typing import Array, ArrayT, Method

__all__ = ["vicregl_loss", "vicregl_value_and_grad"]


def vicregl_loss(
    embeddings: Sequence[ArrayT],
    maps: Sequence[ArrayT],
    locations: Sequence[ArrayT],
    *,
    num_global: int = 2,
    alpha: float = 0.75,
    num_matches: tuple[int, int] = (20, 4),
    feature_matches: tuple[int, int] | None = None,
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
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
      the two directions and the pairs; those by features and those by locations are added.

    It can be differentiated as `vicreg_loss` can, by the embeddings and the maps. The choice of
    matches has no derivative.

    Parameters
    ----------
    embeddings : sequence of arrays, each of shape (n, d)
        One for each view of the same n samples, the global views first.
    maps : sequence of arrays, each of shape (n, height, width, c) or (n, places, c)
        The feature maps of the same views. They may differ in the number of places.
    locations : sequence of arrays, each of shape (n, height, width, 2) or (n, places, 2)
        Where each place of a map is in the whole image.
    num_global : int, optional
        How many of the views, the first ones, are global.
    alpha : float, optional
        The share of the global part, from 0 to 1. A part whose share is 0 is not computed.
    num_matches : tuple of two int, optional
        How many places are matched by location: of the first view of a pair, and of the other.
        They are those with the nearest matches. A map with fewer places keeps all.
    feature_matches : tuple of two int, optional
        Likewise by features. None keeps all places.
    invariance_weight, variance_weight, covariance_weight : float or array of shape (), optional
        As in `vicreg_loss`. None is 25, 25 and 1.
    gamma, eps, method, comm : optional
        As in `vicreg_loss`. None is an `eps` of 1e-4.

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
        to the number of views; `alpha` is not from 0 to 1; a count is below 1; the shapes do not
        go together; all else as in `vicreg_loss`.

    Notes
    -----
    The source is Bardes, Ponce, LeCun, "VICRegL: Self-Supervised Learning of Local Visual
    Features", arXiv 2210.01571, as facebookresearch/VICRegL computes it. What others compute:

    - lightly's ``VICRegLLoss`` orders the matches by their distance, where here they keep the
      order of the places. That changes which places share statistics, so the variance and the
      covariance differ as soon as not all places are kept. By features it keeps as many as
      `num_matches`; ``feature_matches=num_matches`` does so here.
    - jolibrain's orders likewise.
    - stable-pretraining takes the cosine for the distance of features, takes statistics over all
      places together, and has nothing by location.

    There is no ``sample_weight=``: all places of all samples count.

    Where several matches are equally near the first place is taken, and of equal distances the
    first places are kept. No array is larger than the distances, (n, places, places), apart from
    those of the terms.

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
    counts = (num_matches, feature_matches)
    given = (invariance_weight, variance_weight, covariance_weight)
    views, settings, weights = _checked(
        (embeddings, maps, locations), num_global, alpha, counts, given, gamma, eps, method, comm
    )
    loss: ArrayT = adapter_for(settings.library).apply(local.value, views, weights, settings)
    return loss


def vicregl_value_and_grad(
    embeddings: Sequence[ArrayT],
    maps: Sequence[ArrayT],
    locations: Sequence[ArrayT],
    *,
    num_global: int = 2,
    alpha: float = 0.75,
    num_matches: tuple[int, int] = (20, 4),
    feature_matches: tuple[int, int] | None = None,
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    comm: Communicator | None = None,
) -> tuple[ArrayT, tuple[tuple[ArrayT, ...], tuple[ArrayT, ...]]]:
    """Return the loss of VICRegL and its exact gradients.

    The gradients are computed in closed form, without automatic differentiation, so that every
    library has them.

    Parameters
    ----------
    embeddings : sequence of arrays, each of shape (n, d)
        As in `vicregl_loss`.
    maps, locations : sequence of arrays
        As in `vicregl_loss`.
    num_global, alpha, num_matches, feature_matches : optional
        As in `vicregl_loss`.
    invariance_weight, variance_weight, covariance_weight : float or array of shape (), optional
        As in `vicregl_loss`.
    gamma, eps, method, comm : optional
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
    counts = (num_matches, feature_matches)
    given = (invariance_weight, variance_weight, covariance_weight)
    views, settings, weights = _checked(
        (embeddings, maps, locations), num_global, alpha, counts, given, gamma, eps, method, comm
    )
    adapter = adapter_for(settings.library)
    loss, gradients = adapter.apply(local.value_and_grad, views, weights, settings)
    return loss, gradients


def checked_settings(
    library: str,
    num_global: Any,
    alpha: Any,
    counts: tuple[Any, Any],
    *of_objective: Any,
) -> tuple[Regional, CheckedWeights]:
    """Return what these settings of VICRegL describe, and the terms' weights."""
    weights, gamma, eps, method, comm = of_objective
    objective, checked = checked_objective("vicregl", weights, gamma, eps, method, (-1, 0), comm)
    share = checked_number(alpha, "alpha")
    if share > 1:
        raise ValueError(f"alpha must be from 0 to 1; got {alpha!r}")
    by_location, by_features = counts
    settings = Regional(
        library,
        objective,
        _checked_count(num_global, "num_global"),
        share,
        _checked_counts(by_location, "num_matches"),
        (None, None) if by_features is None else _checked_counts(by_features, "feature_matches"),
    )
    return settings, checked


def _checked_counts(given: Any, argument: str) -> tuple[int, int]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{argument} must be two integers; got {given!r}")
    if len(given) != 2:
        raise ValueError(f"{argument} must be two integers; got {given!r}")
    return _checked_count(given[0], argument), _checked_count(given[1], argument)


def _checked_count(given: Any, argument: str) -> int:
    try:
        count = operator.index(given)
    except TypeError:
        raise TypeError(f"{argument} must be of integers; got {given!r}") from None
    if count < 1:
        raise ValueError(f"{argument} must be 1 or more; got {given!r}")
    return count


_NAMES = ("embeddings", "maps", "locations")


def _checked(
    given: tuple[Any, Any, Any], *settings: Any
) -> tuple[Views, Regional, CheckedWeights]:
    for name, arrays in zip(_NAMES, given, strict=True):
        if not isinstance(arrays, (list, tuple)):
            raise TypeError(
                f"{name} must be a list or a tuple of arrays, one for each view; got "
                f"{type(arrays).__name__}"
            )
        if len(arrays) != len(given[0]):
            raise ValueError(
                f"{name} must be as many as embeddings, {len(given[0])}; got {len(arrays)}"
            )
    views = Views(*(tuple(arrays) for arrays in given))
    if len(views.embeddings) < 2:
        raise ValueError(f"embeddings must be of two or more views; got {len(views.embeddings)}")
    library = library_of(views.embeddings[0])
    regional, weights = checked_settings(str(library), *settings)
    if regional.num_global > len(views.embeddings):
        raise ValueError(
            f"num_global must be at most the number of views, {len(views.embeddings)}; got "
            f"{regional.num_global}"
        )
    _check_arrays(views, regional, weights)
    return views, regional, weights


def _check_arrays(views: Views, regional: Regional, weights: CheckedWeights) -> None:
    names = [f"embeddings[{place}]" for place in range(len(views.embeddings))]
    objective = regional.objective
    library = checked_library(views.embeddings, names, objective, weights)
    first = views.embeddings[0]
    if first.ndim != 2:
        raise ValueError(f"embeddings must have the shape (n, d); got {tuple(first.shape)}")
    for view, (array, places) in enumerate(zip(views.maps, views.locations, strict=True)):
        for name, one in ((f"maps[{view}]", array), (f"locations[{view}]", places)):
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
        wanted = (*array.shape[:-1], 2)
        if tuple(places.shape) != wanted:
            raise ValueError(
                f"locations[{view}] must have the shape {wanted}, two coordinates for each place "
                f"of maps[{view}]; got {tuple(places.shape)}"
            )
