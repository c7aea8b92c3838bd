"""PyTorch modules. The functions of `vicreg` for the losses are here too."""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vicreg import _losses, _monitor
from vicreg._adapters import torch as adapter
from vicreg._adapters.torch import cached, layer
from vicreg._checks import (
    checked_library,
    checked_objective,
    explains_arguments,
    with_sample_weight,
)
from vicreg._conventions import (
    VCREG_EPS,
    Convention,
    ConventionName,
    both_names,
    checked_number,
)
from vicreg._core.communicator import Communicator
from vicreg._losses import *  # noqa: F403
from vicreg._losses import VICRegTerms, vicreg_loss, vicreg_terms, vicregl_loss
from vicreg._losses.vcreg import checked_settings
from vicreg._losses.vicregl import checked_settings as checked_regional
from vicreg._typing import (
    Counts,
    CovarianceGradient,
    FeatureDistance,
    MatchOrder,
    Method,
    PairsOfViews,
    Penalty,
    Statistics,
)

__all__ = [
    "AttachedVCReg",
    "CollapseMonitor",
    "VCReg",
    "VCRegTerms",
    "VICRegLLoss",
    "VICRegLoss",
    "attach_vcreg",
    "cached_backward",
]
__all__ += _losses.__all__


def __dir__() -> list[str]:
    return __all__


class VICRegLoss(torch.nn.Module):
    """The variance-invariance-covariance loss as a module.

    The ``VICRegLoss`` of lightly and that of pytorch-metric-learning compute the same function as
    this one does by default, and can be replaced by it: it may be called with two embeddings, or
    with embeddings and ``ref_emb``. The module has no state, and no parameters except for weights
    that are ``torch.nn.Parameter``.

    Parameters
    ----------
    convention : str or Convention, optional
        Which published function to compute: a name in `vicreg.conventions`, or that of a
        codebase, such as "lightly".
    invariance_weight, variance_weight, covariance_weight : float or torch.Tensor of shape (), \
optional
        λ, μ and ν; None is the convention's own. In lightly these are ``lambda_param``,
        ``mu_param`` and ``nu_param``; in pytorch-metric-learning ``invariance_lambda``,
        ``variance_mu`` and ``covariance_v``. If you use another codebase's name, the error says
        what it is called here.
    gamma, eps, method, feature_axis, sample_axis, pairs, comm : optional
        As in `vicreg.vicreg_loss`. Under DistributedDataParallel or FSDP, pass a
        `vicreg.distributed.TorchCommunicator` as `comm` for the loss of the whole batch.

    Attributes
    ----------
    convention, invariance_weight, variance_weight, covariance_weight, gamma, eps, method, \
feature_axis, sample_axis, pairs, comm
        The settings; where None was given, the convention's own weights and eps.

    Raises
    ------
    TypeError, ValueError
        When the module is made, for settings that `vicreg.vicreg_loss` would refuse.

    Notes
    -----
    Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), equation 6; `vicreg.conventions` lists which
    codebase computes what.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import VICRegLoss
    >>> criterion = VICRegLoss(covariance_weight=4.0)
    >>> z1, z2 = torch.ones(8, 3), torch.zeros(8, 3)
    >>> print(f"{criterion(z1, z2):.2f}")
    49.75

    To log the terms too, take the loss from them, so that nothing is computed twice:

    >>> terms = criterion.terms(z1.requires_grad_(), z2)
    >>> terms.loss.backward()
    >>> {name: round(value, 2) for name, value in terms.scalars("train/").items()}
    {'train/loss': 49.75, 'train/invariance': 1.0, 'train/variance': 0.99, 'train/covariance': 0.0}
    """

    @explains_arguments
    def __init__(
        self,
        *,
        convention: ConventionName | Convention = "official",
        invariance_weight: float | torch.Tensor | None = None,
        variance_weight: float | torch.Tensor | None = None,
        covariance_weight: float | torch.Tensor | None = None,
        gamma: float = 1.0,
        eps: float | None = None,
        method: Method = "auto",
        feature_axis: int | Sequence[int] = -1,
        sample_axis: int | Sequence[int] | None = None,
        pairs: PairsOfViews | None = None,
        comm: Communicator | None = None,
    ) -> None:
        super().__init__()
        weights = (invariance_weight, variance_weight, covariance_weight)
        axes = (feature_axis, sample_axis)
        objective, weights = checked_objective(
            convention, weights, gamma, eps, method, axes, comm, pairs=pairs
        )
        self.convention = convention
        self.invariance_weight, self.variance_weight, self.covariance_weight = weights
        self.gamma = objective.gamma
        self.eps = objective.eps
        self.method = objective.method
        self.feature_axis, self.sample_axis = axes
        self.pairs = pairs
        self.comm = comm

    def forward(
        self,
        *views: torch.Tensor,
        ref_emb: torch.Tensor | None = None,
        sample_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of two or more views. Call the module itself, not this method.

        Parameters
        ----------
        *views : torch.Tensor, shape (n, d) or (n, ..., d)
            The embeddings, as in `vicreg.vicreg_loss`.
        ref_emb : torch.Tensor, shape (n, d) or (n, ..., d), optional
            One more view, by the name that it has in pytorch-metric-learning.
        sample_weight : torch.Tensor, optional
            As in `vicreg.vicreg_loss`.

        Returns
        -------
        torch.Tensor, shape ()
            The loss.

        Raises
        ------
        TypeError, ValueError
            For views that `vicreg.vicreg_loss` would refuse.
        """
        settings = self._settings()
        return vicreg_loss(*_with(views, ref_emb), sample_weight=sample_weight, **settings)

    if TYPE_CHECKING:  # torch.nn.Module's own takes and returns anything

        def __call__(  # noqa: D102
            self,
            *views: torch.Tensor,
            ref_emb: torch.Tensor | None = None,
            sample_weight: torch.Tensor | None = None,
        ) -> torch.Tensor: ...

    def terms(
        self,
        *views: torch.Tensor,
        ref_emb: torch.Tensor | None = None,
        sample_weight: torch.Tensor | None = None,
    ) -> VICRegTerms[torch.Tensor]:
        """Return the loss and its three terms, without their weights.

        Call this in place of the module: go back from ``terms.loss``, and log
        ``terms.scalars()``.

        Parameters
        ----------
        *views : torch.Tensor, shape (n, d) or (n, ..., d)
            The embeddings, as in `vicreg.vicreg_loss`.
        ref_emb : torch.Tensor, shape (n, d) or (n, ..., d), optional
            One more view, by the name that it has in pytorch-metric-learning.
        sample_weight : torch.Tensor, optional
            As in `vicreg.vicreg_loss`.

        Returns
        -------
        VICRegTerms
            Tensors of shape (), each of which can be differentiated.

        Raises
        ------
        TypeError, ValueError
            For views that `vicreg.vicreg_loss` would refuse.
        """
        settings = self._settings()
        return vicreg_terms(*_with(views, ref_emb), sample_weight=sample_weight, **settings)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        settings = self._settings() | {"convention": both_names(self.convention)}
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
            "sample_axis": self.sample_axis,
            "pairs": self.pairs,
            "comm": self.comm,
        }


def _with(
    views: tuple[torch.Tensor, ...], ref_emb: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    return views if ref_emb is None else (*views, ref_emb)


class VICRegLLoss(torch.nn.Module):
    """The loss of VICRegL as a module, called as lightly's ``VICRegLLoss`` is.

    It has no state, and no parameters except for weights that are ``torch.nn.Parameter``.

    Parameters
    ----------
    alpha, num_matches, feature_matches, match_order, feature_distance, statistics : optional
        As in `vicreg.vicregl_loss`.
    invariance_weight, variance_weight, covariance_weight : float or torch.Tensor of shape (), \
optional
        As in `vicreg.vicregl_loss`. In lightly these are ``lambda_param``, ``mu_param`` and
        ``nu_param``.
    gamma, eps, method, comm : optional
        As in `vicreg.vicregl_loss`. Under DistributedDataParallel or FSDP, pass a
        `vicreg.distributed.TorchCommunicator` as `comm` for the loss of the whole batch; in
        lightly that is ``gather_distributed``.

    Attributes
    ----------
    alpha, num_matches, feature_matches, match_order, feature_distance, statistics, \
invariance_weight, variance_weight, covariance_weight, gamma, eps, method, comm
        The settings; where None was given, the published weights and eps.

    Raises
    ------
    TypeError, ValueError
        When the module is made, for settings that `vicreg.vicregl_loss` would refuse.

    Notes
    -----
    Bardes, Ponce, LeCun (arXiv 2210.01571), as facebookresearch/VICRegL computes it. lightly's
    orders the matches by their distance, and by features keeps as many as by location:
    ``VICRegLLoss(match_order="distance", feature_matches=(20, 4))`` computes the same.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import VICRegLLoss
    >>> criterion = VICRegLLoss(alpha=0.9)
    >>> views = [(torch.ones(8, 4), torch.zeros(8, 3, 3, 2)) for _ in range(2)]
    >>> grids = [torch.rand(8, 3, 3, 2) for _ in range(2)]
    >>> print(f"{criterion(views, grids):.2f}")
    27.22
    """

    @explains_arguments
    def __init__(
        self,
        *,
        alpha: float = 0.75,
        num_matches: Counts = (20, 4),
        feature_matches: Counts = None,
        match_order: MatchOrder = "place",
        feature_distance: FeatureDistance = "euclidean",
        statistics: Statistics = "place",
        invariance_weight: float | torch.Tensor | None = None,
        variance_weight: float | torch.Tensor | None = None,
        covariance_weight: float | torch.Tensor | None = None,
        gamma: float = 1.0,
        eps: float | None = None,
        method: Method = "auto",
        comm: Communicator | None = None,
    ) -> None:
        super().__init__()
        given = (invariance_weight, variance_weight, covariance_weight)
        matching = (num_matches, feature_matches, match_order, feature_distance, statistics)
        settings, weights = checked_regional(
            "torch", 1, alpha, matching, given, gamma, eps, method, comm
        )
        self.alpha = settings.alpha
        self.num_matches, self.feature_matches = num_matches, feature_matches
        self.match_order, self.feature_distance = match_order, feature_distance
        self.statistics = statistics
        self.invariance_weight, self.variance_weight, self.covariance_weight = weights
        self.gamma = settings.objective.gamma
        self.eps = settings.objective.eps
        self.method = settings.objective.method
        self.comm = comm

    def forward(
        self,
        global_view_features: Sequence[tuple[torch.Tensor, torch.Tensor]],
        global_view_grids: Sequence[torch.Tensor] | None = None,
        local_view_features: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        local_view_grids: Sequence[torch.Tensor] | None = None,
        sample_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of two or more views. Call the module itself, not this method.

        Parameters
        ----------
        global_view_features : sequence of (torch.Tensor, torch.Tensor)
            The embedding, ``(n, d)``, and the map, ``(n, height, width, c)``, of each global view.
        global_view_grids : sequence of torch.Tensor, each of shape (n, height, width, 2)
            Where each place of these maps is. Where `num_matches` is (0, 0), no grids are needed,
            here and of the other views.
        local_view_features, local_view_grids : optional
            Likewise of the other views.
        sample_weight : torch.Tensor, shape (n,), optional
            Which samples count, and how often, as in `vicreg.vicregl_loss`.

        Returns
        -------
        torch.Tensor, shape ()
            The loss.

        Raises
        ------
        TypeError, ValueError
            For views that `vicreg.vicregl_loss` would refuse; where features come without grids.
        """
        of_global, of_local = global_view_grids, local_view_grids
        if of_global is not None and (local_view_features is None) != (of_local is None):
            raise ValueError(
                "local_view_features and local_view_grids must be given together; got one of them"
            )
        if of_global is None and (of_local is not None or tuple(self.num_matches or ()) != (0, 0)):
            raise ValueError(
                "global_view_grids must be given unless num_matches is (0, 0) and no "
                "local_view_grids are"
            )
        for name, features, grids in (
            ("global", global_view_features, of_global),
            ("local", local_view_features or (), of_local),
        ):
            if grids is not None and len(features) != len(grids):
                raise ValueError(
                    f"{name}_view_grids must be as many as {name}_view_features, "
                    f"{len(features)}; got {len(grids)}"
                )
        features = (*global_view_features, *(local_view_features or ()))
        return vicregl_loss(
            [embedding for embedding, _ in features],
            [places for _, places in features],
            None if of_global is None else [*of_global, *(of_local or ())],
            num_global=len(global_view_features),
            sample_weight=sample_weight,
            **self._settings(),
        )

    if TYPE_CHECKING:  # torch.nn.Module's own takes and returns anything

        def __call__(  # noqa: D102
            self,
            global_view_features: Sequence[tuple[torch.Tensor, torch.Tensor]],
            global_view_grids: Sequence[torch.Tensor] | None = None,
            local_view_features: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
            local_view_grids: Sequence[torch.Tensor] | None = None,
            sample_weight: torch.Tensor | None = None,
        ) -> torch.Tensor: ...

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())

    def _settings(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "num_matches": self.num_matches,
            "feature_matches": self.feature_matches,
            "match_order": self.match_order,
            "feature_distance": self.feature_distance,
            "statistics": self.statistics,
            "invariance_weight": self.invariance_weight,
            "variance_weight": self.variance_weight,
            "covariance_weight": self.covariance_weight,
            "gamma": self.gamma,
            "eps": self.eps,
            "method": self.method,
            "comm": self.comm,
        }


class VCRegTerms(NamedTuple):
    """The loss of VCReg and its two terms: a named tuple of three detached tensors.

    `VCReg.last_terms` returns it, for logging.

    Parameters
    ----------
    loss : torch.Tensor, shape ()
        The sum of the terms, each times its weight.
    variance, covariance : torch.Tensor, shape ()
        The terms without their weights.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import VCReg
    >>> regularize = VCReg(variance_weight=2.0, covariance_weight=0.1)
    >>> regularize(torch.ones(16, 3, requires_grad=True)).sum().backward()
    >>> loss, variance, covariance = regularize.last_terms
    >>> print(f"{loss:.3f} {variance:.3f} {covariance:.3f}")
    1.994 0.997 0.000
    """

    loss: torch.Tensor
    variance: torch.Tensor
    covariance: torch.Tensor


class VCReg(torch.nn.Module):
    """Variance-covariance regularization as a layer between two others.

    The forward pass returns the input as it is. The backward pass adds the gradient of
    `vicreg.vcreg_loss` with respect to the input, so that you need not add anything to your loss;
    that loss itself is not computed. In eval mode, and where no gradient is wanted, the layer
    does nothing.

    The layer cannot see a factor on your loss. Under a ``torch.amp.GradScaler``, or if you average
    the losses of several batches, pass the same factor as `scale`.

    Parameters
    ----------
    variance_weight, covariance_weight : float or torch.Tensor of shape ()
        α and β. They must be given, as no published value fits all networks.
    gamma, eps, penalty, delta, feature_axis, sample_axis, comm : optional
        As in `vicreg.vcreg_loss`. With a `vicreg.distributed.TorchCommunicator` the gradient is
        multiplied by the number of ranks, because DistributedDataParallel and FSDP then average
        over the ranks.
    covariance_gradient : {"exact", "published"}, optional
        "exact" is the derivative of the loss. "published" is the paper's pseudocode, which leaves
        out the factor 1/(n − 1) of the covariance term's derivative.
    scale : float, or callable without arguments that returns one, optional
        What the added gradient is multiplied by: ``scaler.get_scale`` of a ``GradScaler``, or 1/k
        for the mean of k batches. A callable is called in each backward pass.

    Attributes
    ----------
    last_terms : VCRegTerms
        The loss and the terms of the last input, for logging.
    scale : float or callable
        As given.

    Raises
    ------
    TypeError, ValueError
        When the layer is made, for settings that `vicreg.vcreg_loss` would refuse; when it is
        called, for an input that it would refuse.
    NotImplementedError
        When a gradient that has gone through the layer is differentiated again; when the layer is
        compiled under ``torch.func`` with ``fullgraph=True``.

    Notes
    -----
    The source is Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, "Variance-Covariance Regularization
    Improves Representation Learning", arXiv 2306.13292.

    The statistics are those of the batch that the layer is called with, or with `comm` of the
    batches of all ranks. Under ``torch.func.vmap`` each element of the map is a batch of its own.

    For a loss with a gradient penalty, which needs second derivatives, add `vicreg.vcreg_loss` to
    the loss in place of this layer.

    The next layer must not work in place, as ``ReLU(inplace=True)`` does: the backward pass needs
    the input as it was, and PyTorch raises an error.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import VCReg
    >>> regularize = VCReg(variance_weight=1.0, covariance_weight=0.1)
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), regularize, torch.nn.Linear(8, 2))
    >>> model(torch.ones(16, 3)).sum().backward()
    >>> print(f"{regularize.last_terms.variance:.3f}")
    0.997
    """

    #: By this `cached_backward` knows a layer whose gradient depends on the whole batch.
    _regularizes_batches = True

    def __init__(
        self,
        *,
        variance_weight: float | torch.Tensor,
        covariance_weight: float | torch.Tensor,
        gamma: float = 1.0,
        eps: float | None = VCREG_EPS,
        penalty: Penalty = "square",
        delta: float = 1.0,
        feature_axis: int | Sequence[int] = -1,
        sample_axis: int | Sequence[int] | None = None,
        comm: Communicator | None = None,
        covariance_gradient: CovarianceGradient = "exact",
        scale: float | Callable[[], float] = 1.0,
    ) -> None:
        super().__init__()
        given, axes = (variance_weight, covariance_weight), (feature_axis, sample_axis)
        objective, self._weights = checked_settings(
            given, gamma, eps, penalty, delta, axes, "auto", comm, covariance_gradient
        )
        # To log a variance of weight 0 costs nothing, a covariance a product.
        has_covariance = isinstance(covariance_weight, torch.Tensor) or covariance_weight != 0
        self._objective = replace(objective, each_term=has_covariance)
        self._settings = {
            "variance_weight": self._weights[1],
            "covariance_weight": self._weights[2],
            "gamma": self._objective.gamma,
            "eps": self._objective.eps,
            "penalty": penalty,
            "delta": self._objective.delta,
            "feature_axis": feature_axis,
            "sample_axis": sample_axis,
            "comm": comm,
            "covariance_gradient": covariance_gradient,
        }
        self.scale = _checked_scale(scale)
        self._log = layer.Log()

    def forward(self, x: torch.Tensor, sample_weight: torch.Tensor | None = None) -> torch.Tensor:
        """Return the input. Call the layer itself, not this method.

        Parameters
        ----------
        x : torch.Tensor, shape (n, d) or (n, ..., d)
            The representation, as in `vicreg.vcreg_loss`.
        sample_weight : torch.Tensor, optional
            Which samples count, and how often, as in `vicreg.vcreg_loss`.

        Returns
        -------
        torch.Tensor, of the shape of `x`
            The values of `x`; its backward pass adds the gradient.

        Raises
        ------
        TypeError, ValueError
            In training mode, for an `x` that `vicreg.vcreg_loss` would refuse.
        """
        if not self.training:
            return x
        library = checked_library((x,), ("x",), self._objective, self._weights)
        if library != "torch":
            raise TypeError(f"x must be a torch.Tensor; got an array of {library}")
        compiled = torch.compiler.is_compiling()
        transformed = torch._C._are_functorch_transforms_active()
        if compiled and transformed:
            raise NotImplementedError(
                "VCReg cannot be compiled under torch.func, where Dynamo would leave its gradient "
                "out: compile with fullgraph=False, or use backward()"
            )
        # Of a batch under ``torch.vmap`` the elements do not say that they require a gradient.
        if not torch.is_grad_enabled() or not (x.requires_grad or transformed):
            return x
        arrays, objective = with_sample_weight((x,), "x", sample_weight, self._objective)
        weights, scale, passed = self._weights, self.scale, None
        if compiled:
            objective, weights, scale = layer.with_numbers_read(objective, weights, scale)
        z, *of_samples = map(adapter.local, arrays)
        if compiled or transformed:
            self._log.last = None
        else:
            passed = layer.Pass(z, of_samples, objective, weights, self._log)
        regularized = layer.regularized
        if compiled and objective.comm is not None:
            regularized = layer.regularized_uncompiled
        result = regularized(z, of_samples, objective, weights, scale, passed)
        return adapter.replicated(result, x)

    if TYPE_CHECKING:  # torch.nn.Module's own takes and returns anything

        def __call__(  # noqa: D102
            self, x: torch.Tensor, sample_weight: torch.Tensor | None = None
        ) -> torch.Tensor: ...

    @property
    def last_terms(self) -> VCRegTerms:
        """The loss of the last input that was regularized, and its terms, for logging.

        They are those of `vicreg.vcreg_loss`, without `scale`, and are computed when they are
        asked for, from what the backward pass computes anyway. A covariance whose weight is 0 is
        not computed, and is NaN. Under ``torch.compile`` and ``torch.func`` there are none; with
        `comm` there are some only after the backward pass.

        Raises
        ------
        RuntimeError
            There are none.
        """
        last = self._log.last
        outputs = None if last is None else last.outputs()
        if outputs is None:
            raise RuntimeError(
                "last_terms must be read after the layer has regularized an input: in training "
                "mode, with an input that requires a gradient, and not under torch.compile or "
                "torch.func; after the backward pass where there is a comm, or the input is "
                "checkpointed, dropped or changed in place"
            )
        loss, _, variance, covariance = outputs
        if not self._objective.each_term:
            covariance = torch.full_like(covariance, math.nan)
        return VCRegTerms(loss, variance, covariance)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        settings = {**self._settings, "scale": self.scale}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _checked_scale(scale: Any) -> Any:
    if callable(scale):
        return scale
    return checked_number(scale, "scale", "a number, or a callable that returns one")


class AttachedVCReg:
    """The layers that `attach_vcreg` has attached to a model.

    It is a context manager, too, which removes the layers at its end. `attach_vcreg` makes it.

    Attributes
    ----------
    layers : mapping of str to VCReg
        The layer after each module, by the module's name.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import attach_vcreg
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
    >>> attached = attach_vcreg(model, "0", variance_weight=1.0, covariance_weight=0.1)
    >>> list(attached.layers)
    ['0']
    >>> attached.remove()
    """

    def __init__(self, layers: Mapping[str, VCReg], hooks: Iterable[Any]) -> None:
        self.layers = MappingProxyType(dict(layers))
        self._hooks = list(hooks)

    def remove(self) -> None:
        """Remove the layers from the model. It may be called more than once."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> AttachedVCReg:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attach_vcreg(
    model: torch.nn.Module,
    modules: str | Iterable[str],
    *,
    variance_weight: float | torch.Tensor,
    covariance_weight: float | torch.Tensor,
    gamma: float = 1.0,
    eps: float | None = VCREG_EPS,
    penalty: Penalty = "square",
    delta: float = 1.0,
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
    covariance_gradient: CovarianceGradient = "exact",
    scale: float | Callable[[], float] = 1.0,
) -> AttachedVCReg:
    """Regularize the outputs of named submodules of a model, without changing its code.

    After each of them comes a layer `VCReg`, as a forward hook. A hook knows nothing of a batch's
    mask, so there is no ``sample_weight=``: where some samples are padding, put a `VCReg` into the
    model, and call it with the mask.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. A layer is in training mode when the module before it is.
    modules : str, or iterable of str
        Names of submodules, as ``model.named_modules()`` gives them. Each must return one tensor
        of shape (n, d) or (n, ..., d).
    variance_weight, covariance_weight : float or torch.Tensor of shape ()
        As in `VCReg`, for each layer.
    gamma, eps, penalty, delta, feature_axis, sample_axis, comm, covariance_gradient, scale : \
optional
        As in `VCReg`, for each layer. Under a ``torch.amp.GradScaler``, pass ``scaler.get_scale``
        as `scale`.

    Returns
    -------
    AttachedVCReg
        ``remove()`` removes the layers; ``layers[name].last_terms`` is for logging.

    Raises
    ------
    TypeError
        `model` is not a module, or `modules` are not names; and when the model is called, if one
        of `modules` does not return a tensor.
    ValueError
        `modules` has no name, one name twice, two names of one module, or a name that `model`
        does not have.

    Notes
    -----
    Zhu et al. (arXiv 2306.13292), as in `VCReg`.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import attach_vcreg
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with attach_vcreg(model, ["1"], variance_weight=1.0, covariance_weight=0.1) as attached:
    ...     model(torch.ones(16, 3)).sum().backward()
    ...     print(f"{attached.layers['1'].last_terms.variance:.3f}")
    0.997
    """
    chosen = _checked_modules(model, modules)
    layers = {
        name: VCReg(
            variance_weight=variance_weight,
            covariance_weight=covariance_weight,
            gamma=gamma,
            eps=eps,
            penalty=penalty,
            delta=delta,
            feature_axis=feature_axis,
            sample_axis=sample_axis,
            comm=comm,
            covariance_gradient=covariance_gradient,
            scale=scale,
        )
        for name in chosen
    }
    hooks = [
        module.register_forward_hook(_Hook(name, layers[name])) for name, module in chosen.items()
    ]
    return AttachedVCReg(layers, hooks)


def cached_backward(
    encoder: Callable[[torch.Tensor], torch.Tensor]
    | Sequence[Callable[[torch.Tensor], torch.Tensor]],
    views: Sequence[torch.Tensor],
    loss: Callable[..., torch.Tensor],
    chunk_size: int,
) -> torch.Tensor:
    """Compute the loss and the gradients of a batch that is too large for memory, in chunks.

    It leaves in ``.grad`` what ``loss(encoder(view1), encoder(view2)).backward()`` would leave,
    except for rounding: the loss is that of the whole batch, not the mean over chunks. Only the
    embeddings of the batch and the activations of one chunk are in memory at a time. For that the
    encoder runs twice: first without a graph, for the embeddings and the gradient of the loss
    with respect to them; then on each chunk again, with a graph to go back through.

    Parameters
    ----------
    encoder : callable, or sequence of one callable for each view
        Takes a tensor and returns one tensor of shape (n, d) or (n, ..., d) with as many samples;
        a module or a method of one, as a rule. Under DistributedDataParallel or ``fully_shard``
        the gradients are exchanged once, in the last chunk; under ``fully_shard`` all ranks must
        have the same number of chunks.
    views : sequence of torch.Tensor, each of shape (n, ...)
        The inputs of the encoder. Their first axis is the samples.
    loss : callable
        Takes the embeddings, one tensor for each view, and returns a tensor of shape (). It may be
        a `VICRegLoss`, with ``comm`` for the batch of several ranks, or any function with a
        gradient. With a ``torch.amp.GradScaler`` it is
        ``lambda *z: scaler.scale(criterion(*z))``.
    chunk_size : int
        The largest number of samples in a chunk.

    Returns
    -------
    torch.Tensor, shape ()
        The loss, detached.

    Raises
    ------
    TypeError
        A view is not a tensor, or the encoder or the loss does not return one; an encoder is not
        callable; `chunk_size` is not an integer.
    ValueError
        There are no views, or a different number of encoders; `chunk_size` is below 1; a view
        comes from a computation that requires a gradient.
    RuntimeError
        It is called under ``torch.no_grad()``.

    Warns
    -----
    UserWarning
        The encoder has a BatchNorm or `VCReg` layer in training mode. It takes the statistics of a
        chunk and not of the batch, so that the gradient differs.

    Notes
    -----
    Both runs of a chunk draw the same random numbers, as for dropout, start from the same buffers
    of the encoder, and use the autocast of the caller. Buffers that a forward pass updates are
    updated once, chunk by chunk; a copy of all is kept for each chunk.

    Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup", arXiv 2101.06983, do the same for contrastive losses.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import VICRegLoss, cached_backward
    >>> encoder, criterion = torch.nn.Linear(6, 3).double(), VICRegLoss()
    >>> x1, x2 = torch.randn(2, 64, 6, dtype=torch.float64)
    >>> loss = cached_backward(encoder, (x1, x2), criterion, chunk_size=16)
    >>> wanted = torch.autograd.grad(criterion(encoder(x1), encoder(x2)), encoder.weight)
    >>> torch.allclose(encoder.weight.grad, *wanted, rtol=1e-9)
    True
    """
    return cached.cached_backward(encoder, views, loss, chunk_size)


def _checked_modules(model: Any, modules: Any) -> dict[str, torch.nn.Module]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    names = [modules] if isinstance(modules, str) else _checked_names(modules)
    return _modules_named(model, names)


def _modules_named(model: torch.nn.Module, names: list[str]) -> dict[str, torch.nn.Module]:
    known = dict(model.named_modules(remove_duplicate=False))
    del known[""]  # the model itself
    chosen: dict[str, torch.nn.Module] = {}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known) or list(known)[:8]
            raise ValueError(
                f"modules must be names of submodules of model; got {name!r}, and there are "
                f"{', '.join(map(repr, near))}{' and others' if len(near) < len(known) else ''}"
            )
        for other, module in chosen.items():
            if module is known[name]:
                raise ValueError(
                    f"modules must be different ones; got {other!r} and {name!r}, names of one"
                )
        chosen[name] = known[name]
    return chosen


def _checked_names(modules: Any) -> list[str]:
    try:
        names = list(modules)
    except TypeError:
        names = [modules]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"modules must be names of submodules; got {name!r} among them")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"modules must be one or more different names; got {names!r}")
    return names


class _Hook:
    """What a module calls with its output. With a model that is copied or stored, it is too."""

    def __init__(self, name: str, layer: VCReg) -> None:
        self.name = name
        self.layer = layer

    def __call__(self, module: torch.nn.Module, _: Any, output: Any) -> torch.Tensor:
        return self.layer.train(module.training)(_checked_output(output, self.name))


def _checked_output(output: Any, name: str) -> torch.Tensor:
    if not isinstance(output, torch.Tensor):
        raise TypeError(
            f"modules must return one tensor each; got {type(output).__name__} of {name!r}"
        )
    return output


class CollapseMonitor:
    """Diagnose the outputs of named submodules now and then, and warn once if they collapse.

    It is for a training loop of your own; for Lightning there is
    `vicreg.lightning.CollapseMonitor`. The model is not changed. A step without a diagnosis takes
    some ten microseconds.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.
    modules : str, or iterable of str
        Names of submodules, as ``model.named_modules()`` gives them. Each must return one tensor
        of shape (n, d) or (n, ..., d). If it is called several times in a step, as for two views,
        its last output in training mode is diagnosed.
    every_n_steps, max_samples, feature_axis : optional
        As in `vicreg.CollapseMonitor`. Of an output with more than two axes, each position of each
        sample is one more sample: for ``(n, channels, height, width)``, set `feature_axis` to 1.

    Attributes
    ----------
    collapsed : bool
        Whether any of the diagnosed outputs had collapsed.

    Raises
    ------
    TypeError, ValueError
        As for `attach_vcreg` and `vicreg.CollapseMonitor`; and when the model is called, if one
        of `modules` does not return a tensor. If it returns a tuple or a dict, call
        `vicreg.CollapseMonitor` with the tensor that you mean.

    Warns
    -----
    UserWarning
        An output has collapsed, once for each module; or a module was not called in training
        mode.

    Notes
    -----
    ``torch.compile`` divides a program at each module that is watched, and with ``fullgraph=True``
    refuses to. Make the monitor before the model is compiled.

    Under DistributedDataParallel a monitor sees the samples of its own process. Make one in the
    first process alone, and send `collapsed` to the others if you stop because of it.

    Examples
    --------
    >>> import torch
    >>> from vicreg.torch import CollapseMonitor
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 4))
    >>> with CollapseMonitor(model, "1", every_n_steps=10) as monitor:
    ...     for step in range(10):
    ...         z = model(torch.randn(32, 3))  # then the loss, and a step of the optimizer
    ...         scalars = monitor.step()
    >>> scalars["1/dead_features"], monitor.collapsed
    (0, False)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        modules: str | Iterable[str],
        *,
        every_n_steps: int = 100,
        max_samples: int = 256,
        feature_axis: int | Sequence[int] = -1,
    ) -> None:
        chosen = _checked_modules(model, modules)
        self._monitor = _monitor.CollapseMonitor(
            every_n_steps=every_n_steps, max_samples=max_samples, feature_axis=feature_axis
        )
        self._samples: dict[str, torch.Tensor] = {}
        self._unseen = set(chosen)
        self._checked: set[str] = set()
        self._hooks = [
            module.register_forward_hook(functools.partial(self._keep, name))
            for name, module in chosen.items()
        ]

    @property
    def collapsed(self) -> bool:
        """Whether any of the diagnosed outputs had collapsed: a reason to stop the training."""
        return self._monitor.collapsed

    def step(self) -> dict[str, float] | None:
        """End a training step. Call this once in each step.

        Returns
        -------
        dict of str to float, or None
            What `vicreg.Diagnosis.scalars` returns for each module, for a logger. Each name begins
            with that of the module and a slash. None in a step without a diagnosis.
        """
        samples, self._samples = self._samples, {}
        scalars = self._monitor.step(samples)
        if scalars is not None:
            self._unseen -= samples.keys()
            if self._hooks and self._unseen:
                warnings.warn(
                    f"modules must be called in training mode; {sorted(self._unseen)} were not in "
                    "this step",
                    stacklevel=2,
                )
                self._unseen = set()
        return scalars

    def remove(self) -> None:
        """Stop watching. It may be called more than once."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @torch._compile._disable_dynamo  # a compiled program would be one for each step
    def _keep(self, name: str, module: torch.nn.Module, _: Any, output: Any) -> None:
        output = _checked_output(output, name)
        if module.training and name not in self._checked:
            self._monitor.sample(output, name)  # an error comes now, not in the step that is due
            self._checked.add(name)
        if module.training and self._monitor.is_due:
            # Copied, since what comes next may work in place.
            self._samples[name] = self._monitor.sample(output, name).clone()
