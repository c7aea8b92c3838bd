"""The examples of batches larger than memory run, and compute what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[-+]\d+)?", line)]


def test_in_chunks_of_pytorch(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("torch")
    example("cached_backward").main()
    plain, cached, accumulated = map(numbers, capsys.readouterr().out.splitlines())
    loss, difference, memory = cached
    assert loss == plain[0]
    assert difference < 1e-12
    assert memory < plain[2] / 8  # of 16 chunks
    assert accumulated[1] > 1e-3


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_in_chunks_of_dask(workers: int, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("dask.array")
    if workers:
        pytest.importorskip("distributed")
    arguments = ["--samples", "20000", "--features", "16", "--workers", str(workers)]
    example("dask_larger_than_memory").main(arguments)
    _, loss, gradient = map(numbers, capsys.readouterr().out.splitlines())
    assert loss[1] <= 1e-5 * loss[0]
    assert gradient[0] < 1e-5
