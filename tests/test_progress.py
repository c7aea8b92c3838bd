"""How far a tool has come: the time left is weighted, learned as it goes, and near the truth."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

rich_console = pytest.importorskip("rich.console")

from vicreg.tools.progress import Step, TimeLeft, duration, steps_progress  # noqa: E402

#: The steps of `vicreg verify` as they were on one machine, of each library alone and of all:
#: kind, seconds expected, seconds taken.
RECORDED = json.loads((Path(__file__).parent / "data" / "verify_steps.json").read_text())


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def estimates(steps: Sequence[Step], taken: Sequence[float]) -> list[tuple[float, float]]:
    """Return the estimated and the true time left at each step, after the first tenth."""
    clock, pairs = Clock(), []
    left = TimeLeft(steps, clock)
    whole, over = sum(taken), 0.0
    for seconds in taken:
        left.begin()
        if over >= whole / 10:
            pairs.append((left.seconds, whole - over))
        over += seconds
        clock.now += seconds
    return pairs


def worst(pairs: list[tuple[float, float]]) -> float:
    """Return the largest relative error of an estimate; half a second does not count."""
    return max(max(abs(said - was) - 0.5, 0.0) / was for said, was in pairs)


@pytest.mark.parametrize("libraries", RECORDED)
def test_it_is_not_off_by_more_than_a_half_after_the_first_tenth(libraries: str) -> None:
    """For one library and for all, on faster and slower machines than the recorded one."""
    steps = [Step(kind, expected) for kind, expected, _ in RECORDED[libraries]]
    taken = [seconds for *_, seconds in RECORDED[libraries]]
    for pace in (0.5, 1.0, 2.0):
        assert worst(estimates(steps, [pace * seconds for seconds in taken])) < 0.5, pace
    for seed in range(10):
        rng = np.random.default_rng(seed)
        noisy = [seconds * rng.uniform(0.8, 1.25) for seconds in taken]
        assert worst(estimates(steps, noisy)) < 0.5, seed


def test_equal_steps_would_not_do() -> None:
    """The test above fails with steps that are not weighted."""
    for recorded in RECORDED.values():
        steps = [Step() for _ in recorded]
        assert worst(estimates(steps, [seconds for *_, seconds in recorded])) > 0.5


def test_the_step_that_runs_is_taken_off() -> None:
    clock = Clock()
    left = TimeLeft([Step("a", 2.0), Step("a", 2.0)], clock)
    assert left.seconds == 4.0
    left.begin()
    clock.now += 1.0
    assert left.seconds == 3.0
    clock.now += 9.0
    assert left.seconds == 2.0  # it cannot take less than nothing
    left.begin()
    assert left.seconds > 5.0  # the first took five times what was expected
    clock.now += 10.0
    left.begin()
    assert left.seconds == 0.0
    assert left.fraction == 1.0


def test_times_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0, 0.2, 7.4, 20, 21, 41, 90, 100, 840)]
    assert said == ["1 s", "1 s", "8 s", "20 s", "25 s", "45 s", "90 s", "2 minutes", "14 minutes"]


@pytest.mark.parametrize("told_apart", [True, False])
def test_lines_where_there_is_no_terminal(told_apart: bool) -> None:
    clock, stream = Clock(), io.StringIO()
    console = rich_console.Console(file=stream, width=200)
    steps = [Step("a", 1.0 + place % 3) for place in range(40)] if told_apart else 40
    with steps_progress(console, steps, clock) as on_step:
        for place in range(40):
            on_step(f"step {place}")
            clock.now += 2 * (1.0 + place % 3)
    lines = stream.getvalue().splitlines()
    assert [int(line.split("%")[0]) for line in lines] == list(range(10, 100, 10))
    assert all(("left" in line) == told_apart for line in lines)
    if told_apart:
        assert lines[4].endswith("about 75 s left")
    pairs = itertools.pairwise(lines)
    assert all(int(a.split()[3].strip(";")) < int(b.split()[3].strip(";")) for a, b in pairs)


def test_a_bar_on_a_terminal() -> None:
    clock = Clock()
    console = rich_console.Console(force_terminal=True, width=100)
    with console.capture() as captured, steps_progress(console, [Step()] * 3, clock) as on_step:
        for _ in range(3):
            on_step("what runs")
            clock.now += 30.0
    assert "what runs" in captured.get()
    assert "left" in captured.get()
