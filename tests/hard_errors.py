"""The errors of a computation on hard input, from exact arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from backends import Backend
from exact import TERMS, Truth, truth
from hard_input import Family

from vicreg.tools.dtypes import LARGEST, UNDERFLOW
from vicreg.tools.verification.cases import rounded_to

__all__ = [
    "CHOICES",
    "WEIGHTS",
    "Result",
    "Wanted",
    "exactly",
    "given",
    "in_numpy",
    "norm",
    "settings",
]

Weights = Sequence[float]
Result = tuple[float, list[np.ndarray]]  # a value and its gradients

WEIGHTS = (25.0, 25.0, 1.0)
NAMES = ("invariance_weight", "variance_weight", "covariance_weight")

#: The loss, and each term alone.
CHOICES: dict[str, Weights] = {"loss": WEIGHTS}
CHOICES |= zip(TERMS, np.eye(3).tolist(), strict=True)


@functools.cache
def given(family: Family, dtype: str, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the views of a family, rounded to `dtype`."""
    views = family.draw(draw)
    largest = max(float(np.max(np.abs(view))) for view in views)
    if dtype == "float16" and largest > LARGEST[dtype] / 2:
        views = tuple(view * 2.0 ** (14 - np.ceil(np.log2(largest))) for view in views)
    return tuple(rounded_to(dtype, view) for view in views)


@functools.cache
def exactly(family: Family, dtype: str, draw: int) -> Truth:
    return truth(given(family, dtype, draw))


class Wanted:
    """What is right of one draw: the loss of some weights, and its gradients.

    Attributes
    ----------
    value : float
    size : float
        What is rounded in the last place of the value.
    gradients : list of arrays
    """

    def __init__(self, right: Truth, weights: Weights) -> None:
        self.weights, self._right = weights, right
        parts = [w * value for w, value in zip(weights, right.values, strict=True)]
        self.value, self.size = sum(parts), sum(parts) + weights[1] * right.hinged
        self.gradients = [
            sum(w * g for w, g in zip(weights, of_view, strict=True))
            for of_view in zip(*right.gradients, strict=True)
        ]

    def errors(self, value: float, gradients: list[np.ndarray]) -> tuple[float, float]:
        """Return the error of the value, and the largest of a gradient, relative to their size."""
        of_gradients = [
            norm(got - right) / (norm(right) or 1.0)
            for got, right in zip(gradients, self.gradients, strict=True)
        ]
        return abs(value - self.value) / (self.size or 1.0), max(of_gradients)

    def covariance(self) -> tuple[float, float]:
        """Return which part of the value's size and of a gradient the covariance term is."""
        w = self.weights[2]
        of_gradients = [
            w * norm(part) / (norm(whole) or 1.0)
            for part, whole in zip(self._right.gradients[2], self.gradients, strict=True)
        ]
        return w * self._right.values[2] / (self.size or 1.0), max(of_gradients)

    def underflow(self, d: int) -> tuple[float, float]:
        """Return what is lost of the squares to underflow, relative to the sizes."""
        lost = d * d * UNDERFLOW["float32"] * sum(self.weights)
        return lost / (self.size or 1.0), max(lost / (norm(g) or 1.0) for g in self.gradients)


def norm(array: np.ndarray) -> float:
    """Return the Frobenius norm, which is right where squares would under- or overflow."""
    largest = float(np.max(np.abs(array)))
    return largest * float(np.linalg.norm(array / largest)) if largest else 0.0


def in_numpy(library: Backend, value, gradients) -> tuple[float, list[np.ndarray]]:
    return float(library.numpy(value)), [library.numpy(gradient) for gradient in gradients]


def settings(library: Backend, weights, **others) -> dict:
    """Return the weights as settings: of JAX as arrays, so that it compiles once for all."""
    if library.name == "jax":
        weights = [library.asarray(weight, "float32") for weight in weights]
    return dict(zip(NAMES, weights, strict=True)) | others
