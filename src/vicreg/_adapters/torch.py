"""PyTorch: an ``autograd.Function`` whose backward pass starts from the forward's residuals.

``_TransformedOutputs`` returns the objective's outputs and, after them, the residuals: a Function
that works under ``torch.func`` may save only its inputs and outputs. ``_Gradients`` is the
backward pass as a Function of its own, so that a second derivative is possible: its value comes
from the residuals, its derivative from differentiating the core's closed form.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import array_api_compat.torch
import torch
from torch.autograd import forward_ad

from vicreg._core import collapse, owned, terms
from vicreg._core.layout import core_shape
from vicreg._core.objective import Objective
from vicreg._core.sizes import Sizes

Tensor = torch.Tensor


def _take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int) -> Tensor:
    return torch.gather(x, axis, indices.expand(*x.shape[:-1], indices.shape[-1]))


def _top_k_indices(values: Tensor, k: int) -> Tensor:
    return torch.topk(values, k, dim=-1, sorted=False)[1]


def _add_product(array: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if array.ndim == 2:
        return torch.addmm(array, a, b, out=array)
    return array.add_(torch.matmul(a, b))


def _replace_columns(array: Tensor, places: Tensor, columns: Tensor | float) -> None:
    array.scatter_(-1, places.expand(*array.shape[:-1], places.shape[-1]), columns)


def _in_blocks(array: Tensor) -> bool:
    return array.device.type == "cpu"


def _astype(x: Tensor, dtype: torch.dtype, /) -> Tensor:
    return x.to(dtype)


def _matrix_transpose(x: Tensor, /) -> Tensor:
    return x.mT


#: The standard's namespace. These functions are PyTorch's own, which take the standard's arguments
#: and do as it says here: those of array-api-compat see to promotion first, which costs more than
#: they do.
_DIRECT = ("any", "logical_and", "logical_not", "matmul", "maximum", "stack", "sum", "where")
xp = SimpleNamespace(
    **vars(array_api_compat.torch)
    | {name: getattr(torch, name) for name in _DIRECT}
    | {"astype": _astype, "matrix_transpose": _matrix_transpose}
    | {"take_along_axis": _take_along_axis, "top_k_indices": _top_k_indices}
    | {"strips": True, "sums_pairwise": True}
)
#: The same for what PyTorch itself differentiates or batches: nothing is updated in place.
immutable_xp = SimpleNamespace(**vars(xp), immutable=True)
vars(xp).update(add_product=_add_product, replace_columns=_replace_columns, in_blocks=_in_blocks)


def _namespace(cotangents: Sequence[Tensor | None] = ()) -> SimpleNamespace:
    """Return the namespace for what runs now, where no derivative of it is recorded."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return immutable_xp
    return immutable_xp if _are_batched(cotangents) else xp


def _are_batched(cotangents: Sequence[Tensor | None]) -> bool:
    """Whether there are batches of an older kind than `torch.vmap`'s.

    `torch.autograd.grad` makes them with `is_grads_batched`, `jacobian` with `vectorize`.
    """
    is_batch = torch._C._functorch.is_legacy_batchedtensor
    return any(cotangent is not None and is_batch(cotangent) for cotangent in cotangents)


def evaluate(views: tuple[Tensor, ...], objective: Objective) -> terms.Outputs:
    """Return the objective's outputs, differentiable."""
    if is_distributed(views[0]):
        outputs = evaluate(tuple(map(local, views)), objective)
        return tuple(replicated(output, views[0]) for output in outputs)
    if torch.compiler.is_exporting():
        objective = _exportable(views, objective)
    with _no_autocast(views[0]):
        return tuple(_function(views, objective)(objective, *views)[: objective.outputs])


def is_distributed(array: Tensor) -> bool:
    """Whether `array` is a ``DTensor``, which stands for the tensors of several processes."""
    return type(array).__name__ == "DTensor"  # importing the type takes half a second


def local(array: Tensor) -> Tensor:
    """Return what this process has of `array`: the whole, since no other ``DTensor`` gets here."""
    if not is_distributed(array):
        return array
    found: Tensor = cast(Any, array).to_local()
    return found


def replicated(array: Tensor, like: Tensor) -> Tensor:
    """Return `array`, which each process of `like` has the same of, as a ``DTensor`` too."""
    if not is_distributed(like):
        return array
    whole = cast(Any, like)
    made: Tensor = whole.from_local(array, whole.device_mesh, whole.placements, run_check=False)
    return made


def _function(views: tuple[Tensor, ...], objective: Objective) -> Any:
    """Return what takes an objective and `views` to the outputs, and perhaps residuals."""
    # A Function's own `needs_input_grad` says nothing of `torch.no_grad`.
    recorded = torch.is_grad_enabled()
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        # Of a batch under `torch.vmap` the elements do not say that they require a gradient.
        return (_TransformedOutputs if recorded else _Values).apply
    recorded = recorded and any(view.requires_grad for view in views)
    if torch.compiler.is_exporting():  # to plain operations, which have their own derivative
        return _values
    if torch.compiler.is_compiling():
        return _compiled_outputs if recorded else _values
    if not recorded:
        return _values if forward_ad._current_level < 0 else _Values.apply
    return (_Outputs if objective.each_term else _Loss).apply


#: Where a size may stand for any there is one way: nothing in parts, and no stacks.
_ONE_WAY = Sizes(stacked=0, strips=1, asks_samples=False, columns=sys.maxsize)


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
    shape = core_shape(views, objective.feature_axis, objective.pooled)
    if objective.method != "auto" or objective.penalty != "square":
        return objective
    if objective.coefficients(shape).covariance is None:
        return objective
    n, d = shape[-2:]
    one_way = statically_known_true(n <= d) or statically_known_true(n > d)
    # A range without an end, as that of `Dim.AUTO` is, the exporter ends where the way does.
    if not one_way and statically_known_true(n < sys.maxsize):
        raise ValueError(
            f"method must be 'gram' or 'covariance' where a batch is exported that may be of {d} "
            f"samples, as many as it has features, and of more; got 'auto', which chooses by that"
        )
    return objective


def value_and_grad(
    views: tuple[Tensor, ...], objective: Objective
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the loss and the gradient of each view."""
    if is_distributed(views[0]):
        first = views[0]
        loss, gradients = value_and_grad(tuple(map(local, views)), objective)
        return replicated(loss, first), tuple(replicated(array, first) for array in gradients)
    if torch.compiler.is_exporting():
        objective = _exportable(views, objective)
    with torch.no_grad(), _no_autocast(views[0]):
        return terms.value_and_grad(_namespace(), views, objective)


def without_gradient(array: Tensor) -> Tensor:
    """Return `array` as a constant of differentiation, of this process alone."""
    return local(array.detach())


def measure(array: Tensor, feature_axis: int) -> collapse.Measures:
    """Return how far the batch `array` has collapsed."""
    with _no_autocast(array):
        return collapse.measure(xp, array, feature_axis, torch.linalg.svdvals)


def register(record: type, constants: tuple[str, ...]) -> None:
    """Do nothing: functions return what they like here."""


def _no_autocast(tensor: Tensor) -> Any:
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _compiled_outputs(objective: Objective, *views: Tensor) -> Any:
    """Return the outputs and the residuals, where a compiler traces."""
    # Dynamo takes no tensor twice: a view given again goes under another name.
    distinct = [
        view.view_as(view) if any(view is other for other in views[:place]) else view
        for place, view in enumerate(views)
    ]
    function: Any = _CompiledOutputs.apply
    return function(objective, *distinct)


class _CompiledOutputs(torch.autograd.Function):
    """Outputs, then residuals, with the first derivative: what a compiler can trace.

    Dynamo refuses a Function with a ``jvp``, and a compiled graph has no second derivative to
    offer. Where no gradient is recorded it miscounts the arguments of a ``forward`` that takes
    any number of them, so `_function` does not bring one there.
    """

    @staticmethod
    def forward(ctx: Any, objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
        everything = _everything(objective, *views)
        _save(ctx, objective, views, everything)
        return everything

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *_gradients(ctx, cotangents))


class _Differentiable(torch.autograd.Function):
    """A backward pass with derivatives of every order, forwards and backwards.

    But for forward mode nested in forward mode, where PyTorch gives any Function a zero.
    """

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return (None, *_gradients(ctx, cotangents))
        of_outputs = cotangents[: ctx.objective.outputs]
        given = tuple(cotangent is not None for cotangent in of_outputs)
        request = _Request(ctx.objective, ctx.needs_input_grad[1:], given)
        present = (cotangent for cotangent in of_outputs if cotangent is not None)
        saved = ctx.saved_tensors
        with _no_autocast(saved[0]):
            if _are_batched(of_outputs):
                # A Function of such batches has no derivative: what it runs has one.
                gradients = iter(request.gradients(*present, *saved[: ctx.views]))
            else:
                differentiable: Any = _Gradients.apply
                gradients = iter(differentiable(request, *present, *saved))
        return (None, *(next(gradients) if wanted else None for wanted in request.wanted))


class _Loss(_Differentiable):
    """The loss, with its gradient formed beside it: a backward pass but scales it.

    So nothing is computed twice, or kept for later but the gradient itself. The first backward
    pass gives away its memory; where the graph is retained, a second one forms it anew.
    """

    @staticmethod
    def forward(ctx: Any, objective: Objective, *views: Tensor) -> terms.Outputs:
        ctx.objective, ctx.views = objective, len(views)
        wanted = ctx.needs_input_grad[1:]
        loss, ctx.formed = terms.value_and_gradients(_namespace(), views, objective, wanted)
        ctx.save_for_backward(*views)
        ctx.save_for_forward(*views)
        return (loss,)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _Differentiable.backward(ctx, *cotangents)
        views, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        with _no_autocast(views[0]):
            formed, ctx.formed = ctx.formed, None
            if formed is None:
                _, formed = terms.value_and_gradients(xp, views, ctx.objective, wanted)
            (cotangent,), here = cotangents, _namespace(cotangents)
            return None, *(
                terms.finished(
                    here, owned.multiply(here, gradient, cotangent), view, ctx.objective
                )
                if is_wanted
                else None
                for gradient, view, is_wanted in zip(formed, views, wanted, strict=True)
            )

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _changes(ctx, tangents)[0]


class _Outputs(_Differentiable):
    """The outputs of an objective that asks for each term."""

    @staticmethod
    def forward(ctx: Any, objective: Objective, *views: Tensor) -> terms.Outputs:
        outputs, residuals = terms.evaluate(_namespace(), views, objective)
        ctx.objective, ctx.views = objective, len(views)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*views, *terms.flatten(residuals))
        ctx.save_for_forward(*views)
        return outputs

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _changes(ctx, tangents)[0]


class _TransformedOutputs(_Differentiable):
    """Outputs, then residuals: under ``torch.func`` a Function may save only what it returns.

    It is for that alone, since PyTorch takes longer over a Function with a `setup_context`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
        return _everything(objective, *views)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        objective, *views = inputs
        _save(ctx, objective, views, output)
        # The same tensors as for backward: functorch keeps one list of batch axes for both.
        ctx.save_for_forward(*views, *output[objective.outputs :])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        changes, residuals = _changes(ctx, tangents)
        return (*changes, *(None for _ in terms.flatten(residuals)))


class _Values(torch.autograd.Function):
    """The outputs in forward mode, where no gradient is recorded: none is formed beside them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(objective: Objective, *views: Tensor) -> terms.Outputs:
        return _values(objective, *views)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: terms.Outputs) -> None:
        ctx.objective, *views = inputs
        ctx.views = len(views)
        ctx.save_for_forward(*views)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> terms.Outputs:
        return _changes(ctx, tangents)[0]


def _changes(ctx: Any, tangents: Sequence[Tensor | None]) -> tuple[terms.Outputs, terms.Residuals]:
    """Return the change of each output along `tangents`, and the residuals."""
    # From the views, not from saved residuals: those carry no derivative of an outer level.
    views = ctx.saved_tensors[: ctx.views]
    with _no_autocast(views[0]):
        residuals = terms.evaluate(immutable_xp, views, ctx.objective)[1]
        changes = terms.pushforward(immutable_xp, views, residuals, tangents, ctx.objective)
    return changes, residuals


def _values(objective: Objective, *views: Tensor) -> terms.Outputs:
    """Return the outputs alone."""
    return terms.evaluate(_namespace(), views, objective, differentiated=False)[0]


def _everything(objective: Objective, *views: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs and the residuals."""
    outputs, residuals = terms.evaluate(_namespace(), views, objective)
    return (*outputs, *terms.flatten(residuals))


def _save(
    ctx: Any, objective: Objective, views: Sequence[Tensor], everything: Sequence[Tensor]
) -> None:
    """Keep what the backward pass needs; the residuals are not differentiated."""
    residuals = everything[objective.outputs :]
    ctx.objective, ctx.views = objective, len(views)
    ctx.mark_non_differentiable(*residuals)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*views, *residuals)


def _gradients(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the gradients that `ctx` needs, from what was saved in it."""
    saved = ctx.saved_tensors  # read once: checkpointing unpacks at each reading
    views, arrays = saved[: ctx.views], saved[ctx.views :]
    with _no_autocast(views[0]):
        return _from_residuals(
            arrays,
            views,
            cotangents[: ctx.objective.outputs],
            ctx.objective,
            ctx.needs_input_grad[1:],
        )


def _from_residuals(
    arrays: Sequence[Tensor],
    views: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    objective: Objective,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the wanted gradients, `arrays` being the residuals, flattened."""
    residuals = terms.unflatten(arrays, views, objective)
    return terms.pullback(_namespace(cotangents), views, residuals, cotangents, objective, wanted)


@dataclass(frozen=True)
class _Request:
    """Which gradients are asked for. One object, since a tuple would count as arguments."""

    objective: Objective
    wanted: tuple[bool, ...]  # of each view, whether its gradient is
    given: tuple[bool, ...]  # of each output, whether it has a cotangent

    def separated(
        self, tensors: Sequence[Tensor]
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the cotangents, None where none was given, the views, and what comes after."""
        left = iter(tensors)
        cotangents = tuple(next(left) if is_given else None for is_given in self.given)
        views = tuple(next(left) for _ in self.wanted)
        return cotangents, views, tuple(left)

    def gradients(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the wanted gradients; where nothing was saved for them, from the views alone."""
        cotangents, views, arrays = self.separated(tensors)
        if not arrays:
            residuals = terms.evaluate(_namespace(cotangents), views, self.objective)[1]
            arrays = terms.flatten(residuals)
        found = _from_residuals(arrays, views, cotangents, self.objective, self.wanted)
        return tuple(gradient for gradient in found if gradient is not None)


class _Gradients(torch.autograd.Function):
    """The wanted gradients from the residuals; differentiable by cotangents and views.

    The residuals are saved intermediates: a derivative goes through the views, from which it
    computes them anew.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(request: _Request, *tensors: Tensor) -> tuple[Tensor, ...]:
        return request.gradients(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.request, tensors = inputs[0], inputs[1:]
        independent = sum(ctx.request.given) + len(ctx.request.wanted)
        ctx.residuals = len(tensors) - independent
        ctx.save_for_backward(*tensors[:independent])
        ctx.save_for_forward(*tensors[:independent])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        primals = ctx.saved_tensors
        with _no_autocast(primals[0]):
            vjp = torch.func.vjp(ctx.request.gradients, *primals)[1]
            return (None, *vjp(cotangents), *(None for _ in range(ctx.residuals)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        primals = ctx.saved_tensors
        directions = tuple(
            torch.zeros_like(primal) if tangent is None else tangent
            for primal, tangent in zip(primals, tangents, strict=False)
        )
        with _no_autocast(primals[0]):
            changes = torch.func.jvp(ctx.request.gradients, primals, directions)[1]
        return tuple(changes)


class Log:
    """The last pass through a layer. A copy of the layer begins with a log of its own, empty."""

    def __init__(self) -> None:
        self.last: Passed | None = None

    def __reduce__(self) -> tuple[type[Log], tuple[()]]:
        return Log, ()

    def record(self, passed: Passed) -> None:
        """Make `passed` the last, unless a later one is."""
        if self.last is None or self.last.number <= passed.number:
            self.last = passed


class Passed:
    """One forward pass through a layer, for its values.

    The activation is the graph's alone. Here is a weak reference, so that it is freed, or
    checkpointed, as if nobody watched; what the backward pass finds stays.
    """

    _numbers = itertools.count()

    def __init__(self, z: Tensor, objective: Objective, log: Log) -> None:
        self.number = next(self._numbers)
        self._z, self._shape = weakref.ref(z), z.shape
        self._objective = objective
        self._log = log
        self._residuals: terms.Residuals | None = None
        # A forward pass in a backward pass repeats what was checkpointed. The pass that it repeats
        # is in the log, or, if no gradient flowed there, this one will be by its backward pass.
        if torch._C._current_graph_task_id() == -1:
            log.record(self)

    def outputs(self) -> terms.Outputs | None:
        """Return the loss and its terms, detached; None where the activation left no trace.

        They are computed now, but for what a backward pass has found. A term that the objective
        has no need of is 0.
        """
        z = self._z()
        with torch.no_grad():
            if self._residuals is None and z is not None:
                with _no_autocast(z):
                    _, self._residuals = terms.evaluate(xp, (z,), self._objective)
            if self._residuals is None:
                return None
            like = torch.empty(self._shape, device="meta")
            objective = replace(self._objective, each_term=True)
            return terms.outputs_of(xp, like, self._residuals, objective)

    def gradient(self, here: Any, z: Tensor, objective: Objective, scale: Any) -> Tensor:
        """Return the gradient of `objective`, which may differ in its weights, like `z`."""
        if self._residuals is None:
            self._residuals, gradient = _residuals_and_gradient(here, z, objective, scale)
        else:
            (found,) = terms.pullback(here, (z,), self._residuals, (scale,), objective, (True,))
            gradient = cast(Tensor, found)
        self._log.record(self)
        return gradient


def _residuals_and_gradient(
    here: Any, z: Tensor, objective: Objective, scale: Any
) -> tuple[terms.Residuals, Tensor]:
    residuals, gradient = terms.residuals_and_gradient(here, z, objective, scale)
    return residuals, terms.finished(here, gradient, z, objective)


def regularized(z: Tensor, objective: Objective, scale: Any, passed: Passed | None) -> Tensor:
    """Return `z`; backwards, add `scale` times the gradient of the objective of this one view."""
    function: Any = _Regularized.apply
    found: Tensor = function(z, objective, scale, passed)
    return found


class _Regularized(torch.autograd.Function):
    """The identity, whose backward pass adds the gradient of an objective of one view."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, objective: Objective, scale: Any, passed: Passed | None) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.objective, ctx.scale, ctx.passed = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        with torch.no_grad(), _no_autocast(z):
            here = _namespace((incoming,))
            scale = ctx.scale() if callable(ctx.scale) else ctx.scale
            if ctx.passed is None:
                _, own = _residuals_and_gradient(here, z, ctx.objective, scale)
            else:
                own = ctx.passed.gradient(here, z, ctx.objective, scale)
            found = owned.add(here, own, incoming)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _not_twice(found, z, incoming)
        return found, None, None, None


def _not_twice(found: Tensor, *dependencies: Tensor) -> Tensor:
    function: Any = _NotTwice.apply
    refused: Tensor = function(found, *dependencies)
    return refused


class _NotTwice(torch.autograd.Function):
    """What was added to a gradient, with no derivative by what it depends on.

    A second derivative would come through the identity, where the gradient would be added once
    more; no layer can know which of its backward passes are of the loss. PyTorch's own
    ``once_differentiable`` refuses too, but under ``torch.func`` makes a derivative of zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(found: Tensor, z: Tensor, incoming: Tensor) -> Tensor:
        return found.view_as(found)

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
