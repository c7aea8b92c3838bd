"""Train a small encoder without the variance term, and be warned that it collapses.

With the invariance alone the encoder learns to return the same for every input, and the loss looks
better than ever. `vicreg.torch.CollapseMonitor` looks at the encoder's output each 5 steps, and
warns once, when it has collapsed. A training would stop there; this one goes on, to show what
comes. With all three terms the monitor says nothing. Needs PyTorch, and matplotlib for the
picture:

    python examples/collapse_monitor.py --plot collapse.svg
"""

from __future__ import annotations

import argparse
from collections import OrderedDict

import torch
from torch import nn

from vicreg.torch import CollapseMonitor, VICRegLoss

STEPS, SAMPLES, INPUTS, FEATURES = 100, 128, 16, 8


def trained(criterion: VICRegLoss) -> list[dict[str, float]]:
    """Train an encoder; return what the monitor saw of it."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU())
    layers = OrderedDict(backbone=backbone, projector=nn.Linear(32, FEATURES))
    encoder = nn.Sequential(layers)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    history = []
    with CollapseMonitor(encoder, "projector", every_n_steps=5) as monitor:
        for step in range(1, STEPS + 1):
            image = torch.randn(SAMPLES, INPUTS)
            z1, z2 = (encoder(image + 0.3 * torch.randn(SAMPLES, INPUTS)) for _ in range(2))
            terms = criterion.terms(z1, z2)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            scalars = monitor.step()  # for a logger, every 5 steps
            if scalars is not None:
                warned = {"warned": monitor.collapsed}  # a training might stop here
                history.append({"step": step, **terms.scalars(), **scalars, **warned})
    return history


def line(seen: dict[str, float]) -> str:
    return (
        f"step {seen['step']:3}: loss {seen['loss']:7.4f}, "
        f"mean std {seen['projector/mean_std']:.3f}, "
        f"effective rank {seen['projector/effective_rank']:.1f} of {FEATURES}"
    )


def draw(histories: dict[str, list[dict[str, float]]], file: str) -> None:
    import matplotlib.pyplot as plt

    _, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(5.2, 4.8))
    for name, history in histories.items():
        steps = [seen["step"] for seen in history]
        for axes, value in ((above, "invariance"), (below, "projector/mean_std")):
            axes.plot(steps, [seen[value] for seen in history])
            axes.annotate(
                name,
                (steps[-1], history[-1][value]),
                (0, 12),
                textcoords="offset points",
                ha="right",
            )
        for seen in [seen for seen in history if seen["warned"]][:1]:
            below.plot(seen["step"], seen["projector/mean_std"], "o", color="C0")
            below.annotate(
                "the monitor warns",
                (seen["step"], seen["projector/mean_std"]),
                (8, 4),
                textcoords="offset points",
            )
    above.set(title="The invariance alone falls and falls ...", yscale="log")
    above.set(ylabel="invariance", ylim=(None, 1))
    std = histories["the invariance alone"][-1]["projector/mean_std"]
    below.set(title=f"... because the features shrink to a std of {std:.2f}", ylim=(0, 1.25))
    below.set(ylabel="mean std of a feature", xlabel="step")
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as collapse.svg")
    file = parser.parse_args().plot
    histories = {}
    for name, weights in (
        ("the invariance alone", {"variance_weight": 0, "covariance_weight": 0}),
        ("all three terms", {}),
    ):
        histories[name] = trained(VICRegLoss(**weights))
        print(name, *map(line, histories[name][3::4]), sep="\n")
    if file:
        draw(histories, file)


if __name__ == "__main__":
    main()
