"""The time that counts stand for on a GPU, by a model of three numbers."""

from __future__ import annotations

from dataclasses import dataclass

from vicreg.tools.benchmark.counting.counts import Counts

__all__ = ["H100", "Estimate", "Gpu", "estimate"]


@dataclass(frozen=True)
class Gpu:
    """A GPU, as far as the model knows it.

    Parameters
    ----------
    launch_us : float
        The microseconds that the program needs to launch one operation.
    bandwidth_tbs : float
        The bytes that its memory reads and writes, in 10¹² a second.
    tflops : float
        The floating-point operations of its matrix products, in 10¹² a second.
    """

    launch_us: float = 4.0
    bandwidth_tbs: float = 3.0
    tflops: float = 50.0


#: The defaults are round figures below what the data sheet of an H100 (SXM) says: 3.35 TB/s, and
#: 67 TFLOP/s in float32 outside its tensor cores.
H100 = Gpu()


@dataclass(frozen=True)
class Estimate:
    """The seconds that the launches, the bytes and the products of a call take."""

    launches: float
    bytes_moved: float
    products: float

    @property
    def on_gpu(self) -> float:
        """The seconds that the GPU works."""
        return self.bytes_moved + self.products

    @property
    def seconds(self) -> float:
        """The seconds of the call: the program launches ahead of the GPU, or it waits."""
        return max(self.launches, self.on_gpu)

    @property
    def bound_by(self) -> str:
        """What takes longest: "launches", "bytes" or "products"."""
        if self.launches >= self.on_gpu:
            return "launches"
        return "bytes" if self.bytes_moved >= self.products else "products"


def estimate(counts: Counts, gpu: Gpu) -> Estimate:
    """Return the time that `counts` stand for on `gpu`.

    Parameters
    ----------
    counts : Counts
        What a call asks of a library.
    gpu : Gpu
        The GPU.

    Returns
    -------
    Estimate
    """
    return Estimate(
        1e-6 * gpu.launch_us * counts.calls,
        1e-12 * counts.bytes_moved / gpu.bandwidth_tbs,
        1e-12 * 2 * counts.multiply_adds / gpu.tflops,
    )
