"""The ways through the core that its sizes choose, each reachable with arrays of any size.

A large view is not computed as a small one is: it is not stacked with the others, it is worked on
in blocks, products are formed in strips. What such a way returns can only be held to an exact
truth where the arrays are small. So each path has the public functions once more, with sizes of
its own in the objective; nothing else about them differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._checks import checked_library, checked_objective
from vicreg._conventions import Convention
from vicreg._core.objective import Objective
from vicreg._core.sizes import DEFAULT_SIZES, Sizes
from vicreg._losses.vicreg import VICRegTerms

__all__ = ["AS_CALLED", "PATHS", "Path"]

Array = Any


@dataclass(frozen=True)
class Path:
    """One way through the core.

    Parameters
    ----------
    name : str
        What is done there.
    sizes : Sizes
        What makes small arrays go that way.
    """

    name: str
    sizes: Sizes

    def __str__(self) -> str:
        return self.name

    def vicreg_loss(self, *views: Array, **settings: Any) -> Array:
        """Return what `vicreg.vicreg_loss` does."""
        (loss,) = _evaluated(views, self._of_vicreg(settings))
        return loss

    def vicreg_terms(self, *views: Array, **settings: Any) -> VICRegTerms:
        """Return what `vicreg.vicreg_terms` does."""
        return VICRegTerms(*_evaluated(views, self._of_vicreg(settings, each_term=True)))

    def vicreg_value_and_grad(
        self, *views: Array, **settings: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return what `vicreg.vicreg_value_and_grad` does."""
        return _value_and_grad(views, self._of_vicreg(settings))

    def vcreg_loss(self, z: Array, **settings: Any) -> Array:
        """Return what `vicreg.vcreg_loss` does."""
        (loss,) = _evaluated((z,), self._of_vcreg(settings))
        return loss

    def vcreg_value_and_grad(self, z: Array, **settings: Any) -> tuple[Array, Array]:
        """Return what `vicreg.vcreg_value_and_grad` does."""
        loss, (gradient,) = _value_and_grad((z,), self._of_vcreg(settings))
        return loss, gradient

    def _of_vicreg(self, settings: dict[str, Any], each_term: bool = False) -> Objective:
        return self._objective(**settings, each_term=each_term)

    def _of_vcreg(self, settings: dict[str, Any]) -> Objective:
        return self._objective(**{"convention": "vcreg", "positions": "pooled"} | settings)

    def _objective(
        self,
        convention: str | Convention = "official",
        invariance_weight: float | None = None,
        variance_weight: float | None = None,
        covariance_weight: float | None = None,
        gamma: float = 1.0,
        eps: float | None = None,
        method: str = "auto",
        feature_axis: int = -1,
        each_term: bool = False,
        **of_vcreg: Any,
    ) -> Objective:
        weights = (invariance_weight, variance_weight, covariance_weight)
        return checked_objective(
            convention,
            weights,
            gamma,
            eps,
            method,
            feature_axis,
            each_term,
            sizes=self.sizes,
            **of_vcreg,
        )


def _evaluated(views: tuple[Array, ...], objective: Objective) -> tuple[Array, ...]:
    outputs: tuple[Array, ...] = _adapter(views, objective).evaluate(views, objective)
    return outputs


def _value_and_grad(
    views: tuple[Array, ...], objective: Objective
) -> tuple[Array, tuple[Array, ...]]:
    result: tuple[Array, tuple[Array, ...]] = _adapter(views, objective).value_and_grad(
        views, objective
    )
    return result


def _adapter(views: tuple[Array, ...], objective: Objective) -> Any:
    names = tuple(f"views[{place}]" for place in range(len(views)))
    return adapter_for(checked_library(views, names, objective))


_NO_STACKING = 0
_IN_PARTS = Sizes(
    stacked=_NO_STACKING,
    block_length=3,
    block_elements=1,
    strip_length=3,
    kept_apart=3,
    run=4,
    summed=4,
    columns=4,
)

#: Small views as they come; the products of stacked views in strips; views one by one, as they are
#: where they are large; and all that is done in parts where they are larger still.
PATHS = (
    Path("stacked", DEFAULT_SIZES),
    Path("stacked, in strips", Sizes(strip_length=3, kept_apart=2, run=3)),
    Path("one by one", Sizes(stacked=_NO_STACKING)),
    Path("one by one, in parts", _IN_PARTS),
)

#: However the size has it: that of the public functions.
AS_CALLED = Path("as called", DEFAULT_SIZES)
