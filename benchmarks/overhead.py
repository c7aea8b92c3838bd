"""What is around the arithmetic: checks and dispatch, and the import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from vicreg import vicreg_loss
from vicreg._adapters.dispatch import adapter_for
from vicreg.tools.backends import Backend


class _Stub:
    """An adapter that computes nothing."""

    @staticmethod
    def evaluate(views: Any, objective: Any) -> tuple[Any]:
        return (views[0],)


def _dispatched(library: str) -> type[_Stub]:
    adapter_for(library)  # looked up as ever
    return _Stub


@contextmanager
def checks_alone(backend: Backend) -> Iterator[Callable[[], Any]]:
    """Give a call of the loss that does all but evaluate: its checks and its dispatch."""
    values = np.random.default_rng(0).standard_normal((2, 32, 64))
    views = [backend.asarray(one, "float32") for one in values]
    if backend.name == "torch":
        views = [view.requires_grad_() for view in views]
    with mock.patch("vicreg._losses.vicreg.adapter_for", _dispatched):
        if vicreg_loss(*views) is not views[0]:
            raise RuntimeError("the loss was evaluated: it is not the checks that are timed")
        yield lambda: vicreg_loss(*views)


def microseconds(call: Callable[[], Any], rounds: int = 21, calls: int = 500) -> float:
    """Return the median time of a short call."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        taken.append((time.perf_counter() - start) / calls)
    return 1e6 * statistics.median(taken)


def import_milliseconds(rounds: int = 15) -> float:
    """Return how long ``import vicreg`` takes beyond Python's own start, in turns with it."""
    beyond = []
    for _ in range(rounds):
        seconds = []
        for code in ("pass", "import vicreg"):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-P", "-c", code], check=True)
            seconds.append(time.perf_counter() - start)
        beyond.append(seconds[1] - seconds[0])
    return 1e3 * statistics.median(beyond)
