"""``benchmarks/breakdown.py`` finds the products in each library's profile, and the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "breakdown.py"


@pytest.mark.long
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_products_and_others_are_told_apart(library: str) -> None:
    pytest.importorskip(library)
    command = [sys.executable, str(SCRIPT), "--library", library, "--size", "256x256"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, _, summary = done.stdout.partition("In ms")
    rows = re.findall(r"^ (\S.*256 x 256) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", summary, re.M)
    names = [name for name, *_ in rows]
    compiled = ["torch.compile, 256 x 256"] if library == "torch" else []
    assert names == [f"{library}, 256 x 256", *compiled]
    for name, *times in rows:
        call, products, in_products, in_others = map(float, times)
        assert min(call, products, in_products, in_others) > 0, name


def test_a_wrong_size_is_refused() -> None:
    command = [sys.executable, str(SCRIPT), "--size", "large"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a size must be as 256x2048; got 'large'" in done.stderr
