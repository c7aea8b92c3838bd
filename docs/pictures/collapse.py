"""Draw the spectrum of embeddings that are healthy, and of two kinds of collapse.

    python docs/pictures/collapse.py --plot collapse.svg

One small encoder is trained with all three terms, without the covariance term, and with the
invariance alone.
"""

from __future__ import annotations

import argparse
import math

import matplotlib.pyplot as plt
import torch

from vicreg import diagnose
from vicreg.torch import VICRegLoss

STEPS, SAMPLES, INPUTS, FEATURES = 300, 256, 64, 32


def inputs() -> torch.Tensor:
    """Return a batch of inputs, some directions of which vary more than others."""
    return 3 * torch.randn(SAMPLES, INPUTS) * torch.arange(1, INPUTS + 1) ** -0.7


def embeddings(**weights: float) -> torch.Tensor:
    """Return a batch of embeddings of an encoder that was trained with these weights."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(
        torch.nn.Linear(INPUTS, 128), torch.nn.ReLU(), torch.nn.Linear(128, FEATURES)
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    criterion = VICRegLoss(**weights)
    for _ in range(STEPS):
        x = inputs()
        z1, z2 = (encoder(x + 0.1 * torch.randn_like(x)) for _ in range(2))
        optimizer.zero_grad()
        criterion(z1, z2).backward()
        optimizer.step()
    with torch.no_grad():
        return encoder(inputs())


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", required=True)
    file = parser.parse_args().plot

    figure, axes = plt.subplots()
    directions = range(1, FEATURES + 1)
    for name, weights, place, offset in (
        ("all three terms", {}, 12, 9),
        ("no covariance term", {"covariance_weight": 0.0}, 8, -36),
        ("invariance alone", {"covariance_weight": 0.0, "variance_weight": 0.0}, 8, 9),
    ):
        found = diagnose(embeddings(**weights))
        spread = found.singular_values / math.sqrt(found.n - 1)
        (line,) = axes.plot(directions, spread)
        axes.annotate(
            f"{name}: effective rank {found.effective_rank:.0f}",
            (place, spread[place - 1]),
            (0, offset),
            textcoords="offset points",
            color=line.get_color(),
        )
        print(f"{name}: {found.verdict}")
    axes.set(yscale="log", ylim=(2e-4, 30), xlim=(0, FEATURES + 1))
    axes.set_xlabel("direction in the space of embeddings, the widest first")
    axes.set_ylabel("standard deviation along it")
    axes.set_title("Few wide directions, or none, are a collapse")
    figure.savefig(file)


if __name__ == "__main__":
    main()
