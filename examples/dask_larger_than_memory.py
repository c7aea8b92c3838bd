"""Embeddings larger than memory with Dask: the loss, its gradient and the diagnosis, from disk.

Two views are written to disk in chunks of samples. The loss reads each chunk once, its gradient
once more, and neither keeps any but a few. The gradients are written as they are formed. At the
end one process loads all of it, to compare.

    python examples/dask_larger_than_memory.py
    python examples/dask_larger_than_memory.py --workers 2
    python examples/dask_larger_than_memory.py --scheduler tcp://host:8786 --folder /shared
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import dask
import numpy as np
from dask import array

from vicreg import diagnose, vicreg_value_and_grad


class File:
    """A file of one array, which tasks write rows to wherever they run."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        np.lib.format.open_memmap(path, "w+", np.float64, shape).flush()

    def __setitem__(self, index: Any, rows: np.ndarray) -> None:
        np.load(self.path, mmap_mode="r+")[index] = rows


def write_views(folder: Path, samples: int, features: int, chunk_size: int) -> None:
    """Write two noisy views of random samples, with features of different spreads."""
    rng = array.random.default_rng(0)
    shape, chunks = (samples, features), (chunk_size, features)
    common = rng.standard_normal(shape, chunks=chunks) * np.linspace(0.2, 1.5, features)
    for place in range(2):
        view = common + 0.3 * rng.standard_normal(shape, chunks=chunks)
        (folder / f"view{place}").mkdir()
        array.to_npy_stack(folder / f"view{place}", view)


def peak_memory() -> float:
    """Return the most memory that this process has had, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def run(folder: Path, samples: int, features: int, chunk_size: int, client: Any) -> None:
    """Compute from the files alone, and print what comes out."""
    write_views(folder, samples, features, chunk_size)
    views = [array.from_npy_stack(folder / f"view{i}", mmap_mode=None) for i in range(2)]
    loss, gradients = vicreg_value_and_grad(*views)
    files = [File(folder / f"gradient{i}.npy", views[0].shape) for i in range(2)]
    stored = array.store(list(gradients), files, lock=False, compute=False)
    before = client.run(peak_memory) if client else {"this process": peak_memory()}
    value, _, rank = dask.compute(loss, stored, diagnose(views[0]).effective_rank)
    after = client.run(peak_memory) if client else {"this process": peak_memory()}

    size = sum(view.nbytes for view in views) / 2**20
    print(f"two views of {samples} x {features} in {views[0].numblocks[0]} chunks: {size:.0f} MiB")
    for name, most in after.items():
        print(f"memory taken by {name}: {most - before[name]:.0f} MiB")
    whole = [view.compute(scheduler="synchronous") for view in views]
    wanted, wanted_gradients = vicreg_value_and_grad(*whole)
    difference = max(
        np.abs(np.load(file.path, mmap_mode="r") - gradient).max() / np.abs(gradient).max()
        for file, gradient in zip(files, wanted_gradients, strict=True)
    )
    print(f"loss {value:.6f}, of a single process {wanted:.6f}")
    print(f"largest difference from the single-process gradient {difference:.1e}")
    print(
        f"effective rank {rank:.3f}, of a single process {diagnose(whole[0]).effective_rank:.3f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run on the threads of this process, on workers of this machine, or on a cluster."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--chunk-size", type=int, default=5_000, help="samples in a chunk")
    parser.add_argument("--workers", type=int, default=0, help="processes on this machine")
    parser.add_argument("--memory-limit", default="auto", help="of each of them: 500MiB, say")
    parser.add_argument("--scheduler", help="the address of a cluster that runs already")
    parser.add_argument("--folder", type=Path, help="where all workers can write")
    options = parser.parse_args(arguments)
    if not options.samples > options.features >= 2 or options.chunk_size < 1:
        parser.error("--samples must be more than --features, and those 2 or more")

    with contextlib.ExitStack() as stack:
        client = None
        if options.workers or options.scheduler:
            from distributed import Client, LocalCluster

            cluster = options.scheduler or stack.enter_context(
                LocalCluster(
                    n_workers=options.workers,
                    threads_per_worker=1,
                    memory_limit=options.memory_limit,
                    dashboard_address=":0",
                )
            )
            client = stack.enter_context(Client(cluster))
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        run(Path(folder), options.samples, options.features, options.chunk_size, client)


if __name__ == "__main__":
    main()
