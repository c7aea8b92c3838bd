"""The encoder and its expander: one architecture for every library.

Here are the layers' sizes, their initial values, and the forward and backward pass and Adam for
libraries without automatic differentiation, written against an array namespace.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from vicreg.tools.demo.digits import SIDE

__all__ = [
    "EMBEDDING_SIZE",
    "ENCODER_LAYERS",
    "LEARNING_RATE",
    "WIDTHS",
    "Adam",
    "Encoded",
    "Layer",
    "TermValues",
    "TermWeights",
    "Trainer",
    "backward",
    "forward",
    "initial_layers",
]

Array = Any
Floats = npt.NDArray[np.floating[Any]]

#: The size of the input and of each layer's output: an encoder, followed by an expander.
WIDTHS = (SIDE * SIDE, 256, 64, 128, 64)
#: How many layers belong to the encoder, whose output is the representation.
ENCODER_LAYERS = 2
EMBEDDING_SIZE = WIDTHS[-1]
LEARNING_RATE = 1e-3

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Layer(NamedTuple):
    """A linear map ``x @ weight + bias``; a ReLU follows every layer but the last."""

    weight: Array
    bias: Array


class Encoded(NamedTuple):
    """The outputs of the encoder and of the expander for n images, each of shape (n, ·)."""

    representation: Floats
    embedding: Floats


class TermValues(NamedTuple):
    """The loss and its three terms, unweighted, as numbers."""

    loss: float
    invariance: float
    variance: float
    covariance: float


class TermWeights(TypedDict, total=False):
    """Weights for `vicreg.vicreg_loss`; one that is missing is the convention's."""

    variance_weight: float
    covariance_weight: float


class Trainer(Protocol):
    """An encoder in one library, trained on pairs of views."""

    def step(self, first: Floats, second: Floats) -> TermValues:
        """Take one step of Adam on two views, shape (n, 8, 8); return the loss before it."""

    def encode(self, images: Floats) -> Encoded:
        """Return the outputs for images of shape (n, 8, 8)."""

    def layers(self) -> list[Layer]:
        """Return the layers as they are now, as NumPy arrays."""


def initial_layers(seed: int, dtype: npt.DTypeLike = np.float32) -> list[Layer]:
    """Return the layers before training (He et al. 2015), in NumPy.

    Parameters
    ----------
    seed : int
        The seed; it gives the same layers for every library.
    dtype : dtype, optional
        That of the layers, in which a trainer of them computes.

    Returns
    -------
    list of Layer
    """
    rng = np.random.default_rng(seed)
    layers = []
    for inputs, outputs in pairwise(WIDTHS):
        weight = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        layers.append(Layer(weight.astype(dtype), np.zeros(outputs, dtype)))
    return layers


def forward(layers: list[Layer], images: Array, xp: Any) -> list[Array]:
    """Return the input and the output of each layer.

    Parameters
    ----------
    layers : list of Layer
        As `initial_layers` returns them, in the library of `xp`.
    images : array, shape (n, inputs)
        One flattened image per row.
    xp : module
        The array namespace: NumPy or CuPy.

    Returns
    -------
    list of arrays, shape (n, width)
        The input of each layer, and the embedding.
    """
    outputs = [images]
    for index, (weight, bias) in enumerate(layers):
        output = outputs[-1] @ weight + bias
        outputs.append(output if index == len(layers) - 1 else xp.maximum(output, 0))
    return outputs


def backward(layers: list[Layer], outputs: list[Array], gradient: Array, xp: Any) -> list[Layer]:
    """Return the gradient with respect to each layer.

    Parameters
    ----------
    layers : list of Layer
        The layers that `forward` was called with.
    outputs : list of arrays
        As `forward` returns them.
    gradient : array, shape (n, width)
        The gradient with respect to the embedding.
    xp : module
        The array namespace: NumPy or CuPy.

    Returns
    -------
    list of Layer
        With the shapes of `layers`.
    """
    gradients = []
    for index in reversed(range(len(layers))):
        inputs = outputs[index]
        gradients.append(Layer(inputs.T @ gradient, xp.sum(gradient, axis=0)))
        if index:
            gradient = (gradient @ layers[index].weight.T) * (inputs > 0)
    return gradients[::-1]


class Adam:
    """Adam (Kingma and Ba 2015) with its usual constants, as PyTorch and optax have them.

    Parameters
    ----------
    layers : list of Layer
        The layers to optimise, which are not modified.
    xp : module
        The array namespace: NumPy or CuPy.
    learning_rate : float, optional
        The step size.
    """

    def __init__(self, layers: list[Layer], xp: Any, learning_rate: float = LEARNING_RATE) -> None:
        self._xp = xp
        self._learning_rate = learning_rate
        self._step = 0
        self._means = [Layer(*map(xp.zeros_like, layer)) for layer in layers]
        self._squares = [Layer(*map(xp.zeros_like, layer)) for layer in layers]

    def updated(self, layers: list[Layer], gradients: list[Layer]) -> list[Layer]:
        """Return `layers` after one step."""
        self._step += 1
        rate = self._learning_rate / (1 - _BETA1**self._step)
        correction = (1 - _BETA2**self._step) ** 0.5
        self._means = _averaged(_BETA1, self._means, gradients)
        squares = [Layer(g.weight**2, g.bias**2) for g in gradients]
        self._squares = _averaged(_BETA2, self._squares, squares)

        def moved(parameter: Array, mean: Array, square: Array) -> Array:
            return parameter - rate * mean / (self._xp.sqrt(square) / correction + _EPS)

        return [
            Layer(*map(moved, layer, mean, square))
            for layer, mean, square in zip(layers, self._means, self._squares, strict=True)
        ]


def _averaged(beta: float, averages: list[Layer], values: list[Layer]) -> list[Layer]:
    """Return the running averages after new values."""
    return [
        Layer(*(beta * a + (1 - beta) * v for a, v in zip(average, value, strict=True)))
        for average, value in zip(averages, values, strict=True)
    ]
