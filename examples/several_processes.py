"""Train in four processes as in one: DistributedDataParallel with and without a communicator.

Four processes share each batch. With `comm=TorchCommunicator()` the loss is that of the whole
batch, and the training follows that of one process. Without, each process takes the statistics of
its own rows, and the mean of their gradients is that of another loss. The script starts its
processes itself. Needs PyTorch and scikit-learn, and matplotlib for the picture:

    python examples/several_processes.py --plot processes.svg
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vicreg.distributed import LOCAL, Communicator, TorchCommunicator
from vicreg.torch import VICRegLoss

PROCESSES, STEPS, BATCH, FEATURES = 4, 150, 32, 64


def two_views() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batches, ``(STEPS, 2, BATCH, 64)``, and held-out images: digits with noise."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images = torch.as_tensor(load_digits().data / 16, dtype=torch.float32)
    train, held_out = images[:1280], images[1280:]
    chosen = train[torch.randint(len(train), (STEPS, 1, BATCH))]
    batches = chosen + 0.2 * torch.randn(STEPS, 2, BATCH, 64)
    return batches, held_out + 0.2 * torch.randn(2, *held_out.shape)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, FEATURES))


def trained(data: tuple[torch.Tensor, torch.Tensor], comm: Communicator) -> list[float]:
    """Train on this process's rows of each batch; return the loss of the held-out images."""
    batches, held_out = data
    alone = encoder()
    model, rows = alone, slice(None)
    if dist.is_initialized():
        model = DistributedDataParallel(alone)
        count = BATCH // dist.get_world_size()
        rows = slice(count * dist.get_rank(), count * (dist.get_rank() + 1))
    criterion, of_held_out = VICRegLoss(comm=comm), VICRegLoss(comm=LOCAL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for x1, x2 in batches:
        loss = criterion(model(x1[rows]), model(x2[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(of_held_out(*alone(held_out)).item())
    return losses


def one_of_several(rank: int, data: tuple[torch.Tensor, torch.Tensor], folder: str) -> None:
    """Train in one of the processes, with the communicator and without."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=PROCESSES)
    # LOCAL computes what no comm computes, and says that it is meant: there is no warning.
    losses = [trained(data, comm) for comm in (TorchCommunicator(), LOCAL)]
    if rank == 0:
        torch.save(losses, Path(folder) / "losses")
    dist.destroy_process_group()


def draw(curves: dict[str, list[float]], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    for (name, losses), width in zip(curves.items(), (6, 2, 2), strict=True):
        axes.plot(losses, label=name, linewidth=width)
    axes.set_title("With comm, four processes train as one")
    axes.set(xlabel="step", ylabel="loss of held-out images")
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as processes.svg")
    file = parser.parse_args().plot
    torch.set_num_threads(1)
    data = two_views()
    curves = {"one process": trained(data, LOCAL)}
    with tempfile.TemporaryDirectory() as folder:
        # Forked from a server that has imported all: each process would take seconds to do so.
        multiprocessing.set_forkserver_preload(["vicreg.torch"])
        torch.multiprocessing.start_processes(
            one_of_several, (data, folder), nprocs=PROCESSES, start_method="forkserver"
        )
        several = torch.load(Path(folder) / "losses")
    for name, losses in zip(("with comm", "without comm"), several, strict=True):
        curves[f"{PROCESSES} processes, {name}"] = losses
    for name, losses in curves.items():
        print(f"{name + ':':26} loss {losses[-1]:.4f} after {STEPS} steps")
    alone, *several = (torch.tensor(losses) for losses in curves.values())
    followed, left = (((losses - alone) / alone).abs().max().item() for losses in several)
    print(f"with comm the loss is within {followed:.0e} of that of one process, at every step")
    print(f"without comm it is up to {left:.0%} away")
    assert followed < 1e-4, followed
    assert left > 0.03, left
    if file:
        draw(curves, file)


if __name__ == "__main__":
    main()
