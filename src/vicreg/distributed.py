"""Communicators: the loss of a batch that is spread over several processes or devices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._core.agreement import Agreement
from vicreg._core.communicator import Communicator
from vicreg._core.plan import Cost, Route, cheaper_route, cost

__all__ = [
    "LOCAL",
    "Communicator",
    "JaxCommunicator",
    "MPICommunicator",
    "Plan",
    "TorchCommunicator",
    "plan",
]

Array = Any


class _Local(Communicator):
    rank, size = 0, 1

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

    def __deepcopy__(self, _: Any) -> TorchCommunicator:
        return self  # a copy of a module is of the same processes

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


@dataclass(frozen=True)
class JaxCommunicator(Communicator):
    """The devices along an axis of a mesh: for a loss inside ``jax.shard_map``.

    The loss on each device is that of the batch of all of them. It is differentiated as if it were
    written with the collectives of ``jax.lax``: inside ``shard_map`` and through it, forwards and
    backwards, to any order. `vicreg_value_and_grad` gives the gradient by the device's own rows.

    Arrays that are sharded over a mesh under plain ``jit`` need no communicator: there the batch
    is one array.

    Parameters
    ----------
    axis_name : str or tuple of str
        The axes that the samples are spread over.

    Raises
    ------
    ValueError
        When the loss is called where no such axis is mapped.

    Examples
    --------
    >>> import jax
    >>> from jax.sharding import PartitionSpec
    >>> from vicreg import vicreg_loss
    >>> from vicreg.distributed import JaxCommunicator
    >>> mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    >>> @jax.jit
    ... @jax.shard_map(mesh=mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec())
    ... def loss(views):
    ...     return vicreg_loss(*views, comm=JaxCommunicator("batch"))
    >>> z1, z2 = jax.random.normal(jax.random.key(0), (2, 16, 3))
    >>> print(f"{loss((z1, z2)) - vicreg_loss(z1, z2):.3f}")
    0.000
    """

    axis_name: str | tuple[str, ...]

    libraries = ("jax",)
    runs_one_program = True

    @property
    def rank(self) -> Array:
        """The place of this device along the axis: a traced array of shape ()."""
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
    """The processes of an MPI communicator, for NumPy arrays: the loss of the batch of all.

    The loss on every rank is that of the whole batch, and `vicreg_value_and_grad` gives the
    gradient by the rank's own rows. The ranks may have different numbers of rows, or none, and
    other ones in each call.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        None is ``MPI.COMM_WORLD``.

    Raises
    ------
    ImportError
        There is no mpi4py.

    Notes
    -----
    CuPy arrays need an MPI that reads the memory of GPUs ("CUDA-aware").

    Examples
    --------
    In a script that ``mpiexec`` starts, as ``mpiexec -n 4 python script.py``::

        from vicreg.distributed import MPICommunicator

        loss, gradients = vicreg_value_and_grad(z1, z2, comm=MPICommunicator())
    """

    comm: Any = None

    libraries = ("numpy", "cupy")

    @property
    def rank(self) -> int:
        """The rank of this process."""
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


@dataclass(frozen=True)
class Plan:
    """What a loss with its gradient costs each rank: what `plan` returns. It prints as a table.

    Parameters
    ----------
    route : {"gram", "covariance"}
        The one that ``method="auto"`` takes.
    rows : tuple of int
        Of each rank.
    features, views : int
        d, and how many views there are.
    bytes_sent : float
        Of the rank with the most rows, by that route; as many arrive.
    multiply_adds : int
        Of its large products.
    other_bytes_sent, other_multiply_adds : float, int
        By the other route.
    """

    route: Route
    rows: tuple[int, ...]
    features: int
    views: int
    bytes_sent: float
    multiply_adds: int
    other_bytes_sent: float
    other_multiply_adds: int

    def __str__(self) -> str:
        other = "covariance" if self.route == "gram" else "gram"
        shown = [
            ("route", "sent", "multiply-adds"),
            (f"{self.route} (taken)", *_shown(self.bytes_sent, self.multiply_adds)),
            (other, *_shown(self.other_bytes_sent, self.other_multiply_adds)),
        ]
        title = (
            f"{self.views} views of {sum(self.rows)} samples and {self.features} features on "
            f"{len(self.rows)} ranks: each rank, for value and gradient"
        )
        return "\n".join([title, *(f"  {a:20} {b:>10} {c:>16}" for a, b, c in shown)])


def _shown(sent: float, multiply_adds: int) -> tuple[str, str]:
    return f"{_with_unit(sent)}B", _with_unit(multiply_adds)


def _with_unit(number: float) -> str:
    units = ["P", "T", "G", "M", "k", ""]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop()
    return f"{number:.3g} {units[-1]}"


def plan(
    n_per_rank: int | Sequence[int],
    d: int,
    world_size: int | None = None,
    *,
    views: int = 2,
    itemsize: int = 4,
) -> Plan:
    """Return what the loss of a batch over ranks costs each of them, from shapes alone.

    Parameters
    ----------
    n_per_rank : int or sequence of int
        The rows of each rank.
    d : int
        The number of features.
    world_size : int, optional
        The number of ranks; as many as `n_per_rank` has numbers where it is a sequence.
    views : int, optional
        How many views there are.
    itemsize : int, optional
        How many bytes a number has: 4 in float32.

    Returns
    -------
    Plan
        The route that ``method="auto"`` takes, what a rank sends and what it multiplies, by that
        route and by the other. It leaves out the header of each call, of 15 numbers for each
        other rank, and the first call's exchange.

    Raises
    ------
    TypeError, ValueError
        A number that is none, or below 1.

    Notes
    -----
    The ranks are taken for a ring: of what is gathered each rank sends (W − 1)/W, of a sum twice
    that. The gathered rows are filled up to the most of any rank.

    Examples
    --------
    >>> from vicreg.distributed import plan
    >>> print(plan(256, 8192, world_size=16))
    2 views of 4096 samples and 8192 features on 16 ranks: each rank, for value and gradient
      route                      sent    multiply-adds
      gram (taken)             252 MB           34.4 G
      covariance              1.01 GB           68.7 G
    """
    if isinstance(n_per_rank, Sequence):
        rows = tuple(_count(n, "n_per_rank", least=0) for n in n_per_rank)
        if world_size is not None and len(rows) != _count(world_size, "world_size"):
            raise ValueError(
                f"n_per_rank must have world_size numbers; got {len(rows)} and {world_size!r}"
            )
    else:
        rows = (_count(n_per_rank, "n_per_rank"),) * _count(world_size, "world_size")
    d, views = _count(d, "d"), _count(views, "views")
    itemsize = _count(itemsize, "itemsize")
    if sum(rows) < 2:
        raise ValueError(f"n_per_rank must be 2 or more samples together; got {n_per_rank!r}")
    route = cheaper_route(rows, d)
    taken = cost(route, rows, d, views)
    other: Cost = cost("covariance" if route == "gram" else "gram", rows, d, views)
    return Plan(
        route,
        rows,
        d,
        views,
        taken.sent * itemsize,
        taken.multiply_adds,
        other.sent * itemsize,
        other.multiply_adds,
    )


def _count(value: Any, argument: str, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an integer; got {value!r}") from None
    if number < least:
        raise ValueError(f"{argument} must be {least} or more; got {value!r}")
    return number


def _torch() -> Any:
    return adapter_for("torch").communicator


def _mpi() -> Any:
    from vicreg._adapters import mpi

    return mpi
