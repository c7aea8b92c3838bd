"""VCReg as a layer of PyTorch, and what it is timed beside, on the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vicreg.tools.benchmark.sides import PRODUCTS, PUBLISHED, VICREG
from vicreg.tools.benchmark.timing import Effort, Spread, ratio, time_sides
from vicreg.torch import VCReg

#: (n · positions, d) of the representation.
SIZES = ((4096, 512), (256, 4096))
BATCH_NORM = "BatchNorm1d"
WEIGHTS = {"variance_weight": 1.0, "covariance_weight": 1.0}
EPS = 1e-5


class Published(torch.autograd.Function):
    """The pseudocode of arXiv 2306.13292, written plainly: a gradient, and no loss."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, incoming: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        n, d = x.shape
        x = x - x.mean(dim=0)
        covariance = x.T @ x / (n - 1)
        std = torch.sqrt(torch.diag(covariance) + EPS)
        hinge = -WEIGHTS["variance_weight"] / (d * (n - 1)) * x * (std < 1) / std
        covariance.fill_diagonal_(0)
        decorrelation = 4 * WEIGHTS["covariance_weight"] / (d * (d - 1)) * x @ covariance
        return incoming + hinge + decorrelation


def sides(n: int, d: int) -> dict[str, Callable[[], Any]]:
    """Return what is timed: forwards and backwards once, and the two products alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator).requires_grad_()
    incoming = torch.randn(n, d, generator=generator) / n
    plain = x.detach()

    def passes(layer: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(layer(x), x, incoming)[0]

    def products() -> torch.Tensor:
        return (plain @ plain.T) @ plain if n <= d else plain @ (plain.T @ plain)

    return {
        VICREG: passes(VCReg(**WEIGHTS, covariance_gradient="published")),
        PUBLISHED: passes(Published.apply),
        BATCH_NORM: passes(torch.nn.BatchNorm1d(d)),
        PRODUCTS: products,
    }


def over_products(n: int, d: int, effort: Effort) -> Spread:
    """Return how many times as long as its products the layer takes, in turns with them."""
    both = {name: side for name, side in sides(n, d).items() if name in (VICREG, PRODUCTS)}
    for side in both.values():
        side()
    times = time_sides(both, lambda output: None, effort)
    return ratio(times[VICREG], times[PRODUCTS])
