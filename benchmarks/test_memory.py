"""The peak memory of one call above its inputs: the figure is beside the time of its process."""

from __future__ import annotations

from typing import Any

import pytest

from vicreg.tools.backends import Backend
from vicreg.tools.benchmark.memory import PeakUnknownError, peak_memory
from vicreg.tools.benchmark.sides import PUBLISHED, VICREG, Problem


@pytest.mark.parametrize("side", [VICREG, PUBLISHED])
def test_peak_at_256_x_8192(
    backend: Backend, side: str, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.group = f"{backend}, a process that measures memory"
    problem = Problem(256, 8192, compiled=backend.always_compiled)
    try:
        peak = benchmark.pedantic(peak_memory, (side, backend, problem), rounds=1)
    except PeakUnknownError as error:
        pytest.skip(str(error))
    benchmark.extra_info["peak bytes above the inputs"] = peak
    with capsys.disabled():  # pytest-benchmark shows times alone
        print(f"\n{backend}, {side}: {peak / 2**20:.1f} MiB above the inputs")
