"""Train one encoder in PyTorch, JAX and NumPy, and by the published formula: the weights agree.

The encoder, its first weights, the images and the optimiser are the same: those of `vicreg demo`.
In float64 the weights stay within 1e-8 of those that the published formula leads to: in each
library, on one process, and with each batch spread over two ranks, which are processes under
DistributedDataParallel, two devices of JAX, and two processes of MPI with NumPy. In float32 they
drift apart, as any two trainings do that round in other places: this loss no further than the
published formula from itself, when its sums run over the same samples in another order. The script
starts its processes itself. Needs PyTorch and the packages of the command, and matplotlib for the
picture; JAX with Optax, and mpi4py with an MPI, take part where they are installed:

    python examples/trajectories.py --plot trajectories.svg
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vicreg import VICRegTerms, vicreg_terms
from vicreg.distributed import JaxCommunicator, MPICommunicator, TorchCommunicator
from vicreg.tools.demo.digits import batches, load_digits
from vicreg.tools.demo.encoder import WIDTHS, Trainer, initial_layers
from vicreg.tools.demo.trainers import trainer_factory
from vicreg.tools.demo.trainers.standard import StandardTrainer
from vicreg.tools.demo.trainers.torch import TorchTrainer

STEPS, EVERY, BATCH, ORDERS = 300, 10, 64, 3
ROWS = (slice(0, 40), slice(40, BATCH))  # of each batch, of two processes
MPI_RANK = "--mpi-rank"  # what makes the script one of the ranks that it starts itself

Pairs = list[tuple[np.ndarray, np.ndarray]]


def published(x: torch.Tensor, y: torch.Tensor) -> VICRegTerms[torch.Tensor]:
    """Return the loss and its terms as facebookresearch/vicreg computes them."""
    n, d = x.shape
    repr_loss = torch.nn.functional.mse_loss(x, y)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    std_x, std_y = torch.sqrt(x.var(dim=0) + 0.0001), torch.sqrt(y.var(dim=0) + 0.0001)
    std_loss = torch.relu(1 - std_x).mean() / 2 + torch.relu(1 - std_y).mean() / 2
    cov_x, cov_y = (x.T @ x) / (n - 1), (y.T @ y) / (n - 1)
    cov_loss = off_diagonal(cov_x).pow(2).sum() / d + off_diagonal(cov_y).pow(2).sum() / d
    loss = 25.0 * repr_loss + 25.0 * std_loss + 1.0 * cov_loss
    return VICRegTerms(loss, repr_loss, std_loss, cov_loss)


def off_diagonal(x: torch.Tensor) -> torch.Tensor:
    n = len(x)
    return x.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


def pairs(steps: int, dtype: str) -> Pairs:
    """Return the batches of a training, each of two views ``(BATCH, 8, 8)``."""
    images, rng = load_digits(0).train_images, np.random.default_rng(0)

    def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            yield from batches(images, BATCH, rng)

    return [(x1.astype(dtype), x2.astype(dtype)) for x1, x2 in islice(endless(), steps)]


def reordered(pairs: Pairs, seed: int) -> Pairs:
    """Return the batches with the samples of each in another order: each sum in another order."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(x1)) for x1, _ in pairs]
    return [(x1[order], x2[order]) for (x1, x2), order in zip(pairs, orders, strict=True)]


def weights_of(trainer: Trainer, pairs: Pairs, every: int = EVERY) -> np.ndarray:
    """Train; return all weights after each `every` steps, ``(steps / every, weights)``."""
    found = []
    for step, views in enumerate(pairs, start=1):
        trainer.step(*views)
        if step % every == 0:
            parts = (part.ravel() for layer in trainer.layers() for part in layer)
            found.append(np.concatenate(list(parts)))
    return np.stack(found)


def in_torch(dtype: str, **settings: Any) -> TorchTrainer:
    return TorchTrainer(initial_layers(0, dtype), {}, **settings)


def in_numpy(dtype: str) -> Trainer:
    return trainer_factory("numpy")(initial_layers(0, dtype), {})


def in_jax(dtype: str) -> Trainer:
    import jax

    jax.config.update("jax_enable_x64", True)
    return trainer_factory("jax")(initial_layers(0, dtype), {})


LIBRARIES: dict[str, Callable[[str], Trainer]] = {"PyTorch": in_torch, "NumPy": in_numpy}
if find_spec("jax") and find_spec("optax"):
    LIBRARIES["JAX"] = in_jax


def own_rows(pairs: Pairs, rank: int) -> Pairs:
    return [(x1[ROWS[rank]], x2[ROWS[rank]]) for x1, x2 in pairs]


def torch_rank(rank: int, pairs: Pairs, dtype: str, folder: str) -> None:
    """Train on this process's rows of each batch; the first one saves the weights."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=len(ROWS))
    comm = TorchCommunicator()

    def of_all(z1: torch.Tensor, z2: torch.Tensor) -> VICRegTerms[torch.Tensor]:
        return vicreg_terms(z1, z2, comm=comm)

    trainer = in_torch(dtype, terms=of_all, wrap=DistributedDataParallel)
    weights = weights_of(trainer, own_rows(pairs, rank))
    if rank == 0:
        np.save(Path(folder) / "weights.npy", weights)
    dist.destroy_process_group()


def on_torch_ranks(pairs: Pairs, dtype: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        # Forked from a server that has imported all: each process would take seconds to do so.
        multiprocessing.set_forkserver_preload(["vicreg.torch"])
        torch.multiprocessing.start_processes(
            torch_rank, (pairs, dtype, folder), nprocs=len(ROWS), start_method="forkserver"
        )
        return np.load(Path(folder) / "weights.npy")


def trained_on_jax_devices(pairs: Pairs, dtype: str) -> np.ndarray:
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    from vicreg.tools.demo.trainers.jax import JaxTrainer

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    by_rows = PartitionSpec("batch")

    @jax.shard_map(mesh=mesh, in_specs=by_rows, out_specs=PartitionSpec())
    def of_all(z1: jax.Array, z2: jax.Array) -> VICRegTerms[jax.Array]:
        return vicreg_terms(z1, z2, comm=JaxCommunicator("batch"))

    def place(images: np.ndarray) -> jax.Array:
        return jax.device_put(images, NamedSharding(mesh, by_rows))

    return weights_of(JaxTrainer(initial_layers(0, dtype), {}, of_all, place), pairs)


def on_jax_devices(pairs: Pairs, dtype: str) -> np.ndarray:
    # In a process of its own: how many devices there are is settled when JAX begins.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(trained_on_jax_devices, pairs, dtype).result()


def mpi_rank(steps: int, dtype: str, file: str) -> None:
    """Train on this process's rows of each batch; the first one saves the weights."""
    comm = MPICommunicator()
    trainer = StandardTrainer(initial_layers(0, dtype), {}, np, comm)
    weights = weights_of(trainer, own_rows(pairs(steps, dtype), comm.rank))
    if comm.rank == 0:
        np.save(file, weights)


def on_mpi_ranks(pairs: Pairs, dtype: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "weights.npy")
        script = [sys.executable, __file__, MPI_RANK, str(len(pairs)), dtype, file]
        # Open MPI refuses root and more ranks than cores unless it is told that both are meant.
        allowed = {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
        }
        command = ["mpiexec", "-n", str(len(ROWS)), *script]
        subprocess.run(command, env=os.environ | allowed, check=True)
        return np.load(file)


#: The trainings on two ranks.
ON_RANKS: dict[str, Callable[[Pairs, str], np.ndarray]] = {"PyTorch, 2 processes": on_torch_ranks}
if find_spec("mpi4py") and shutil.which("mpiexec"):
    ON_RANKS["NumPy, 2 processes"] = on_mpi_ranks
if "JAX" in LIBRARIES:
    ON_RANKS["JAX, 2 devices"] = on_jax_devices


def apart(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how far two trainings are apart at each step looked at: the relative distance.

    Without the last bias. It moves both views alike, so no term depends on it: its gradient is
    rounding alone, and Adam makes steps of that as long as of any other.
    """
    mine, theirs = (each[:, : -WIDTHS[-1]].astype(float) for each in (weights, others))
    return np.linalg.norm(mine - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


def in_float64(steps: int = STEPS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the weights that the published formula leads to, and those of each library."""
    data = pairs(steps, "float64")
    wanted = weights_of(in_torch("float64", terms=published), data)
    return wanted, {name: weights_of(make("float64"), data) for name, make in LIBRARIES.items()}


def in_float32(steps: int = STEPS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return how far the published formula gets from itself, and each library from it.

    Its distance from itself is the largest between any two orders of the samples.
    """
    data = pairs(steps, "float32")
    orders = [data, *(reordered(data, seed) for seed in range(1, ORDERS))]
    runs = [weights_of(in_torch("float32", terms=published), order) for order in orders]
    itself = np.max([apart(one, other) for one, other in combinations(runs, 2)], axis=0)
    others = {name: weights_of(make("float32"), data) for name, make in LIBRARIES.items()}
    return itself, {name: apart(weights, runs[0]) for name, weights in others.items()}


def draw(
    itself: np.ndarray, single: dict[str, np.ndarray], double: dict[str, np.ndarray], file: str
) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 4.2))
    steps = EVERY * np.arange(1, STEPS // EVERY + 1)
    label = "published formula,\nanother order of sums"
    axes.plot(steps, itself, label=label, color="#6e7781", linestyle="-", linewidth=6, alpha=0.6)
    for index, name in enumerate(LIBRARIES):
        line = {"color": f"C{index}", "linestyle": ("-", "--", "-.")[index]}
        axes.plot(steps, double[name], label=name, **line)
        axes.plot(steps, single[name], **line)
        for ranks in (each for each in double if each.startswith(f"{name}, ")):
            axes.plot(steps, double[ranks], label=ranks, color=line["color"], linestyle=":")
    for text, height in (("float32", itself[-1]), ("float64", max(map(max, double.values())))):
        axes.annotate(text, (steps[-1], height), (0, 8), textcoords="offset points", ha="right")
    axes.set(yscale="log", ylim=(None, 2), xlabel="step")
    axes.set(ylabel="distance of the weights, relative")
    axes.set_title("This loss and the published formula\ntrain to the same weights")
    axes.legend(loc="center left", bbox_to_anchor=(0, 0.46), fontsize=9.5)
    plt.savefig(file)


def main() -> None:
    if sys.argv[1:2] == [MPI_RANK]:
        steps, dtype, file = sys.argv[2:]
        mpi_rank(int(steps), dtype, file)
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as trajectories.svg")
    file = parser.parse_args().plot
    torch.set_num_threads(1)
    wanted, double = in_float64()
    data = pairs(STEPS, "float64")
    double |= {name: train(data, "float64") for name, train in ON_RANKS.items()}
    print(f"{STEPS} steps; all weights are compared after each {EVERY}.")
    print("float64: the largest difference of a weight from the published formula's")
    for name, weights in double.items():
        largest = np.abs(weights - wanted).max()
        print(f"  {name + ':':21} {largest:.0e}")
        assert largest < 1e-8, (name, largest)
    itself, single = in_float32()
    print(f"float32: relative distance from the published formula after {EVERY} and {STEPS} steps")
    print(f"  {'another order:':21} {itself[0]:.1e}  {itself[-1]:.1e}")
    for name, distances in single.items():
        print(f"  {name + ':':21} {distances[0]:.1e}  {distances[-1]:.1e}")
        # Twice: how far two runs get is a matter of chance, and there are few of them.
        assert (distances <= 2 * itself).all(), (name, distances / itself)
    if file:
        draw(itself, single, {name: apart(each, wanted) for name, each in double.items()}, file)


if __name__ == "__main__":
    main()
