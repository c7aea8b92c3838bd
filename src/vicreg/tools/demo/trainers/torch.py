"""Training on PyTorch: its modules, its automatic differentiation, its Adam."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vicreg._losses.vicreg import vicreg_terms
from vicreg.tools.demo.digits import SIDE
from vicreg.tools.demo.encoder import (
    ENCODER_LAYERS,
    LEARNING_RATE,
    Encoded,
    Layer,
    TermValues,
    TermWeights,
)

__all__ = ["TorchTrainer", "make_trainer"]

Floats = npt.NDArray[np.floating[Any]]


def make_trainer(layers: list[Layer], weights: TermWeights) -> TorchTrainer:
    """Return a trainer on PyTorch, on the CPU."""
    return TorchTrainer(layers, weights)


class TorchTrainer:
    """The encoder and the expander as modules, trained through `vicreg.vicreg_terms`.

    Parameters
    ----------
    layers : list of Layer
        The initial layers, as NumPy arrays.
    weights : TermWeights
        The weights that differ from the convention's.
    """

    def __init__(self, layers: list[Layer], weights: TermWeights) -> None:
        linear = [_linear(layer) for layer in layers]
        self._encoder = torch.nn.Sequential(
            *(part for layer in linear[:ENCODER_LAYERS] for part in (layer, torch.nn.ReLU()))
        )
        expander = [part for layer in linear[ENCODER_LAYERS:] for part in (layer, torch.nn.ReLU())]
        self._expander = torch.nn.Sequential(*expander[:-1])
        self._weights = weights
        parameters = [*self._encoder.parameters(), *self._expander.parameters()]
        self._adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)

    def step(self, first: Floats, second: Floats) -> TermValues:
        """Take one step of Adam on two views, shape (n, 8, 8); return the loss before it."""
        z1, z2 = (self._expander(self._encoder(_flat(view))) for view in (first, second))
        terms = vicreg_terms(z1, z2, **self._weights)
        self._adam.zero_grad()
        terms.loss.backward()
        self._adam.step()
        return TermValues(*(term.item() for term in terms))

    @torch.no_grad()
    def encode(self, images: Floats) -> Encoded:
        """Return the outputs for images of shape (n, 8, 8)."""
        representation = self._encoder(_flat(images))
        return Encoded(representation.numpy(), self._expander(representation).numpy())


def _linear(layer: Layer) -> torch.nn.Linear:
    linear = torch.nn.Linear(*layer.weight.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(layer.weight.T))
        linear.bias.copy_(torch.from_numpy(layer.bias))
    return linear


def _flat(images: Floats) -> torch.Tensor:
    return torch.from_numpy(images.reshape(-1, SIDE * SIDE))
