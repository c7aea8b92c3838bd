"""Variance-invariance-covariance losses with exact gradients, for every array library."""

from vicreg.conventions import Convention, conventions, translate_weights
from vicreg.diagnostics import Diagnosis, diagnose
from vicreg.identification import Identification, identify
from vicreg.losses import (
    VICRegTerms,
    covariance_loss,
    invariance_loss,
    variance_loss,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.vcreg import vcreg_loss, vcreg_value_and_grad

__version__ = "0.1.0"

__all__ = [
    "Convention",
    "Diagnosis",
    "Identification",
    "VICRegTerms",
    "conventions",
    "covariance_loss",
    "diagnose",
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
