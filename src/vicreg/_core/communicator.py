"""What the ranks of a batch send to each other: all that the core knows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from vicreg._core.agreement import Agreement

Array = Any


class Communicator(ABC):
    """How the ranks of one batch reach each other; each rank holds some of its rows.

    Two collectives are enough: a gather of equally shaped arrays and a sum. Derive from it to
    bring another than those of this package; each rank makes one for itself. Nothing is
    differentiated through either collective, and both are called by all ranks in the same order.

    Attributes
    ----------
    rank : int
        The place of this process among the ranks, from 0.
    size : int
        How many ranks there are.
    libraries : tuple of str, or None
        The libraries whose arrays are sent, as "torch" or "numpy". None is any.

    Examples
    --------
    The batch of one process, sent to nobody:

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
        """The place of this process among the ranks."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many ranks there are."""

    @abstractmethod
    def all_gather(self, array: Array) -> Array:
        """Return the arrays of all ranks, which have one shape, as ``(size, *array.shape)``."""

    @abstractmethod
    def all_reduce(self, array: Array) -> Array:
        """Return the sum of the arrays of all ranks, of one shape. `array` is not used again."""

    @property
    def agreement(self) -> Agreement:
        """What the ranks know of each other from earlier calls."""
        if "_agreement" not in vars(self):
            vars(self)["_agreement"] = Agreement()
        agreement: Agreement = vars(self)["_agreement"]
        return agreement
