"""The computations that are compared: the loss, the published formula, the bare products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vicreg._losses.vicreg import vicreg_loss, vicreg_value_and_grad
from vicreg.tools.backends import Array, Backend
from vicreg.tools.backends.base import first
from vicreg.tools.benchmark.published import LIBRARIES, published_formula

__all__ = [
    "COMPUTATIONS",
    "MODES",
    "PRODUCTS",
    "PUBLISHED",
    "VICREG",
    "Problem",
    "UnavailableError",
    "build_ahead",
    "build_call",
    "scalar_of",
]

VICREG, PUBLISHED, PRODUCTS = "vicreg", "published", "products"
COMPUTATIONS = (VICREG, PUBLISHED, PRODUCTS)
MODES = ("value-and-grad", "value")

#: The published formula takes two views.
_VIEWS = 2


class UnavailableError(Exception):
    """A library cannot do a computation on a problem; the message is the reason."""


@dataclass(frozen=True)
class Problem:
    """One size in one dtype.

    Parameters
    ----------
    n, d : int
        Samples and features of each view.
    dtype : str
        The dtype of the views.
    mode : {"value-and-grad", "value"}
        Whether to compute the gradients too.
    compiled : bool
        Whether to use the library's compiler.
    views : int
        The number of views.
    """

    n: int
    d: int
    dtype: str = "float32"
    mode: str = MODES[0]
    compiled: bool = False
    views: int = _VIEWS

    def __str__(self) -> str:
        return f"{self.n} x {self.d}"

    @property
    def products(self) -> int:
        """The number of matrix products per view: one, and one more for the gradient."""
        return 2 if self.mode == MODES[0] else 1

    @property
    def bytes_of_views(self) -> int:
        """The memory of the views in float64, in which they are drawn."""
        return 8 * self.views * self.n * self.d

    @property
    def multiply_adds(self) -> int:
        """The number of multiply-adds in the products of all views."""
        return self.products * self.views * self.n * self.d * min(self.n, self.d)

    @property
    def flops(self) -> int:
        """The number of floating-point operations in them, two per multiply-add."""
        return 2 * self.multiply_adds

    def arrays(self, backend: Backend) -> list[Array]:
        """Return the views as arrays of `backend`; they are random, with a fixed seed."""
        generator = np.random.default_rng(0)
        shape = (self.n, self.d)
        return [
            backend.asarray(generator.standard_normal(shape), self.dtype)
            for _ in range(self.views)
        ]


def build_call(
    name: str, backend: Backend, problem: Problem, arrays: Sequence[Array]
) -> Callable[[], Any]:
    """Return one computation as a function without arguments.

    Parameters
    ----------
    name : {"vicreg", "published", "products"}
        The computation.
    backend : Backend
        The library; it must be inside its ``active()``.
    problem : Problem
        The problem.
    arrays : sequence of array
        The views.

    Returns
    -------
    callable
        Returns the library's output, which may not have been computed yet.

    Raises
    ------
    UnavailableError
        The library cannot do it.
    """
    function = _function(name, backend, problem)
    return lambda: function(*arrays)


def build_ahead(
    name: str, backend: Backend, problem: Problem, arrays: Sequence[Array]
) -> Callable[[], Any]:
    """Return the same as `build_call`, compiled ahead of time if the library can do that."""
    function = backend.compiled_ahead(_function(name, backend, problem), arrays)
    return lambda: function(*arrays)


def scalar_of(output: Any) -> Any:
    """Return the loss in the output of a computation."""
    return first(output)


def _function(name: str, backend: Backend, problem: Problem) -> Callable[..., Any]:
    is_compiled = problem.compiled or backend.always_compiled
    if name == PRODUCTS:
        plain = _products(problem)
    else:
        loss = _loss(name, backend, problem)
        if problem.mode == MODES[0]:
            if is_compiled and backend.differentiates:
                return backend.compiled_gradient(loss)
            plain = _value_and_grad(name, backend, loss)
        else:
            plain = loss
    return backend.compiled(plain) if is_compiled else plain


def _loss(name: str, backend: Backend, problem: Problem) -> Callable[..., Any]:
    if name == VICREG:
        return vicreg_loss
    if backend.name not in LIBRARIES:
        raise UnavailableError(f"the published formula is not written for {backend.name} here")
    if problem.views != _VIEWS or problem.d < 2:
        raise UnavailableError("the published formula takes two views of two features or more")
    return published_formula(backend.name)


def _value_and_grad(name: str, backend: Backend, loss: Callable[..., Any]) -> Callable[..., Any]:
    if backend.differentiates:  # as in training, by the library's automatic differentiation
        return lambda *arrays: backend.differentiate(loss, arrays)
    if name == VICREG:
        return vicreg_value_and_grad
    raise UnavailableError(
        f"the published formula has no gradient on {backend.name}: it has no autodiff"
    )


def _products(problem: Problem) -> Callable[..., Any]:
    """Return the matrix products that the loss needs, and nothing else."""

    def one(z: Array) -> Array:
        if problem.n <= problem.d:
            gram = z @ z.T
            return gram @ z if problem.products == 2 else gram
        covariance = z.T @ z
        return z @ covariance if problem.products == 2 else covariance

    return lambda *arrays: tuple(one(array) for array in arrays)
