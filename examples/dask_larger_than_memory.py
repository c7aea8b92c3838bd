"""The loss of embeddings that do not fit in memory: Dask reads them from disk in chunks.

    python examples/dask_larger_than_memory.py [--samples 200000] [--features 64] [--workers 0]

writes two views to a folder, a file for each chunk, and computes the loss from there. With
``--workers 2`` the chunks are read and worked on by two processes of a `dask.distributed` cluster.
It prints the loss, the largest difference from that of one array in memory and of its gradient,
and the most memory that this process had while it computed.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np

from vicreg import vicreg_loss, vicreg_value_and_grad

CHUNK = 5000


def write(folder: Path, samples: int, features: int) -> list[da.Array]:
    """Write two views in chunks, and return them as arrays that read these."""
    rng = np.random.default_rng(0)
    views = [folder / "z1", folder / "z2"]
    common = da.random.default_rng(0).standard_normal(
        (samples, features), chunks=(CHUNK, features)
    )
    scales = rng.uniform(0.5, 2, features)
    for seed, view in enumerate(views):
        noise = da.random.default_rng(seed + 1).standard_normal(common.shape, chunks=common.chunks)
        da.to_npy_stack(view, (scales * (common + 0.3 * noise)).astype("float32"), axis=0)
    return [da.from_npy_stack(view, mmap_mode=None) for view in views]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes of a cluster; 0 is none")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if arguments.workers:
            from distributed import Client, LocalCluster

            cluster = LocalCluster(
                n_workers=arguments.workers, threads_per_worker=1, dashboard_address=None
            )
            stack.enter_context(cluster)
            stack.enter_context(Client(cluster))
        views = write(Path(folder), arguments.samples, arguments.features)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loss = float(vicreg_loss(*views).compute())
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        _, gradients = vicreg_value_and_grad(*views)
        in_memory = [view.compute() for view in views]
        wanted, wanted_gradients = vicreg_value_and_grad(*in_memory)
        of_gradient = max(
            float(np.abs(one.compute() - other).max() / np.abs(other).max())
            for one, other in zip(gradients, wanted_gradients, strict=True)
        )
    size = sum(view.nbytes for view in in_memory) / 2**20
    print(f"views of {size:.0f} MiB on disk; the loss took {grown:.0f} MiB more of this process")
    print(f"loss {loss:.6f}, largest difference from one array in memory {abs(loss - wanted):.1e}")
    print(f"largest difference of the gradient, relative {of_gradient:.1e}")


if __name__ == "__main__":
    main()
