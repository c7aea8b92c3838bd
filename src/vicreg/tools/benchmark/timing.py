"""Time computations against each other: warmed up, interleaved, with medians and quartiles."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FULL", "QUICK", "Effort", "Spread", "Times", "ratio", "time_in_turns"]


@dataclass(frozen=True)
class Effort:
    """How much time a comparison may take.

    Parameters
    ----------
    rounds : int
        How often each computation is sampled.
    sample : float
        The seconds that a sample lasts at least: a short call is repeated within it.
    budget : float
        The seconds that one computation's samples may last together; a slow one gets fewer rounds.
    fewest : int
        The rounds that a slow computation gets.
    patience : float
        The seconds of a single call beyond which what the loss is compared with is left out.
    """

    rounds: int
    sample: float
    budget: float
    fewest: int
    patience: float


FULL = Effort(rounds=17, sample=0.02, budget=4.0, fewest=3, patience=20.0)
QUICK = Effort(rounds=9, sample=0.005, budget=0.4, fewest=3, patience=2.0)


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        """Return the spread of `numbers`, of which there is at least one."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Times:
    """The seconds a call of one computation took.

    Parameters
    ----------
    rounds : tuple of float or None
        By round; None where the computation had no turn.
    calls : int
        How many calls a sample is the mean of.
    """

    rounds: tuple[float | None, ...]
    calls: int

    @property
    def taken(self) -> list[float]:
        """The samples, in their order."""
        return [seconds for seconds in self.rounds if seconds is not None]

    @property
    def spread(self) -> Spread:
        """The median and quartiles of the samples."""
        return Spread.of(self.taken)


def ratio(over: Times, under: Times) -> Spread:
    """Return how many times as long `over` took as `under`.

    Round by round, so that what slows the machine for a while slows both.

    Parameters
    ----------
    over, under : Times
        Of the same rounds.

    Returns
    -------
    Spread
        Of the ratios of the rounds in which both had a turn.
    """
    both = zip(over.rounds, under.rounds, strict=True)
    return Spread.of([a / b for a, b in both if a is not None and b is not None])


def time_in_turns(
    functions: Mapping[str, Callable[[], Any]],
    synchronise: Callable[[Any], None],
    effort: Effort,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time `functions` in turns.

    Parameters
    ----------
    functions : mapping of str to callable
        What is called, by name. Each has been called before: what a first call does once, such
        as to compile, is no part of the times.
    synchronise : callable
        Waits until the output of a call has been computed.
    effort : Effort
        How much time it may take.
    clock : callable
        Returns seconds.

    Returns
    -------
    dict of str to Times
        All with as many rounds.
    """
    estimates = {name: _sample(call, synchronise, 1, clock) for name, call in functions.items()}
    calls = {name: _calls(estimate, effort) for name, estimate in estimates.items()}
    turns = {
        name: _turns(max(estimate, 1e-9) * calls[name], effort)
        for name, estimate in estimates.items()
    }
    samples: dict[str, list[float | None]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(effort.rounds):
        # Each begins in its turn: none is always the one after the slowest.
        start = number % len(names)
        for name in names[start:] + names[:start]:
            seconds = None
            if number in turns[name]:
                seconds = _sample(functions[name], synchronise, calls[name], clock) / calls[name]
            samples[name].append(seconds)
    return {name: Times(tuple(samples[name]), calls[name]) for name in names}


def _sample(
    function: Callable[[], Any],
    synchronise: Callable[[Any], None],
    calls: int,
    clock: Callable[[], float],
) -> float:
    start = clock()
    for _ in range(calls):
        # Each call is waited for: calls that do not need each other would run side by side,
        # and some libraries compute nothing that nobody waits for.
        synchronise(function())
    return clock() - start


def _calls(estimate: float, effort: Effort) -> int:
    return max(1, math.ceil(effort.sample / max(estimate, 1e-9)))


def _turns(sample: float, effort: Effort) -> set[int]:
    """Return the rounds in which a computation whose samples last so long has its turn.

    Every second, fourth, eighth ... round, so that a slower one's are among a faster one's and
    the two can be compared round by round. Beyond the budget by a single sample it is one round.
    """
    if sample > effort.budget:
        return {0}
    stride = 1
    while (
        len(range(0, effort.rounds, stride)) * sample > effort.budget
        and len(range(0, effort.rounds, 2 * stride)) >= effort.fewest
    ):
        stride *= 2
    return set(range(0, effort.rounds, stride))
