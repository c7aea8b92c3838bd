"""Training on JAX: its automatic differentiation under its compiler, and optax's Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

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

__all__ = ["JaxTrainer", "make_trainer"]

Floats = npt.NDArray[np.floating[Any]]


def make_trainer(layers: list[Layer], weights: TermWeights) -> JaxTrainer:
    """Return a trainer on JAX's default device."""
    return JaxTrainer(layers, weights)


class JaxTrainer:
    """The layers as a pytree, trained through `vicreg.vicreg_terms`.

    Parameters
    ----------
    layers : list of Layer
        The initial layers, as NumPy arrays.
    weights : TermWeights
        The weights that differ from the convention's.
    terms : callable, optional
        The loss and its terms of two embeddings and `weights`, by default `vicreg.vicreg_terms`.
    place : callable, optional
        Makes a JAX array of images, such as one whose rows are spread over devices.
    """

    def __init__(
        self,
        layers: list[Layer],
        weights: TermWeights,
        terms: Callable[..., VICRegTerms[jax.Array]] = vicreg_terms,
        place: Callable[[Floats], jax.Array] = jnp.asarray,
    ) -> None:
        adam = optax.adam(LEARNING_RATE)
        self._layers = jax.tree.map(jnp.asarray, layers)
        self._state = adam.init(self._layers)

        def objective(
            layers: list[Layer], first: jax.Array, second: jax.Array
        ) -> tuple[jax.Array, VICRegTerms[jax.Array]]:
            z1, z2 = (_encoded(layers, view)[1] for view in (first, second))
            found = terms(z1, z2, **weights)
            return found.loss, found

        @jax.jit
        def step(layers: list[Layer], state: Any, first: jax.Array, second: jax.Array) -> Any:
            gradients, found = jax.grad(objective, has_aux=True)(layers, first, second)
            updates, state = adam.update(gradients, state)
            return optax.apply_updates(layers, updates), state, found

        self._step, self._place = step, place

    def step(self, first: Floats, second: Floats) -> TermValues:
        """Take one step of Adam on two views, shape (n, 8, 8); return the loss before it."""
        views = (self._place(view.reshape(-1, SIDE * SIDE)) for view in (first, second))
        self._layers, self._state, found = self._step(self._layers, self._state, *views)
        return TermValues(*map(float, found))

    def encode(self, images: Floats) -> Encoded:
        """Return the outputs for images of shape (n, 8, 8)."""
        encoded = _encoded(self._layers, jnp.asarray(images.reshape(-1, SIDE * SIDE)))
        return Encoded(*map(np.asarray, encoded))

    def layers(self) -> list[Layer]:
        """Return the layers as they are now, as NumPy arrays."""
        return [Layer(*map(np.asarray, layer)) for layer in self._layers]


def _encoded(layers: list[Layer], images: jax.Array) -> tuple[jax.Array, jax.Array]:
    output = representation = images
    for index, (weight, bias) in enumerate(layers):
        output = output @ weight + bias
        if index < len(layers) - 1:
            output = jax.nn.relu(output)
        if index == ENCODER_LAYERS - 1:
            representation = output
    return representation, output
