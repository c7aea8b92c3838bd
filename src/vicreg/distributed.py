"""Communicators, for the loss of a batch that is spread over several processes or devices.

Pass one as `comm` to a loss. Each process or device, called a rank, passes its own rows of the
batch, and each gets the loss of the whole batch. Nothing has to be gathered before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._core.agreement import Agreement
from vicreg._core.communicator import Communicator, Local
from vicreg._core.plan import Plan, plan

__all__ = [
    "LOCAL",
    "Communicator",
    "JaxCommunicator",
    "MPICommunicator",
    "Plan",
    "TorchCommunicator",
    "plan",
]


def __dir__() -> list[str]:
    return __all__


Array = Any


LOCAL = Local()
"""A communicator for the batch of this process alone.

It computes what ``comm=None`` does, but where PyTorch has several ranks there is no warning that
the loss is that of one of them.
"""


@dataclass(frozen=True)
class TorchCommunicator(Communicator):
    """The processes of ``torch.distributed``.

    The loss on every rank is that of the whole batch. Under DistributedDataParallel or FSDP,
    which average the gradients of the ranks, ``backward()`` leaves exactly the gradient of that
    loss. For this, each rank gets the gradient with respect to its own rows times the number of
    ranks, as from PyTorch's own collectives. `vicreg.vicreg_value_and_grad` returns it without
    that factor.

    The ranks may have different numbers of rows, or none. The numbers may change between calls.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        The processes. None is the default group, which is all of them.

    Attributes
    ----------
    rank : int
        The number of this process among those of the group, from 0.
    size : int
        How many processes the group has.

    Raises
    ------
    ValueError
        When the loss is called, if there is no process group yet.

    Notes
    -----
    Under ``torch.compile`` the loss is not compiled: it runs between two compiled graphs. It has
    no second derivative. On a GPU each call waits for the device once to read how many rows each
    rank has, and once for each weight that is a tensor.

    Examples
    --------
    In a script that ``torchrun`` starts, after ``torch.distributed.init_process_group()``:

    >>> import torch
    >>> from vicreg.distributed import TorchCommunicator
    >>> from vicreg.torch import VICRegLoss
    >>> criterion = VICRegLoss(comm=TorchCommunicator())
    """

    group: Any = None

    libraries = ("torch",)

    def __deepcopy__(self, _: Any) -> TorchCommunicator:
        return self  # a copy of a module is of the same processes

    @property
    def rank(self) -> int:
        """The number of this process among those of the group, from 0."""
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


@dataclass(frozen=True)
class JaxCommunicator(Communicator):
    """The devices along an axis of a mesh, for a loss inside ``jax.shard_map``.

    The loss on each device is that of the batch of all of them. It can be differentiated inside
    ``shard_map`` and through it, forwards and backwards, to any order, as if it were written with
    the collectives of ``jax.lax``. `vicreg.vicreg_value_and_grad` returns the gradient with
    respect to the device's own rows.

    Under plain ``jit``, arrays that are sharded over a mesh need no communicator: there the batch
    is one array.

    Parameters
    ----------
    axis_name : str or tuple of str
        The axis or axes of the mesh that the samples are spread over.

    Attributes
    ----------
    rank : array, shape ()
        The number of this device along the axis, from 0: a traced array.
    size : int
        How many devices there are along the axis.

    Raises
    ------
    ValueError
        When the loss is called where there is no such axis.

    Examples
    --------
    >>> import jax
    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> from vicreg import vicreg_loss
    >>> from vicreg.distributed import JaxCommunicator
    >>> mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    >>> @jax.jit
    ... @jax.shard_map(mesh=mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec())
    ... def loss(views):
    ...     return vicreg_loss(*views, comm=JaxCommunicator("batch"))
    >>> z1, z2 = jax.random.normal(jax.random.key(0), (2, 16, 3))
    >>> views = jax.device_put((z1, z2), NamedSharding(mesh, PartitionSpec("batch")))
    >>> print(f"{abs(loss(views) - vicreg_loss(z1, z2)):.3f}")
    0.000
    """

    axis_name: str | tuple[str, ...]

    libraries = ("jax",)
    runs_one_program = True

    @property
    def rank(self) -> Array:
        """The number of this device along the axis, from 0: a traced array of shape ()."""
        return adapter_for("jax").axis_rank(self.axis_name)

    @property
    def size(self) -> int:
        """How many devices there are along the axis."""
        size: int = adapter_for("jax").axis_size(self.axis_name)
        return size

    def all_gather(self, array: Array) -> Array:
        """Return the arrays of all devices, ``(size, *array.shape)``."""
        return adapter_for("jax").all_gather(self.axis_name, array)

    def all_reduce(self, array: Array) -> Array:
        """Return the sum of the arrays of all devices."""
        return adapter_for("jax").all_reduce(self.axis_name, array)


@dataclass(frozen=True, eq=False)
class MPICommunicator(Communicator):
    """The processes of an MPI communicator, for NumPy and CuPy arrays.

    The loss on every rank is that of the whole batch, and `vicreg.vicreg_value_and_grad` returns
    the gradient with respect to the rank's own rows. The ranks may have different numbers of rows,
    or none. The numbers may change between calls.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The processes. None is ``MPI.COMM_WORLD``, which is all of them.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        How many processes there are.

    Raises
    ------
    ImportError
        When the loss is called, if mpi4py is not installed.

    Notes
    -----
    CuPy arrays need an MPI that can read the memory of GPUs ("CUDA-aware").

    Examples
    --------
    In a script that is started with ``mpiexec -n 4 python script.py``, pass it to a loss, as in
    ``vicreg_value_and_grad(z1, z2, comm=comm)``:

    >>> from vicreg.distributed import MPICommunicator
    >>> comm = MPICommunicator()
    """

    comm: Any = None

    libraries = ("numpy", "cupy")

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        rank: int = self._comm.rank
        return rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        size: int = self._comm.size
        return size

    def all_gather(self, array: Array) -> Array:
        """Return the arrays of all ranks, ``(size, *array.shape)``."""
        return _mpi().all_gather(self._comm, array)

    def all_reduce(self, array: Array) -> Array:
        """Return the sum of the arrays of all ranks."""
        return _mpi().all_reduce(self._comm, array)

    @property
    def agreement(self) -> Agreement:
        """What the ranks know of each other from earlier calls: of the MPI communicator's."""
        agreement: Agreement = _mpi().agreement(self._comm)
        return agreement

    @property
    def _comm(self) -> Any:
        return _mpi().MPI.COMM_WORLD if self.comm is None else self.comm


def _torch() -> Any:
    return adapter_for("torch").communicator


def _mpi() -> Any:
    from vicreg._adapters import mpi

    return mpi
