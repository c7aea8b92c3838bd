"""Training on CuPy: NumPy's code on a CUDA device."""

from __future__ import annotations

import cupy

from vicreg.demo.encoder import Layer, TermWeights
from vicreg.demo.trainers.standard import StandardTrainer
from vicreg.requirements import RequirementError

__all__ = ["make_trainer"]


def make_trainer(layers: list[Layer], weights: TermWeights) -> StandardTrainer:
    """Return a trainer on CuPy's current device."""
    return StandardTrainer(layers, weights, cupy)


def _check_device() -> None:
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RequirementError(f"CuPy finds no CUDA device: {error}") from error
    if not devices:
        raise RequirementError("CuPy finds no CUDA device")


_check_device()
