"""Compiling with PyTorch without a graph break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def in_one_graph(function: Callable, **settings: Any) -> Callable:
    """Return `function` under the compiler, which may not break the graph."""
    import torch

    return torch.compile(function, fullgraph=True, **settings)
