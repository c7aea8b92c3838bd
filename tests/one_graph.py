"""Compiling with PyTorch without a graph break."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata, util
from typing import Any

#: Whether PyTorch compiles operations that it does not look into. 2.7 compiles plain ones here.
COMPILES_OPERATIONS = bool(util.find_spec("torch")) and not metadata.version("torch").startswith(
    "2.7."
)


def in_one_graph(function: Callable, **settings: Any) -> Callable:
    """Return `function` under the compiler, which may not break the graph."""
    import torch

    return torch.compile(function, fullgraph=True, **settings)
