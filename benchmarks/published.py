"""Time the loss with its gradient against the published formula, both in eager PyTorch.

Interleaved, so that a machine that drifts favours neither side; medians, lowest and highest.

    python benchmarks/published.py [--size 256x8192]... [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from vicreg import vicreg_loss

SIZES = ((32, 64), (256, 2048), (256, 8192), (2048, 2048), (4096, 512))
WANTED = {(256, 8192): 40}  # what the project asks of itself: times as fast as published


def published(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The formula of facebookresearch/vicreg, written plainly: it forms the d × d matrices."""
    n, d = x.shape
    invariance = torch.nn.functional.mse_loss(x, y)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    std_x, std_y = torch.sqrt(x.var(dim=0) + 1e-4), torch.sqrt(y.var(dim=0) + 1e-4)
    variance = torch.mean(torch.relu(1 - std_x)) / 2 + torch.mean(torch.relu(1 - std_y)) / 2
    covariance_x, covariance_y = (x.T @ x) / (n - 1), (y.T @ y) / (n - 1)
    covariance = sum(_off_diagonal(c).pow(2).sum() / d for c in (covariance_x, covariance_y))
    return 25 * invariance + 25 * variance + covariance


def _off_diagonal(c: torch.Tensor) -> torch.Tensor:
    d = c.shape[0]
    return c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(n: int, d: int, rounds: int) -> tuple[list[float], list[float], float]:
    """Return both sides' times, and by how much their losses differ, relatively."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2)]
    sides = [
        lambda loss=loss: torch.autograd.grad(loss(*views), views)
        for loss in (vicreg_loss, published)
    ]
    for side in sides:
        side()  # warm-up
    # A call of little work is timed several at a time.
    repeats = max(1, int(2e6 // (n * d)))
    ours, theirs = [], []
    for _ in range(rounds):
        for side, times in zip(sides, (ours, theirs), strict=True):
            times.append(statistics.median(seconds(side) for _ in range(repeats)))
    with torch.no_grad():
        value, other = vicreg_loss(*views), published(*views)
    return ours, theirs, float(abs(value - other) / abs(other))


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", action="append", type=_size, metavar="NxD")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print(
        f"{'n x d':>12} {'vicreg ms':>18} {'published ms':>22} {'faster':>9} {'wanted':>7}  losses"
    )
    for n, d in arguments.size or SIZES:
        ours, theirs, difference = compare(n, d, arguments.rounds)
        ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
        wanted = f"{WANTED[n, d]}x" if (n, d) in WANTED else "-"
        print(
            f"{f'{n} x {d}':>12} {_spread(ours):>18} {_spread(theirs):>22} {f'{ratio:.1f}x':>9} "
            f"{wanted:>7}  differ by {difference:.0e}",
            flush=True,
        )


def _spread(times: list[float]) -> str:
    low, middle, high = (1e3 * f(times) for f in (min, statistics.median, max))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _size(text: str) -> tuple[int, int]:
    n, _, d = text.partition("x")
    return int(n), int(d)


if __name__ == "__main__":
    main()
