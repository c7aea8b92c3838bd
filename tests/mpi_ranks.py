"""What each rank of test_ranks_mpi.py does: run by ``mpiexec``."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ranks
from mpi4py import MPI

from vicreg import vcreg_value_and_grad, vicreg_loss, vicreg_value_and_grad
from vicreg.distributed import MPICommunicator

ROWS = {2: (3, 8), 4: (6, 0, 1, 5)}
SHAPES = {"wide": (40,), "narrow": (4,), "positions": (3, 20)}
DTYPES = ("float64", "float32", "float16")
VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5, "penalty": "smooth_l1"}


def refused(comm: MPICommunicator) -> str:
    z = np.ones((3, 4 + comm.rank))
    try:
        vicreg_loss(z, z, comm=comm)
    except ValueError as error:
        return str(error)
    return "no error"


def weighted(comm: MPICommunicator, rows: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """The losses of weighted samples and their gradients, NaN in the views where these are 0."""
    weights = ranks.weights(rows, *shape[:-1])
    whole = ranks.hidden(ranks.whole(rows, shape), weights)
    *views, weight = ranks.own([*whole, weights], rows, comm.rank)
    given = {"sample_weight": weight, "comm": comm}
    return (
        vicreg_value_and_grad(*views, **given),
        vcreg_value_and_grad(views[0], **VCREG, **given),
    )


def main(folder: Path) -> None:
    results: dict[Any, Any] = {}
    world = MPI.COMM_WORLD
    rows = ROWS[world.size]
    half = world.Split(world.rank % 2)  # a communicator of some of the ranks
    for shape in SHAPES:
        for dtype in DTYPES:
            whole = [view.astype(dtype) for view in ranks.whole(rows, SHAPES[shape])]
            mine = ranks.own(whole, rows, world.rank)
            for _ in range(2):
                # A new one in each call has what the ranks know of each other.
                comm = MPICommunicator()
                results[shape, dtype] = vicreg_value_and_grad(*mine, comm=comm)
            results["vcreg", shape, dtype] = vcreg_value_and_grad(mine[0], comm=comm, **VCREG)
        results["weighted", shape] = weighted(comm, rows, SHAPES[shape])
    results["refused"] = refused(MPICommunicator(world))
    of_half = ranks.whole((2,) * half.size, (5,))
    mine = ranks.own(of_half, (2,) * half.size, half.rank)
    results["half"] = float(vicreg_loss(*mine, comm=MPICommunicator(half))), half.size
    (folder / f"{world.rank}.results").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
