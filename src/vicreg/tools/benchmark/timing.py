"""Time several computations in turns, and return quartiles."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FULL", "QUICK", "Effort", "Quartiles", "Times", "ratio", "time_in_turns"]


@dataclass(frozen=True)
class Effort:
    """How much time a comparison may take.

    Parameters
    ----------
    rounds : int
        How often each computation is sampled.
    sample : float
        The least duration of a sample, in seconds: a short call is repeated within it.
    budget : float
        The most seconds for all samples of a computation; a slow one gets fewer rounds.
    fewest : int
        The least number of rounds of a slow computation.
    patience : float
        The longest call, in seconds, of a computation that the loss is compared with; one that
        takes longer is left out.
    """

    rounds: int
    sample: float
    budget: float
    fewest: int
    patience: float


FULL = Effort(rounds=17, sample=0.02, budget=4.0, fewest=3, patience=20.0)
QUICK = Effort(rounds=9, sample=0.005, budget=0.4, fewest=3, patience=2.0)


@dataclass(frozen=True)
class Quartiles:
    """The quartiles of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: list[float]) -> Quartiles:
        """Return the quartiles of at least one number."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Times:
    """The seconds per call of one computation.

    Parameters
    ----------
    rounds : tuple of float or None
        One per round; None if the computation was not sampled in it.
    calls : int
        The number of calls of which a sample is the mean.
    """

    rounds: tuple[float | None, ...]
    calls: int

    @property
    def samples(self) -> list[float]:
        """The samples, in order."""
        return [seconds for seconds in self.rounds if seconds is not None]

    @property
    def quartiles(self) -> Quartiles:
        """The quartiles of the samples."""
        return Quartiles.of(self.samples)


def ratio(over: Times, under: Times) -> Quartiles:
    """Return the ratio of two times, computed round by round.

    Within a round, both are affected alike by anything that slows the machine for a while.

    Parameters
    ----------
    over, under : Times
        The numerator and the denominator, of the same rounds.

    Returns
    -------
    Quartiles
        Of the ratios, over the rounds in which both were sampled.
    """
    both = zip(over.rounds, under.rounds, strict=True)
    return Quartiles.of([a / b for a, b in both if a is not None and b is not None])


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
        The functions by name. Each must have been called before, so that the times do not contain
        what happens once, such as compiling.
    synchronise : callable
        Waits until the output of a call is computed.
    effort : Effort
        The time to spend.
    clock : callable
        Returns seconds.

    Returns
    -------
    dict of str to Times
        All with the same number of rounds.
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
        # The order rotates, so that none always follows the slowest.
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
        # Wait for each call: otherwise independent calls would overlap, and lazy libraries
        # would compute nothing.
        synchronise(function())
    return clock() - start


def _calls(estimate: float, effort: Effort) -> int:
    return max(1, math.ceil(effort.sample / max(estimate, 1e-9)))


def _turns(sample: float, effort: Effort) -> set[int]:
    """Return the rounds in which a computation with samples of this duration is sampled.

    Every second, fourth, eighth ... round, so that the rounds of a slower computation are among
    those of a faster one, for `ratio`. If a single sample exceeds the budget, one round.
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
