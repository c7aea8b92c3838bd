"""The loss of a batch over processes, against a gather layer and the published formula.

    python benchmarks/ranks.py [--rows 256] [--features 4096] [--ranks 2] [--rounds 11]

starts processes of one core each. In one run, in turns, each computes value and gradient of two
float32 views: with ``comm=TorchCommunicator()``, and as it is published: a layer that gathers the
rows, with a backward pass that sums the gradients over the ranks, and the d × d covariance of all
rows on each rank. It prints the median times, what each rank sends, and how many collectives there
are. ``--growth`` does it for one rank, two and four, each with as many rows.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from vicreg.distributed import TorchCommunicator, plan
from vicreg.tools.processes import end_with_parent, run_together
from vicreg.torch import VICRegLoss


class Gather(torch.autograd.Function):
    """The rows of all ranks; backwards, the sum over the ranks of the gradients of one's own."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.rank, ctx.count = dist.get_rank(), rows.shape[0]
        gathered = rows.new_empty((dist.get_world_size() * ctx.count, *rows.shape[1:]))
        dist.all_gather_single(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count]


def published(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """The loss as facebookresearch/vicreg has it, of the gathered rows."""
    z1, z2 = Gather.apply(z1), Gather.apply(z2)
    invariance = torch.nn.functional.mse_loss(z1, z2)
    variance, covariance = 0.0, 0.0
    for z in (z1, z2):
        zc = z - z.mean(dim=0)
        std = torch.sqrt(zc.var(dim=0) + 1e-4)
        variance = variance + torch.relu(1 - std).mean() / 2
        c = zc.T @ zc / (len(z) - 1)
        covariance = covariance + (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]
    return 25 * invariance + 25 * variance + covariance


def counted(function: Callable[[], Any]) -> Counter[str]:
    """Return the collectives of `function`, and the bytes that a rank sends in a ring."""
    counts: Counter[str] = Counter()
    gather, reduce, size = dist.all_gather_single, dist.all_reduce, dist.get_world_size()

    def counting_gather(output: torch.Tensor, rows: torch.Tensor, *args: Any, **more: Any) -> Any:
        counts.update(collectives=1, bytes=(size - 1) * rows.nbytes)
        return gather(output, rows, *args, **more)

    def counting_reduce(array: torch.Tensor, *args: Any, **more: Any) -> Any:
        counts.update(collectives=1, bytes=2 * (size - 1) * array.nbytes // size)
        return reduce(array, *args, **more)

    dist.all_gather_single, dist.all_reduce = counting_gather, counting_reduce
    try:
        function()
    finally:
        dist.all_gather_single, dist.all_reduce = gather, reduce
    return counts


def rank(arguments: argparse.Namespace) -> None:
    """Measure on this rank; the first one prints."""
    end_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(arguments.folder.parent / "meeting").as_uri(),
        rank=arguments.rank,
        world_size=arguments.ranks,
        timeout=datetime.timedelta(minutes=5),
    )
    generator = torch.Generator().manual_seed(arguments.rank)
    common = torch.randn(arguments.rows, arguments.features, generator=generator)
    views = [
        (common + 0.1 * torch.randn(common.shape, generator=generator)).requires_grad_()
        for _ in range(2)
    ]
    criterion = VICRegLoss(comm=TorchCommunicator())

    def step(loss: Callable[..., torch.Tensor]) -> float:
        for view in views:
            view.grad = None
        dist.barrier()
        began = time.perf_counter()
        loss(*views).backward()
        return time.perf_counter() - began

    ways: dict[str, Callable[..., torch.Tensor]] = {"vicreg": criterion, "published": published}
    gradients = []
    for loss in ways.values():
        step(loss)
        gradients.append([view.grad.clone() for view in views])
    error = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True)
    )
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, loss in ways.items():
            times[name].append(step(loss))
    counts = {name: counted(lambda loss=loss: step(loss)) for name, loss in ways.items()}
    if arguments.rank == 0:
        ours, theirs = (statistics.median(of_way) for of_way in times.values())
        print(
            f"{arguments.ranks} x {arguments.rows:4} x {arguments.features}: "
            f"{1000 * ours:.1f} ms, published {1000 * theirs:.1f} ms, {theirs / ours:.1f} times; "
            f"sent {counts['vicreg']['bytes']:,} and {counts['published']['bytes']:,} bytes in "
            f"{counts['vicreg']['collectives']} and {counts['published']['collectives']} "
            f"collectives; gradients differ by {error:.0e}"
        )
    (arguments.folder / "0.done").touch()
    dist.barrier()
    dist.destroy_process_group()


def run(ranks: int, rows: int, features: int, rounds: int) -> str:
    """Return what the first of `ranks` processes prints."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, str(place)) for place in range(ranks)]
        for each in folders:
            each.mkdir()
        options = ["--rows", rows, "--features", features, "--ranks", ranks, "--rounds", rounds]
        commands = [
            [sys.executable, __file__, *map(str, options), "--rank", str(place), "--folder", each]
            for place, each in enumerate(map(str, folders))
        ]
        ends = run_together(commands, folders, [os.environ | {"OMP_NUM_THREADS": "1"}] * ranks)
    if any(end.status for end in ends):
        raise SystemExit(next(end.output for end in ends if end.status))
    return ends[0].output


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=256, help="the rows of each rank")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--growth", action="store_true", help="one rank, two and four")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        rank(arguments)
        return
    for ranks in (1, 2, 4) if arguments.growth else (arguments.ranks,):
        print(run(ranks, arguments.rows, arguments.features, arguments.rounds))
        print(plan(arguments.rows, arguments.features, ranks))


if __name__ == "__main__":
    main()
