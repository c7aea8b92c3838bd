"""What a batch over several ranks costs by each route, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Route = Literal["gram", "covariance"]

#: How many multiply-adds take as long as to send one number: some 80 on one core with all ranks on
#: one machine, 2600 on an H100 with 50 GB/s between machines.
MULTIPLY_ADDS_PER_NUMBER = 256


@dataclass(frozen=True)
class Cost:
    """Of a value with its gradient, for the rank with the most rows.

    Parameters
    ----------
    ranks : int
        How many ranks there are.
    gathered, reduced : int
        How many numbers a rank puts into gathers, and into sums over the ranks.
    multiply_adds : int
        Of the large products.
    """

    ranks: int
    gathered: int
    reduced: int
    multiply_adds: int

    @property
    def sent(self) -> float:
        """How many numbers a rank sends; as many arrive.

        The ranks are a ring: what is gathered passes through all others, and a sum goes around
        twice, in pieces.
        """
        others = self.ranks - 1
        return others * self.gathered + 2 * others / self.ranks * self.reduced

    @property
    def together(self) -> float:
        """Both, in multiply-adds."""
        return self.sent * MULTIPLY_ADDS_PER_NUMBER + self.multiply_adds


def cost(route: Route, counts: Sequence[int], d: int, views: int = 2) -> Cost:
    """Return what views of `d` features cost, of which the ranks have `counts` rows."""
    ranks, own, n = len(counts), max(counts), sum(counts)
    if route == "gram":  # the rows; Σ K² of each view and the invariance
        return Cost(ranks, views * own * d, views + 1, views * 2 * own * n * d)
    # A row and a mean; the variances and covariances of each view and the invariance.
    return Cost(ranks, views * 2 * d, views * (d + d * d) + 1, views * 2 * own * d * d)


def cheaper_route(counts: Sequence[int], d: int) -> Route:
    """Return the route that costs less, the Gram route where both cost the same."""
    gram, covariance = (cost(route, counts, d) for route in ("gram", "covariance"))
    return "gram" if gram.together <= covariance.together else "covariance"
