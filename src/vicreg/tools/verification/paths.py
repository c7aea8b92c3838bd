"""The paths through the core, which it chooses by size, for arrays of any size.

The core stacks small views. With large ones, it forms products in strips, sums in runs, and
covariances in blocks of columns. An exact truth exists for small arrays only. So each path here
has the public functions with other sizes in the objective: small arrays then take the path of
large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._checks import CheckedWeights, checked_library, checked_objective
from vicreg._conventions import Convention
from vicreg._core.objective import Objective
from vicreg._core.sizes import DEFAULT_SIZES, Sizes
from vicreg._losses.vicreg import VICRegTerms

__all__ = ["AS_CALLED", "PATHS", "Path"]

Array = Any
Problem = tuple[Objective, CheckedWeights]


@dataclass(frozen=True)
class Path:
    """One path through the core.

    Parameters
    ----------
    name : str
        What distinguishes it.
    sizes : Sizes
        The sizes with which small arrays take this path.
    """

    name: str
    sizes: Sizes

    def __str__(self) -> str:
        return self.name

    def vicreg_loss(self, *views: Array, **settings: Any) -> Array:
        """Return what `vicreg.vicreg_loss` does."""
        (loss,) = _call("evaluate", views, self._of_vicreg(settings))
        return loss

    def vicreg_terms(self, *views: Array, **settings: Any) -> VICRegTerms[Array]:
        """Return what `vicreg.vicreg_terms` does."""
        return VICRegTerms(*_call("evaluate", views, self._of_vicreg(settings, each_term=True)))

    def vicreg_value_and_grad(
        self, *views: Array, **settings: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return what `vicreg.vicreg_value_and_grad` does."""
        (loss,), gradients = _call("value_and_grad", views, self._of_vicreg(settings))
        return loss, gradients

    def vcreg_loss(self, z: Array, **settings: Any) -> Array:
        """Return what `vicreg.vcreg_loss` does."""
        (loss,) = _call("evaluate", (z,), self._of_vcreg(settings))
        return loss

    def vcreg_value_and_grad(self, z: Array, **settings: Any) -> tuple[Array, Array]:
        """Return what `vicreg.vcreg_value_and_grad` does."""
        (loss,), (gradient,) = _call("value_and_grad", (z,), self._of_vcreg(settings))
        return loss, gradient

    def _of_vicreg(self, settings: dict[str, Any], each_term: bool = False) -> Problem:
        return self._objective(**settings, each_term=each_term)

    def _of_vcreg(self, settings: dict[str, Any]) -> Problem:
        return self._objective(**{"convention": "vcreg", **settings}, pooled=True)

    def _objective(
        self,
        convention: str | Convention = "official",
        invariance_weight: float | Array | None = None,
        variance_weight: float | Array | None = None,
        covariance_weight: float | Array | None = None,
        gamma: float = 1.0,
        eps: float | None = None,
        method: str = "auto",
        feature_axis: int | Sequence[int] = -1,
        sample_axis: int | Sequence[int] | None = None,
        **others: Any,
    ) -> Problem:
        weights = (invariance_weight, variance_weight, covariance_weight)
        axes, others = (feature_axis, sample_axis), {"sizes": self.sizes, **others}
        return checked_objective(convention, weights, gamma, eps, method, axes, **others)


def _call(function: str, views: tuple[Array, ...], problem: Problem) -> tuple[Any, ...]:
    objective, weights = problem
    names = tuple(f"views[{place}]" for place in range(len(views)))
    adapter = adapter_for(checked_library(views, names, objective, weights))
    result: tuple[Any, ...] = getattr(adapter, function)(views, objective, weights)
    return result


_ON_DEVICE = Sizes(
    on_device=True, sees_values=False, kept_apart=2, kept_apart_unseen=2, defined=0, sorted=3
)
_IN_PARTS = Sizes(
    stacked=0,
    strip_length=3,
    cancels=1e30,
    kept_apart=3,
    kept_apart_unseen=3,
    defined=0,
    sorted=4,
    summed=4,
    squared=20,
    large=0,
    columns=4,
)

#: Small views by default; views as on a device, where no value is seen; views one by one, as for
#: large ones; and everything in parts, as for even larger ones.
PATHS = (
    Path("stacked", DEFAULT_SIZES),
    Path("as on a device", _ON_DEVICE),
    Path("one by one", Sizes(stacked=0)),
    Path("one by one, in parts", _IN_PARTS),
)

#: The path of the public functions, by the size of the arrays.
AS_CALLED = Path("as called", DEFAULT_SIZES)
