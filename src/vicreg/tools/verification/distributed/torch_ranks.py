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

from vicreg.distributed import TorchCommunicator
from vicreg.tools.backends import Floats
from vicreg.tools.backends.torch import TorchBackend
from vicreg.tools.functions import FunctionError, LossFunction
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
        self._file, self._output = file, job.output
        device = f"cuda:{self._rank}" if job.device == "cuda" else "cpu"
        self._backend = TorchBackend("torch", device, ("float64", "float32"))
        self._known: tuple[Batch, str] | None = None

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

    def package_loss(self, question: Question) -> Callable[..., Any]:
        """Return the loss of this package over all ranks."""
        return question.package_loss(TorchCommunicator())

    def answers(self, loss: Callable[..., Any], question: Question) -> dict[int, Answer]:
        """Return the answer of this rank."""
        function = LossFunction(loss, self._backend, self._output)
        part = self._part(question)
        if self._known != (question.batch, question.dtype):
            self._known = (question.batch, question.dtype)
            self._model = self._mapped(question)
        model, inputs = self._model
        model.zero_grad()
        views = [view.clone() for view in model(inputs[:, part])]
        for view in views:
            view.retain_grad()
        value = function.on_arrays(*views)
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            raise FunctionError(f"{function.name} returns a value without a gradient")
        torch.autograd.backward(value.reshape(()))
        gradients = [torch.zeros_like(view) if view.grad is None else view.grad for view in views]
        weight, bias = (_numpy(parameter.grad) for parameter in model.parameters())
        answer = {
            "value": function.number(value),
            "value_dtype": str(value.dtype).removeprefix("torch."),
            "rows": _numpy(torch.stack(gradients)),
            "weight": weight,
            "bias": bias,
        }
        if question.moving:
            answer["moves"] = self._moves(function, question.batch, part)
        return {self._rank: answer}

    def _part(self, question: Question) -> slice:
        if question.alone is not None:
            return question.batch.part(question.alone)
        return slice(None) if self._size == 1 else question.batch.part(self._rank)

    def _mapped(self, question: Question) -> tuple[nn.Module, torch.Tensor]:
        """Return the map of a batch, with its parameters shared by the ranks, and its inputs."""
        batch = question.batch
        encoder = nn.Linear(batch.d, batch.d)
        with torch.no_grad():
            encoder.weight = nn.Parameter(torch.from_numpy(batch.weight))
            encoder.bias = nn.Parameter(torch.from_numpy(batch.bias))
        kind = {"device": self._backend.device, "dtype": getattr(torch, question.dtype)}
        encoder = encoder.to(**kind)
        model = DistributedDataParallel(encoder) if self._size > 1 else encoder
        return model, torch.from_numpy(batch.inputs).to(**kind)

    def _moves(self, function: LossFunction, batch: Batch, part: slice) -> list[float]:
        """Return how this rank's value changes with each rank's rows, by central differences."""
        views, direction = batch.views[:, part], batch.direction[:, part]
        moves = []
        for moved in range(self._size):
            step = (STEP if moved == self._rank else 0.0) * direction
            pairs = (views + step, views - step)
            ahead, behind = (function(z1, z2, "float64") for z1, z2 in pairs)
            moves.append((ahead - behind) / (2 * STEP))
        return moves


def _numpy(tensor: Any) -> Floats:
    values: Floats = tensor.detach().cpu().double().numpy()
    return values
