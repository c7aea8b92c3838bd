"""PyTorch modules."""

from __future__ import annotations

from typing import Any

import torch

from vicreg.checks import checked_objective
from vicreg.conventions import Convention
from vicreg.losses import VICRegTerms, vicreg_loss, vicreg_terms

__all__ = ["VICRegLoss"]


class VICRegLoss(torch.nn.Module):
    """The variance-invariance-covariance loss as a module.

    It has no parameters and no state, and takes the place of the ``VICRegLoss`` of lightly
    (called with two embeddings) and of pytorch-metric-learning (called with embeddings and
    ``ref_emb``), whose function is this one's default.

    Parameters
    ----------
    convention : str or Convention, optional
        Which published function to compute.
    invariance_weight, variance_weight, covariance_weight : float, optional
        λ, μ and ν; None is the convention's own. In lightly these are ``lambda_param``,
        ``mu_param`` and ``nu_param``; in pytorch-metric-learning ``invariance_lambda``,
        ``variance_mu`` and ``covariance_v``.
    gamma, eps, method, feature_axis : optional
        As in `vicreg.vicreg_loss`.

    Raises
    ------
    TypeError, ValueError
        For settings that `vicreg.vicreg_loss` would refuse, when the module is made.

    Notes
    -----
    Bardes, Ponce, LeCun 2022, equation 6; see `vicreg.conventions` for who computes what.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import VICRegLoss
    >>> criterion = VICRegLoss(covariance_weight=4.0)
    >>> z1, z2 = torch.ones(8, 3), torch.zeros(8, 3)
    >>> print(f"{criterion(z1, z2):.2f}")
    49.75
    >>> print(f"{criterion.terms(z1, z2).variance:.2f}")
    0.99
    """

    def __init__(
        self,
        *,
        convention: str | Convention = "official",
        invariance_weight: float | None = None,
        variance_weight: float | None = None,
        covariance_weight: float | None = None,
        gamma: float = 1.0,
        eps: float | None = None,
        method: str = "auto",
        feature_axis: int = -1,
    ) -> None:
        super().__init__()
        weights = (invariance_weight, variance_weight, covariance_weight)
        objective = checked_objective(
            convention, weights, gamma, eps, method, feature_axis, each_term=False
        )
        self.convention = convention
        self.invariance_weight, self.variance_weight, self.covariance_weight = objective.weights
        self.gamma = objective.gamma
        self.eps = objective.eps
        self.method = objective.method
        self.feature_axis = objective.feature_axis

    def forward(self, *views: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of two or more views ``(n, d)`` or ``(n, ..., d)``, a 0-d tensor.

        `ref_emb`, as pytorch-metric-learning calls it, is one more view.
        """
        loss: torch.Tensor = vicreg_loss(*_with(views, ref_emb), **self._settings())
        return loss

    def terms(self, *views: torch.Tensor, ref_emb: torch.Tensor | None = None) -> VICRegTerms:
        """Return the loss and its three terms, unweighted: for logging, and differentiable."""
        return vicreg_terms(*_with(views, ref_emb), **self._settings())

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        settings = self._settings()
        if isinstance(self.convention, Convention):
            settings["convention"] = self.convention.name
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def _settings(self) -> dict[str, Any]:
        return {
            "convention": self.convention,
            "invariance_weight": self.invariance_weight,
            "variance_weight": self.variance_weight,
            "covariance_weight": self.covariance_weight,
            "gamma": self.gamma,
            "eps": self.eps,
            "method": self.method,
            "feature_axis": self.feature_axis,
        }


def _with(
    views: tuple[torch.Tensor, ...], ref_emb: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    return views if ref_emb is None else (*views, ref_emb)
