"""Does VCReg help features to transfer? A small network on digits, with and without it.

A classifier is trained on half of the ten digits. Then a linear probe measures how good its
features are for the other digits. One of two networks has VCReg on its hidden layers; everything
else is equal, including the initial weights and the batches. Needs PyTorch and scikit-learn, and
matplotlib for the picture:

    python examples/vcreg_transfer.py --seeds 5 --plot transfer.svg
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vicreg import diagnose
from vicreg.torch import attach_vcreg

WIDTHS = (256, 128, 64)
BATCH = 128


@dataclass(frozen=True)
class Task:
    """One set of digits, half of it held out."""

    images: torch.Tensor
    labels: torch.Tensor
    held_out_images: torch.Tensor
    held_out_labels: torch.Tensor

    @classmethod
    def of(cls, classes: np.ndarray, seed: int) -> Task:
        digits = load_digits()
        chosen = np.isin(digits.target, classes)
        images = (digits.data[chosen] / 8 - 1).astype(np.float32)
        labels = np.searchsorted(classes, digits.target[chosen])
        parts = train_test_split(images, labels, test_size=0.5, random_state=seed, stratify=labels)
        train, test, train_labels, test_labels = map(torch.as_tensor, parts)
        return cls(train, train_labels, test, test_labels)


@dataclass(frozen=True)
class Outcome:
    """The measurements on one trained network."""

    source: float  # accuracy on held-out images of the classes it was trained on
    transfer: float  # accuracy of a linear probe of its last features on the other classes
    ranks: tuple[float, ...]  # effective rank of each hidden layer, on the held-out images
    seconds: float  # of training


def network() -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    width = 64
    for wider in WIDTHS:
        layers += [torch.nn.Linear(width, wider), torch.nn.ReLU()]
        width = wider
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 5))


def hidden_layers(model: torch.nn.Sequential) -> list[str]:
    return [name for name, module in model.named_children() if isinstance(module, torch.nn.ReLU)]


def batches(count: int, epochs: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from (part for part in order.split(BATCH) if len(part) == BATCH)


def trained(task: Task, seed: int, epochs: int, weights: dict[str, float] | None) -> tuple:
    """Return a network trained on a task, and the training time in seconds."""
    torch.manual_seed(seed)
    model = network()
    attached = nullcontext()
    if weights is not None:
        attached = attach_vcreg(model, hidden_layers(model), **weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    start = time.perf_counter()
    with attached:
        for batch in batches(len(task.images), epochs, seed):
            optimizer.zero_grad()
            logits = model(task.images[batch])
            torch.nn.functional.cross_entropy(logits, task.labels[batch]).backward()
            optimizer.step()
    return model.eval(), time.perf_counter() - start


@torch.no_grad()
def features(model: torch.nn.Sequential, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of each hidden layer for the images."""
    outputs = []
    for module in model[:-1]:
        images = module(images)
        if isinstance(module, torch.nn.ReLU):
            outputs.append(images)
    return outputs


def probe(model: torch.nn.Sequential, task: Task) -> float:
    """Return the accuracy of a linear classifier of the last features on a task."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features(model, task.images)[-1], task.labels)
    return classifier.score(features(model, task.held_out_images)[-1], task.held_out_labels)


def outcome(seed: int, epochs: int, weights: dict[str, float] | None) -> Outcome:
    classes = np.random.default_rng(seed).permutation(10)
    source, transfer = (Task.of(np.sort(half), seed) for half in (classes[:5], classes[5:]))
    model, seconds = trained(source, seed, epochs, weights)
    with torch.no_grad():
        right = model(source.held_out_images).argmax(1) == source.held_out_labels
    ranks = [float(diagnose(z).effective_rank) for z in features(model, source.held_out_images)]
    return Outcome(float(right.float().mean()), probe(model, transfer), tuple(ranks), seconds)


def row(name: str, plain: list[float], regularized: list[float], digits: int) -> str:
    differences = [b - a for a, b in zip(plain, regularized, strict=True)]
    columns = ((plain, "", 16), (regularized, "", 16), (differences, "+", 18))
    cells = (
        f"{f'{statistics.mean(x):{sign}.{digits}f} ± {spread(x):.{digits}f}':>{width}}"
        for x, sign, width in columns
    )
    return f"{name:<38}{''.join(cells)}"


def spread(numbers: list[float]) -> float:
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def report(plain: list[Outcome], regularized: list[Outcome]) -> str:
    def percent(of: str) -> tuple[list[float], list[float]]:
        return tuple([100 * getattr(one, of) for one in side] for side in (plain, regularized))

    lines = [f"{'':<38}{'without':>16}{'with VCReg':>16}{'difference':>18}"]
    lines.append(row("held-out images, same digits, %", *percent("source"), 1))
    lines.append(row("linear probe, the other digits, %", *percent("transfer"), 1))
    for layer, width in enumerate(WIDTHS):
        ranks = ([one.ranks[layer] for one in side] for side in (plain, regularized))
        lines.append(row(f"effective rank of layer {layer + 1} of {width}", *ranks, 1))
    lines.append(
        row("training, s", *([one.seconds for one in side] for side in (plain, regularized)), 2)
    )
    seeds = f"{len(plain)} seed{'s' if len(plain) > 1 else ''}"
    lines.append(f"mean ± standard deviation over {seeds}; the difference is seed by seed")
    return "\n".join(lines)


def draw(plain: list[Outcome], regularized: list[Outcome], file: str) -> None:
    """Draw a line for each seed, from the network without VCReg to the one with it."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    gains = {}
    for of, name, colour in (
        ("source", "the digits it was trained on", "C0"),
        ("transfer", "the other digits", "C1"),
    ):
        pairs = [
            [100 * getattr(one, of) for one in pair]
            for pair in zip(plain, regularized, strict=True)
        ]
        gains[of] = statistics.mean(after - before for before, after in pairs)
        for pair in pairs:
            axes.plot((0, 1), pair, "o-", color=colour, linewidth=1)
        axes.text(1.05, statistics.mean(pair[1] for pair in pairs), name, va="center")
    gain = gains["transfer"]
    verb = "gains" if gain > 0 else "loses"
    axes.set_title(f"On digits it never saw, VCReg {verb} {abs(gain):.1f} points")
    axes.set(xticks=(0, 1), xticklabels=("without", "with VCReg"), xlim=(-0.2, 2.2))
    axes.set(ylabel="accuracy on held-out images, %")
    plt.savefig(file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many pairs of networks")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training images")
    parser.add_argument("--variance-weight", type=float, default=0.1, help="VCReg's α")
    parser.add_argument("--covariance-weight", type=float, default=0.1, help="VCReg's β")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as transfer.svg")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more; got {getattr(options, name)}")
    for name in ("variance_weight", "covariance_weight"):
        if not 0 <= getattr(options, name) < float("inf"):
            option = name.replace("_", "-")
            parser.error(f"--{option} must be 0 or more; got {getattr(options, name)}")
    weights = {
        "variance_weight": options.variance_weight,
        "covariance_weight": options.covariance_weight,
    }
    torch.set_num_threads(1)  # a small network is slower on more
    outcomes: tuple[list[Outcome], list[Outcome]] = ([], [])
    for seed in range(options.seeds):
        # In turns, so that changes of the machine affect both.
        for results, given in zip(outcomes, (None, weights), strict=True):
            print(f"seed {seed + 1} of {options.seeds}", end="\r", file=sys.stderr, flush=True)
            results.append(outcome(seed, options.epochs, given))
    print(report(*outcomes))
    if options.plot:
        draw(*outcomes, options.plot)


if __name__ == "__main__":
    main()
