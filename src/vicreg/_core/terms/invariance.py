"""The invariance: the mean squared distance between two views of a sample, over pairs of views.

    E = Σ_{(a, b)} ‖z_a − z_b‖²,        ∂E/∂z_a = 2 Σ_b (z_a − z_b),

of which two views have one. Over all pairs of k views, Σ_{a<b} ‖z_a − z_b‖² = k Σ_a ‖z_a − z̄‖²:
linear in k. So there the differences are those from the mean of the views,

    E = Σ_a ‖z_a − z̄‖²,                 ∂E/∂z_a = 2 (z_a − z̄)
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
Pairs = tuple[tuple[int, int], ...]  # of the places of views


@dataclass(frozen=True)
class Invariance(Term):
    """`coefficient` times E, over `pairs` of views, or from their mean where these are None."""

    coefficient: Any  # a number, or an array of shape ()
    pairs: Pairs | None

    def differences(self, views: Sequence[Samples]) -> list[Array]:
        """Return the difference of each pair; without pairs each view less the mean of all."""
        z = [samples.z for samples in views]
        if self.pairs is None:
            return _from_mean(views[0], z)
        return [z[first] - z[second] for first, second in self.pairs]

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

        def plus(place: int, change: Array) -> None:
            gradient = gradients[place]
            if wanted[place]:
                gradients[place] = change if gradient is None else add(gradient, change)

        def minus(place: int, change: Array) -> None:
            gradient = gradients[place]
            if wanted[place]:
                gradients[place] = -change if gradient is None else subtract(gradient, change)

        factor = views[0].of_each(2.0 * self.coefficient * cotangent)
        if xp.fuses and self.pairs is not None:
            # The other way round, which no compiler takes for the differences of the value: one
            # that both use would be in memory from the first use to the last.
            scaled = [-factor * (views[b].z - views[a].z) for a, b in self.pairs]
        else:
            scaled = [memory.multiply(xp, array, factor) for array in differences]
        if self.pairs is None:
            for place, change in enumerate(scaled):
                plus(place, change)
            return
        for (first, second), change in zip(self.pairs, scaled, strict=True):
            # The first view last: its gradient may be the difference itself.
            minus(second, change)
            plus(first, change)


def _from_mean(samples: Samples, z: Sequence[Array]) -> list[Array]:
    # From the first view, so that the mean is rounded on the scale of the differences.
    first, *others = z
    from_first = [view - first for view in others]
    mean = sums.total(from_first) / len(z)
    return [-mean, *(memory.subtract(samples.xp, array, mean) for array in from_first)]
