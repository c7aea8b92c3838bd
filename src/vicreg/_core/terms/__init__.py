"""The terms of the loss. Each owns its coefficient, its value and its gradient."""

from vicreg._core.terms.base import Linear, Term
from vicreg._core.terms.covariance import SmoothL1, covariance_term, products_size
from vicreg._core.terms.covariance.gram import OPERATIONS
from vicreg._core.terms.invariance import Invariance, Pairs
from vicreg._core.terms.variance import Variance

__all__ = [
    "OPERATIONS",
    "Invariance",
    "Linear",
    "Pairs",
    "SmoothL1",
    "Term",
    "Variance",
    "covariance_term",
    "products_size",
]
