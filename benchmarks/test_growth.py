"""How the time grows with the samples, with the features and with the views."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vicreg.tools.backends import Backend
from vicreg.tools.benchmark.sides import VICREG, Problem

TimeSide = Callable[..., None]


@pytest.mark.parametrize("n", [32, 128, 512, 2048])
def test_with_n(backend: Backend, n: int, timed_side: TimeSide) -> None:
    timed_side(VICREG, backend, Problem(n, 512), "growth with n, at d = 512")


@pytest.mark.parametrize("d", [32, 128, 512, 2048, 8192])
def test_with_d(backend: Backend, d: int, timed_side: TimeSide) -> None:
    timed_side(VICREG, backend, Problem(256, d), "growth with d, at n = 256")


@pytest.mark.parametrize("views", [2, 4, 8])
def test_with_the_views(backend: Backend, views: int, timed_side: TimeSide) -> None:
    timed_side(
        VICREG, backend, Problem(256, 1024, views=views), "growth with the views, at 256 x 1024"
    )
