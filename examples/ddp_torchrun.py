"""VICReg of the whole batch under DistributedDataParallel, with uneven rows on the ranks.

Needs PyTorch. It prints the loss, and how far the gradient of the parameters is from that of one
process with the whole batch:

    torchrun --standalone --nproc-per-node 2 examples/ddp_torchrun.py
"""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vicreg.distributed import LOCAL, TorchCommunicator
from vicreg.torch import VICRegLoss

INPUTS, FEATURES, ROWS = 16, 64, 24


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 32), nn.Tanh(), nn.Linear(32, FEATURES)).double()


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = [ROWS + 5 * of_rank for of_rank in range(size)]  # as at the end of an epoch
    torch.manual_seed(1)  # the same images on all ranks, each of which takes its own
    images = torch.randn(2, sum(rows), INPUTS, dtype=torch.float64)
    images = images + torch.repeat_interleave(torch.arange(size), torch.tensor(rows))[:, None]
    mine = images.split(rows, dim=1)[rank]

    model = DistributedDataParallel(encoder())
    criterion = VICRegLoss(comm=TorchCommunicator())
    loss = criterion(model(mine[0]), model(mine[1]))
    loss.backward()

    alone = encoder()
    VICRegLoss(comm=LOCAL)(alone(images[0]), alone(images[1])).backward()
    largest = max(
        (parameter.grad - other.grad).abs().max().item()
        for parameter, other in zip(model.parameters(), alone.parameters(), strict=True)
    )
    if rank == 0:
        print(f"loss of {sum(rows)} samples on {size} ranks: {loss.item():.6f}")
        print(f"largest difference from the gradient of one process: {largest:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
