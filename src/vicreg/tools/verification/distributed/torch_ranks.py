"""A rank of PyTorch in each process, with DistributedDataParallel around a linear map."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vicreg import vicreg_loss
from vicreg.distributed import TorchCommunicator
from vicreg.tools.backends import Floats
from vicreg.tools.backends.torch import TorchBackend
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.distributed.batches import STEP, Batch
from vicreg.tools.verification.distributed.job import Answer, Job, Question

__all__ = ["Ranks"]


class Ranks:
    """The rank of this process, which the environment has as ``torchrun`` sets it.

    Parameters
    ----------
    job : Job
        The job.
    file : path
        Where the ranks meet.
    """

    def __init__(self, job: Job, file: Path) -> None:
        torch.set_num_threads(1)
        self._rank, self._size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._file = file
        device = f"cuda:{self._rank}" if job.device == "cuda" else "cpu"
        self._backend = TorchBackend("torch", device, ("float64", "float32"))

    def join(self) -> None:
        """Make the group of all ranks."""
        on_gpu = self._backend.device != "cpu"
        if on_gpu:
            torch.cuda.set_device(self._rank)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=self._file.resolve().as_uri(),
            rank=self._rank,
            world_size=self._size,
            # Whoever started the ranks stops them earlier.
            timeout=timedelta(minutes=10),
        )
        if self._size > 1:  # the first one imports half of PyTorch
            DistributedDataParallel(nn.Linear(1, 1, device=self._backend.device))

    def package_loss(self, convention: str) -> Callable[..., Any]:
        """Return the loss of this package over all ranks."""
        _, variance, covariance = DEFINITIONS[convention].weights

        def loss(z1: torch.Tensor, z2: torch.Tensor) -> Any:
            return vicreg_loss(
                z1,
                z2,
                convention=convention,
                variance_weight=variance,
                covariance_weight=covariance,
                comm=TorchCommunicator(),
            )

        return loss

    def answers(self, loss: Callable[..., Any], question: Question) -> dict[int, Answer]:
        """Return the answer of this rank."""
        function = LossFunction(loss, self._backend)
        return {self._rank: _answer(function, question, self._rank, self._size)}


class _Encoder(nn.Module):
    """The map of a batch, applied to both views at once."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.map = nn.Linear(batch.d, batch.d)
        with torch.no_grad():
            self.map.weight = nn.Parameter(torch.from_numpy(batch.weight))
            self.map.bias = nn.Parameter(torch.from_numpy(batch.bias))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.map(inputs)
        return embeddings


def _answer(function: LossFunction, question: Question, rank: int, size: int) -> Answer:
    batch = question.batch
    part = slice(None) if size == 1 else batch.part(rank)
    if question.alone is not None:
        part = batch.part(question.alone)
    kind = {"device": function.backend.device, "dtype": getattr(torch, question.dtype)}
    encoder = _Encoder(batch).to(**kind)
    model = DistributedDataParallel(encoder) if size > 1 else encoder
    embeddings = model(torch.from_numpy(batch.inputs[:, part]).to(**kind))
    views = [view.clone() for view in embeddings]
    for view in views:
        view.retain_grad()
    value = function.on_arrays(*views)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise FunctionError(f"{function.name} returns a value without a gradient")
    torch.autograd.backward(value.reshape(()))
    gradients = [torch.zeros_like(view) if view.grad is None else view.grad for view in views]
    answer = {
        "value": function.number(value),
        "value_dtype": str(value.dtype).removeprefix("torch."),
        "rows": _numpy(torch.stack(gradients)),
        "weight": _numpy(encoder.map.weight.grad),
        "bias": _numpy(encoder.map.bias.grad),
    }
    if question.moving:
        answer["moves"] = _moves(function, batch, part, rank, size)
    return answer


def _moves(function: LossFunction, batch: Batch, part: slice, rank: int, size: int) -> list[float]:
    """Return how this rank's value changes with each rank's rows, by central differences."""
    views, direction = batch.views[:, part], batch.direction[:, part]
    moves = []
    for moved in range(size):
        step = (STEP if moved == rank else 0.0) * direction
        ahead, behind = (function(z1, z2, "float64") for z1, z2 in (views + step, views - step))
        moves.append((ahead - behind) / (2 * STEP))
    return moves


def _numpy(tensor: Any) -> Floats:
    values: Floats = tensor.detach().cpu().double().numpy()
    return values
