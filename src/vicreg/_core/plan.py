"""What a batch over several ranks costs by each route, from shapes alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Route = Literal["gram", "covariance"]
_ROUTES: tuple[Route, ...] = ("gram", "covariance")

#: How many multiply-adds take as long as to send one byte: some 20 on one core with all ranks on
#: one machine, 650 on an H100 with 50 GB/s between machines.
MULTIPLY_ADDS_PER_BYTE = 64


@dataclass(frozen=True)
class Cost:
    """What one call for a loss and its gradient costs, on the rank with the most rows.

    Parameters
    ----------
    bytes_sent : int
        The bytes that the rank sends; it receives as many.
    multiply_adds : int
        The multiply-adds of its matrix products.
    """

    bytes_sent: int
    multiply_adds: int

    @property
    def together(self) -> int:
        """Both costs together, in multiply-adds."""
        return self.bytes_sent * MULTIPLY_ADDS_PER_BYTE + self.multiply_adds


def cost(route: Route, counts: Sequence[int], d: int, views: int = 2, itemsize: int = 4) -> Cost:
    """Return what a batch of `d` features costs that has `counts` rows on its ranks.

    Sent around a ring, as large arrays are. What each rank has for all others passes through each
    of them but the last; of a sum, first the parts of it and then the whole.
    """
    ranks, most = len(counts), max(counts)
    number = max(itemsize, 4)  # half precision is computed in float32
    if route == "gram":
        gathered, summed = most * d * itemsize, number  # its rows; the squares of K
        multiply_adds = 2 * most * sum(counts) * d
    else:
        # Its shift and its mean less that; the energies and the covariances of the features.
        gathered, summed = 2 * d * number, (d + d * d) * number
        multiply_adds = 2 * most * d * d
    invariance = number
    in_parts = 2 * (ranks - 1) * (views * summed + invariance) / ranks
    sent = (ranks - 1) * views * gathered + math.ceil(in_parts)
    return Cost(sent, views * multiply_adds)


def cheaper_route(counts: Sequence[int], d: int) -> Route:
    """Return the route that costs less, the Gram route where both cost the same."""
    return min(_ROUTES, key=lambda route: cost(route, counts, d).together)


@dataclass(frozen=True)
class Plan:
    """How the loss of a batch over several ranks is computed, and what that costs.

    `plan` returns it, and ``print`` shows the costs of both routes.

    Parameters
    ----------
    n_per_rank : tuple of int
        The rows of each rank.
    d, views, itemsize : int
        The number of features, the number of views, and the bytes of one number.
    route : {"gram", "covariance"}
        The route that is taken: by the n × n Gram matrix, or by the d × d covariance.

    Examples
    --------
    >>> from vicreg.distributed import plan
    >>> planned = plan(256, 4096, world_size=2)
    >>> planned.route, planned.bytes_sent, planned.multiply_adds
    ('gram', 8388620, 2147483648)
    >>> planned.cost_of("covariance").bytes_sent
    134316036
    """

    n_per_rank: tuple[int, ...]
    d: int
    views: int
    itemsize: int
    route: Route

    @property
    def bytes_sent(self) -> int:
        """The bytes that one rank sends in a call; it receives as many."""
        return self.cost_of(self.route).bytes_sent

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds in the matrix products of the rank with the most rows."""
        return self.cost_of(self.route).multiply_adds

    def cost_of(self, route: Route) -> Cost:
        """Return what a route costs, whether it is taken or not.

        Parameters
        ----------
        route : {"gram", "covariance"}
            The route.

        Returns
        -------
        Cost
            Its `bytes_sent`, in bytes, and its `multiply_adds`.
        """
        return cost(route, self.n_per_rank, self.d, self.views, self.itemsize)

    def __str__(self) -> str:
        ranks = len(self.n_per_rank)
        lines = [
            f"{sum(self.n_per_rank):,} samples on {ranks:,} rank{'s' if ranks > 1 else ''}, "
            f"{self.d:,} features, {self.views} views, {self.itemsize} bytes a number",
            "              sent by a rank   computed by a rank",
        ]
        for route in _ROUTES:
            of_route = self.cost_of(route)
            sent = f"{_readable(of_route.bytes_sent)}B"
            computed = f"{_readable(2 * of_route.multiply_adds)}FLOP"
            mark = "  <- taken" if route == self.route else ""
            lines.append(f"{route:<10}  {sent:>16}  {computed:>19}{mark}")
        return "\n".join(lines)


def plan(
    n_per_rank: int | Sequence[int],
    d: int,
    world_size: int,
    *,
    views: int = 2,
    itemsize: int = 4,
    method: str = "auto",
) -> Plan:
    """Return what the loss of a batch over several ranks will send and compute, from its shape.

    Nothing is computed and no ranks are needed. One call for the value and the gradient is
    counted: the bytes that a rank sends, and the multiply-adds of its matrix products. Two small
    messages are left out: the header of each call, 15 numbers for each other rank, and an exchange
    before the first call with a shape.

    Parameters
    ----------
    n_per_rank : int or sequence of int
        The number of rows of each rank, or one number if all have the same.
    d : int
        The number of features.
    world_size : int
        The number of ranks.
    views : int, optional
        The number of views; 1 for VCReg.
    itemsize : int, optional
        The bytes of one number of the views: 4 for float32.
    method : {"auto", "gram", "covariance"}, optional
        As in `vicreg.vicreg_loss`. "auto" takes the route that costs less.

    Returns
    -------
    Plan
        The route that the loss takes, with the costs of both; ``print`` shows them.

    Raises
    ------
    TypeError
        An argument that must be an integer is not.
    ValueError
        An integer is too small, `n_per_rank` has not `world_size` numbers, or `method` is none of
        the three.

    Examples
    --------
    >>> from vicreg.distributed import plan
    >>> print(plan(256, 4096, world_size=2))
    512 samples on 2 ranks, 4,096 features, 2 views, 4 bytes a number
                  sent by a rank   computed by a rank
    gram                 8.39 MB           4.29 GFLOP  <- taken
    covariance            134 MB           34.4 GFLOP
    >>> plan(4096, 256, world_size=8).route
    'covariance'
    """
    d, world_size, views, itemsize = (
        _integer(value, name, 1)
        for value, name in (
            (d, "d"),
            (world_size, "world_size"),
            (views, "views"),
            (itemsize, "itemsize"),
        )
    )
    if isinstance(n_per_rank, Sequence):
        counts = tuple(_integer(n, "n_per_rank", 0) for n in n_per_rank)
    else:
        counts = (_integer(n_per_rank, "n_per_rank", 0),) * world_size
    if len(counts) != world_size:
        raise ValueError(
            f"n_per_rank must have one number for each of the {world_size} ranks; "
            f"got {len(counts)} numbers"
        )
    if method not in ("auto", *_ROUTES):
        raise ValueError(f"method must be 'auto', 'gram' or 'covariance'; got {method!r}")
    route: Any = cheaper_route(counts, d) if method == "auto" else method
    return Plan(counts, d, views, itemsize, route)


def _integer(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}")
    return number


def _readable(number: float) -> str:
    """Return three digits and a prefix, as "8.39 M"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5 or prefix == "P":
            break
        number /= 1000
    return f"{number:.3g} {prefix}"
