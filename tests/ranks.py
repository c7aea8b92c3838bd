"""Batches that are spread over ranks, and ranks that are threads of this process."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vicreg.distributed import Communicator

#: Rows of each rank: one row, none, as many, and sums above and below the features of the tests.
EVEN, UNEVEN, ONE_ROW, NONE = (4, 4), (5, 2, 9), (1, 7, 3, 4), (6, 0, 5)


def whole(
    rows: Sequence[int], shape: Sequence[int], views: int = 2, seed: int = 0
) -> list[np.ndarray]:
    """Return views of all rows, ``(sum(rows), *shape)``: each rank's have a mean of their own."""
    rng = np.random.default_rng(seed)
    of_rank = np.repeat(np.arange(len(rows)), rows).reshape(-1, *(1 for _ in shape))
    full = (sum(rows), *shape)
    common = rng.standard_normal(full) + rng.standard_normal(full) * of_rank + 3.0 * of_rank
    return [common + 0.3 * rng.standard_normal(full) for _ in range(views)]


def weights(rows: Sequence[int], *positions: int) -> np.ndarray:
    """Return weights of all samples, ``(sum(rows), *positions)``: 0 for the whole first rank.

    Of the others some are 0, in each position others, and the last two are not.
    """
    rng = np.random.default_rng(sum(rows))
    shape = (sum(rows), *positions)
    drawn = rng.uniform(0.2, 2.0, shape) * (rng.uniform(size=shape) < 0.7)
    drawn[: rows[0]] = 0
    drawn[-2:] += 0.5
    return drawn


def hidden(views: Sequence[np.ndarray], weights: np.ndarray) -> list[np.ndarray]:
    """Return `views` with NaN for each sample of weight 0."""
    each = weights.reshape(*weights.shape, *(1,) * (views[0].ndim - weights.ndim))
    return [np.where(each > 0, view, np.nan) for view in views]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` has filled, once for all processes of pytest-xdist."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done, failed = folder / "made", folder / "failed"
    try:
        folder.mkdir()
    except FileExistsError:
        while not (done.exists() or failed.exists()):
            time.sleep(0.1)
        assert done.exists(), failed.read_text()
        return folder
    try:
        make(folder)
    except BaseException as error:
        failed.write_text(str(error))
        raise
    done.touch()
    return folder


def own(views: Sequence[Any], rows: Sequence[int], rank: int) -> list[Any]:
    """Return the rows of one rank."""
    start = sum(rows[:rank])
    return [view[start : start + rows[rank]] for view in views]


class Threads:
    """What threads share that send each other arrays. One that fails leaves the others waiting."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[Any] = [None] * size
        self.calls = [Counter() for _ in range(size)]
        self.bytes = [Counter() for _ in range(size)]

    def exchange(self, rank: int, array: Any) -> list[Any]:
        self.slots[rank] = array
        self.barrier.wait()
        arrays = list(self.slots)
        self.barrier.wait()
        return arrays


class Thread(Communicator):
    """One thread as a rank: what a user writes who brings a communicator."""

    libraries = ("numpy", "torch")

    def __init__(self, threads: Threads, rank: int) -> None:
        self.threads, self._rank = threads, rank

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self.threads.size

    def all_gather(self, array: Any) -> Any:
        return self._stacked("all_gather", array)

    def all_reduce(self, array: Any) -> Any:
        return self._stacked("all_reduce", array).sum(0)

    def _stacked(self, name: str, array: Any) -> Any:
        if isinstance(array, np.generic):
            array = np.asarray(array)
        self.threads.calls[self.rank][name] += 1
        self.threads.bytes[self.rank][name] += array.nbytes
        arrays = self.threads.exchange(self.rank, array)
        assert len({(tuple(one.shape), one.dtype) for one in arrays}) == 1
        if isinstance(array, np.ndarray):
            return np.stack(arrays)
        import torch

        return torch.stack(arrays)


def on_threads(
    size: int, function: Callable[[Thread], Any], threads: Threads | None = None
) -> list[Any]:
    """Return what `function` returns on each rank, or the exception that it raises there."""
    threads = threads or Threads(size)

    def on_rank(rank: int) -> Any:
        try:
            return function(Thread(threads, rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(on_rank, range(size)))
