"""Variance-invariance-covariance losses with exact gradients, for every array library."""

from typing import TYPE_CHECKING, Any

from vicreg._conventions import Convention, conventions, translate_weights
from vicreg._losses import (
    VICRegTerms,
    covariance_loss,
    invariance_loss,
    variance_loss,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
    vicregl_loss,
    vicregl_value_and_grad,
)

__version__ = "0.1.0"

__all__ = [
    "CollapseMonitor",
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
    "vicregl_loss",
    "vicregl_value_and_grad",
]

#: The modules, imported when they are first asked for.
_MODULES = ("distributed", "jax", "lightning", "testing", "torch")

#: Names that training does not need, or that need PyTorch, with their modules: imported likewise.
_HOMES = {
    "CollapseMonitor": "vicreg._monitor",
    "Diagnosis": "vicreg._diagnostics",
    "diagnose": "vicreg._diagnostics",
    "Identification": "vicreg.tools.identification",
    "identify": "vicreg.tools.identification",
    "VCReg": "vicreg.torch",
    "VICRegLLoss": "vicreg.torch",
    "VICRegLoss": "vicreg.torch",
    "attach_vcreg": "vicreg.torch",
    "cached_backward": "vicreg.torch",
}

if TYPE_CHECKING:
    from vicreg import distributed
    from vicreg import jax as jax
    from vicreg import lightning as lightning
    from vicreg import testing as testing
    from vicreg import torch as torch
    from vicreg._diagnostics import Diagnosis, diagnose
    from vicreg._monitor import CollapseMonitor
    from vicreg.tools.identification import Identification, identify
    from vicreg.torch import VCReg as VCReg
    from vicreg.torch import VICRegLLoss as VICRegLLoss
    from vicreg.torch import VICRegLoss as VICRegLoss
    from vicreg.torch import attach_vcreg as attach_vcreg
    from vicreg.torch import cached_backward as cached_backward
else:  # hidden from type checkers, to which every name would seem to exist

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        module = f"vicreg.{name}" if name in _MODULES else _HOMES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            imported = import_module(module)
        except ModuleNotFoundError as error:
            needed = f"{error.name}: pip install {error.name}"
            if name in _MODULES:
                raise AttributeError(f"{module} needs {needed}") from error
            # Python drops the message of an AttributeError from `from vicreg import VICRegLoss`.
            raise ImportError(f"{name} is in {module}, which needs {needed}") from error
        return imported if name in _MODULES else getattr(imported, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
