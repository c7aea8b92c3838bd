"""The ranks of a batch on MPI: NumPy arrays, and CuPy's where MPI reads the memory of GPUs."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, is_cupy_array
from mpi4py import MPI

from vicreg._core.agreement import Agreement

Array = Any

_agreement = MPI.Comm.Create_keyval()


def all_gather(comm: Any, array: Array) -> Array:
    """Return the arrays of all ranks, ``(size, *array.shape)``."""
    xp, array = array_namespace(array), _ready(array)
    received = xp.empty((comm.size, *array.shape), dtype=array.dtype)
    # MPI has no type for half precision: what it moves are bytes.
    kind = MPI.BYTE.Create_contiguous(array.itemsize).Commit()
    try:
        comm.Allgather([array, array.size, kind], [received, array.size, kind])
    finally:
        kind.Free()
    return received


def all_reduce(comm: Any, array: Array) -> Array:
    """Return the sum of the arrays of all ranks."""
    array = _ready(array)
    total = array_namespace(array).empty_like(array)
    comm.Allreduce(array, total)
    return total


def _ready(array: Array) -> Array:
    """Return `array` in one piece of memory, with its values in it."""
    # Sums of NumPy are scalars of its own.
    xp = array_namespace(array)
    array = xp.asarray(array, copy=True) if array.ndim == 0 else xp.ascontiguousarray(array)
    if is_cupy_array(array):
        array.device.synchronize()
    return array


def agreement(comm: Any) -> Agreement:
    """Return what the ranks of `comm` know of each other."""
    known: Agreement | None = comm.Get_attr(_agreement)
    if known is None:
        known = Agreement()
        comm.Set_attr(_agreement, known)
    return known
