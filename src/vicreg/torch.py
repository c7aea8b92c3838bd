"""PyTorch modules; and the losses, as in `vicreg`."""

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
from vicreg._checks import checked_library, checked_objective, explains_arguments
from vicreg._conventions import (
    VCREG_EPS,
    Convention,
    ConventionName,
    both_names,
    checked_number,
)
from vicreg._core.communicator import Communicator
from vicreg._losses import *  # noqa: F403
from vicreg._losses import VICRegTerms, vicreg_loss, vicreg_terms
from vicreg._losses.vcreg import checked_settings
from vicreg._typing import CovarianceGradient, Method, Penalty

__all__ = [
    "AttachedVCReg",
    "CollapseMonitor",
    "VCReg",
    "VCRegTerms",
    "VICRegLoss",
    "attach_vcreg",
    "cached_backward",
]
__all__ += _losses.__all__


def __dir__() -> list[str]:
    return __all__


class VICRegLoss(torch.nn.Module):
    """The variance-invariance-covariance loss as a module.

    It has no parameters, except weights that are given as such, and no state. It takes the place
    of the ``VICRegLoss`` of lightly (called with two embeddings) and of pytorch-metric-learning
    (called with embeddings and ``ref_emb``), whose function is this one's default.

    Parameters
    ----------
    convention : str or Convention, optional
        Which published function to compute: a name in `vicreg.conventions`, or a codebase's,
        as "lightly".
    invariance_weight, variance_weight, covariance_weight : float or torch.Tensor, optional
        λ, μ and ν; None is the convention's own. In lightly these are ``lambda_param``,
        ``mu_param`` and ``nu_param``; in pytorch-metric-learning ``invariance_lambda``,
        ``variance_mu`` and ``covariance_v``. An error says so for these and for others' names.
    gamma, eps, method, feature_axis, sample_axis, comm : optional
        As in `vicreg.vicreg_loss`. For the whole batch of a model under DistributedDataParallel
        or FSDP, `comm` must be a `vicreg.distributed.TorchCommunicator`.

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

    To log the terms, take the loss from them, and nothing is computed twice:

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
        comm: Communicator | None = None,
    ) -> None:
        super().__init__()
        weights = (invariance_weight, variance_weight, covariance_weight)
        axes = (feature_axis, sample_axis)
        objective, weights = checked_objective(convention, weights, gamma, eps, method, axes, comm)
        self.convention = convention
        self.invariance_weight, self.variance_weight, self.covariance_weight = weights
        self.gamma = objective.gamma
        self.eps = objective.eps
        self.method = objective.method
        self.feature_axis, self.sample_axis = axes
        self.comm = comm

    def forward(self, *views: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of two or more views ``(n, d)`` or ``(n, ..., d)``, a 0-d tensor.

        `ref_emb`, as pytorch-metric-learning calls it, is one more view.
        """
        return vicreg_loss(*_with(views, ref_emb), **self._settings())

    if TYPE_CHECKING:  # torch.nn.Module's own takes and returns anything

        def __call__(  # noqa: D102
            self, *views: torch.Tensor, ref_emb: torch.Tensor | None = None
        ) -> torch.Tensor: ...

    def terms(
        self, *views: torch.Tensor, ref_emb: torch.Tensor | None = None
    ) -> VICRegTerms[torch.Tensor]:
        """Return the loss and its three terms, unweighted: each is differentiable.

        Call this in place of the module, ``terms.loss.backward()``, and log ``terms.scalars()``.
        """
        return vicreg_terms(*_with(views, ref_emb), **self._settings())

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
            "comm": self.comm,
        }


def _with(
    views: tuple[torch.Tensor, ...], ref_emb: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    return views if ref_emb is None else (*views, ref_emb)


class VCRegTerms(NamedTuple):
    """The loss of VCReg and its two terms, unweighted: detached tensors of shape ()."""

    loss: torch.Tensor
    variance: torch.Tensor
    covariance: torch.Tensor


class VCReg(torch.nn.Module):
    """Variance-covariance regularization as a layer: the identity, with a gradient of its own.

    Forwards it returns its input. Backwards it adds to the incoming gradient that of
    `vicreg.vcreg_loss` by the input, without the loss ever being formed, so that it can be put
    between any two layers and nothing has to be added to the loss. In eval mode, and where no
    gradient flows, it returns its input and costs nothing.

    What it adds knows of no factor on the user's loss. Under a ``torch.amp.GradScaler``, or
    where the losses of several batches are averaged, the loss's gradient is scaled and this one
    is not: give the same factor as `scale`.

    Parameters
    ----------
    variance_weight, covariance_weight : float or torch.Tensor of shape ()
        α and β; they must be given, since no published value fits all networks.
    gamma, eps, penalty, delta, feature_axis, sample_axis, comm : optional
        As in `vicreg.vcreg_loss`. With a `vicreg.distributed.TorchCommunicator` the gradient is
        times the number of ranks, as that of the loss is, for the mean over the ranks.
    covariance_gradient : {"exact", "published"}, optional
        "exact" is the derivative of the loss. "published" is the covariance's part in the scale
        of the paper's pseudocode, which leaves out the 1/(n − 1) of that derivative.
    scale : float, or callable without arguments that returns one, optional
        What the gradient is multiplied by; ``scaler.get_scale`` of a ``GradScaler``, or 1/k for
        the mean of k batches. A callable is called in each backward pass.

    Attributes
    ----------
    last_terms : VCRegTerms
        The loss of the last input that was regularized, and its terms, for logging: without
        `scale`, and of the exact loss. Computed when asked for, from what the backward pass had
        to compute anyway. A covariance of weight 0 is not computed, and is NaN. There are none
        under ``torch.compile`` and ``torch.func``, nor, with `comm`, before the backward pass.

    Raises
    ------
    TypeError, ValueError
        For settings that `vicreg.vcreg_loss` would refuse, when the layer is made; for an input
        that it would refuse, when it is called.
    NotImplementedError
        When a gradient with its own is differentiated; when it is compiled under ``torch.func``
        with ``fullgraph=True``.
    RuntimeError
        When `last_terms` is read and there are none.

    Notes
    -----
    Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, "Variance-Covariance Regularization Improves
    Representation Learning", arXiv 2306.13292. The statistics are of the batch that the layer
    sees, or with `comm` of that of all ranks; of each element of the map under
    ``torch.func.vmap``. There is no second derivative through the layer: it would come through
    the identity, where the gradient would be added once more, and is refused; for gradient
    penalties add `vicreg.vcreg_loss` to the loss instead. What comes next may not work in place,
    as ``ReLU(inplace=True)`` does: the backward pass needs the input as it was, and PyTorch
    refuses.

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, ``(n, d)`` or ``(n, ..., d)``, to be regularized where a gradient flows."""
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
        # Of a batch under `torch.vmap` the elements do not say that they require a gradient.
        if not torch.is_grad_enabled() or not (x.requires_grad or transformed):
            return x
        objective, weights = self._objective, self._weights
        z, passed = adapter.local(x), None
        if compiled or transformed:
            self._log.last = None
        else:
            passed = layer.Pass(z, objective, weights, self._log)
        regularized = layer.regularized
        if compiled and objective.comm is not None:
            regularized = layer.regularized_uncompiled
        result = regularized(z, objective, weights, self.scale, passed)
        return adapter.replicated(result, x)

    if TYPE_CHECKING:  # torch.nn.Module's own takes and returns anything

        def __call__(self, x: torch.Tensor) -> torch.Tensor: ...  # noqa: D102

    @property
    def last_terms(self) -> VCRegTerms:
        """The loss of the last input that was regularized, and its terms: see the class."""
        last = self._log.last
        outputs = None if last is None else last.outputs()
        if outputs is None:
            raise RuntimeError(
                "last_terms must be read after the layer has regularized an input: in training "
                "mode, with an input that requires a gradient, and not under torch.compile or "
                "torch.func; after the backward pass where there is a comm, or the input is "
                "checkpointed or dropped"
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
    """What `attach_vcreg` has attached: a context manager that removes it at its end.

    Attributes
    ----------
    layers : mapping of str to VCReg
        The layer after each module, by the module's name.
    """

    def __init__(self, layers: Mapping[str, VCReg], hooks: Iterable[Any]) -> None:
        self.layers = MappingProxyType(dict(layers))
        self._hooks = list(hooks)

    def remove(self) -> None:
        """Take the layers off again; once more is no error."""
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
    """Regularize the outputs of named submodules of a model, by hooks: it stays as it is.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. A layer is in training mode when the module before it is.
    modules : str, or iterable of str
        Names of submodules, as ``model.named_modules()`` gives them; each returns one tensor.
    variance_weight, covariance_weight, gamma, eps, penalty, delta, feature_axis, sample_axis, \
comm, covariance_gradient, scale
        As in `VCReg`, for each layer. Under a ``GradScaler``, `scale` must be
        ``scaler.get_scale``.

    Returns
    -------
    AttachedVCReg
        ``remove()`` takes the layers off; ``layers[name].last_terms`` is for logging.

    Raises
    ------
    TypeError
        `model` is not a module, or `modules` not names; when the model is called, a module of
        `modules` that returns anything but a tensor.
    ValueError
        No names, a name twice, two names of one module, or one that `model` does not have.

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
    """Go back through a batch that is larger than memory, chunk by chunk.

    The statistics are those of the whole batch, and what is left in ``.grad`` is what
    ``loss(encoder(view1), encoder(view2)).backward()`` would leave, to rounding. In memory there
    are the embeddings of the batch and the activations of one chunk. The encoder runs twice: once
    without a graph for the embeddings, then with one for each chunk in turn, which goes back from
    the gradient by its embeddings.

    Parameters
    ----------
    encoder : callable, or one for each view
        A module, as a rule: from a tensor to one tensor with as many rows. Under
        DistributedDataParallel or ``fully_shard`` the gradients are shared once, in the last
        chunk; under ``fully_shard`` each rank must have as many chunks as the others.
    views : sequence of tensors
        The inputs of the encoder, each with the samples as its first axis.
    loss : callable
        From the embeddings, one for each view, to a tensor of shape (): a `VICRegLoss`, with
        `comm` for the batch of several ranks, or any function with a gradient. With a
        ``GradScaler`` it is ``lambda *z: scaler.scale(criterion(*z))``.
    chunk_size : int
        The largest number of samples in a chunk.

    Returns
    -------
    torch.Tensor, shape ()
        The loss, detached.

    Raises
    ------
    TypeError
        Something else than a tensor among the views, or from the encoder or the loss; an encoder
        that is not callable; a `chunk_size` that is not an integer.
    ValueError
        No view; as many encoders as there are not views; a `chunk_size` below 1; a view that is
        computed from something that requires a gradient.
    RuntimeError
        Under ``torch.no_grad()``.

    Notes
    -----
    Random numbers, as those of dropout, are the same in both runs of a chunk. Autocast is as it
    is where the function is called. What the forward pass updates in the encoder's buffers, it
    updates once. BatchNorm in training mode takes the statistics of a chunk, so that the gradient
    is another: there is a warning. Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup", arXiv 2101.06983, is the same for contrastive losses.

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

    For a training loop of your own; for Lightning there is `vicreg.lightning.CollapseMonitor`. The
    model is not changed. A step without a diagnosis costs some ten microseconds.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.
    modules : str, or iterable of str
        Names of submodules, as ``model.named_modules()`` gives them; each returns one tensor. Of
        several calls in a step, as for two views, it is the last output in training mode.
    every_n_steps, max_samples, feature_axis : optional
        As in `vicreg.CollapseMonitor`. An output of more axes than two, such as
        ``(n, channels, height, width)``, has its features on `feature_axis` (there 1), and each
        position of each sample is a sample.

    Attributes
    ----------
    collapsed : bool
        Whether any of the diagnosed outputs had collapsed. Then stop, if you like.

    Raises
    ------
    TypeError, ValueError
        As for `attach_vcreg` and `vicreg.CollapseMonitor`; and when the model is called, if one
        of `modules` does not return a tensor. If it returns a tuple or a dict, call
        `vicreg.CollapseMonitor` with the tensor that you mean.

    Notes
    -----
    `torch.compile` divides a program at each module that is watched, and with ``fullgraph=True``
    refuses to. Watch the model before it is compiled. Under DistributedDataParallel each process
    that has a monitor looks at its own samples: have one on the first process alone, and share
    what it says with the others before you stop.

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
        self._hooks = [
            module.register_forward_hook(functools.partial(self._keep, name))
            for name, module in chosen.items()
        ]

    @property
    def collapsed(self) -> bool:
        """Whether any of the diagnosed outputs had collapsed."""
        return self._monitor.collapsed

    def step(self) -> dict[str, float] | None:
        """End a training step: call this once in each.

        Returns
        -------
        dict of str to float, or None
            ``Diagnosis.scalars()`` of each module, with its name and a slash before each, for a
            logger. None in a step without a diagnosis.
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
        if module.training and self._monitor.is_due:
            # Copied, since what comes next may work in place.
            self._samples[name] = self._monitor.sample(output, name).clone()
