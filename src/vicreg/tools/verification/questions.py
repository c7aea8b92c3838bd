"""The questions to a library about an input: every way to compute a value or a gradient.

A question calls public functions as a user would, and yields what they return together with what
that should be: a weighted sum of the terms, its gradient, or a derivative of either.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import vicreg
from vicreg._core.sizes import DEFAULT_SIZES
from vicreg.tools.backends import Array, Backend
from vicreg.tools.verification.cases import Axis
from vicreg.tools.verification.definition import DEFINITIONS, TERMS, Definition, Three
from vicreg.tools.verification.paths import Path

__all__ = [
    "BASIC",
    "EVALUATIONS",
    "EVERY",
    "LARGE",
    "LARGEST",
    "LARGEST_OF_SLOW",
    "PARTS",
    "REST",
    "SECOND",
    "THREE",
    "VCREG",
    "Answer",
    "Asked",
    "Question",
    "Way",
]


class Answer(NamedTuple):
    """What a function returned, and what it should be.

    Parameters
    ----------
    name : str
        The name of the quantity in messages.
    kind : {"value", "gradient", "change", "curvature"}
        A value, its gradient, the value's derivative along the directions of the input, or the
        gradient's.
    weights : tuple of three floats
        The weights of the terms in the value.
    arrays : array, or tuple with an array or None for each view
        What the library returned.
    view : int, optional
        The index of the view, for a function of one view.
    moving : tuple of bool, optional
        Which views have a direction; all of them by default.
    beside : bool
        Whether the gradient contains the directions, added to it.
    """

    name: str
    kind: str
    weights: Three
    arrays: Any
    view: int | None = None
    moving: tuple[bool, ...] | None = None
    beside: bool = False


@dataclass(frozen=True)
class Way:
    """How the functions are called.

    Parameters
    ----------
    path : Path
        The path through the core.
    convention : str
        The name of the formula.
    definition : Definition
        The formula; its γ and ε may differ from the convention's.
    method : str
        The route of the covariance term.
    feature_axis, sample_axis : int or tuple of int
        Where the features and the samples are; the latter None by default.
    """

    path: Path
    convention: str
    definition: Definition
    method: str = "auto"
    feature_axis: Axis = -1
    sample_axis: Axis | None = None

    @property
    def functions(self) -> Any:
        """The object with the public functions: the path, or the package for the default sizes."""
        return vicreg if self.is_public else self.path

    @property
    def is_public(self) -> bool:
        """Whether the sizes are the default ones."""
        return self.path.sizes == DEFAULT_SIZES

    @property
    def axes(self) -> dict[str, Any]:
        """Where the features and the samples are, as the functions are told."""
        return {"feature_axis": self.feature_axis, "sample_axis": self.sample_axis}

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the functions except for the weights."""
        definition = self.definition
        settings = {
            "gamma": definition.gamma,
            "method": self.method,
            **self.axes,
        }
        if definition.eps != DEFINITIONS[self.convention].eps:
            settings["eps"] = definition.eps
        return settings


@dataclass(frozen=True)
class Asked:
    """The library, the way to call it, and the arrays: views and one direction per view."""

    backend: Backend
    way: Way
    arrays: tuple[Array, ...]
    directions: tuple[Array, ...]

    @property
    def weights(self) -> Three:
        """The weights of the formula."""
        return self.way.definition.weights

    def loss(self, weights: Three | None = None) -> Callable[..., Array]:
        """Return `vicreg_loss` as a function of the views only."""
        settings = self._settings(weights)
        return lambda *views: self.way.functions.vicreg_loss(*views, **settings)

    def terms(self) -> Callable[..., Sequence[Array]]:
        """Return `vicreg_terms` as a function of the views only."""
        settings = self._settings()
        return lambda *views: self.way.functions.vicreg_terms(*views, **settings)

    def value_and_grad(self, weights: Three | None = None) -> tuple[Array, tuple[Array, ...]]:
        """Return what `vicreg_value_and_grad` does."""
        result: tuple[Array, tuple[Array, ...]] = self.way.functions.vicreg_value_and_grad(
            *self.arrays, **self._settings(weights)
        )
        return result

    def gradient(
        self, function: Callable[..., Any], wanted: Sequence[bool] | None = None
    ) -> tuple[Array | None, ...]:
        """Return the gradient of a function by automatic differentiation."""
        return self.backend.differentiate(function, self.arrays, wanted)[1]

    def _settings(self, weights: Three | None = None) -> dict[str, Any]:
        names = (f"{term}_weight" for term in TERMS)
        chosen = dict(zip(names, weights or self.weights, strict=True))
        return {"convention": self.way.convention, **chosen, **self.way.settings}


Question = Callable[[Asked], Iterator[Answer]]

_UNITS: tuple[Three, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
#: Weights of each pair of terms.
_TWO: tuple[Three, ...] = ((1.0, 2.0, 0.0), (1.0, 0.0, 2.0), (0.0, 1.0, 2.0))
#: Weights of the terms that are added to the loss.
_ALL_THREE: Three = (2.0, 3.0, 4.0)


def _named(weights: Three) -> str:
    terms = [term for term, weight in zip(TERMS, weights, strict=True) if weight]
    return f"{terms[0]} alone" if len(terms) == 1 else " and ".join(terms)


def _times(factor: float, weights: Three) -> Three:
    return (factor * weights[0], factor * weights[1], factor * weights[2])


def _values(asked: Asked) -> Iterator[Answer]:
    loss, *terms = asked.terms()(*asked.arrays)
    yield Answer("loss", "value", asked.weights, loss)
    for name, unit, term in zip(TERMS, _UNITS, terms, strict=True):
        yield Answer(name, "value", unit, term)
    loss = asked.loss()(*asked.arrays)
    yield Answer("loss of vicreg_loss", "value", asked.weights, loss)


def _closed_form(asked: Asked) -> Iterator[Answer]:
    loss, gradients = asked.value_and_grad()
    yield Answer("loss of vicreg_value_and_grad", "value", asked.weights, loss)
    yield Answer("gradient", "gradient", asked.weights, tuple(gradients))


def _by_autodiff(asked: Asked) -> Iterator[Answer]:
    if not asked.backend.differentiates:
        return
    loss, gradients = asked.backend.differentiate(asked.loss(), asked.arrays)
    yield Answer("loss that is differentiated", "value", asked.weights, loss)
    yield Answer("autodiff gradient", "gradient", asked.weights, gradients)


def _of_terms(asked: Asked, weights: Three, of_loss: float = 0.0) -> Callable[..., Array]:
    """Return a weighted sum of the outputs of `vicreg_terms`."""

    def weighted(*views: Array) -> Array:
        outputs = asked.terms()(*views)
        # Integers: with a float torch.func.jvp would turn float32 into float64.
        factors = zip((of_loss, *weights), outputs, strict=True)
        parts = [int(factor) * output for factor, output in factors if factor]
        return sum(parts[1:], parts[0])

    return weighted


def _term_by_term(asked: Asked) -> Iterator[Answer]:
    yield from _of_outputs(asked, _UNITS)


def _pairs_of_terms(asked: Asked) -> Iterator[Answer]:
    yield from _of_outputs(asked, _TWO)
    if asked.backend.differentiates:
        gradients = asked.gradient(_of_terms(asked, (0.0, 0.0, 0.0), of_loss=1.0))
        yield Answer("gradient of vicreg_terms' loss", "gradient", asked.weights, gradients)


def _of_outputs(asked: Asked, choices: Sequence[Three]) -> Iterator[Answer]:
    if not asked.backend.differentiates:
        return
    for weights in choices:
        of_terms = _of_terms(asked, weights)
        value, gradients = asked.backend.differentiate(of_terms, asked.arrays)
        name = f"{_named(weights)} of vicreg_terms"
        yield Answer(f"{name}, differentiated", "value", weights, value)
        yield Answer(f"gradient of the {name}", "gradient", weights, gradients)


def _weights_of_one(asked: Asked) -> Iterator[Answer]:
    """One term each: a weight of 0 leaves a term out, by other code than all three take."""
    yield from _of_weights(asked, _UNITS)


def _weights_of_two(asked: Asked) -> Iterator[Answer]:
    yield from _of_weights(asked, _TWO)


def _of_weights(asked: Asked, choices: Sequence[Three]) -> Iterator[Answer]:
    for weights in choices:
        if weights[0] and asked.way.definition.invariance is None:
            continue  # there is no such term
        name = f"the {_named(weights)}"
        loss, gradients = asked.value_and_grad(weights)
        yield Answer(f"loss of {name}", "value", weights, loss)
        yield Answer(f"gradient of {name}", "gradient", weights, tuple(gradients))
        if asked.backend.differentiates:
            of_loss = asked.loss(weights)
            # Twice the loss, so that the incoming gradient is not 1.
            gradients = asked.gradient(lambda *views, of_loss=of_loss: 2 * of_loss(*views))
            yield Answer(f"autodiff gradient of {name}", "gradient", _times(2, weights), gradients)


def _single_functions(asked: Asked) -> Iterator[Answer]:
    """`invariance_loss`, `variance_loss` and `covariance_loss`, which have the default sizes."""
    way, first = asked.way, asked.arrays[:1]
    if not way.is_public or len(asked.arrays) != 2:
        return
    settings = way.settings
    of_variance = {name: value for name, value in settings.items() if name != "method"}
    of_covariance = {"method": way.method, **way.axes}
    calls: list[tuple[str, dict[str, Any], tuple[Array, ...], int | None]] = [
        ("variance", of_variance, first, 0),
        ("covariance", of_covariance, first, 0),
    ]
    if way.definition.invariance is not None:
        calls.append(("invariance", way.axes, asked.arrays, None))
    for term, chosen, arrays, view in calls:
        unit = _UNITS[TERMS.index(term)]
        public = getattr(vicreg, f"{term}_loss")

        def function(*views: Array, public: Any = public, chosen: Any = chosen) -> Array:
            value: Array = public(*views, convention=way.convention, **chosen)
            return value

        name = f"{term}_loss"
        yield Answer(name, "value", unit, function(*arrays), view)
        if asked.backend.differentiates:
            _, gradients = asked.backend.differentiate(function, arrays)
            yield Answer(f"gradient of {name}", "gradient", unit, gradients, view)


def _some_views(asked: Asked) -> Iterator[Answer]:
    """Gradients with respect to some of the views, as if the others came from a teacher."""
    if not asked.backend.differentiates:
        return
    for wanted in itertools.product((False, True), repeat=len(asked.arrays)):
        if not any(wanted) or all(wanted):
            continue
        chosen = ", ".join(str(place + 1) for place, is_wanted in enumerate(wanted) if is_wanted)
        gradients = asked.gradient(asked.loss(), wanted)
        name = f"autodiff gradient by view {chosen}"
        yield Answer(name, "gradient", asked.weights, gradients)
        gradients = asked.gradient(_of_terms(asked, _ALL_THREE), wanted)
        name = f"gradient by view {chosen}, by vicreg_terms"
        yield Answer(name, "gradient", _ALL_THREE, gradients)


def _both(asked: Asked) -> Iterator[tuple[str, Three, Callable[..., Array]]]:
    """Twice the loss, and a weighted sum of all outputs of `vicreg_terms`."""
    yield "loss", _times(2, asked.weights), lambda *views: 2 * asked.loss()(*views)
    w = asked.weights
    weights = (w[0] + _ALL_THREE[0], w[1] + _ALL_THREE[1], w[2] + _ALL_THREE[2])
    yield "terms", weights, _of_terms(asked, _ALL_THREE, of_loss=1.0)


def _other_ways(asked: Asked) -> Iterator[Answer]:
    for what, weights, function in _both(asked):
        for name, way in asked.backend.gradient_ways.items():
            gradients = way(function, asked.arrays)
            yield Answer(f"gradient of the {what} by {name}", "gradient", weights, gradients)


def _forward_mode(asked: Asked) -> Iterator[Answer]:
    for what, weights, function in _both(asked):
        for name, way in asked.backend.forward_ways.items():
            change = way(function, asked.arrays, asked.directions)
            yield Answer(f"derivative of the {what} by {name}", "change", weights, change)


def _second_derivatives(asked: Asked) -> Iterator[Answer]:
    *others, last = asked.arrays
    moving = (*(False for _ in others), True)
    for what, weights, function in _both(asked):
        for name, way in asked.backend.second_ways.items():
            changes = way(function, asked.arrays, asked.directions)
            named = f"second derivative of the {what} by {name}"
            yield Answer(named, "curvature", weights, tuple(changes))

    def of_last(view: Array) -> Array:
        return asked.loss()(*others, view)

    for name, way in asked.backend.second_ways.items():
        (change,) = way(of_last, (last,), asked.directions[-1:])
        changes = (*(None for _ in others), change)
        named = f"second derivative by the last view by {name}"
        yield Answer(named, "curvature", asked.weights, changes, None, moving)


def _vcreg_settings(asked: Asked, weights: Three) -> dict[str, Any]:
    way = asked.way
    settings = {
        "variance_weight": weights[1],
        "covariance_weight": weights[2],
        **way.settings,
    }
    if way.definition.delta is not None:
        settings |= {"penalty": "smooth_l1", "delta": way.definition.delta}
    return settings


def _vcreg(asked: Asked) -> Iterator[Answer]:
    functions = asked.way.functions
    for weights in (asked.weights, *_UNITS[1:]):
        of = "" if weights == asked.weights else f" of the {_named(weights)}"
        settings = _vcreg_settings(asked, weights)
        loss = functools.partial(functions.vcreg_loss, **settings)
        yield Answer(f"vcreg_loss{of}", "value", weights, loss(*asked.arrays))
        value, gradient = functions.vcreg_value_and_grad(*asked.arrays, **settings)
        yield Answer(f"loss of vcreg_value_and_grad{of}", "value", weights, value)
        yield Answer(f"gradient of vcreg_value_and_grad{of}", "gradient", weights, (gradient,))
        if asked.backend.differentiates:
            gradients = asked.gradient(lambda view, loss=loss: 2 * loss(view))
            name = f"autodiff gradient of vcreg_loss{of}"
            yield Answer(name, "gradient", _times(2, weights), gradients)


def _vcreg_layer(asked: Asked) -> Iterator[Answer]:
    """What the VCReg layer adds to a gradient; it has the default sizes and no method."""
    if not asked.way.is_public or not asked.backend.differentiates:
        return
    settings = _vcreg_settings(asked, asked.weights)
    del settings["method"]
    layer = asked.backend.vcreg_layer(scale=2.0, **settings)
    if layer is None:
        return
    (incoming,) = asked.directions

    def below(view: Array) -> Array:
        return (layer(view) * incoming).sum()

    gradients = asked.gradient(below)
    name = "gradient that VCReg adds as a layer"
    yield Answer(name, "gradient", _times(2, asked.weights), gradients, beside=True)


def _all_terms(asked: Asked) -> Iterator[Answer]:
    """The gradient of a sum of all terms and the loss: a single one, for slow libraries."""
    *_, (_, weights, function) = _both(asked)
    value, gradients = asked.backend.differentiate(function, asked.arrays)
    yield Answer("loss and terms of vicreg_terms", "value", weights, value)
    yield Answer("gradient of vicreg_terms", "gradient", weights, gradients)


def _values_alone(asked: Asked) -> Iterator[Answer]:
    """The values, if the library has no automatic differentiation, which also returns them."""
    if not asked.backend.differentiates:
        yield from _values(asked)


#: For every input.
BASIC: tuple[Question, ...] = (_values, _closed_form, _by_autodiff, _term_by_term)
#: For random inputs.
EVERY = (
    *BASIC,
    _pairs_of_terms,
    _weights_of_one,
    _weights_of_two,
    _single_functions,
    _some_views,
    _other_ways,
    _forward_mode,
)
#: The same in parts, for libraries that compile.
PARTS: tuple[tuple[Question, ...], ...] = (
    (*BASIC, _weights_of_one),
    (*BASIC, _pairs_of_terms),
)
REST: tuple[Question, ...] = (_weights_of_two, _single_functions)
THREE = (*BASIC, _some_views)
SECOND: tuple[Question, ...] = (_forward_mode, _second_derivatives)
VCREG: tuple[Question, ...] = (_vcreg, _vcreg_layer)
#: For large inputs, and for the largest.
LARGE = (*BASIC, _weights_of_one, _some_views)
LARGEST: tuple[Question, ...] = (_values_alone, _closed_form, _by_autodiff, _term_by_term)
LARGEST_OF_SLOW: tuple[Question, ...] = (_closed_form, _all_terms)

#: How many times each evaluates the loss with its gradient, to estimate the time.
EVALUATIONS: Mapping[Question, int] = {
    _values: 2,
    _closed_form: 1,
    _by_autodiff: 1,
    _term_by_term: 3,
    _pairs_of_terms: 4,
    _weights_of_one: 6,
    _weights_of_two: 6,
    _single_functions: 6,
    _some_views: 6,
    _other_ways: 12,
    _forward_mode: 8,
    _second_derivatives: 40,
    _vcreg: 9,
    _vcreg_layer: 2,
    _all_terms: 1,
    _values_alone: 1,
}
