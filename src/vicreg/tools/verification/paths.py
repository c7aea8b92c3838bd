"""The paths through the core, which it chooses by size and by device, for arrays of any size.

The core stacks small views, and in some libraries large ones too. With large ones, it forms
products in strips, sums in runs, and covariances in blocks of columns. An exact truth exists
for small arrays only. So each path here has the public functions with other sizes in the
objective: small arrays on a CPU then take the path of large ones, or that of a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._checks import (
    CheckedWeights,
    checked_library,
    checked_objective,
    with_sample_weight,
)
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
        (loss,) = self._call("evaluate", views, settings)
        return loss

    def vicreg_terms(self, *views: Array, **settings: Any) -> VICRegTerms[Array]:
        """Return what `vicreg.vicreg_terms` does."""
        return VICRegTerms(*self._call("evaluate", views, settings, each_term=True))

    def vicreg_value_and_grad(
        self, *views: Array, **settings: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return what `vicreg.vicreg_value_and_grad` does."""
        (loss,), gradients = self._call("value_and_grad", views, settings)
        return loss, gradients

    def vcreg_loss(self, z: Array, **settings: Any) -> Array:
        """Return what `vicreg.vcreg_loss` does."""
        (loss,) = self._call("evaluate", (z,), {**_VCREG, **settings})
        return loss

    def vcreg_value_and_grad(self, z: Array, **settings: Any) -> tuple[Array, Array]:
        """Return what `vicreg.vcreg_value_and_grad` does."""
        (loss,), (gradient,) = self._call("value_and_grad", (z,), {**_VCREG, **settings})
        return loss, gradient

    def _call(
        self, function: str, views: tuple[Array, ...], settings: dict[str, Any], **others: Any
    ) -> tuple[Any, ...]:
        objective, weights = self._objective(**settings, **others)
        names = tuple(f"views[{place}]" for place in range(len(views)))
        adapter = adapter_for(checked_library(views, names, objective, weights))
        sample_weight = settings.get("sample_weight")
        arrays, objective = with_sample_weight(views, names[0], sample_weight, objective)
        result: tuple[Any, ...] = getattr(adapter, function)(arrays, objective, weights)
        return result

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
        sample_weight: Array | None = None,
        **others: Any,
    ) -> Problem:
        weights = (invariance_weight, variance_weight, covariance_weight)
        axes, others = (feature_axis, sample_axis), {"sizes": self.sizes, **others}
        return checked_objective(convention, weights, gamma, eps, method, axes, **others)


#: What the functions of one view have that those of several have not.
_VCREG = {"convention": "vcreg", "pooled": True}
_ON_DEVICE = Sizes(
    on_device=True, sees_values=False, kept_apart=2, kept_apart_unseen=2, defined=0, sorted=3
)
_STACKED_IN_PARTS = Sizes(
    stacked=1,
    strip_length=3,
    first_subtracted=2,
    defined=0,
    summed=4,
    block=20,
    part=8,
    columns=4,
)
_ONE_BY_ONE = replace(
    _STACKED_IN_PARTS, stacked=0, cancels=1e30, kept_apart=3, kept_apart_unseen=3, sorted=4
)

#: Small views by default, stacked; as on a device, where no value is seen; in parts, as large ones
#: are, stacked where the library wants it so; and in parts, each view by itself, as even larger
#: ones are. Only by default is the covariance of small views formed where the Gram matrix is
#: smaller, and only on the last path does its route's difference cancel, or is said to.
PATHS = (
    Path("stacked", DEFAULT_SIZES),
    Path("as on a device", _ON_DEVICE),
    Path("in parts", _STACKED_IN_PARTS),
    Path("one by one, in parts", _ONE_BY_ONE),
)

#: The path of the public functions, by the size of the arrays.
AS_CALLED = Path("as called", DEFAULT_SIZES)
