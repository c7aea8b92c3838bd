"""What a batch over several ranks costs by each route, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Route = Literal["gram", "covariance"]

#: How many multiply-adds take as long as to send one number: some 80 on one core with all ranks on
#: one machine, 2600 on an H100 with 50 GB/s between machines.
MULTIPLY_ADDS_PER_NUMBER = 256


@dataclass(frozen=True)
class Cost:
    """Of one view and its gradient, on each rank.

    Parameters
    ----------
    sent : float
        How many numbers a rank sends; as many arrive. A ring sends a sum twice.
    multiply_adds : float
    """

    sent: float
    multiply_adds: float

    @property
    def together(self) -> float:
        """Both, in multiply-adds."""
        return self.sent * MULTIPLY_ADDS_PER_NUMBER + self.multiply_adds


def cost(route: Route, n: int, d: int, ranks: int) -> Cost:
    """Return what `n` samples of `d` features cost, spread evenly over `ranks`."""
    others, own = (ranks - 1) / ranks, n / ranks
    if route == "gram":
        return Cost(others * n * d, 2 * own * n * d)
    return Cost(2 * others * d * d, 2 * own * d * d)


def cheaper_route(n: int, d: int, ranks: int) -> Route:
    """Return the route that costs less, the Gram route where both cost the same."""
    gram, covariance = (cost(route, n, d, ranks) for route in ("gram", "covariance"))
    return "gram" if gram.together <= covariance.together else "covariance"
