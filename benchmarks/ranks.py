"""Time and count the loss of a batch over processes, beside what is usually written.

    python benchmarks/ranks.py

Value and gradient of two views in float32, in PyTorch with gloo on this machine. Each process has
one thread, and a core of its own where there are enough. "vicreg" is this package's loss with
TorchCommunicator(). "usual" is a gather layer whose backward pass adds up the gradients of all
ranks, and the published formula of the whole batch on each rank. They take turns. A time is that
of the slowest rank; a ratio is the median of the ratios of the rounds. Bytes are those that a rank
sends if collectives go around a ring.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed as dist
from torch import multiprocessing

from vicreg.distributed import TorchCommunicator, plan
from vicreg.tools.benchmark.published import published_formula
from vicreg.torch import VICRegLoss

Tensor = torch.Tensor

#: Ranks, and samples in all: 512 on two; 512 on each of two; and 512 on one and four.
BATCHES = ((2, 512), (2, 1024), (1, 512), (4, 512))
FEATURES, ROUNDS = 4096, 7


class Gather(torch.autograd.Function):
    """All rows on each rank; backwards, the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        rows = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, z)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    published = published_formula("torch")
    return {
        "vicreg": VICRegLoss(comm=TorchCommunicator()),
        "usual": lambda z1, z2: published(Gather.apply(z1), Gather.apply(z2)),
    }


@dataclass
class Sent:
    """What a rank sends around a ring."""

    size: int
    collectives: int = 0
    nbytes: float = 0.0

    def gathered(self, array: Tensor) -> None:
        self.collectives += 1
        self.nbytes += (self.size - 1) * array.nbytes

    def reduced(self, array: Tensor) -> None:
        self.collectives += 1
        self.nbytes += 2 * (self.size - 1) / self.size * array.nbytes


@contextmanager
def counted(size: int) -> Iterator[Sent]:
    """Count what goes through the collectives of torch.distributed."""
    sent = Sent(size)
    gather, gather_single, reduce = dist.all_gather, dist.all_gather_single, dist.all_reduce

    def count_gather(received: Any, array: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.gathered(array)
        return gather(received, array, *args, **kwargs)

    def count_gather_single(received: Any, array: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.gathered(array)
        return gather_single(received, array, *args, **kwargs)

    def count_reduce(array: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.reduced(array)
        return reduce(array, *args, **kwargs)

    with (
        mock.patch.object(dist, "all_gather", count_gather),
        mock.patch.object(dist, "all_gather_single", count_gather_single),
        mock.patch.object(dist, "all_reduce", count_reduce),
    ):
        yield sent


@dataclass
class Found:
    """Of one way of computing a batch."""

    times: list[float] = field(default_factory=list)
    collectives: int = 0
    nbytes: float = 0.0


def call(loss: Callable[[Tensor, Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """Return the loss and its gradients."""
    views = [view.detach().requires_grad_() for view in views]
    value = loss(*views)
    value.backward()
    return [value.detach(), *(view.grad for view in views)]


def on_rank(rank: int, size: int, n: int, d: int, rounds: int, folder: str) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    torch.manual_seed(rank)
    common = torch.randn(n // size, d) + 0.1 * rank
    views = [common + 0.3 * torch.randn(n // size, d) for _ in range(2)]
    of, found = losses(), {name: Found() for name in ("vicreg", "usual")}
    # The first calls, in which the ranks find each other; and both ways agree.
    for got, wanted in zip(*(call(loss, views) for loss in of.values()), strict=True):
        # A float32 sum of n products, and then one of d: the bound of their rounding.
        limit = 2 * (n + d) * 2.0**-24 * float(wanted.abs().max())
        torch.testing.assert_close(got, wanted, rtol=0, atol=limit)
    for name, loss in of.items():
        with counted(size) as sent:
            call(loss, views)
        found[name].collectives, found[name].nbytes = sent.collectives, sent.nbytes
    for turn in range(rounds):
        for name in list(of)[:: 1 - 2 * (turn % 2)]:
            dist.barrier()
            start = time.perf_counter()
            call(of[name], views)
            took = torch.tensor(time.perf_counter() - start)
            dist.all_reduce(took, op=dist.ReduceOp.MAX)
            found[name].times.append(took.item())
    if rank == 0:
        of_names = {name: vars(each) for name, each in found.items()}
        Path(folder, "found.json").write_text(json.dumps(of_names))
    dist.destroy_process_group()


def measured(size: int, n: int, d: int, rounds: int) -> dict[str, Found]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(on_rank, (size, n, d, rounds, folder), nprocs=size)
        found = json.loads(Path(folder, "found.json").read_text())
    return {name: Found(**each) for name, each in found.items()}


def report(size: int, n: int, d: int, found: dict[str, Found]) -> str:
    vicreg, usual = found["vicreg"], found["usual"]
    ratios = [u / v for u, v in zip(usual.times, vicreg.times, strict=True)]
    planned = plan(n // size, d, size).bytes_sent
    lines = [f"{n} x {d} in all, {size} rank{'s' * (size > 1)} of {n // size} rows"]
    for name, each in found.items():
        median = 1000 * statistics.median(each.times)
        lines.append(
            f"  {name:<6}  {median:8.1f} ms  {each.collectives} collectives  "
            f"{math.ceil(each.nbytes):>11,} bytes sent"
        )
    lines.append(
        f"  {statistics.median(ratios):.1f} times faster ({min(ratios):.1f} to {max(ratios):.1f})"
    )
    if size > 1:
        lines.append(
            f"  {vicreg.nbytes / usual.nbytes:.4f} of the bytes, of which "
            f"{math.ceil(vicreg.nbytes) - planned} are headers; the plan says {planned:,}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--features", type=int, default=FEATURES)
    settings = parser.parse_args(arguments)
    print(
        f"{os.cpu_count()} cores; wanted: 10 times faster on 2 ranks, 1/3 of the bytes for n <= d"
    )
    for size, n in BATCHES:
        found = measured(size, n, settings.features, settings.rounds)
        print(report(size, n, settings.features, found), flush=True)


if __name__ == "__main__":
    main()
