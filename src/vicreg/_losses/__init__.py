"""The functions that compute a loss, one file for each family."""

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
from vicreg._losses.vicregl import vicregl_loss, vicregl_value_and_grad

__all__ = [
    "VICRegTerms",
    "covariance_loss",
    "invariance_loss",
    "variance_loss",
    "vcreg_loss",
    "vcreg_value_and_grad",
    "vicreg_loss",
    "vicreg_terms",
    "vicreg_value_and_grad",
    "vicregl_loss",
    "vicregl_value_and_grad",
]
