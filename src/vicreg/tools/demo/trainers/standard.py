"""Training without automatic differentiation, on a library with NumPy's functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg._core.communicator import Communicator
from vicreg._losses.vicreg import vicreg_terms, vicreg_value_and_grad
from vicreg.tools.demo.digits import SIDE
from vicreg.tools.demo.encoder import (
    ENCODER_LAYERS,
    Adam,
    Encoded,
    Layer,
    TermValues,
    TermWeights,
    backward,
    forward,
)

__all__ = ["StandardTrainer"]

Floats = npt.NDArray[np.floating[Any]]


class StandardTrainer:
    """A trainer with a hand-written backward pass and `vicreg.vicreg_value_and_grad`.

    Parameters
    ----------
    layers : list of Layer
        The initial layers, as NumPy arrays.
    weights : TermWeights
        The weights that differ from the convention's.
    xp : module
        The array namespace: NumPy or CuPy.
    comm : Communicator, optional
        The ranks that train together, each on its own rows of a batch. None is this process alone.
    """

    def __init__(
        self,
        layers: list[Layer],
        weights: TermWeights,
        xp: Any,
        comm: Communicator | None = None,
    ) -> None:
        self._xp, self._comm = xp, comm
        self._layers = [Layer(*map(xp.asarray, layer)) for layer in layers]
        self._weights = weights
        self._adam = Adam(self._layers, xp)

    def step(self, first: Floats, second: Floats) -> TermValues:
        """Take one step of Adam on two views, shape (n, 8, 8); return the loss before it."""
        xp = self._xp
        # Both views in one pass: no layer mixes samples.
        images = xp.asarray(np.concatenate([first, second]).reshape(-1, SIDE * SIDE))
        outputs = forward(self._layers, images, xp)
        z1, z2 = outputs[-1][: len(first)], outputs[-1][len(first) :]
        _, gradients = vicreg_value_and_grad(z1, z2, comm=self._comm, **self._weights)
        terms = vicreg_terms(z1, z2, comm=self._comm, **self._weights)
        by_layer = backward(self._layers, outputs, xp.concatenate(gradients), xp)
        if self._comm is not None:  # each rank has the sum over its own rows
            by_layer = [Layer(*map(self._comm.all_reduce, layer)) for layer in by_layer]
        self._layers = self._adam.updated(self._layers, by_layer)
        return TermValues(*map(float, terms))

    def encode(self, images: Floats) -> Encoded:
        """Return the outputs for images of shape (n, 8, 8)."""
        xp = self._xp
        outputs = forward(self._layers, xp.asarray(images.reshape(-1, SIDE * SIDE)), xp)
        return Encoded(self._to_numpy(outputs[ENCODER_LAYERS]), self._to_numpy(outputs[-1]))

    def layers(self) -> list[Layer]:
        """Return the layers as they are now, as NumPy arrays."""
        return [Layer(*map(self._to_numpy, layer)) for layer in self._layers]

    def _to_numpy(self, array: Any) -> Floats:
        # CuPy arrays are converted to NumPy by .get(), which NumPy arrays lack.
        return np.asarray(array.get() if hasattr(array, "get") else array)
