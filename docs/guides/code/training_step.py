"""Two ways to take a step on several ranks, beside the gradient of one process."""

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vicreg.distributed import LOCAL, TorchCommunicator
from vicreg.torch import VICRegLoss

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

# The same model and batch on each rank, which then takes its own rows.
torch.manual_seed(0)
encoder = torch.nn.Linear(16, 64).double()
x1, x2 = torch.randn(2, 24 * ranks, 16, dtype=torch.float64)
mine = slice(24 * rank, 24 * (rank + 1))


def step(model, criterion, x1, x2):
    """Return the loss and the gradient of the parameters."""
    model.zero_grad()
    loss = criterion(model(x1), model(x2))
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters()]
    return loss.item(), torch.cat(gradients)


loss, gradient = step(encoder, VICRegLoss(comm=LOCAL), x1, x2)
if rank == 0:
    print(f"one process, {len(x1)} rows        loss {loss:.4f}")
model = DistributedDataParallel(encoder)
for name, comm in (("TorchCommunicator()", TorchCommunicator()), ("LOCAL", LOCAL)):
    criterion = VICRegLoss(comm=comm)
    loss, ours = step(model, criterion, x1[mine], x2[mine])
    off = (ours - gradient).norm() / gradient.norm()
    if rank == 0:
        print(f"comm={name:20} loss {loss:.4f}, gradient off by {off:.0e}")
dist.destroy_process_group()
