"""The ranks of a batch on torch.distributed."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vicreg._adapters.torch.library import for_device, is_forward, library
from vicreg._core import ranks
from vicreg._core.agreement import Agreement
from vicreg._core.objective import Objective

Tensor = torch.Tensor

_agreements: weakref.WeakKeyDictionary[Any, Agreement] = weakref.WeakKeyDictionary()
_warned = False


def group_of(group: Any) -> Any:
    """Return the process group, the default one for None.

    Raises
    ------
    ValueError
        There is none, or this process is not in it.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "comm must have a process group: call torch.distributed.init_process_group() before "
            "the loss, or leave comm out for the batch of this process"
        )
    if group is None:
        return dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("comm must have a process group with this process in it; got one without")
    return group


def rank(group: Any) -> int:
    """Return the place of this process in `group`."""
    return dist.get_rank(group_of(group))


def size(group: Any) -> int:
    """Return the number of processes in `group`."""
    return dist.get_world_size(group_of(group))


def all_gather(group: Any, array: Tensor) -> Tensor:
    """Return the tensors of all ranks, ``(size, *array.shape)``."""
    received = array.new_empty((size(group) * array.shape[0], *array.shape[1:]))
    # The second is what older releases of PyTorch call it.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(received, array.contiguous(), group_of(group))
    return received.reshape(-1, *array.shape)


def all_reduce(group: Any, array: Tensor) -> Tensor:
    """Return the sum of the tensors of all ranks. `array` is used."""
    total = array.contiguous()
    dist.all_reduce(total, group=group_of(group))
    return total


def agreement(group: Any) -> Agreement:
    """Return what the ranks of `group` know of each other."""
    return _agreements.setdefault(group_of(group), Agreement())


def joined(views: Sequence[Tensor], objective: Objective, weights: Sequence[Any]) -> Objective:
    """Return `objective` for the device, and the batch of all ranks or of this process alone."""
    objective = for_device(views[0], objective)
    if objective.comm is None:
        _warn_once()
        return objective
    if is_forward():
        raise NotImplementedError(
            "comm must be None under torch.func and in forward mode: no derivative goes through "
            "what the ranks send to each other"
        )
    with torch.no_grad():
        return ranks.joined(library(objective), views, objective, weights)


def over_ranks(cotangent: Any, objective: Objective) -> Any:
    """Return the cotangent of the sum of the losses of all ranks, if each has this `cotangent`.

    So that the mean of the ranks' gradients, which DistributedDataParallel takes, is the gradient
    of the loss.
    """
    if objective.batch is None or cotangent is None:
        return cotangent
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "a loss with comm has no second derivative in PyTorch, where none goes through what "
            "the ranks send to each other: leave create_graph at False, or gather the embeddings"
        )
    return len(objective.batch.counts) * cotangent


def _warn_once() -> None:
    """Say that the statistics are of this process alone, if it is one of several."""
    global _warned
    if _warned or not dist.is_available() or not dist.is_initialized():
        return
    if dist.get_world_size() > 1:
        _warned = True
        warnings.warn(
            f"each of the {dist.get_world_size()} processes of torch.distributed takes the "
            "statistics of its own batch: pass comm=vicreg.distributed.TorchCommunicator() for "
            "those of the whole batch, or comm=vicreg.distributed.LOCAL to say that this is meant",
            stacklevel=5,
        )


# For Dynamo, which calls it while it compiles instead of compiling it.
_warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]
