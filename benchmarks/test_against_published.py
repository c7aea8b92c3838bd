"""The loss with its gradient, the published formula and the bare products, in each library."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vicreg.tools.backends import Backend
from vicreg.tools.benchmark.sides import SIDES, Problem
from vicreg.tools.benchmark.study import SIZES


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("side", SIDES)
def test_time(
    backend: Backend,
    size: tuple[int, int],
    side: str,
    timed_side: Callable[..., None],
) -> None:
    timed_side(side, backend, Problem(*size))
