r"""Directives that show the conventions from the data that the package computes with.

``{formula} NAME`` is a convention's formula, with what differs from the official code marked by
``\class{differs}{...}``, and said in words. ``{codebases}`` is the table of what each codebase
computes, and ``{arguments}`` that of what each calls the arguments:

    ```{formula} paper
    ```
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

import vicreg._conventions
from vicreg._conventions import Codebase, Convention, codebases, codebases_of, conventions

OFFICIAL = conventions["official"]

_INVARIANCE = {"mean": r"\frac{1}{n\,d}", "squared norm": r"\frac{1}{n}"}
_DIVISOR = {"d": r"\frac{1}{d}", "d(d-1)": r"\frac{1}{d(d-1)}"}
_VIEWS = {"mean": r"\frac{1}{2}\sum_{\text{views}}", "sum": r"\sum_{\text{views}}"}

#: What a value of a field means, where the official code has another.
_IN_WORDS = {
    ("invariance", "squared norm"): (
        "Invariance: the squared distance between the two embeddings of a sample is averaged "
        "over the samples, but not over the features. This makes it $d$ times as large."
    ),
    ("invariance", "none"): "Invariance: there is no such term.",
    ("hinge_on", "variance"): (
        "Variance: the hinge is on the variance itself, without a root and without ε. So γ is a "
        "variance here, not a standard deviation."
    ),
    (
        "variance_correction",
        0,
    ): "Variance: the variance of a feature is divided by $n$, not by $n-1$.",
    ("variance_over_views", "sum"): (
        "Variance: the two views are added, not averaged. This makes it twice as large."
    ),
    ("covariance_correction", 0): "Covariance: the covariances are divided by $n$, not by $n-1$.",
    ("covariance_over_views", "mean"): (
        "Covariance: the two views are averaged, not added. This makes it half as large."
    ),
    ("covariance_divisor", "d(d-1)"): (
        "Covariance: the sum of squares is divided by $d(d-1)$, the number of off-diagonal "
        "covariances, not by $d$. This makes it smaller by a factor of $d-1$."
    ),
}


def formula(convention: Convention) -> str:
    """Return the LaTeX of a convention; the official one with what its symbols stand for."""
    return r"\begin{aligned}" + r"\\".join(_rows(convention)) + r"\end{aligned}"


def _rows(c: Convention) -> Iterator[str]:
    if c.invariance == "none":
        yield r"\text{invariance} &= " + _marked(c, "invariance", "0")
    else:
        mean = _marked(c, "invariance", _INVARIANCE[c.invariance])
        yield rf"\text{{invariance}} &= {mean}\sum_{{k=1}}^{{n}}\lVert z_k-z'_k\rVert^2"
    views = _marked(c, "variance_over_views", _VIEWS[c.variance_over_views])
    hinge = rf"\max\bigl(0,\,\gamma-{_under_the_hinge(c)}\bigr)"
    yield rf"\text{{variance}} &= {views}\frac{{1}}{{d}}\sum_{{j=1}}^{{d}}{hinge}"
    views = _marked(c, "covariance_over_views", _VIEWS[c.covariance_over_views])
    divisor = _marked(c, "covariance_divisor", _DIVISOR[c.covariance_divisor])
    yield rf"\text{{covariance}} &= {views}{divisor}\sum_{{i\ne j}}c_{{ij}}^2"
    yield from _definitions(c)


def _definitions(c: Convention) -> Iterator[str]:
    """Yield what the symbols stand for; for other than the official one, those that differ."""
    definitions = {
        "variance_correction": r"v_j &= {}\sum_{{k=1}}^{{n}}(z_{{kj}}-\bar z_j)^2",
        "covariance_correction": (
            r"c_{{ij}} &= {}\sum_{{k=1}}^{{n}}(z_{{ki}}-\bar z_i)(z_{{kj}}-\bar z_j)"
        ),
        "eps": r"\varepsilon &= {}",
        "weights": r"\lambda,\,\mu,\,\nu &= {}",
    }
    values = {
        "variance_correction": _over_samples(c.variance_correction),
        "covariance_correction": _over_samples(c.covariance_correction),
        "eps": _power(c.eps) if c.eps else "",
        "weights": r",\; ".join(_numbers(c)),
    }
    for field, definition in definitions.items():
        if values[field] and (c is OFFICIAL or _differs(c, field)):
            yield definition.format(_marked(c, field, values[field]))


def _differs(convention: Convention, field: str) -> bool:
    return bool(getattr(convention, field) != getattr(OFFICIAL, field))


def _marked(convention: Convention, field: str, latex: str) -> str:
    return rf"\class{{differs}}{{{latex}}}" if _differs(convention, field) else latex


def _over_samples(correction: int) -> str:
    return rf"\frac{{1}}{{n{-correction or ''}}}"


def _under_the_hinge(c: Convention) -> str:
    if c.hinge_on == "variance":
        return _marked(c, "hinge_on", "v_j")
    return r"\sqrt{v_j+\varepsilon}" if c.eps else _marked(c, "eps", r"\sqrt{v_j}")


def _power(number: float) -> str:
    mantissa, exponent = f"{number:e}".split("e")
    times = "" if float(mantissa) == 1 else rf"{float(mantissa):g}\cdot "
    return f"{times}10^{{{int(exponent)}}}"


def in_words(convention: Convention) -> Iterator[str]:
    """Yield what a convention does otherwise than the official code."""
    for (field, value), text in _IN_WORDS.items():
        if getattr(convention, field) == value:
            yield text
    if _differs(convention, "eps") and convention.hinge_on == "std":
        here = f"it is ${_power(convention.eps)}$" if convention.eps else "there is none"
        yield f"ε: {here}. In the official code it is ${_power(OFFICIAL.eps)}$."
    if convention.weights is None:
        yield "Weights: none are published. They depend on the network, and must be given."
    elif _differs(convention, "weights"):
        ours, official = (", ".join(_numbers(c)) for c in (convention, OFFICIAL))
        yield f"Weights: {ours}. The official ones are {official}."


def _numbers(convention: Convention) -> list[str]:
    return [f"{weight:g}" for weight in convention.weights or ()]


class _FromData(Directive):
    """Markdown made from the conventions."""

    def _markdown(self) -> Iterator[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        self.state.document.settings.env.note_dependency(vicreg._conventions.__file__)
        self.state.document.settings.env.note_dependency(__file__)
        content = nodes.container()
        lines = StringList(list(self._markdown()), source=self.name)
        self.state.nested_parse(lines, self.content_offset, content)
        return content.children


class Formula(_FromData):
    """The formula of a convention, where it is from, and what differs from the official one."""

    required_arguments = 1

    def _markdown(self) -> Iterator[str]:
        convention = conventions[self.arguments[0]]
        own = [
            name
            for name in codebases_of(convention.name)
            if not convention.source.startswith(name)
        ]
        yield f"From {convention.source}." + (
            f" The same function: {', '.join(own)}." if own else ""
        )
        yield from ("", "$$", formula(convention), "$$", "")
        yield from (f"- {text}" for text in in_words(convention))


class Codebases(_FromData):
    """What each codebase and each publication computes, and how to call it."""

    def _markdown(self) -> Iterator[str]:
        yield "| Your code is from | You have | Write |"
        yield "|---|---|---|"
        for codebase in codebases.values():
            yield _row(f"{codebase.name}, {codebase.function}", codebase.convention, codebase.name)
        for convention in conventions.values():
            if not any(map(convention.source.startswith, codebases_of(convention.name))):
                yield _row(convention.source, convention.name, convention.name)


def _row(code: str, convention: str, name: str) -> str:
    argument = "" if convention == OFFICIAL.name else f', convention="{name}"'
    call = f"vicreg_loss(z1, z2{argument})"
    if conventions[convention].weights is None:
        call = "vcreg_loss(z, variance_weight=…, covariance_weight=…)"
    return f"| {code} | [{convention}](#{convention}) | `{call}` |"


class Arguments(_FromData):
    """What each codebase calls the arguments."""

    def _markdown(self) -> Iterator[str]:
        weights = ("invariance_weight=", "variance_weight=", "covariance_weight=")
        yield "| | " + " | ".join(f"`{name}`" for name in weights) + " | others |"
        yield "|---|" + "---|" * 4
        for codebase in codebases.values():
            theirs = (_theirs(codebase, {name}) for name in weights)
            others = set(codebase.arguments.values()) - set(weights)
            mapped = (f"{_theirs(codebase, {ours})}: `{ours}`" for ours in sorted(others))
            yield f"| {codebase.name} | {' | '.join(theirs)} | {', '.join(mapped)} |"


def _theirs(codebase: Codebase, ours: set[str]) -> str:
    return "".join(f"`{theirs}`" for theirs, name in codebase.arguments.items() if name in ours)


def setup(app: Any) -> dict[str, bool]:
    """Give Sphinx the directives."""
    app.add_directive("formula", Formula)
    app.add_directive("codebases", Codebases)
    app.add_directive("arguments", Arguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
