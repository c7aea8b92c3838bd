"""Train on digits with Lightning: log the terms, and watch for collapse.

A LightningModule with `vicreg.torch.VICRegLoss` logs the three terms of each step. The callback
`vicreg.lightning.CollapseMonitor` adds the effective rank of the embeddings to the same log.
Needs PyTorch, Lightning and scikit-learn, and matplotlib for the picture:

    python examples/lightning_digits.py --plot lightning.svg
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from vicreg.lightning import CollapseMonitor
from vicreg.torch import VICRegLoss


class VICReg(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.criterion = VICRegLoss()

    def training_step(self, images: torch.Tensor) -> torch.Tensor:
        views = (images + 0.2 * torch.randn_like(images) for _ in range(2))
        terms = self.criterion.terms(*map(self.encoder, views))
        self.log_dict(terms.scalars("train/"))
        return terms.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def logged(folder: str, column: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of one column of the logger's file."""
    with next(Path(folder).rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]


def draw(folder: str, file: str) -> None:
    import matplotlib.pyplot as plt

    _, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(5.2, 4.8))
    for term in ("invariance", "variance", "covariance"):
        above.plot(*logged(folder, f"train/{term}"), label=term)
    steps, ranks = logged(folder, "encoder/effective_rank")
    below.plot(steps, ranks)
    _, variances = logged(folder, "train/variance")
    above.set_title(f"The variance term goes from {variances[0]:.2f} to {variances[-1]:.2f}")
    above.set(ylabel="term, unweighted", yscale="log")
    above.legend()
    below.set_title(f"The effective rank goes from {ranks[0]:.0f} to {ranks[-1]:.0f} of 64")
    below.set(xlabel="step", ylabel="effective rank")
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as loss.svg")
    file = parser.parse_args().plot
    lightning.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # a small network is slower on more
    images = load_digits().data.astype(np.float32) / 16
    data = DataLoader(torch.asarray(images), batch_size=256, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as folder:
        monitor = CollapseMonitor(["encoder"], every_n_steps=10, stop=True)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=40,
            log_every_n_steps=5,
            logger=CSVLogger(folder),
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(VICReg(), data)
        for name in ("train/invariance", "train/variance", "train/covariance"):
            _, values = logged(folder, name)
            print(f"{name:17} {values[0]:8.4f} at first, {values[-1]:8.4f} at last")
        print(f"collapsed: {monitor.collapsed}")
        if file:
            draw(folder, file)


if __name__ == "__main__":
    main()
