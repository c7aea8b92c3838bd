"""How far a tool has come and what it still takes: a bar, or lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["Step", "TimeLeft", "duration", "steps_progress"]


@dataclass(frozen=True)
class Step:
    """One step of what a tool does.

    Parameters
    ----------
    kind : str
        What it is done by: steps of one kind are faster or slower than expected alike.
    seconds : float
        What it is expected to take; of all steps only the ratios matter, but at the beginning.
    """

    kind: str = ""
    seconds: float = 1.0


class TimeLeft:
    """The time that steps still take, told by those that were.

    Each kind of step has a pace, how long its steps took beside what was expected. A kind that is
    yet to begin has that of all together, and goes over to its own as it comes along.

    Parameters
    ----------
    steps : sequence of Step
        All of them, in order.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(self, steps: Sequence[Step], clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._clock = steps, clock
        self._place = -1
        self._began = self._start = clock()
        # By kind: what its steps that are over were expected to take, and took; and those to come.
        self._expected: defaultdict[str, float] = defaultdict(float)
        self._taken: defaultdict[str, float] = defaultdict(float)
        self._to_come: defaultdict[str, float] = defaultdict(float)
        for step in steps:
            self._to_come[step.kind] += step.seconds

    def begin(self) -> None:
        """Take down that the next step begins, and with it that the one before has ended."""
        now = self._clock()
        if 0 <= self._place < len(self._steps):
            step = self._steps[self._place]
            self._expected[step.kind] += step.seconds
            self._taken[step.kind] += now - self._began
        self._place, self._began = self._place + 1, now
        if self._place < len(self._steps):
            step = self._steps[self._place]
            self._to_come[step.kind] -= step.seconds

    @property
    def seconds(self) -> float:
        """The seconds that are left."""
        left = sum(self._pace(kind) * seconds for kind, seconds in self._to_come.items())
        if 0 <= self._place < len(self._steps):
            step = self._steps[self._place]
            since = self._clock() - self._began
            left += max(self._pace(step.kind) * step.seconds - since, 0.0)
        return max(left, 0.0)

    @property
    def fraction(self) -> float:
        """Which part of the time is over."""
        over = self._clock() - self._start
        return over / (over + self.seconds) if over > 0 else 0.0

    @property
    def fraction_of_steps(self) -> float:
        """Which part of the steps is over."""
        return max(self._place, 0) / max(len(self._steps), 1)

    def _pace(self, kind: str) -> float:
        expected, taken = sum(self._expected.values()), sum(self._taken.values())
        of_all = taken / expected if expected > 0 else 1.0
        assumed = _STEPS_ASSUMED * self._mean_step
        return (self._taken[kind] + assumed * of_all) / (self._expected[kind] + assumed)

    @property
    def _mean_step(self) -> float:
        return sum(step.seconds for step in self._steps) / max(len(self._steps), 1)


#: How many steps of its own the pace of all counts as, where one kind has had few.
_STEPS_ASSUMED = 30.0


def duration(seconds: float) -> str:
    """Return a time as a person says it: "20 s", "3 minutes".

    Parameters
    ----------
    seconds : float
        0 or more.

    Returns
    -------
    str

    Examples
    --------
    >>> duration(7.4), duration(41), duration(160)
    ('8 s', '45 s', '3 minutes')
    """
    if seconds > 90:
        return f"{round(seconds / 60)} minutes"
    step = 5 if seconds > 20 else 1
    return f"{max(step * math.ceil(seconds / step), 1)} s"


@contextmanager
def steps_progress(
    console: Console,
    steps: int | Sequence[Step],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[str], None]]:
    """Show what is being run, as a bar; where there is no terminal, a line a tenth of the way.

    Of steps that are told apart the lines say how long the rest will take.

    Parameters
    ----------
    console : rich.console.Console
        Where to.
    steps : int or sequence of Step
        How many steps there are, where one is as long as another; or each of them.
    clock : callable
        Returns the time in seconds.

    Yields
    ------
    callable
        Called with a line as each step begins.
    """
    told_apart = not isinstance(steps, int)
    left = TimeLeft([Step()] * steps if isinstance(steps, int) else steps, clock)
    if not console.is_terminal:
        yield _tenths(console, left, told_apart)
        return
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0, left="")

        def on_step(line: str) -> None:
            left.begin()
            said = f"{duration(left.seconds)} left"
            progress.update(task, description=line, completed=left.fraction, left=said)

        yield on_step


def _tenths(console: Console, left: TimeLeft, told_apart: bool) -> Callable[[str], None]:
    told = 0

    def on_step(line: str) -> None:
        nonlocal told
        left.begin()
        tenth = int(10 * (left.fraction if told_apart else left.fraction_of_steps))
        if tenth > told:
            told = tenth
            rest = f"; about {duration(left.seconds)} left" if told_apart else ""
            console.print(f"{10 * tenth:3d} % {line}{rest}", soft_wrap=True, highlight=False)

    return on_step
