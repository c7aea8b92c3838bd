"""Training on PyTorch: its modules, its automatic differentiation, its Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vicreg._losses.vicreg import VICRegTerms, vicreg_terms
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
TermsOf = Callable[..., VICRegTerms[Any]]


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
    terms : callable, optional
        The loss and its terms of two embeddings and `weights`, by default `vicreg.vicreg_terms`.
    wrap : callable, optional
        What is done to the module that is trained, such as ``DistributedDataParallel``.
    """

    def __init__(
        self,
        layers: list[Layer],
        weights: TermWeights,
        terms: TermsOf = vicreg_terms,
        wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
    ) -> None:
        linear = [_linear(layer) for layer in layers]
        self._encoder = torch.nn.Sequential(
            *(part for layer in linear[:ENCODER_LAYERS] for part in (layer, torch.nn.ReLU()))
        )
        expander = [part for layer in linear[ENCODER_LAYERS:] for part in (layer, torch.nn.ReLU())]
        self._expander = torch.nn.Sequential(*expander[:-1])
        self._weights, self._terms = weights, terms
        both = torch.nn.Sequential(self._encoder, self._expander)
        self._trained = both if wrap is None else wrap(both)
        self._linear = linear
        self._adam = torch.optim.Adam(both.parameters(), lr=LEARNING_RATE)

    def step(self, first: Floats, second: Floats) -> TermValues:
        """Take one step of Adam on two views, shape (n, 8, 8); return the loss before it."""
        z1, z2 = (self._trained(_flat(view)) for view in (first, second))
        terms = self._terms(z1, z2, **self._weights)
        self._adam.zero_grad()
        terms.loss.backward()
        self._adam.step()
        return TermValues(*(term.item() for term in terms))

    @torch.no_grad()
    def encode(self, images: Floats) -> Encoded:
        """Return the outputs for images of shape (n, 8, 8)."""
        representation = self._encoder(_flat(images))
        return Encoded(representation.numpy(), self._expander(representation).numpy())

    def layers(self) -> list[Layer]:
        """Return the layers as they are now, as NumPy arrays."""
        return [
            Layer(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
            for layer in self._linear
        ]


def _linear(layer: Layer) -> torch.nn.Linear:
    inputs, outputs = layer.weight.shape
    linear = torch.nn.Linear(inputs, outputs, dtype=torch.from_numpy(layer.bias).dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(layer.weight.T))
        linear.bias.copy_(torch.from_numpy(layer.bias))
    return linear


def _flat(images: Floats) -> torch.Tensor:
    return torch.from_numpy(images.reshape(-1, SIDE * SIDE))
