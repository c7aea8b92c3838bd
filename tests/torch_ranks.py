"""What each rank of test_ranks_torch.py does: run by every one of four processes.

Every function is called on all ranks of its group; what it returns is pickled for the tests.
"""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vicreg import (
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.distributed import LOCAL, TorchCommunicator
from vicreg.tools.demo.encoder import initial_layers
from vicreg.tools.demo.trainers.torch import TorchTrainer
from vicreg.tools.processes import end_with_parent
from vicreg.torch import VCReg, VICRegLoss, attach_vcreg, cached_backward

ROWS = {2: (3, 8), 3: (5, 0, 7), 4: (6, 1, 3, 5)}
SHAPES = {"wide": (40,), "narrow": (4,), "positions": (3, 20)}
DTYPES = ("float64", "float32", "bfloat16")
TIMEOUT = 2.0  # seconds, of a group in which a rank fails
INPUTS, HIDDEN, OUTPUTS = 6, 12, 20
TRAINED_ROWS = (5, 11)
VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5}


def tensors(rows: tuple[int, ...], shape: tuple[int, ...], rank: int, dtype: str) -> list[Any]:
    mine = ranks.own(ranks.whole(rows, shape), rows, rank)
    return [torch.asarray(view).to(getattr(torch, dtype)).requires_grad_() for view in mine]


def exact(comm: TorchCommunicator, shape: str, dtype: str) -> dict[str, Any]:
    """The loss, its gradient by backward() over the number of ranks, and the closed form's."""
    views = tensors(ROWS[comm.size], SHAPES[shape], comm.rank, dtype)
    loss = VICRegLoss(comm=comm)(*views)
    loss.backward()
    value, gradients = vicreg_value_and_grad(*views, comm=comm)
    return {
        "loss": loss.item(),
        "backward": [view.grad.double().numpy() / comm.size for view in views],
        "value": value.item(),
        "gradients": [gradient.double().numpy() for gradient in gradients],
    }


def layer(comm: TorchCommunicator, shape: str, penalty: str) -> dict[str, Any]:
    """What the layer adds, over the number of ranks; its log; and the loss's own gradient."""
    (z, _) = tensors(ROWS[comm.size], SHAPES[shape], comm.rank, "float64")
    regularize = VCReg(**VCREG, penalty=penalty, comm=comm)
    regularized = regularize(z)
    with pytest.raises(RuntimeError, match="after the backward pass where there is a comm"):
        _ = regularize.last_terms  # other ranks may not ask
    regularized.sum().backward()
    (other, _) = tensors(ROWS[comm.size], SHAPES[shape], comm.rank, "float64")
    loss = vcreg_loss(other, **VCREG, penalty=penalty, comm=comm)
    loss.backward()
    return {
        "added": (z.grad - 1).numpy() / comm.size,
        "loss": regularize.last_terms.loss.item(),
        "gradient": other.grad.numpy() / comm.size,
    }


def weighted(comm: TorchCommunicator, shape: str, penalty: str) -> dict[str, Any]:
    """The losses of weighted samples and their gradients, NaN in the views where these are 0."""
    rows, positions = ROWS[comm.size], SHAPES[shape][:-1]
    weights = ranks.weights(rows, *positions)
    whole = ranks.hidden(ranks.whole(rows, SHAPES[shape]), weights)
    *views, weight = map(torch.asarray, ranks.own([*whole, weights], rows, comm.rank))
    z1, z2 = (view.requires_grad_() for view in views)
    loss = VICRegLoss(comm=comm)(z1, z2, sample_weight=weight)
    loss.backward()
    given = {"sample_weight": weight, "comm": comm}
    value, gradients = vicreg_value_and_grad(z1, z2, **given)
    of_one, gradient = vcreg_value_and_grad(z1, **VCREG, penalty=penalty, **given)
    x = z1.detach().requires_grad_()
    regularize = VCReg(**VCREG, penalty=penalty, comm=comm)
    regularize(x, weight).backward(torch.zeros_like(x))
    return {
        "losses": (loss.item(), value.item()),
        "vcreg": (of_one.item(), regularize.last_terms.loss.item()),
        "backward": [view.grad.numpy() / comm.size for view in (z1, z2)],
        "gradients": [each.numpy() for each in gradients],
        "of vcreg": gradient.numpy(),
        "of the layer": x.grad.numpy() / comm.size,
    }


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS))
    return nn.Sequential(*layers).double()


def images(rows: tuple[int, ...], seed: int = 0) -> list[Any]:
    return [torch.asarray(view) for view in ranks.whole(rows, (INPUTS,), seed=seed)]


def gradients_of(module: nn.Module) -> list[np.ndarray]:
    gradients = [parameter.grad for parameter in module.parameters()]
    return [getattr(g, "full_tensor", lambda g=g: g)().numpy() for g in gradients]


def train(comm: TorchCommunicator, way: str) -> list[np.ndarray]:
    """The gradients of a model's parameters, after two batches where they are accumulated."""
    rows = ROWS[comm.size]
    criterion: Callable[..., Any] = VICRegLoss(comm=comm)
    encoder = model()
    if way == "fully_shard":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (comm.size,))
        wrapped = fully_shard(encoder, mesh=mesh)
    else:
        wrapped = DistributedDataParallel(encoder, process_group=comm.group)
    if way == "compiled":
        wrapped = torch.compile(wrapped, backend="aot_eager")
        criterion = torch.compile(criterion, backend="aot_eager")
    if way == "attached":
        attach_vcreg(encoder, ["0"], **VCREG, comm=comm)
    if way == "no_sync":
        with wrapped.no_sync():
            x1, x2 = (ranks.own([x], rows, comm.rank)[0] for x in images(rows, seed=1))
            criterion(wrapped(x1), wrapped(x2)).backward()
    x1, x2 = (ranks.own([x], rows, comm.rank)[0] for x in images(rows))
    if way == "in chunks":
        cached_backward(wrapped, (x1, x2), criterion, 2)
        return gradients_of(encoder)
    z1, z2 = wrapped(torch.cat([x1, x2])).chunk(2)
    criterion(z1, z2).backward()
    return gradients_of(encoder)


def trajectory(comm: TorchCommunicator) -> np.ndarray:
    """All weights of an encoder after some steps, under DistributedDataParallel."""
    trainer = TorchTrainer(
        initial_layers(0, "float64"),
        {},
        terms=functools.partial(vicreg_terms, comm=comm),
        wrap=functools.partial(DistributedDataParallel, process_group=comm.group),
    )
    return trained(trainer, [ranks.own(pair, TRAINED_ROWS, comm.rank) for pair in pairs()])


def pairs() -> list[list[np.ndarray]]:
    """Pairs of views, as a trainer takes them."""
    rows = sum(TRAINED_ROWS)
    return list(np.random.default_rng(0).random((6, 2, rows, 8, 8)))


def trained(trainer: TorchTrainer, views: list[Any]) -> np.ndarray:
    for pair in views:
        trainer.step(*pair)
    return np.concatenate([part.ravel() for layer in trainer.layers() for part in layer])


def warned(comm: TorchCommunicator) -> list[list[str]]:
    """The warnings of calls without `comm`, in the order of the calls."""
    z = torch.eye(3)
    caught = []
    for settings in ({"comm": LOCAL}, {"comm": comm}, {}, {}):
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            vicreg_loss(z, z, **settings)
        caught.append([str(message.message) for message in messages])
    return caught


def refused(comm: TorchCommunicator) -> dict[str, str]:
    """What each rank is told where they differ, in the first call and in a later one."""
    told = {}
    good = tensors(ROWS[comm.size], (6,), comm.rank, "float32")
    last = comm.rank == comm.size - 1
    dtype, its = (torch.float32, "paper") if last else (torch.float64, "official")
    wrong = {
        "features": lambda: vicreg_loss(*[torch.ones(3, 5 + last)] * 2, comm=comm),
        "dtype": lambda: vicreg_loss(*[torch.ones(3, 5, dtype=dtype)] * 2, comm=comm),
        "views": lambda: vicreg_loss(*[torch.ones(3, 5)] * (2 + last), comm=comm),
        "weights": lambda: vicreg_loss(*good, comm=comm, covariance_weight=1.0 + last),
        "convention": lambda: vicreg_loss(*good, comm=comm, convention=its),
        "samples": lambda: vicreg_loss(*[torch.ones(int(last), 5)] * 2, comm=comm),
    }
    for time_ in ("first", "later"):
        for name, call in wrong.items():
            try:
                call()
            except ValueError as error:
                told[f"{name} {time_}"] = str(error)
            if time_ == "later":
                vicreg_loss(*good, comm=comm)
    return told


def left_waiting(comm: TorchCommunicator) -> tuple[str, float]:
    """How long the others wait for a rank that fails before it has sent anything."""
    views = tensors(ROWS[comm.size], (6,), comm.rank, "float32")
    vicreg_loss(*views, comm=comm)
    if comm.rank == 0:
        return "failed", 0.0
    began = time.monotonic()
    try:
        vicreg_loss(*views, comm=comm)
    except RuntimeError as error:
        return type(error).__name__, time.monotonic() - began
    return "no error", time.monotonic() - began


def copied(comm: TorchCommunicator) -> list[float]:
    views = tensors(ROWS[comm.size], (6,), comm.rank, "float64")
    criterion = VICRegLoss(comm=comm)
    return [float(one(*views)) for one in (criterion, copy.deepcopy(criterion))]


def outside(group: Any) -> str:
    """What a process is told that is not in the group."""
    try:
        vicreg_loss(torch.eye(3), torch.eye(3), comm=TorchCommunicator(group))
    except ValueError as error:
        return str(error)
    return "no error"


def jobs(comms: dict[int, TorchCommunicator]) -> dict[Any, Callable[[], Any]]:
    found: dict[Any, Callable[[], Any]] = {}
    for size, comm in comms.items():
        for shape in SHAPES:
            for dtype in DTYPES:
                found["exact", size, shape, dtype] = lambda c=comm, s=shape, t=dtype: exact(
                    c, s, t
                )
            for penalty in ("square", "smooth_l1"):
                for name, job in (("layer", layer), ("weighted", weighted)):
                    found[name, size, shape, penalty] = functools.partial(
                        job, comm, shape, penalty
                    )
    comm, everyone = comms[2], comms[4]
    for way in ("plain", "no_sync", "attached", "compiled", "in chunks"):
        found["train", 2, way] = lambda w=way: train(comm, w)
    found["train", 3, "in chunks"] = lambda: train(comms[3], "in chunks")
    found["train", 4, "plain"] = lambda: train(everyone, "plain")
    found["train", 4, "fully_shard"] = lambda: train(everyone, "fully_shard")
    found["trajectory", 2] = lambda: trajectory(comm)
    found["warned"] = lambda: warned(everyone)
    found["refused"] = lambda: refused(comms[3])
    found["copied"] = lambda: copied(comm)
    return found


def main(rank: int, size: int, folder: Path) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    meeting = (folder.parent / "meeting").as_uri()
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    groups = {2: dist.new_group([1, 3]), 3: dist.new_group([0, 1, 2]), 4: None}
    failing = dist.new_group([0, 1], timeout=timedelta(seconds=TIMEOUT))
    inside = {
        number: group
        for number, group in groups.items()
        if group is not dist.GroupMember.NON_GROUP_MEMBER
    }
    comms = {number: TorchCommunicator(group) for number, group in groups.items()}
    results: dict[Any, Any] = {}
    for number, (name, job) in enumerate(jobs(comms).items()):
        needed = {"refused": 3, "copied": 2, "warned": 4}.get(name) or name[1]
        if needed in inside:
            try:
                results[name] = job()
            except Exception:
                results[name] = traceback.format_exc()
        (folder / f"{number}.done").touch()
    if 2 not in inside:
        results["outside"] = outside(groups[2])
    dist.barrier()
    if rank < 2:
        results["left waiting"] = left_waiting(TorchCommunicator(failing))
    (folder / "results").write_bytes(pickle.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
