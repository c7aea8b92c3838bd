"""Draw the error of the gradient in bfloat16: of this package, and of plain code.

    python docs/pictures/half_precision.py --plot half_precision.svg

The embeddings are numbers of bfloat16, with a std that falls short of the hinge at 1 by more or
less. The truth is plain code in float64 for the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch

from vicreg.torch import vicreg_loss

SAMPLES, FEATURES = 256, 512
SHORTFALLS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Return the loss as it is usually written."""
    loss = 25 * torch.nn.functional.mse_loss(z1, z2)
    for z in (z1, z2):
        loss = loss + 12.5 * torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean()
        z = z - z.mean(dim=0)
        covariance = z.T @ z / (len(z) - 1)
        covariance = covariance - covariance.diagonal().diag()
        loss = loss + covariance.square().sum() / z.shape[1]
    return loss


def under_autocast(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Return the same under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return plain(z1, z2)


def gradient(loss: Loss, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a loss by the first view."""
    z1 = z1.detach().clone().requires_grad_()
    loss(z1, z2).backward()
    return z1.grad.double()


def errors(shortfall: float) -> list[float]:
    """Return the error of each way, relative to the norm of the gradient."""
    torch.manual_seed(0)
    z = torch.randn(SAMPLES, FEATURES) + 0.05 * torch.randn(2, SAMPLES, FEATURES)
    z = (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True)
    z1, z2 = ((1 - shortfall) * z).bfloat16()
    wanted = gradient(plain, z1.double(), z2.double())
    ways = (plain, under_autocast, vicreg_loss)
    return [float((gradient(way, z1, z2) - wanted).norm() / wanted.norm()) for way in ways]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", required=True)
    file = parser.parse_args().plot

    plain, autocast, ours = zip(*map(errors, SHORTFALLS), strict=True)
    figure, axes = plt.subplots()
    for column, name, line in (
        (ours, "vicreg", {"color": "C0", "linestyle": "-"}),
        (plain, "plain code", {"color": "C1", "linestyle": "--"}),
        (autocast, "plain code, autocast", {"color": "C2", "linestyle": ":"}),
    ):
        axes.plot(SHORTFALLS, [100 * error for error in column], marker="o", label=name, **line)
    axes.set(xscale="log", yscale="log", ylim=(0.05, 300))
    axes.set_xticks([0.5, 0.1, 0.01, 0.001], ["0.5", "0.9", "0.99", "0.999"])
    axes.set_yticks([0.1, 1, 10, 100], ["0.1 %", "1 %", "10 %", "100 %"])
    axes.invert_xaxis()
    axes.minorticks_off()
    axes.set_xlabel("standard deviation of the features (the hinge is at 1)")
    axes.set_ylabel("error of the gradient")
    axes.set_title("In bfloat16 plain code misjudges the hinge near 1")
    axes.legend(loc="upper left")
    figure.savefig(file)


if __name__ == "__main__":
    main()
