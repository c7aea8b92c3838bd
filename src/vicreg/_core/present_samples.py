"""The samples that are present, taken by themselves where it can be asked which they are.

A sample of weight 0 may hold anything, and `SampleWeights` hides it. Where nothing is waited for
(NumPy, and PyTorch on a CPU, where nothing is traced) the others are taken by themselves instead.
That is one pass over them, and whatever follows works on them alone. Of a mask no weights are left
then: they are all 1.

It is not done where positions have weights of their own, nor where samples are on several ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._core.objective import Objective
from vicreg._core.sample_weights import of_each

Array = Any

_ROWS = Axes(features=(-1,))  # of views (n, d)


@dataclass(frozen=True)
class PresentSamples:
    """Views of the samples with a weight other than 0.

    Parameters
    ----------
    arrays : tuple of array
        The views, and after them the weights if `objective` has them.
    objective : Objective
        Of these arrays.
    places : array, shape (number of those samples,), or None
        Which samples they are. None is all: the views are those that were given.
    """

    arrays: tuple[Array, ...]
    objective: Objective
    places: Array | None

    def gradient(self, xp: Library, own: Array, view: Array, axes: Axes) -> Array:
        """Return the gradient by `view`, which was given: `own`, and 0 for all other samples."""
        if self.places is None:
            return own
        put_samples: Any = xp.put_samples
        rows = axes.core_shape(tuple(view.shape))[0]
        return axes.like_view(xp, put_samples(own, self.places, rows), view)


def select(xp: Library, arrays: Sequence[Array], objective: Objective) -> PresentSamples | None:
    """Return the samples that are present, None where they are not to be taken by themselves.

    What is taken is differentiable where the library differentiates. `arrays` are the views, and
    the weights of their samples if the objective has them.
    """
    views, weight = objective.split(arrays)
    if weight is None or objective.comm is not None or not objective.sizes.sees_values:
        return None
    axes = objective.axes
    shape = axes.core_shape(tuple(views[0].shape))
    if len(shape) > 2 or xp.put_samples is None or not xp.can_ask(weight):
        return None
    each = of_each(xp, weight, views[0], axes)[:, 0]
    (places,) = xp.nonzero(each)
    if places.shape[0] <= objective.correction:  # too few for a variance
        return None
    objective = replace(objective, all_present=True)
    if places.shape[0] < shape[0]:
        views = [xp.take(axes.in_order(xp, view), places, axis=0) for view in views]
        each, objective = xp.take(each, places, axis=0), replace(objective, axes=_ROWS)
        weight = each
    else:
        places = None
    if xp.all(each == 1):
        return PresentSamples(tuple(views), replace(objective, weighted=False), places)
    return PresentSamples((*views, weight), objective, places)
