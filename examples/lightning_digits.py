"""Train with Lightning, log the terms, and let a callback stop a training that has collapsed.

The LightningModule logs the loss and its three terms; `vicreg.lightning.CollapseMonitor` logs how
healthy the projector's output is, and ends the training when it has collapsed. It is trained twice
on scikit-learn's digits: with all three terms, and without the variance term. Needs Lightning and
scikit-learn, and matplotlib for the picture:

    python examples/lightning_digits.py --plot lightning.svg
"""

from __future__ import annotations

import argparse
import csv
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from vicreg.lightning import CollapseMonitor
from vicreg.torch import VICRegLoss

STEPS, BATCH, FEATURES = 200, 256, 32


class VICReg(lightning.LightningModule):
    """An encoder of digits, which learns from two views of each image."""

    def __init__(self, criterion: VICRegLoss) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.projector = nn.Linear(128, FEATURES)
        self.criterion = criterion

    def view(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images with three of ten pixels hidden."""
        return images * (torch.rand_like(images) > 0.3)

    def training_step(self, images: torch.Tensor) -> torch.Tensor:
        z1, z2 = (self.projector(self.backbone(self.view(images))) for _ in range(2))
        terms = self.criterion.terms(z1, z2)
        self.log_dict(terms.scalars("train/"))
        return terms.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def trained(criterion: VICRegLoss) -> list[dict[str, str]]:
    """Train a model, and return what was logged: a line for each diagnosis and for each loss."""
    lightning.seed_everything(0, verbose=False)
    images = torch.as_tensor(load_digits().data / 16, dtype=torch.float32)
    with TemporaryDirectory() as folder:
        logger = CSVLogger(folder)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            logger=logger,
            log_every_n_steps=5,
            callbacks=[CollapseMonitor("projector", every_n_steps=5, stop=True)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(VICReg(criterion), DataLoader(images, BATCH, shuffle=True, drop_last=True))
        lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    return list(csv.DictReader(lines))


def curve(logged: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a number was logged, and the numbers."""
    rows = [row for row in logged if row[name]]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


def draw(logged: dict[str, list[dict[str, str]]], stopped: int, file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    for name, rows in logged.items():
        steps, std = curve(rows, "projector/mean_std")
        axes.plot(steps, std)
        if steps[-1] < STEPS:
            axes.plot(steps[-1], std[-1], "o", color="C1")
            axes.text(steps[-1] + 5, std[-1], f"{name}: stopped", va="center")
        else:
            axes.text(STEPS, std[-1] + 0.06, name, ha="right")
    axes.set_title(f"The callback stops the collapsed training at step {stopped}")
    axes.set(xlabel="step", ylabel="mean std of a feature", ylim=(0, 1.05))
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as lightning.svg")
    file = parser.parse_args().plot
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logged = {
        "all three terms": trained(VICRegLoss()),
        "no variance term": trained(VICRegLoss(variance_weight=0)),
    }
    lengths = []
    for name, rows in logged.items():
        steps, std = curve(rows, "projector/mean_std")
        invariance = curve(rows, "train/invariance")[1]
        print(
            f"{name}: {steps[-1]} of {STEPS} steps, invariance {invariance[-1]:.3f}, "
            f"mean std from {std[0]:.2f} to {std[-1]:.2f}"
        )
        lengths.append(steps[-1])
    healthy, collapsed = lengths
    assert collapsed < healthy == STEPS  # only the training that collapsed was stopped
    if file:
        draw(logged, collapsed, file)


if __name__ == "__main__":
    main()
