"""Communicators: the loss of a batch that is spread over several processes or devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._core.agreement import Agreement
from vicreg._core.communicator import Communicator

__all__ = ["LOCAL", "Communicator", "TorchCommunicator"]

Array = Any


class _Local(Communicator):
    rank, size = 0, 1
    libraries = ("numpy", "torch", "jax", "cupy", "mlx", "dask", "array_api_strict", "ndonnx")

    def all_gather(self, array: Array) -> Array:
        return array[None, ...]

    def all_reduce(self, array: Array) -> Array:
        return array

    def __repr__(self) -> str:
        return "LOCAL"


LOCAL = _Local()
"""The batch of this process alone, said on purpose: there is no warning that it is one of many."""


@dataclass(frozen=True)
class TorchCommunicator(Communicator):
    """The processes of ``torch.distributed``: the loss of the batch of all of them.

    The loss on every rank is that of the whole batch. Its ``backward()`` gives each rank the
    gradient by its own rows, times the number of ranks: the gradient of the sum of the ranks'
    losses, as PyTorch's own collectives would. So the mean over the ranks, which
    DistributedDataParallel and FSDP take, is the gradient of the loss. `vicreg_value_and_grad`
    gives the gradient by the rank's own rows with no factor.

    The ranks may have different numbers of rows, or none, and other ones in each call.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        None is the default group, of all processes.

    Raises
    ------
    ValueError
        When the loss is called: there is no process group yet.

    Notes
    -----
    Under ``torch.compile`` the loss runs as it is written, between two compiled graphs. It has no
    second derivative. On a GPU each call waits for the device once, to read the number of rows
    of each rank.

    Examples
    --------
    In a script that ``torchrun`` starts:

    >>> import torch
    >>> from vicreg.distributed import TorchCommunicator
    >>> from vicreg.torch import VICRegLoss
    >>> criterion = VICRegLoss(comm=TorchCommunicator())
    """

    group: Any = None

    libraries = ("torch",)

    @property
    def rank(self) -> int:
        """The rank of this process in the group."""
        rank: int = _torch().rank(self.group)
        return rank

    @property
    def size(self) -> int:
        """How many processes the group has."""
        size: int = _torch().size(self.group)
        return size

    def all_gather(self, array: Array) -> Array:
        """Return the tensors of all ranks, ``(size, *array.shape)``."""
        return _torch().all_gather(self.group, array)

    def all_reduce(self, array: Array) -> Array:
        """Return the sum of the tensors of all ranks."""
        return _torch().all_reduce(self.group, array)

    @property
    def agreement(self) -> Agreement:
        """What the ranks know of each other from earlier calls: of the group's, not of this."""
        agreement: Agreement = _torch().agreement(self.group)
        return agreement


def _torch() -> Any:
    return adapter_for("torch").communicator
