"""The libraries that are timed, on each of their devices, and how one call is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vicreg.tools.backends import Backend, find_backends
from vicreg.tools.benchmark.sides import MissingSideError, Problem, build_side
from vicreg.tools.benchmark.study import LIBRARIES

#: A round repeats a short call until it lasts this long, in seconds.
SAMPLE = 0.02
ROUNDS = 5

#: On a CPU its products take minutes at the larger sizes.
UNLESS_ASKED = {"mlx"}

Timed = Callable[[Callable[[], Any]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library", action="append", help="a library to time (may be given more than once)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every benchmark that asks for ``backend`` each library on each of its devices."""
    if "backend" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--library")
    usual = [name for name in LIBRARIES if name not in UNLESS_ASKED]
    found, left_out = find_backends(chosen or usual)
    skipped = [
        pytest.param(None, id=name, marks=pytest.mark.skip(reason=why))
        for name, why in left_out.items()
    ]
    every = [pytest.param(one, id=str(one)) for one in found]
    metafunc.parametrize("backend", [*every, *skipped], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """One library on one device, ready for work there."""
    with request.param.active(), request.param.full_precision():
        yield request.param


@pytest.fixture
def timed(benchmark: Any) -> Timed:
    """Times a call that waits for its own result."""

    def time_call(call: Callable[[], Any]) -> None:
        call()  # what a first call does once is no part of the times
        start = time.perf_counter()
        call()
        repeats = max(1, int(SAMPLE / (time.perf_counter() - start)))
        benchmark.pedantic(call, rounds=ROUNDS, iterations=repeats)

    return time_call


@pytest.fixture
def timed_side(benchmark: Any, timed: Timed) -> Callable[..., None]:
    """Times one side of a problem, in the group of its library and problem, or another."""

    def time_side(name: str, backend: Backend, problem: Problem, group: str = "") -> None:
        benchmark.group = f"{backend}, {group or problem}"
        try:
            call = build_side(name, backend, problem, problem.arrays(backend))
        except MissingSideError as error:
            pytest.skip(str(error))
        timed(lambda: backend.synchronise(call()))

    return time_side
