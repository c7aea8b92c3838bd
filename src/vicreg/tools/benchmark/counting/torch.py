"""PyTorch: the operations that reach its dispatcher, on any device, ``meta`` too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vicreg.tools.benchmark.counting.counts import Counts, stored

__all__ = ["count"]

Tensor = torch.Tensor


def count(function: Callable[[], Any]) -> Counts:
    """Return what one call of `function` asks of PyTorch, its backward pass included.

    Parameters
    ----------
    function : callable
        Without arguments. For tensors on the device ``meta`` nothing is computed.

    Returns
    -------
    Counts
    """
    counts = Counts()
    with _Counting(counts):
        function()
    return counts


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds each operation to `counts` while it is on."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        returned = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not (name in _ALLOCATE or _is_view(func)):
            inputs = {key: value for key, value in kwargs.items() if key != "out"}
            given, results = _tensors((args, inputs)), _tensors(returned)
            self._counts.add(_bytes_moved(name, given, results), _multiply_adds(name, given))
        return returned


#: Memory that nothing is written to.
_ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
#: What writes into its first argument and does not read it.
_OVERWRITE = {"copy_", "fill_", "zero_"}
#: What reads some elements of its first argument: as many as it returns.
_PICK = {"gather", "index", "index_select"}
#: The matrix products, and how many tensors each takes before its factors.
_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}


def _is_view(func: Any) -> bool:
    """Whether an operation returns what it is given, read in another way, and writes nothing."""
    aliases = [result.alias_info for result in func._schema.returns]
    is_alias = any(alias is not None and not alias.is_write for alias in aliases)
    return is_alias or func.overloadpacket is torch.ops.aten._unsafe_view


def _bytes_moved(name: str, given: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    written = sum(map(_stored, results))
    if name in _PICK:
        return 2 * written + sum(map(_stored, given[1:]))
    if name == "scatter_":  # which writes an element for each index, and leaves the others
        own, index, *_ = given
        return own.element_size() * index.numel() + sum(map(_stored, given[1:]))
    is_read = not name.endswith("_like") and not name.startswith("new_")
    if name in _OVERWRITE:
        given = given[1:]
    return written + (sum(map(_stored, given)) if is_read else 0)


def _multiply_adds(name: str, given: Sequence[Tensor]) -> int:
    place = _PRODUCTS.get(name.removesuffix("_"))
    if place is None:
        return 0
    left, right = given[place : place + 2]
    return math.prod(left.shape) * (right.shape[-1] if right.ndim > 1 else 1)


def _stored(tensor: Tensor) -> int:
    return stored(tensor.shape, tensor.stride(), tensor.element_size())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
