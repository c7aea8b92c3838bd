"""VCReg's layer beside its products, the paper's pseudocode and BatchNorm, there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from layer import BATCH_NORM, SIZES, sides  # noqa: E402

from vicreg.tools.benchmark.sides import PRODUCTS, PUBLISHED, VICREG  # noqa: E402


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("side", [VICREG, PUBLISHED, BATCH_NORM, PRODUCTS])
def test_time(
    side: str, size: tuple[int, int], benchmark: Any, timed: Callable[[Callable[[], Any]], None]
) -> None:
    benchmark.group = f"VCReg's layer, {size[0]} x {size[1]}"
    timed(sides(*size)[side])


@pytest.mark.parametrize("size", [(40, 9), (9, 40)], ids=str)
def test_the_pseudocode_is_what_the_layer_calls_published(size: tuple[int, int]) -> None:
    found = sides(*size)
    torch.testing.assert_close(found[VICREG](), found[PUBLISHED](), rtol=1e-4, atol=1e-6)
