"""What the ranks of a batch send to each other: all that the core knows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from vicreg._core.agreement import Agreement

Array = Any


class Communicator(ABC):
    """The base class of communicators: how the ranks of one batch send arrays to each other.

    Derive from it to use a way of communicating that this package does not have. Two methods are
    enough, a gather and a sum. All ranks call them in the same order, and nothing is
    differentiated through them. Each rank makes a communicator of its own.

    Attributes
    ----------
    rank : int
        The number of this process among the ranks, from 0.
    size : int
        How many ranks there are.
    libraries : tuple of str, or None
        The libraries whose arrays it sends, such as "torch" or "numpy". None is any.

    Examples
    --------
    The simplest one has a single rank:

    >>> import numpy as np
    >>> from vicreg import vicreg_loss
    >>> from vicreg.distributed import Communicator
    >>> class Alone(Communicator):
    ...     rank, size, libraries = 0, 1, ("numpy",)
    ...
    ...     def all_gather(self, array):
    ...         return array[None, ...]
    ...
    ...     def all_reduce(self, array):
    ...         return array
    >>> z1, z2 = np.random.default_rng(0).standard_normal((2, 8, 3))
    >>> bool(vicreg_loss(z1, z2, comm=Alone()) == vicreg_loss(z1, z2))
    True
    """

    libraries: tuple[str, ...] | None = None
    #: Whether all ranks run one traced program, which cannot differ between them.
    runs_one_program = False

    @property
    @abstractmethod
    def rank(self) -> Any:
        """The number of this process among the ranks, from 0."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many ranks there are."""

    @abstractmethod
    def all_gather(self, array: Array) -> Array:
        """Return the arrays of all ranks, stacked in the order of the ranks.

        Parameters
        ----------
        array : array, of any shape
            That of this rank. It has the same shape and dtype on all ranks.

        Returns
        -------
        array, shape (size, ...)
            One array for each rank, on the device of `array`.
        """

    @abstractmethod
    def all_reduce(self, array: Array) -> Array:
        """Return the sum of the arrays of all ranks.

        Parameters
        ----------
        array : array, of any shape
            That of this rank. It has the same shape and dtype on all ranks, and is not used again:
            you may write the sum into it.

        Returns
        -------
        array, of the shape of `array`
            The sum, on the device of `array`.
        """

    @property
    def agreement(self) -> Agreement:
        """What the ranks know of each other from earlier calls. It is used by the losses."""
        if "_agreement" not in vars(self):
            vars(self)["_agreement"] = Agreement()
        agreement: Agreement = vars(self)["_agreement"]
        return agreement


class Local(Communicator):
    """The one rank of a batch: each process computes the loss of its own."""

    rank, size = 0, 1

    def all_gather(self, array: Array) -> Array:
        """Return `array` as the one of one rank."""
        return array[None, ...]

    def all_reduce(self, array: Array) -> Array:
        """Return `array`."""
        return array

    def __repr__(self) -> str:
        return "LOCAL"
