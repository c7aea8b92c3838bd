"""VICReg of the whole batch in PyTorch Lightning, which trains in two processes.

Needs PyTorch and Lightning (``pip install lightning``). It takes one step on two processes, and
prints the loss, and how far the step is from that of one process with the whole batch:

    python examples/lightning_two_processes.py
"""

from __future__ import annotations

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vicreg.distributed import TorchCommunicator
from vicreg.torch import VICRegLoss

PROCESSES, ROWS, INPUTS, FEATURES = 2, 48, 16, 64


class VICReg(lightning.LightningModule):
    """Plain gradient descent with a step of 1: the parameters change by minus the gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(INPUTS, FEATURES)
        self.criterion = VICRegLoss(comm=TorchCommunicator())  # the one line that is needed

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = self.criterion(*map(self.encoder, batch))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def images() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    common = torch.randn(ROWS, INPUTS) + torch.arange(ROWS)[:, None] % PROCESSES
    return tuple(common + 0.3 * torch.randn(2, ROWS, INPUTS))


def main() -> None:
    views = images()
    model = VICReg().double()
    start = model.encoder.weight.detach().clone()
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp_spawn",
        devices=PROCESSES,
        max_epochs=1,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TensorDataset(*(view.double() for view in views))
    trainer.fit(model, DataLoader(data, batch_size=ROWS // PROCESSES))
    step = start - model.encoder.weight.detach()

    alone = VICReg().double()
    loss = VICRegLoss()(*(alone.encoder(view.double()) for view in views))
    loss.backward()
    largest = (step - alone.encoder.weight.grad).abs().max()
    print(
        f"loss of {ROWS} samples in {PROCESSES} processes: {trainer.callback_metrics['loss']:.6f}"
    )
    print(f"largest difference from the gradient of one process: {largest:.1e}")


if __name__ == "__main__":
    main()
