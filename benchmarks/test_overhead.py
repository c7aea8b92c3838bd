"""Checks and dispatch of a call without its arithmetic; the import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from overhead import checks_alone

from vicreg.tools.backends import Backend


def test_checks_and_dispatch(
    backend: Backend, benchmark: Any, timed: Callable[[Callable[[], Any]], None]
) -> None:
    benchmark.group = "checks and dispatch"
    with checks_alone(backend) as call:
        timed(call)


@pytest.mark.parametrize("code", ["pass", "import vicreg"])
def test_import(code: str, benchmark: Any) -> None:
    benchmark.group = "import"
    command = [sys.executable, "-P", "-c", code]
    benchmark.pedantic(subprocess.run, (command,), {"check": True}, rounds=9, warmup_rounds=1)
