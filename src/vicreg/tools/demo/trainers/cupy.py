"""Training on CuPy: NumPy's code on a CUDA device."""

from __future__ import annotations

import cupy

from vicreg.tools.backends import backends_of
from vicreg.tools.demo.encoder import Layer, TermWeights
from vicreg.tools.demo.trainers.standard import StandardTrainer

__all__ = ["make_trainer"]


def make_trainer(layers: list[Layer], weights: TermWeights) -> StandardTrainer:
    """Return a trainer on CuPy's current device."""
    return StandardTrainer(layers, weights, cupy)


backends_of("cupy")  # raises RequirementError if there is no device
