"""pytorch-metric-learning's own VICRegLoss beside the same function here, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vicreg import vicreg_loss
from vicreg.tools.backends import backend_named
from vicreg.tools.benchmark.sides import Problem
from vicreg.tools.benchmark.study import SIZES


def ours(x: Any, y: Any) -> Any:
    return vicreg_loss(x, y, convention="official")  # which it computes


def theirs(x: Any, y: Any) -> Any:
    from pytorch_metric_learning.losses import VICRegLoss

    return VICRegLoss()(x, ref_emb=y)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("loss", [ours, theirs], ids=["vicreg", "metric-learning"])
def test_time(
    size: tuple[int, int],
    loss: Callable[[Any, Any], Any],
    benchmark: Any,
    timed: Callable[[Callable[[], Any]], None],
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    backend = backend_named("torch")
    views = Problem(*size).arrays(backend)
    assert float(ours(*views)) == pytest.approx(float(theirs(*views)), rel=1e-5)
    benchmark.group = f"pytorch-metric-learning, {size[0]} x {size[1]}"
    timed(lambda: backend.synchronise(backend.differentiate(loss, views)))
