"""JAX: the program that its compiler makes, which is not run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from vicreg.tools.benchmark.counting.counts import Counts

__all__ = ["count"]


def count(function: Callable[..., Any], views: Sequence[jax.ShapeDtypeStruct]) -> Counts:
    """Return what the compiled `function` consists of.

    Parameters
    ----------
    function : callable
        Of as many arrays as there are views.
    views : sequence of jax.ShapeDtypeStruct
        The shapes and dtypes of the views.

    Returns
    -------
    Counts
        The instructions of the compiled program, most of them fusions; the bytes that the compiler
        says they access; and the multiply-adds of the products in the program that is compiled.
        A loop is one instruction. The compiler counts the bytes of one round of it.
    """
    traced = jax.jit(function).trace(*views)
    compiled = traced.lower().compile()
    costs: Any = compiled.cost_analysis()
    return Counts(
        _instructions(compiled.as_text()),
        int(costs["bytes accessed"]),
        sum(map(_multiply_adds, _products(traced.jaxpr.jaxpr))),
    )


#: Instructions that nothing is done for when the program runs.
_NOTHING_TO_DO = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*?[\])}] ([a-z][a-z\-]*)\(", flags=re.M)


def _instructions(program: str) -> int:
    """Return how many instructions the entry of a program has, as the compiler prints it."""
    _, _, entry = program.partition("\nENTRY ")
    entry, _, _ = entry.partition("\n}")
    return sum(name not in _NOTHING_TO_DO for name in _INSTRUCTION.findall(entry))


def _products(jaxpr: Any) -> Iterator[Any]:
    """Yield the matrix products of a traced program, except for those in loops."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        elif equation.primitive.name != "while":
            for inner in _programs_in(equation.params.values()):
                yield from _products(inner)


def _programs_in(parameters: Iterable[Any]) -> Iterator[Any]:
    """Yield the traced programs among the parameters of an operation."""
    for parameter in parameters:
        if isinstance(parameter, tuple | list):
            yield from _programs_in(parameter)
        elif hasattr(jaxpr := getattr(parameter, "jaxpr", parameter), "eqns"):
            yield jaxpr


def _multiply_adds(product: Any) -> int:
    (contracted, _), _ = product.params["dimension_numbers"]
    (left, _), (result,) = product.invars, product.outvars
    lengths = (left.aval.shape[axis] for axis in contracted)
    number: int = math.prod((*result.aval.shape, *lengths))
    return number
