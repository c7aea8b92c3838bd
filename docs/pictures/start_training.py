"""The three terms by epoch of the training of the page `start/training.md`, in PyTorch."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch

from vicreg.torch import VICRegLoss

EPOCHS = 60


def trained() -> dict[str, list[float]]:
    """Return each term, unweighted, in the last batch of each epoch."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((512, 8))
    images = torch.from_numpy(np.tanh(causes @ rng.standard_normal((8, 32))).astype(np.float32))
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    criterion = VICRegLoss()
    history: dict[str, list[float]] = {"invariance": [], "variance": [], "covariance": []}
    for _ in range(EPOCHS):
        for batch in images[torch.randperm(len(images))].split(128):
            view1, view2 = (batch + 0.1 * torch.randn_like(batch) for _ in range(2))
            terms = criterion.terms(encoder(view1), encoder(view2))
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
        for name, values in history.items():
            values.append(terms.scalars()[name])
    return history


def draw(history: dict[str, list[float]], file: str) -> None:
    """Draw each term as a line, with its name at its end."""
    figure, axes = plt.subplots()
    for name, values in history.items():
        (line,) = axes.plot(range(1, EPOCHS + 1), values)
        axes.annotate(
            name,
            (EPOCHS, values[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            color=line.get_color(),
            va={"invariance": "bottom", "variance": "top"}.get(name, "center"),
            annotation_clip=False,
        )
    axes.set(xlabel="epoch", ylabel="term, unweighted (log)", yscale="log", xlim=(1, EPOCHS))
    axes.set_title("Features come to life, then become different")
    figure.savefig(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True)
    draw(trained(), parser.parse_args().plot)
