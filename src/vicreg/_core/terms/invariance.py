"""The invariance: the mean squared distance between two views of a sample.

Over the pairs of k views, Σ_{a<b} ‖z_a − z_b‖² = k Σ_a ‖z_a − z̄‖²: linear in k. So with more than
two views the differences are those from the mean of the views,

    E = Σ_a ‖z_a − z̄‖²,            ∂E/∂z_a = 2 (z_a − z̄)

and with two they are one, E = ‖z_1 − z_2‖², ∂E/∂z_1 = 2 (z_1 − z_2) = −∂E/∂z_2.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vicreg._core import memory, sums
from vicreg._core.samples import Samples
from vicreg._core.terms.base import Term

Array = Any


@dataclass(frozen=True)
class Invariance(Term):
    """`coefficient` times E."""

    coefficient: Any  # a number, or an array of shape ()

    def differences(self, views: Sequence[Samples]) -> list[Array]:
        """Return the difference of two views; of more, each less their mean."""
        first, *others = (samples.z for samples in views)
        if len(others) == 1:
            return [first - others[0]]
        # From the first view, so that the mean is rounded on the scale of the differences.
        from_first = [view - first for view in others]
        mean = sums.total(from_first) / len(views)
        return [-mean, *(memory.subtract(views[0].xp, array, mean) for array in from_first)]

    def between_views(self, views: Sequence[Samples], differences: list[Array]) -> Array:
        """Return the term."""
        return self.coefficient * views[0].total_of_squares(differences)

    def add_gradients(
        self,
        views: Sequence[Samples],
        differences: list[Array],
        cotangent: Any,
        gradients: list[Array | None],
        wanted: Sequence[bool],
        in_place: bool,
    ) -> None:
        """Add `cotangent` times the gradient."""
        xp = views[0].xp
        add = functools.partial(memory.add, xp) if in_place else operator.add
        subtract = functools.partial(memory.subtract, xp) if in_place else operator.sub
        factor = views[0].of_each(2.0 * self.coefficient * cotangent)
        scaled = [memory.multiply(xp, array, factor) for array in differences]
        # The first view last: its gradient may be the difference itself.
        for place in reversed([place for place, is_wanted in enumerate(wanted) if is_wanted]):
            gradient = gradients[place]
            if place < len(scaled):
                change = scaled[place]
                gradients[place] = change if gradient is None else add(gradient, change)
            else:  # the second of two
                (change,) = scaled
                gradients[place] = -change if gradient is None else subtract(gradient, change)
