"""One rank of PyTorch: ``python -m vicreg.tools.verification.distributed.worker JOB FOLDER``.

The rank and the number of ranks are in the environment, as ``torchrun`` sets them.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vicreg import vicreg_loss
from vicreg.distributed import TorchCommunicator
from vicreg.tools.backends.torch import TorchBackend
from vicreg.tools.functions import FunctionError, LossFunction, load_function
from vicreg.tools.processes import end_with_parent
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.distributed.batches import Batch
from vicreg.tools.verification.distributed.job import Question, read_job, write_answer

#: The step of a finite difference in float64.
_STEP = 1e-5


def main(job_file: Path, folder: Path) -> None:
    """Answer each question of a job, until one fails."""
    end_with_parent()
    torch.set_num_threads(1)
    job = read_job(job_file)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with (folder / "where").open("w") as where:
        number = -1
        try:
            device = f"cuda:{rank}" if job.device == "cuda" else "cpu"
            backend = TorchBackend("torch", device, ("float64", "float32"))
            own = None if job.path is None else load_function(job.path)
            _join(job_file.with_suffix(".group"), rank, size, backend)
            (folder / "ready.done").touch()
            for number, question in enumerate(job.questions):
                faulthandler.dump_traceback_later(job.seconds, file=where)
                loss = LossFunction(own or _package_loss(question.convention), backend)
                write_answer(folder, number, _answer(loss, question, rank, size))
                faulthandler.cancel_dump_traceback_later()
        except BaseException as error:  # an import may raise anything
            report = {"line": _line(error), "question": number, "time": time.time()}
            (folder / "error.json").write_text(json.dumps(report), encoding="utf-8")
            _leave(1)
    _leave(0)


def _leave(status: int) -> None:
    """Exit at once: a group that has failed may wait for its other ranks when it is destroyed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, FunctionError):
        return lines[0]
    return ": ".join([type(error).__name__, *lines[:1]])


def _package_loss(convention: str | None) -> Callable[..., Any]:
    assert convention is not None
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


def _join(file: Path, rank: int, size: int, backend: TorchBackend) -> None:
    on_gpu = backend.device != "cpu"
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=file.resolve().as_uri(),
        rank=rank,
        world_size=size,
        # Whoever started the ranks stops them earlier.
        timeout=timedelta(minutes=10),
    )


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


def _answer(
    function: LossFunction, question: Question, rank: int, size: int
) -> dict[str, Any]:
    """Return the value on this rank, the gradients, and what moves the value.

    "value", the value; "value_dtype"; "rows", the gradient with respect to the embeddings of this
    rank; "weight" and "bias", the gradients of the parameters after DistributedDataParallel's
    averaging; "moves", the derivative of the value along the direction of each rank's rows.
    """
    batch = question.batch
    part = slice(None) if size == 1 else batch.part(rank)
    if question.alone is not None:
        part = batch.part(question.alone)
    kind = {"device": function.backend.device, "dtype": getattr(torch, question.dtype)}
    model = DistributedDataParallel(_Encoder(batch).to(**kind))
    embeddings = model(torch.from_numpy(batch.inputs[:, part]).to(**kind))
    views = [view.clone() for view in embeddings]
    for view in views:
        view.retain_grad()
    value = function.on_arrays(*views)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise FunctionError(f"{function.name} has no gradient: it returns a detached value")
    value.reshape(()).backward()
    gradients = [torch.zeros_like(view) if view.grad is None else view.grad for view in views]
    encoder = model.module.map
    answer = {
        "value": function.number(value),
        "value_dtype": str(value.dtype).removeprefix("torch."),
        "rows": _numpy(torch.stack(gradients)),
        "weight": _numpy(encoder.weight.grad),
        "bias": _numpy(encoder.bias.grad),
    }
    if question.moving:
        answer["moves"] = _moves(function, batch, part, rank, size)
    return answer


def _moves(
    function: LossFunction, batch: Batch, part: slice, rank: int, size: int
) -> list[float]:
    """Return how this rank's value changes with each rank's rows, by central differences."""
    views, direction = batch.views[:, part], batch.direction[:, part]
    moves = []
    for moved in range(size):
        step = (_STEP if moved == rank else 0.0) * direction
        ahead, behind = (function(*(views + sign * step), dtype="float64") for sign in (1, -1))
        moves.append((ahead - behind) / (2 * _STEP))
    return moves


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().double().numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
