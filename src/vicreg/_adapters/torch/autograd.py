"""PyTorch: an ``autograd.Function`` whose backward pass starts from what the forward one kept.

``_Terms`` returns the terms and, after them, what is kept for the gradient: a Function that works
under ``torch.func`` may save only its inputs and outputs. ``_Gradients`` is the backward pass as a
Function of its own, so that a second derivative is possible: its value comes from what was kept,
its derivative from differentiating the core's closed form. The loss is a weighted sum of the terms
in plain operations, differentiable by the weights; but where the weights are numbers and nothing
is compiled or transformed, ``_Loss`` forms the loss and its gradient in one pass.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vicreg._adapters.torch.communicator import joined, over_ranks
from vicreg._adapters.torch.library import (
    are_batched,
    is_distributed,
    is_exporting,
    is_forward,
    library,
    local,
    no_autocast,
    recorded,
    replicated,
)
from vicreg._core import engine, memory, present_samples
from vicreg._core import local as regions
from vicreg._core.library import Library
from vicreg._core.objective import Objective
from vicreg._core.sizes import Sizes

Tensor = torch.Tensor
Tensors = tuple[Tensor | None, ...]
Weights = tuple[Any, ...]


def evaluate(views: tuple[Tensor, ...], objective: Objective, weights: Weights) -> Tensors:
    """Return the loss, and after it each term where it is wanted, differentiable."""
    if is_distributed(views[0]):
        own = evaluate(tuple(map(local, views)), objective, tuple(map(local, weights)))
        return tuple(replicated(output, views[0]) for output in own if output is not None)
    if objective.comm is not None and torch.compiler.is_compiling():
        return _evaluate_uncompiled(views, objective, weights)
    views = engine.with_constant_weights(recorded, views, objective)
    objective = joined(views, objective, weights)
    if is_exporting():
        objective = _exportable(views, objective)
    present = present_samples.select(library(objective), views, objective)
    if present is not None:
        views, objective = present.arrays, present.objective
    with no_autocast(views[0]):
        if _in_one_pass(views, objective, weights):
            in_one_pass: Any = _Loss.apply
            return (in_one_pass(objective, weights, *views),)
        terms = _terms(views, objective)
        return engine.outputs(recorded, _for_forward_mode(weights, terms), terms, objective)


# How much the ranks send depends on what they have just received, which cuts a compiled program in
# two. Here it is cut once.
_evaluate_uncompiled = torch._compile._disable_dynamo(evaluate)


def _for_forward_mode(weights: Weights, terms: Tensors) -> Weights:
    """Return the weights, as tensors in forward mode.

    There a number makes float64 of the tangent of a tensor of shape () that it is multiplied with.
    """
    if torch.compiler.is_compiling() or not is_forward():
        return weights
    like = next(term for term in terms if term is not None)
    return tuple(
        weight if isinstance(weight, Tensor) else torch.full_like(like.detach(), weight)
        for weight in weights
    )


def value_and_grad(
    views: tuple[Tensor, ...], objective: Objective, weights: Weights
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what `evaluate` does, and the gradient of the loss by each view."""
    if is_distributed(views[0]):
        first, own = views[0], tuple(map(local, views))
        returned = value_and_grad(own, objective, tuple(map(local, weights)))
        outputs, gradients = (tuple(replicated(a, first) for a in arrays) for arrays in returned)
        return outputs, gradients
    if objective.comm is not None and torch.compiler.is_compiling():
        return _value_and_grad_uncompiled(views, objective, weights)
    objective = joined(views, objective, weights)
    if is_exporting():
        objective = _exportable(views, objective)
    # In forward mode what is computed has a derivative too, which updates in place have not.
    compiling = torch.compiler.is_compiling()
    xp = library(objective) if compiling or not is_forward() else recorded
    with torch.no_grad(), no_autocast(views[0]):
        return engine.value_and_grad(xp, views, weights, objective)


_value_and_grad_uncompiled = torch._compile._disable_dynamo(value_and_grad)


def apply(function: Any, arrays: regions.Views, weights: Weights, settings: Any) -> Any:
    """Return `function` of `arrays`, which is made of several losses."""
    run = regions.Run(recorded, evaluate, value_and_grad)
    with no_autocast(arrays.maps[0]):
        return function(run, arrays, weights, settings)


def _in_one_pass(views: tuple[Tensor, ...], objective: Objective, weights: Weights) -> bool:
    return not (
        objective.each_term
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or any(isinstance(weight, Tensor) for weight in weights)
        or not _records(views)
    )


def _records(views: Sequence[Tensor]) -> bool:
    # A Function's own `needs_input_grad` says nothing of `torch.no_grad`.
    return torch.is_grad_enabled() and any(view.requires_grad for view in views)


def _terms(views: tuple[Tensor, ...], objective: Objective) -> Tensors:
    """Return the value of each term, None for those that are not computed."""
    records = _records(views)
    # An exporter takes plain operations, which have their own derivative. So does the compiler of
    # PyTorch 2.7, where this is true as well: it mistakes what a Function saves.
    if torch.compiler.is_exporting():
        function: Any = _values
    elif torch.compiler.is_compiling():
        function = _compiled_terms if records else _values
    else:
        function = _Terms.apply if records or is_forward() else _values
    returned = iter(function(objective, *views))
    terms = objective.terms_of(views)
    return tuple(None if term is None else next(returned) for term in terms)


#: Where a size may stand for any there is one way: nothing in parts.
_ONE_WAY = Sizes(stacked=0, strips=1, asks_samples=False, defined=0, columns=sys.maxsize)


def _exportable(views: tuple[Tensor, ...], objective: Objective) -> Objective:
    """Return `objective` as one whose program serves every size of `views` it is exported for.

    Raises
    ------
    ValueError
        Of some of those sizes the Gram matrix would be the smaller and of others the covariance.
    """
    # An exporter has imported it, which takes as long as all of this does.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    objective = replace(objective, sizes=_ONE_WAY)
    if objective.method != "auto" or objective.penalty != "square" or not objective.computed[2]:
        return objective
    n, d = objective.axes.core_shape(views[0].shape)[-2:]
    one_way = statically_known_true(n <= d) or statically_known_true(n > d)
    # A range without an end, as that of `Dim.AUTO` is, the exporter ends where the way does.
    if not one_way and statically_known_true(n < sys.maxsize):
        raise ValueError(
            f"method must be 'gram' or 'covariance' where a batch is exported that may be of {d} "
            f"samples, as many as it has features, and of more; got 'auto', which chooses by that"
        )
    return objective


def _values(objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
    """Return the terms that are computed."""
    values, _ = engine.forward(library(objective), views, objective, differentiated=False)
    return tuple(value for value in values if value is not None)


def _terms_and_saved(objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
    """Return the terms that are computed, then what is kept for the gradient."""
    values, saved = engine.forward(library(objective), views, objective)
    return (*(value for value in values if value is not None), *engine.flatten(saved))


def _compiled_terms(objective: Objective, *views: Tensor) -> Any:
    """Return the terms and what is kept, where a compiler traces."""
    # Dynamo takes no tensor twice: a view given again goes under another name.
    distinct = [
        view.view_as(view) if any(view is other for other in views[:place]) else view
        for place, view in enumerate(views)
    ]
    function: Any = _CompiledTerms.apply
    return function(objective, *distinct)


class _CompiledTerms(torch.autograd.Function):
    """The terms, then what is kept, with the first derivative: what a compiler can trace.

    Dynamo refuses a Function with a ``jvp``, and a compiled graph has no second derivative to
    offer. Where no gradient is recorded it miscounts the arguments of a ``forward`` that takes
    any number of them, so `_terms` does not bring one there.
    """

    @staticmethod
    def forward(ctx: Any, objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
        returned = _terms_and_saved(objective, *views)
        _save(ctx, objective, views, returned)
        return returned

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        return (None, *_gradients(ctx, cotangents))


class _Differentiable(torch.autograd.Function):
    """A backward pass with derivatives of every order, forwards and backwards.

    Except for forward mode nested in forward mode, where PyTorch gives any Function a zero.
    """

    @staticmethod
    def gradients(ctx: Any, of_terms: Tensors) -> Tensors:
        """Return the gradient of each view, differentiable by the views and the cotangents."""
        given = tuple(cotangent is not None for cotangent in of_terms)
        request = _Request(ctx.objective, tuple(ctx.needs_input_grad[-ctx.views :]), given)
        present = (cotangent for cotangent in of_terms if cotangent is not None)
        saved = ctx.saved_tensors
        with no_autocast(saved[0]):
            if are_batched(of_terms):
                # A Function of such batches has no derivative: what it runs has one.
                gradients = iter(request.gradients(*present, *saved[: ctx.views]))
            else:
                differentiable: Any = _Gradients.apply
                gradients = iter(differentiable(request, *present, *saved))
        return tuple(next(gradients) if wanted else None for wanted in request.wanted)


class _Loss(_Differentiable):
    """The loss, with its gradient formed beside it: a backward pass only scales it.

    So nothing is computed twice, and nothing kept for later except the gradient itself. The first
    backward pass gives away its memory; where the graph is retained, a second one forms it anew.
    Of a batch over ranks it would have to reach the others for that: there the gradient is saved,
    and the rows of the other ranks are not.
    """

    @staticmethod
    def forward(ctx: Any, objective: Objective, weights: Weights, *views: Tensor) -> Tensor:
        ctx.objective, ctx.weights, ctx.views = objective, weights, len(views)
        loss, formed = _loss_and_gradients(objective, weights, views, ctx.needs_input_grad[2:])
        if objective.batch is None:
            ctx.formed = formed
            ctx.save_for_backward(*views)
        else:
            ctx.objective = replace(objective, batch=replace(objective.batch, gathered=None))
            ctx.save_for_backward(*views, *formed)
        ctx.save_for_forward(*views)
        return loss

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensors:
        cotangent = over_ranks(cotangent, ctx.objective)
        if torch.is_grad_enabled():
            of_terms = engine.as_cotangents(recorded, ctx.weights, (cotangent,), ctx.objective)
            scaled = tuple(None if w is None else w * cotangent for w in of_terms)
            of_terms = _only_computed(ctx, scaled)
            return (None, None, *_Differentiable.gradients(ctx, of_terms))
        is_alone = ctx.objective.batch is None
        xp = (
            library(ctx.objective, (cotangent,)) if is_alone else recorded
        )  # which updates nothing in place
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        views, formed = saved[: ctx.views], saved[ctx.views :]
        with no_autocast(views[0]):
            if is_alone:
                formed, ctx.formed = ctx.formed, None
                if formed is None:
                    _, formed = _loss_and_gradients(ctx.objective, ctx.weights, views, wanted)
            return (
                None,
                None,
                *(
                    _scaled(xp, gradient, cotangent, view, ctx.objective) if is_wanted else None
                    for gradient, view, is_wanted in zip(formed, views, wanted, strict=True)
                ),
            )

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> Any:
        changes = _changes(ctx, tangents)[0]
        return engine.weighted_sum(recorded, ctx.weights, changes, ctx.objective)


def _scaled(
    xp: Library, gradient: Tensor | None, cotangent: Tensor, view: Tensor, objective: Objective
) -> Tensor:
    """Return `gradient`, which is used, times `cotangent`, like its view; None is 0."""
    if gradient is not None:
        gradient = memory.multiply(xp, gradient, cotangent)
    scaled: Tensor = engine.like_its_view(xp, gradient, view, objective)
    return scaled


def _loss_and_gradients(
    objective: Objective, weights: Weights, views: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor, engine.Gradients]:
    xp = library(objective)
    cotangents = engine.as_cotangents(xp, weights, views, objective)
    values, gradients = engine.value_and_gradients(xp, views, cotangents, objective, wanted)
    loss: Tensor = engine.weighted_sum(xp, weights, values, objective)
    return loss, gradients


class _Terms(_Differentiable):
    """The terms, then what is kept: under ``torch.func`` a Function may save only its outputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
        return _terms_and_saved(objective, *views)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        objective, *views = inputs
        _save(ctx, objective, views, output)
        # The same tensors as for backward: functorch keeps one list of batch axes for both.
        ctx.save_for_forward(*views, *output[ctx.terms :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        cotangents = tuple(over_ranks(cotangent, ctx.objective) for cotangent in cotangents)
        if not torch.is_grad_enabled():
            return (None, *_gradients(ctx, cotangents))
        return (None, *_Differentiable.gradients(ctx, cotangents[: ctx.terms]))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensors:
        changes, saved = _changes(ctx, tangents)
        return (
            *(change for change in changes if change is not None),
            *(None for _ in engine.flatten(saved)),
        )


def _changes(ctx: Any, tangents: Sequence[Tensor | None]) -> tuple[Tensors, Any]:
    """Return the change of each term along `tangents`, and what is kept for the gradient."""
    # From the views, not from what was saved: that carries no derivative of an outer level.
    views = ctx.saved_tensors[: ctx.views]
    with no_autocast(views[0]):
        saved = engine.forward(recorded, views, ctx.objective)[1]
        return engine.pushforward(recorded, views, saved, tangents, ctx.objective), saved


def _save(
    ctx: Any, objective: Objective, views: Sequence[Tensor], returned: Sequence[Tensor]
) -> None:
    """Keep what the backward pass needs; of what is returned only the terms are differentiated."""
    ctx.objective, ctx.views = objective, len(views)
    ctx.terms = sum(term is not None for term in objective.terms_of(views))
    saved = returned[ctx.terms :]
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*views, *saved)


def _gradients(ctx: Any, cotangents: Sequence[Tensor | None]) -> Tensors:
    """Return the gradients that `ctx` needs, from what was saved in it."""
    tensors = ctx.saved_tensors  # read once: checkpointing unpacks at each reading
    views, saved = tensors[: ctx.views], tensors[ctx.views :]
    wanted = ctx.needs_input_grad[1:]
    with no_autocast(views[0]):
        return _pullback(saved, views, cotangents[: ctx.terms], ctx.objective, wanted)


def _pullback(
    saved: Sequence[Tensor],
    views: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    objective: Objective,
    wanted: Sequence[bool],
) -> Tensors:
    """Return the wanted gradients; the cotangents are those of the terms that are computed."""
    given = iter(cotangents)
    of_terms = [None if term is None else next(given) for term in objective.terms_of(views)]
    xp = library(objective, cotangents)
    of_views = engine.unflatten(xp, saved, views, objective)
    return engine.pullback(xp, views, of_views, of_terms, objective, wanted)


def _only_computed(ctx: Any, of_terms: Tensors) -> Tensors:
    terms = ctx.objective.terms_of(ctx.saved_tensors[: ctx.views])
    return tuple(
        cotangent for cotangent, term in zip(of_terms, terms, strict=True) if term is not None
    )


@dataclass(frozen=True)
class _Request:
    """Which gradients are asked for. One object, since a tuple would count as arguments."""

    objective: Objective
    wanted: tuple[bool, ...]  # of each view, whether its gradient is
    given: tuple[bool, ...]  # of each term that is computed, whether it has a cotangent

    def gradients(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the wanted gradients; where nothing was saved for them, from the views alone.

        `tensors` are the cotangents that are given, the views, and what was saved.
        """
        left = iter(tensors)
        cotangents = tuple(next(left) if is_given else None for is_given in self.given)
        views = tuple(next(left) for _ in self.wanted)
        saved = tuple(left)
        if not saved:
            saved = engine.flatten(
                engine.forward(library(self.objective, cotangents), views, self.objective)[1]
            )
        gradients = _pullback(saved, views, cotangents, self.objective, self.wanted)
        return tuple(gradient for gradient in gradients if gradient is not None)


class _Gradients(torch.autograd.Function):
    """The wanted gradients from what was saved; differentiable by cotangents and views.

    What was saved are intermediates: a derivative goes through the views, from which it computes
    them anew.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(request: _Request, *tensors: Tensor) -> tuple[Tensor, ...]:
        return request.gradients(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.request, tensors = inputs[0], inputs[1:]
        independent = sum(ctx.request.given) + len(ctx.request.wanted)
        ctx.saved = len(tensors) - independent
        ctx.save_for_backward(*tensors[:independent])
        ctx.save_for_forward(*tensors[:independent])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        primals = ctx.saved_tensors
        with no_autocast(primals[0]):
            vjp = torch.func.vjp(ctx.request.gradients, *primals)[1]
            return (None, *vjp(cotangents), *(None for _ in range(ctx.saved)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        primals = ctx.saved_tensors
        directions = tuple(
            torch.zeros_like(primal) if tangent is None else tangent
            for primal, tangent in zip(primals, tangents, strict=False)
        )
        with no_autocast(primals[0]):
            changes = torch.func.jvp(ctx.request.gradients, primals, directions)[1]
        return tuple(changes)
