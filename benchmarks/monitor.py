"""What `CollapseMonitor` adds to a training step at its default rate.

    python benchmarks/monitor.py

One step of VICReg in PyTorch in float32 on one thread: an encoder and a projector, the loss, the
gradients and the optimizer. Steps without the monitor and steps that it looks at take turns; times
are medians. What it adds on average is what it takes to count a step, and a hundredth of a look.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import vicreg
from vicreg.torch import CollapseMonitor, VICRegLoss

SAMPLES, INPUTS, ROUNDS = 256, 784, 15
#: The widths of the encoder and of the projector.
NETWORKS = ((512, 512), (512, 2048))


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Training:
    def __init__(self, hidden: int, features: int) -> None:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        projector = nn.Sequential(
            *(nn.Linear(hidden, features), nn.BatchNorm1d(features), nn.ReLU()),
            *(nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU()),
            nn.Linear(features, features),
        )
        self.model = nn.Sequential(encoder, projector)
        self.criterion = VICRegLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.views = torch.randn(2, SAMPLES, INPUTS)

    def step(self, monitor: CollapseMonitor | None = None) -> None:
        self.optimizer.zero_grad()
        self.criterion(*map(self.model, self.views)).backward()
        self.optimizer.step()
        if monitor is not None:
            monitor.step()

    def look(self) -> None:
        with CollapseMonitor(self.model, "1", every_n_steps=1) as monitor:
            self.step(monitor)


def counting() -> float:
    """Return what a step takes that the monitor only counts, beside the step itself."""
    model, calls = nn.Sequential(nn.Identity()), 1000

    def steps() -> None:
        for _ in range(calls):
            model(x)
            model(x)
            monitor.step()

    x = torch.zeros(2, 2)
    with CollapseMonitor(model, "0", every_n_steps=3 * calls) as monitor:
        steps()  # the first one imports PyTorch's compiler, as an optimizer does
        return seconds(steps) / calls


def main() -> None:
    torch.set_num_threads(1)
    counted, rate = counting(), vicreg.CollapseMonitor().every_n_steps
    print(f"a step that is counted: {1e6 * counted:.1f} microseconds")
    for widths in NETWORKS:
        training = Training(*widths)
        training.look()
        rounds = [(seconds(training.step), seconds(training.look)) for _ in range(ROUNDS)]
        step = statistics.median(plain for plain, _ in rounds)
        look = statistics.median(looked - plain for plain, looked in rounds)
        print(
            f"{SAMPLES} x {widths[1]}: a step {1e3 * step:.1f} ms, a look {1e3 * look:.1f} ms, "
            f"on average {100 * (counted + look / rate) / step:.2f} % of a step"
        )


if __name__ == "__main__":
    main()
