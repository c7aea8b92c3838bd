"""Two processes of Lightning, where the first one's embeddings collapse: for test_monitor.py."""

from __future__ import annotations

import sys

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from vicreg.lightning import CollapseMonitor


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.projector = torch.nn.Linear(4, 8)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.projector(batch[0] * self.global_rank).var()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_end(self) -> None:
        sys.stdout.write(f"rank {self.global_rank} ended after {self.global_step}\n")


class Logger(lightning.pytorch.loggers.logger.DummyLogger):
    @lightning.pytorch.utilities.rank_zero_only  # as in each logger of Lightning
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        sys.stdout.write(f"logged {metrics['projector/collapsed']} at {step}\n")


def main() -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp_spawn",
        devices=2,
        max_epochs=1,
        callbacks=[CollapseMonitor("projector", every_n_steps=2, stop=True)],
        logger=Logger(),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(TensorDataset(torch.randn(160, 4)), batch_size=10))


if __name__ == "__main__":
    main()
