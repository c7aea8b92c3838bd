"""Train with the statistics of a batch whose activations would not fit in memory.

    python examples/cached_backward.py

compares three ways to the gradient of one batch of 1024 samples: the plain one; chunk by chunk
with `vicreg.torch.cached_backward`; and plain accumulation, which takes the statistics of each
chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vicreg.torch import VICRegLoss, cached_backward

SAMPLES, CHUNK = 1024, 64
criterion = VICRegLoss()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Linear(32, 256),
        *(layer for _ in range(4) for layer in (nn.ReLU(), nn.Linear(256, 256))),
    ]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, 128)).double()


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(SAMPLES, 32, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, SAMPLES, 32, generator=generator, dtype=torch.float64)
    return common + 0.3 * noise[0], common + 0.3 * noise[1]


def plain(model: nn.Module, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    loss = criterion(model(x1), model(x2))
    loss.backward()
    return loss.detach()


def cached(model: nn.Module, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    return cached_backward(model, (x1, x2), criterion, CHUNK)


def accumulated(model: nn.Module, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for rows1, rows2 in zip(x1.split(CHUNK), x2.split(CHUNK), strict=True):
        loss = criterion(model(rows1), model(rows2)) * (len(rows1) / SAMPLES)
        loss.backward()
        total += loss.detach()
    return total


def measured(way: Callable[..., torch.Tensor]) -> tuple[float, torch.Tensor, float]:
    """Return the loss, the gradient, and the most memory that was kept for a backward pass."""
    model, alive, most = encoder(), 0, 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal alive, most
            self.tensor = tensor
            alive += tensor.nbytes
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        loss = way(model, *views())
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return float(loss), gradient, most / 2**20


def main() -> None:
    results = {way.__name__: measured(way) for way in (plain, cached, accumulated)}
    _, wanted, _ = results["plain"]
    for name, (loss, gradient, memory) in results.items():
        difference = float((gradient - wanted).abs().max() / wanted.abs().max())
        print(
            f"{name:12} loss {loss:.6f}, largest difference from the plain gradient "
            f"{difference:.1e}, {memory:.1f} MiB kept for the backward pass"
        )


if __name__ == "__main__":
    main()
