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
def test_in_chunks_of_dask(workers: int, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("dask.array")
    if workers:
        pytest.importorskip("distributed")
    sizes = ["--samples", "3000", "--features", "16", "--chunk-size", "500"]
    folder = ["--folder", str(tmp_path)]
    example("dask_larger_than_memory").main([*sizes, *folder, "--workers", str(workers)])
    out = capsys.readouterr().out
    loss, gradient, rank = map(numbers, out.splitlines()[-3:])
    assert loss[0] == loss[1]
    assert gradient[0] < 1e-12
    assert rank[0] == rank[1]
    assert out.count("memory taken by") == (workers or 1)
    assert not list(tmp_path.iterdir())


def test_dask_refuses_what_it_is_not_about() -> None:
    pytest.importorskip("dask.array")
    with pytest.raises(SystemExit, match="2"):
        example("dask_larger_than_memory").main(["--samples", "5", "--features", "12"])
