"""The progress of a tool and the time left: a bar, or lines if there is no terminal."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["Step", "TimeLeft", "duration", "steps_progress"]


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Parameters
    ----------
    kind : str
        Steps of one kind are all faster, or all slower, than expected by the same factor.
    seconds : float
        The expected duration. After the first steps, only the ratios between steps matter.
    """

    kind: str = ""
    seconds: float = 1.0


class TimeLeft:
    """An estimate of the time left, from how long earlier steps took.

    Each kind of step has a pace: how long its steps took, divided by what was expected. It starts
    as the pace of all kinds together, and approaches its own as more of its steps are done.

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
        # By kind: the expected and the actual time of the past steps; the expected of the others.
        self._expected: defaultdict[str, float] = defaultdict(float)
        self._taken: defaultdict[str, float] = defaultdict(float)
        self._to_come: defaultdict[str, float] = defaultdict(float)
        for step in steps:
            self._to_come[step.kind] += step.seconds

    def begin(self) -> None:
        """Record that a step begins, and that the one before has ended."""
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
        """The time left, in seconds."""
        left = sum(self._pace(kind) * seconds for kind, seconds in self._to_come.items())
        if 0 <= self._place < len(self._steps):
            step = self._steps[self._place]
            since = self._clock() - self._began
            left += max(self._pace(step.kind) * step.seconds - since, 0.0)
        return max(left, 0.0)

    @property
    def fraction(self) -> float:
        """The share of the time that has passed."""
        over = self._clock() - self._start
        return over / (over + self.seconds) if over > 0 else 0.0

    @property
    def fraction_of_steps(self) -> float:
        """The share of the steps that are done."""
        return max(self._place, 0) / max(len(self._steps), 1)

    def _pace(self, kind: str) -> float:
        expected, taken = sum(self._expected.values()), sum(self._taken.values())
        of_all = taken / expected if expected > 0 else 1.0
        assumed = _STEPS_ASSUMED * self._mean_step
        return (self._taken[kind] + assumed * of_all) / (self._expected[kind] + assumed)

    @property
    def _mean_step(self) -> float:
        return sum(step.seconds for step in self._steps) / max(len(self._steps), 1)


#: In the pace of a kind, that of all kinds counts as much as this many steps.
_STEPS_ASSUMED = 30.0


def duration(seconds: float) -> str:
    """Return a rounded time in words: "20 s", "3 minutes".

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
    """Show the current step and a bar; if there is no terminal, one line per tenth of the time.

    If `steps` has the duration of each step, the lines also tell the time left.

    Parameters
    ----------
    console : rich.console.Console
        The console.
    steps : int or sequence of Step
        The number of steps, if all take equally long, or each step.
    clock : callable
        Returns the time in seconds.

    Yields
    ------
    callable
        To be called with a line of text at the start of each step.
    """
    has_durations = not isinstance(steps, int)
    left = TimeLeft([Step()] * steps if isinstance(steps, int) else steps, clock)
    if not console.is_terminal:
        yield _tenths(console, left, has_durations)
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


@contextmanager
def late_progress(
    console: Console, steps: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Show what `steps_progress` does, but only if the steps take more than two seconds.

    The number of steps need not be exact.
    """
    began, done = math.inf, 0
    with ExitStack() as stack:
        shown: Callable[[str], None] | None = None

        def on_step(line: str) -> None:
            nonlocal began, done, shown
            began = min(began, clock())
            done += 1
            if shown is None and done < steps and clock() - began > 2:
                shown = stack.enter_context(steps_progress(console, steps - done, clock))
            if shown is not None and done < steps:
                shown(line)

        yield on_step


def _tenths(console: Console, left: TimeLeft, has_durations: bool) -> Callable[[str], None]:
    shown = 0

    def on_step(line: str) -> None:
        nonlocal shown
        left.begin()
        tenth = int(10 * (left.fraction if has_durations else left.fraction_of_steps))
        if tenth > shown:
            shown = tenth
            rest = f"; about {duration(left.seconds)} left" if has_durations else ""
            console.print(f"{10 * tenth:3d} % {line}{rest}", soft_wrap=True, highlight=False)

    return on_step
