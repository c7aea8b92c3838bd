"""Train on four processes: with `comm=` the loss is that of one process, without it is not.

Each of four processes has a quarter of the batch. With ``comm=TorchCommunicator()`` the
statistics are of the whole batch, and DistributedDataParallel takes the steps that one process
would take. Without, each process decorrelates its own 16 samples, and the training is another.
Needs PyTorch, and matplotlib for the picture. It starts the processes itself:

    python examples/several_processes.py --plot processes.svg
"""

from __future__ import annotations

import argparse
import socket
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from vicreg.distributed import LOCAL, TorchCommunicator
from vicreg.torch import VICRegLoss

PROCESSES, ROWS, INPUTS, FEATURES, STEPS = 4, 64, 16, 64, 60


def trained(rank: int, processes: int, comm: Any) -> list[float]:
    """Train on this process's rows; return the loss of the whole batch in each step."""
    torch.manual_seed(0)
    model = encoder = torch.nn.Linear(INPUTS, FEATURES).double()
    if processes > 1:
        model = DistributedDataParallel(encoder)
    criterion, of_all = VICRegLoss(comm=comm), VICRegLoss(comm=LOCAL)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        images = torch.randn(ROWS, INPUTS, dtype=torch.float64)
        views = images + 0.3 * torch.randn(2, ROWS, INPUTS, dtype=torch.float64)
        with torch.no_grad():
            losses.append(of_all(*map(encoder, views)).item())
        x1, x2 = views[:, rank::processes]  # each process could read its own rows alone
        optimizer.zero_grad()
        criterion(model(x1), model(x2)).backward()
        optimizer.step()
    return losses


def worker(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES
    )
    curves = {
        "with comm=": trained(rank, PROCESSES, TorchCommunicator()),
        "without": trained(rank, PROCESSES, LOCAL),
    }
    if rank == 0:
        results.put(curves)
    torch.distributed.destroy_process_group()


def draw(curves: dict[str, list[float]], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    for (name, losses), width in zip(curves.items(), (7, 2, 2), strict=True):
        axes.plot(losses, label=name, linewidth=width)
    pairs = zip(curves["one process"], curves["with comm="], strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-9
    axes.set_title(f"With comm=, {PROCESSES} processes train as one does")
    axes.set(xlabel="step", ylabel="loss of the whole batch")
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as loss.svg")
    file = parser.parse_args().plot
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(worker, (port, results), PROCESSES)
    curves = {"one process": trained(0, 1, LOCAL), **results.get()}
    for name, losses in curves.items():
        apart = max(abs(a - b) for a, b in zip(curves["one process"], losses, strict=True))
        print(f"{name:12} last loss {losses[-1]:.6f}, at most {apart:.1e} from one process")
    if file:
        draw(curves, file)


if __name__ == "__main__":
    main()
