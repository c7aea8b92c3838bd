"""What a term of the loss is to the engine, which knows none of them by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vicreg._core.library import Product
from vicreg._core.samples import Samples

Array = Any
Factors = tuple[Array, ...]


class Linear(NamedTuple):
    """A gradient by one view as ``centred * row + Σ products + added``."""

    row: Array | None = None  # (..., d); None is 0
    products: tuple[Product, ...] = ()
    added: Array | None = None  # (..., n, d), a new array; None is 0


def is_number(value: Any) -> bool:
    """Whether `value` is a number and no array."""
    return isinstance(value, (int, float))


def of_features(number: Any) -> Any:
    """Return a number of each position, ``(..., 1, 1)``, as one for its features, ``(..., 1)``.

    One that is the same for all, no array or one of shape (), is returned as it is.
    """
    # PyTorch's compiler cannot ask a number whether it has axes.
    if isinstance(number, (int, float)) or not getattr(number, "ndim", 0):
        return number
    return number[..., 0]


class Term:
    """A term of the loss: a sum over the views, or something between them.

    A sum over the views overrides the methods of one view. A term between views overrides the
    methods of all views. The defaults are nothing.
    """

    #: How many arrays ``of_view`` keeps for the gradient.
    factors: int = 0

    def of_view(self, samples: Samples, differentiated: bool) -> tuple[Array | None, Factors]:
        """Return the part of one view, 0-d, and what its gradient is formed from.

        Where nothing is `differentiated`, factors may be left out that only gradients need.
        """
        return None, ()

    def gradient_of_view(self, samples: Samples, factors: Factors, cotangent: Any) -> Linear:
        """Return `cotangent` times the gradient of that part by the view."""
        return Linear()

    def differences(self, views: Sequence[Samples]) -> list[Array]:
        """Return what the part between the views is formed from: new arrays."""
        return []

    def between_views(self, views: Sequence[Samples], differences: list[Array]) -> Array | None:
        """Return the part of the term between the views, 0-d."""
        return None

    def add_gradients(
        self,
        views: Sequence[Samples],
        differences: list[Array],
        cotangent: Any,
        gradients: list[Array | None],
        wanted: Sequence[bool],
        in_place: bool,
    ) -> None:
        """Add `cotangent` times its gradient by each wanted view to that view's gradient.

        The differences are used up, and the gradients are updated `in_place` or replaced.
        """
