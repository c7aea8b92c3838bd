"""The layer of VCReg: the identity, whose backward pass adds a gradient, and its log."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeGuard, cast

import torch

from vicreg._adapters.torch.communicator import joined, over_ranks
from vicreg._adapters.torch.library import for_device, library, no_autocast
from vicreg._core import engine, memory
from vicreg._core.library import Library
from vicreg._core.objective import Objective

Tensor = torch.Tensor
Weights = tuple[Any, ...]
Arrays = tuple[Tensor, ...]  # a view, and the weights of its samples if it has them


class Log:
    """The last pass through a layer. A copy of the layer begins with a log of its own, empty."""

    def __init__(self) -> None:
        self.last: Pass | None = None

    def __reduce__(self) -> tuple[type[Log], tuple[()]]:
        return Log, ()

    def record(self, passed: Pass) -> None:
        """Make `passed` the last, unless a later one is."""
        if self.last is None or self.last.number <= passed.number:
            self.last = passed


class Pass:
    """One forward pass through a layer, for the values of its terms.

    The activation is the graph's alone. Here is a weak reference, so that it is freed, or
    checkpointed, as if nobody watched; the values that the backward pass computes stay.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        z: Tensor,
        of_samples: Sequence[Tensor],
        objective: Objective,
        weights: Weights,
        log: Log,
    ) -> None:
        self.number = next(self._numbers)
        self._z, self._of_samples = weakref.ref(z), of_samples
        self._version = _version(z, *of_samples)
        self._objective, self._weights = for_device(z, objective), weights
        self._log = log
        self._values: engine.Values | None = None
        self._saved: tuple[engine.Saved, ...] | None = None
        # A checkpointed forward pass is repeated inside a backward pass. The pass that it repeats
        # is in the log, or, if no gradient flowed there, this one will be by its backward pass.
        if torch._C._current_graph_task_id() == -1:
            log.record(self)

    def outputs(self) -> tuple[Tensor, ...] | None:
        """Return the loss and its terms, detached; None where the activation is gone, or changed.

        They are computed now if no backward pass has computed them. A term that the objective
        has no need of is 0.
        """
        z = self._z()
        with torch.no_grad():
            # With `comm` every rank would have to ask.
            if self._values is None and self._is_as_it_was(z) and self._objective.comm is None:
                with no_autocast(z):
                    xp = library(self._objective)
                    arrays = (z, *self._of_samples)
                    self._values, self._saved = engine.forward(xp, arrays, self._objective)
            if self._values is None:
                return None
            objective = replace(self._objective, each_term=True)
            return engine.outputs(library(objective), self._weights, self._values, objective)

    def _is_as_it_was(self, z: Tensor | None) -> TypeGuard[Tensor]:
        """Whether the activation is still there, and nothing has been changed in place."""
        return z is not None and _version(z, *self._of_samples) == self._version

    def gradient(
        self, xp: Library, arrays: Arrays, objective: Objective, cotangents: engine.Cotangents
    ) -> Tensor:
        """Return the sum of the terms' gradients, each times its cotangent, like the view."""
        if self._saved is None:
            self._values, gradient = _values_and_gradient(xp, arrays, objective, cotangents)
        else:  # the terms were read before
            saved, wanted = self._saved, (True,) * len(arrays)
            own, *_ = engine.pullback(xp, arrays, saved, cotangents, objective, wanted)
            gradient = cast(Tensor, own)
        self._log.record(self)
        return gradient


def _version(*arrays: Tensor) -> tuple[int, ...]:
    """Return how often each array has been changed in place; of inference tensors nobody knows."""
    return tuple(-1 if array.is_inference() else array._version for array in arrays)


def _values_and_gradient(
    xp: Library, arrays: Arrays, objective: Objective, cotangents: engine.Cotangents
) -> tuple[engine.Values, Tensor]:
    wanted = (True,) * len(arrays)
    values, (own, *_) = engine.value_and_gradients(xp, arrays, cotangents, objective, wanted)
    return values, engine.like_its_view(xp, own, arrays[0], objective)


def regularized(
    z: Tensor,
    of_samples: Sequence[Tensor],
    objective: Objective,
    weights: Weights,
    scale: Any,
    passed: Pass | None,
) -> Tensor:
    """Return `z`; backwards, add `scale` times the gradient of the objective of this one view.

    `of_samples` are the weights of its samples where the objective has them, and else nothing.
    """
    function: Any = _Regularized.apply
    result: Tensor = function(objective, weights, scale, passed, z, *of_samples)
    return result


def with_numbers_read(
    objective: Objective, weights: Weights, scale: Any
) -> tuple[Objective, Weights, Any]:
    """Return the same, each number of it read, for where a compiler traces.

    PyTorch's compiler makes a float an input of its program where the float is read first. If that
    were in the backward pass of one layer, the compiler would not find it in that of the next.
    """
    gamma, eps, delta = map(float, (objective.gamma, objective.eps, objective.delta))
    weights = tuple(float(each) if isinstance(each, float) else each for each in weights)
    scale = float(scale) if isinstance(scale, float) else scale
    return replace(objective, gamma=gamma, eps=eps, delta=delta), weights, scale


# As the loss of several ranks is: see `autograd`.
regularized_uncompiled = torch._compile._disable_dynamo(regularized)


class _Regularized(torch.autograd.Function):
    """The identity, whose backward pass adds the gradient of an objective of one view."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        objective: Objective,
        weights: Weights,
        scale: Any,
        passed: Pass | None,
        z: Tensor,
        *of_samples: Tensor,
    ) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.objective, ctx.weights, ctx.scale, ctx.passed, *arrays = inputs
        ctx.save_for_backward(*arrays)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        arrays = ctx.saved_tensors
        z = arrays[0]
        with torch.no_grad(), no_autocast(z):
            scale = ctx.scale() if callable(ctx.scale) else ctx.scale
            objective = joined(arrays, ctx.objective, ctx.weights)
            xp = library(objective, (incoming,))
            samples = functools.partial(engine.number_of_samples, xp, arrays, objective)
            cotangents = engine.as_cotangents(xp, ctx.weights, (z,), objective)
            cotangents = [
                None if each is None else scale * over_ranks(each, objective)
                for each in objective.in_gradient(cotangents, samples)
            ]
            if ctx.passed is None:
                _, own = _values_and_gradient(xp, arrays, objective, cotangents)
            else:
                own = ctx.passed.gradient(xp, arrays, objective, cotangents)
            total = memory.add(xp, own, incoming)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            total = _not_twice(total, z, incoming)
        return None, None, None, None, total, *(None for _ in arrays[1:])


def _not_twice(total: Tensor, *dependencies: Tensor) -> Tensor:
    function: Any = _NotTwice.apply
    refused: Tensor = function(total, *dependencies)
    return refused


class _NotTwice(torch.autograd.Function):
    """What was added to a gradient, with no derivative by what it depends on.

    A second derivative would come through the identity, where the gradient would be added once
    more; no layer can know which of its backward passes are of the loss. PyTorch's own
    ``once_differentiable`` refuses too, but under ``torch.func`` makes a derivative of zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(total: Tensor, z: Tensor, incoming: Tensor) -> Tensor:
        return total.view_as(total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save nothing: there is no backward pass."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise NotImplementedError(
            "VCReg has no second derivative: it adds its gradient in every backward pass, and so "
            "would once more in one through a gradient. Add vicreg.vcreg_loss of the activation "
            "to the loss instead of the layer"
        )
