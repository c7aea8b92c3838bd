"""VICReg of NumPy arrays whose rows are spread over MPI ranks, with other numbers of them on each.

Needs NumPy, mpi4py and an MPI, as Open MPI. It prints the loss, and how far the gradients are from
those of one process with the whole batch:

    mpiexec -n 2 python examples/mpi_numpy.py
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from vicreg import vicreg_value_and_grad
from vicreg.distributed import MPICommunicator

FEATURES, ROWS = 64, 24


def main() -> None:
    world = MPI.COMM_WORLD
    rows = [ROWS + 5 * rank for rank in range(world.size)]
    whole = np.random.default_rng(0).standard_normal((2, sum(rows), FEATURES))  # on all ranks
    whole += np.repeat(np.arange(world.size), rows)[:, None]
    start = sum(rows[: world.rank])
    own = slice(start, start + rows[world.rank])

    loss, gradients = vicreg_value_and_grad(*whole[:, own], comm=MPICommunicator())

    _, of_whole = vicreg_value_and_grad(*whole)
    difference = np.abs(np.stack(gradients) - np.stack(of_whole)[:, own]).max()
    largest = world.reduce(difference, MPI.MAX)
    if world.rank == 0:
        print(f"loss of {sum(rows)} samples on {world.size} ranks: {loss:.6f}")
        print(f"largest difference from the gradient of one process: {largest:.1e}")


if __name__ == "__main__":
    main()
