"""The answer of `identify`, and its text."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from vicreg._conventions import Weights, codebases_of, conventions, translate_weights

__all__ = ["Identification", "MaybeWeights", "short"]

#: The weights of invariance, variance and covariance; None for a term that is not recognised.
MaybeWeights = tuple[float | None, float | None, float | None]
_WIDTH = 80
_NOTHING: Mapping[str, Weights] = MappingProxyType({})


def short(value: float) -> str:
    """Return a number with at most six digits."""
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.6g}").replace("e+", "e")


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Which published convention a function computes, or what departs. `identify` returns it.

    ``print`` shows it in a few lines.

    Parameters
    ----------
    convention : str or None
        The published convention that the function computes; None if it is none of them.
    weights : tuple of three floats or None
        The weights of invariance, variance and covariance, as `nearest` uses them; None for a
        term that is not recognised.
    gamma, eps : float or None
        γ and ε; None if no hinge is recognised.
    nearest : str or None
        The convention, or else the one from which the fewest terms depart; None if nothing could
        be compared.
    departures : tuple of str
        What departs from `nearest`. Each begins with the term, or with what is done to all inputs
        or to the loss. An identified function departs at most in its ε.
    explained : bool
        Whether `nearest` with these departures gives every value that was compared.
    equivalents : mapping of str to three floats
        Every published convention that is the same function with `gamma` and `eps`, for any
        number of features, and the weights that it needs for that.
    residual : float
        The largest relative difference between the function and `nearest` on random arrays: with
        `weights` if it is identified, and otherwise with those weights that fit best; nan if
        nothing could be compared.
    precision : str
        The precision that the function computes in: "float64" or "float32".
    notes : tuple of str
        What limits the answer, such as a function that takes only one number of features.

    Attributes
    ----------
    identified : bool
        Whether the function is a published convention, with any weights, γ and ε.
    codebases : tuple of str
        The codebases that compute the convention.

    Examples
    --------
    >>> from vicreg import identify, vicreg_loss
    >>> answer = identify(lambda z1, z2: vicreg_loss(z1, z2, convention="paper"))
    >>> answer.convention, answer.weights, answer.gamma, answer.eps
    ('paper', (25.0, 25.0, 1.0), 1.0, 0.0001)
    >>> answer.official_weights(d=2048)
    (51200.0, 50.0, 1.0)
    """

    convention: str | None
    weights: MaybeWeights
    gamma: float | None
    eps: float | None
    nearest: str | None
    departures: tuple[str, ...] = ()
    explained: bool = True
    equivalents: Mapping[str, Weights] = field(default_factory=lambda: _NOTHING)
    residual: float
    precision: str = "float64"
    notes: tuple[str, ...] = ()

    @property
    def identified(self) -> bool:
        """Whether the function is a published convention, with any weights, γ and ε."""
        return self.convention is not None

    @property
    def codebases(self) -> tuple[str, ...]:
        """The codebases that compute the convention, by the names that ``convention=`` takes."""
        return codebases_of(self.convention or "")

    def official_weights(self, d: int) -> Weights | None:
        """Return the weights with which the official code computes this function.

        If `gamma` or `eps` differ from the official ones, they have to be changed there too.

        Parameters
        ----------
        d : int
            The number of features: the invariance of some conventions is d times the mean.

        Returns
        -------
        tuple of three floats, or None
            Those of invariance, variance and covariance. None if there are no such weights, or the
            function is not identified.
        """
        weights, _ = self._official(d)
        return weights

    def _official(self, d: int) -> tuple[Weights | None, str]:
        """Return the official weights, or None and the reason."""
        if self.convention is None:
            return None, "the function is none of the published ones"
        source, target = conventions[self.convention], conventions["official"]
        if source.hinge_on == target.hinge_on and self.eps is not None:
            source, target = (replace(c, eps=self.eps) for c in (source, target))
        weights = [weight for weight in self.weights if weight is not None]
        try:
            return translate_weights(weights, source, target, d), ""
        except ValueError as error:
            return None, str(error).partition(": ")[2]

    def as_data(self) -> dict[str, Any]:
        """Return the answer as plain data, for JSON.

        Returns
        -------
        dict
            The fields by name, with "identified" and "codebases".
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["equivalents"] = dict(self.equivalents)
        fields["residual"] = self.residual if math.isfinite(self.residual) else None
        return {"identified": self.identified, "codebases": self.codebases, **fields}

    def __str__(self) -> str:
        if self.nearest is None:
            return _wrapped("", f"None of them: {'; '.join(self.departures)}")
        lines = [("", self._verdict(self.nearest))]
        lines += [("departs", departure) for departure in self.departures]
        if self.explained and not self.identified:
            text = "with this, every value compared is reproduced to rounding"
            lines.append(("explained", text))
        if self.codebases:
            lines.append(("codebases", ", ".join(self.codebases)))
        lines += self._official_lines() + self._same_lines()
        lines.append(("residual", self._residual()))
        lines += [("note", note) for note in self.notes]
        return "\n".join(_wrapped(label, text) for label, text in lines)

    def _verdict(self, nearest: str) -> str:
        if self.identified:
            return f"{nearest}, {self._numbers(nearest)}"
        if all(weight is None for weight in self.weights):
            return f"None of them; no term is recognised. Nearest: {nearest}"
        return f"None of them. Nearest: {nearest}, {self._numbers(nearest)}"

    def _numbers(self, nearest: str) -> str:
        published = conventions[nearest].weights == self.weights
        numbers = f"with {'its published ' if published else ''}weights {_listed(self.weights)}"
        if self.gamma is not None:
            numbers += f"; γ {short(self.gamma)}"
        if self.eps is not None and conventions[nearest].hinge_on == "std":
            numbers += f", ε {short(self.eps)}"
        return numbers

    def _residual(self) -> str:
        how = "" if self.identified else f" from {self.nearest} with the weights that fit best,"
        return f"{self.residual:.1g}{how} on random arrays ({self.precision})"

    def _official_lines(self) -> list[tuple[str, str]]:
        """Return with which weights and numbers the official code computes the same."""
        if not self.identified:
            return []
        official = conventions["official"]
        weights, reason = self._official(2)
        if weights is None:
            return [("official", f"no weights make it compute this: {reason}")]
        changes = self._changes()
        if self.convention == "official" and not changes:
            return []
        if weights == official.weights == self._official(4)[0]:
            text = "computes this with its published weights"
        else:
            text = f"computes this with weights {self._formulas()}"
        return [("official", f"{text} and {changes}" if changes else text)]

    def _changes(self) -> str:
        """Return what has to be changed in the official code besides its weights."""
        changes = []
        if self.gamma is not None and self.gamma != 1:
            changes.append(f"γ {short(self.gamma)} in place of 1")
        own = conventions["official"].eps
        if self.eps is not None and self.eps != own:
            changes.append(f"ε {short(self.eps)} in place of {short(own)}")
        return " and ".join(changes)

    def _formulas(self) -> str:
        """Return the official weights as formulas of d, and for one d."""
        two, three, four = (self.official_weights(d) or (0.0, 0.0, 0.0) for d in (2, 3, 4))
        text = ", ".join(_formula(*weights) for weights in zip(two, three, four, strict=True))
        wide = self.official_weights(2048)
        if wide is not None and "d" in text:
            text += f" ({_listed(wide)} at d = 2048)"
        return text

    def _same_lines(self) -> list[tuple[str, str]]:
        """Return the other conventions that are the same function with their own ε."""
        others = [
            f"{name} with {_listed(weights)}"
            for name, weights in self.equivalents.items()
            if name not in (self.convention, "official")
            and self.eps in (None, conventions[name].eps)
        ]
        return [("same as", "; ".join(others))] if others else []


def _formula(two: float, three: float, four: float) -> str:
    """Return a weight as a formula of d, from its values at d = 2, 3 and 4."""
    if abs(two - four) <= 1e-9 * two:
        return short(two)
    if abs(2 * two - four) <= 1e-9 * four:
        return f"{short(two / 2)}·d"
    return f"{short(2 * three)}/(d - 1)"


def _listed(weights: tuple[float | None, ...]) -> str:
    return ", ".join("?" if weight is None else short(weight) for weight in weights)


def _wrapped(label: str, text: str) -> str:
    indent = " " * 11
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"{label:11}" if label else "",
        subsequent_indent=indent if label else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
