"""Compiling with PyTorch without a graph break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def in_one_graph(function: Callable, **settings: Any) -> Callable:
    """Return `function` under the compiler, which may not break the graph; old ones have to."""
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("PyTorch before 2.13 breaks the graph: no compile(fullgraph=True)")
    return torch.compile(function, fullgraph=True, **settings)
