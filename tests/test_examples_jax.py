"""The examples of JAX run, and compute what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from errors import rounding

jax = pytest.importorskip("jax")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cached_backward() -> ModuleType:
    path = ROOT / "examples" / "jax_cached_backward.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_the_gradient_of_chunks_is_that_of_the_batch(
    cached_backward: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    """In a fraction of the memory, whereas losses of the chunks are something else."""
    with jax.enable_x64(False):  # as it is outside of these tests
        cached_backward.main(["--samples", "256", "--chunk-size", "16"])
    number = r"(\d\S*)"
    found = re.findall(rf"loss {number}, .* {number}, {number} MiB", capsys.readouterr().out)
    plain, cached, accumulated = (tuple(map(float, numbers)) for numbers in found)
    bound = rounding("float32", 256, cached_backward.WIDTH)
    assert cached[0] == pytest.approx(plain[0], rel=bound)
    assert cached[1] <= bound
    assert cached[2] < plain[2] / 2
    assert accumulated[1] > 0.1


@pytest.mark.parametrize("size", ["1", "7"])
def test_it_refuses_chunks_that_do_not_divide_the_batch(
    cached_backward: ModuleType, size: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cached_backward.main(["--samples", "16", "--chunk-size", size])
