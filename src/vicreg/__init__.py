"""Variance-invariance-covariance losses with exact gradients, for every array library."""

from typing import TYPE_CHECKING, Any

from vicreg._conventions import Convention, conventions, translate_weights
from vicreg._losses.vcreg import vcreg_loss, vcreg_value_and_grad
from vicreg._losses.vicreg import (
    VICRegTerms,
    covariance_loss,
    invariance_loss,
    variance_loss,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)

if TYPE_CHECKING:
    from vicreg import distributed
    from vicreg._diagnostics import Diagnosis, diagnose
    from vicreg.tools.identification import Identification, identify

__version__ = "0.1.0"

__all__ = [
    "Convention",
    "Diagnosis",
    "Identification",
    "VICRegTerms",
    "conventions",
    "covariance_loss",
    "diagnose",
    "distributed",
    "identify",
    "invariance_loss",
    "translate_weights",
    "variance_loss",
    "vcreg_loss",
    "vcreg_value_and_grad",
    "vicreg_loss",
    "vicreg_terms",
    "vicreg_value_and_grad",
]

#: What training has no use for is imported when it is first asked for.
_ON_DEMAND = {
    "Diagnosis": "vicreg._diagnostics",
    "diagnose": "vicreg._diagnostics",
    "Identification": "vicreg.tools.identification",
    "identify": "vicreg.tools.identification",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "distributed":
        return import_module("vicreg.distributed")
    module = _ON_DEMAND.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
