"""Train on digits with Accelerate, in one process and in two: the curves are the same.

The loop is that of any Accelerate script. ``comm=TorchCommunicator()`` gives the loss of the whole
batch, in however many processes it runs. Needs PyTorch, Accelerate and scikit-learn, and
matplotlib for the picture. It starts the processes itself:

    python examples/accelerate_digits.py --plot accelerate.svg
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vicreg.distributed import TorchCommunicator
from vicreg.torch import VICRegLoss

EPOCHS, BATCH, IMAGES = 8, 256, 1792  # whole batches


def train(file: str) -> None:
    """Train, and write the loss of each step to a file."""
    torch.set_num_threads(1)  # a small network is slower on more
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    images = torch.asarray(load_digits().data[:IMAGES].astype(np.float32) / 16)
    data = TensorDataset(*(images + 0.2 * torch.randn(2, *images.shape)))
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    loader = DataLoader(data, batch_size=BATCH // accelerator.num_processes)
    encoder, optimizer, loader = accelerator.prepare(encoder, optimizer, loader)
    criterion = VICRegLoss(comm=TorchCommunicator() if accelerator.num_processes > 1 else None)
    losses = []
    for _ in range(EPOCHS):
        for x1, x2 in loader:
            optimizer.zero_grad()
            loss = criterion(encoder(x1), encoder(x2))
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    if accelerator.is_main_process:
        Path(file).write_text(json.dumps(losses))


def draw(curves: dict[str, list[float]], apart: float, file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    for (name, losses), width in zip(curves.items(), (7, 2), strict=True):
        axes.plot(losses, label=name, linewidth=width)
    axes.set_title(f"One process and two differ by {apart:.0e} at most")
    axes.set(xlabel="step", ylabel="loss of the whole batch")
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as loss.svg")
    file = parser.parse_args().plot
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, processes in (("two processes", 2), ("one process", 1)):
            written = f"{folder}/{processes}.json"
            if processes > 1:
                debug_launcher(train, (written,), processes)
            else:
                train(written)
            losses = curves[name] = json.loads(Path(written).read_text())
            print(f"{name:13} loss {losses[0]:.6f} at first, {losses[-1]:.6f} at last")
    apart = max(abs(a - b) / a for a, b in zip(*curves.values(), strict=True))
    print(f"largest difference of two losses, relative: {apart:.1e}")
    if file:
        draw(curves, apart, file)


if __name__ == "__main__":
    main()
