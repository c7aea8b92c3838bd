"""Train a small encoder without the variance term, and be warned that it collapses.

    python examples/collapse_monitor.py

With the invariance alone the encoder learns to return the same for every input, and the loss looks
better than ever. `vicreg.torch.CollapseMonitor` looks at the encoder's output each 50 steps. It
warns once, and the loop stops. With all three terms it says nothing.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from vicreg.torch import CollapseMonitor, VICRegLoss

STEPS, SAMPLES, INPUTS, FEATURES = 300, 128, 16, 8


def trained(criterion: VICRegLoss) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU())
    layers = OrderedDict(backbone=backbone, projector=nn.Linear(32, FEATURES))
    encoder = nn.Sequential(layers)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    with CollapseMonitor(encoder, "projector", every_n_steps=50) as monitor:
        for step in range(STEPS):
            image = torch.randn(SAMPLES, INPUTS)
            z1, z2 = (encoder(image + 0.3 * torch.randn(SAMPLES, INPUTS)) for _ in range(2))
            terms = criterion.terms(z1, z2)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            scalars = monitor.step()  # for a logger, every 50 steps
            if scalars is not None:
                print(
                    f"step {step + 1:3}: loss {terms.scalars()['loss']:7.4f}, "
                    f"mean std {scalars['projector/mean_std']:.3f}, "
                    f"effective rank {scalars['projector/effective_rank']:.1f} of {FEATURES}"
                )
            if monitor.collapsed:
                break


def main() -> None:
    print("the invariance alone")
    trained(VICRegLoss(variance_weight=0, covariance_weight=0))
    print("all three terms")
    trained(VICRegLoss())


if __name__ == "__main__":
    main()
