"""Training on NumPy alone."""

from __future__ import annotations

import numpy as np

from vicreg.tools.demo.encoder import Layer, TermWeights
from vicreg.tools.demo.trainers.standard import StandardTrainer

__all__ = ["make_trainer"]


def make_trainer(layers: list[Layer], weights: TermWeights) -> StandardTrainer:
    """Return a trainer on NumPy."""
    return StandardTrainer(layers, weights, np)
