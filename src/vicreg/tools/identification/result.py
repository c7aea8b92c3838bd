"""The answer, and how it reads."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from vicreg._conventions import Weights, conventions, translate_weights

__all__ = ["Identification", "short"]

_WIDTH = 80
_NOTHING: Mapping[str, Weights] = MappingProxyType({})


def short(value: float) -> str:
    """Return a number in six digits at most."""
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.6g}").replace("e+", "e")


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What `identify` found out about a function.

    Parameters
    ----------
    convention : str or None
        The published convention that the function is; None where it is none of them.
    weights : tuple of three floats or None
        Of invariance, variance and covariance, as `nearest` uses them; None in the place of a
        term that is not recognised.
    gamma, eps : float or None
        None where there is no hinge to have them, or none that is recognised.
    nearest : str or None
        The convention, or where it is none of them the one that the fewest terms depart from;
        None where nothing could be compared.
    departures : tuple of str
        What departs from `nearest`, each with the term first, or with what is done to all of the
        inputs or the loss; of an identified function at most its ε.
    explained : bool
        Whether the function with these departures gives every value that was compared.
    equivalents : mapping of str to three floats
        Every published convention that is the same function with `gamma` and `eps`, and the
        weights it needs for that, at whatever number of features.
    residual : float
        The largest relative difference from the function to `nearest`, on random arrays: with
        the weights above where it is identified, and otherwise with the weights that bring
        `nearest` closest; nan where nothing could be compared.
    precision : str
        What the function computes in, by what it resolves: "float64" or "float32".
    notes : tuple of str
        What limits the answer: a single number of features that the function takes.

    Examples
    --------
    >>> from vicreg import identify, vicreg_loss
    >>> found = identify(lambda z1, z2: vicreg_loss(z1, z2, convention="paper"))
    >>> found.convention, found.weights, found.gamma, found.eps
    ('paper', (25.0, 25.0, 1.0), 1.0, 0.0001)
    >>> found.official_weights(d=2048)
    (51200.0, 50.0, 1.0)
    """

    convention: str | None
    weights: tuple[float | None, float | None, float | None]
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
        """Whether the function is a published convention, with whatever weights, γ and ε."""
        return self.convention is not None

    def official_weights(self, d: int) -> Weights | None:
        """Return the weights that make the official code compute this function.

        Its γ and ε have to be those identified, where they are not its own.

        Parameters
        ----------
        d : int
            The number of features: "squared norm" is d times "mean".

        Returns
        -------
        tuple of three floats, or None
            None where no weights do, or the function is not identified.
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
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["equivalents"] = dict(self.equivalents)
        fields["residual"] = None if math.isnan(self.residual) else self.residual
        return {"identified": self.identified, **fields}

    def __str__(self) -> str:
        if self.nearest is None:
            return _wrapped("", f"None of them: {'; '.join(self.departures)}")
        lines = [("", self._verdict(self.nearest))]
        lines += [("departs", departure) for departure in self.departures]
        if self.explained and not self.identified:
            text = "with this, every value compared is reproduced to rounding"
            lines.append(("explained", text))
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
        """Return what makes the official code compute the same."""
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
        """Return what the official code has to change beside its weights."""
        changes = []
        if self.gamma is not None and self.gamma != 1:
            changes.append(f"γ {short(self.gamma)} in place of 1")
        own = conventions["official"].eps
        if self.eps is not None and self.eps != own:
            changes.append(f"ε {short(self.eps)} in place of {short(own)}")
        return " and ".join(changes)

    def _formulas(self) -> str:
        """Return the official weights as they go with d, and for one d."""
        two, three, four = (self.official_weights(d) or (0.0, 0.0, 0.0) for d in (2, 3, 4))
        found = [_formula(*weights) for weights in zip(two, three, four, strict=True)]
        text = ", ".join(found)
        wide = self.official_weights(2048)
        if wide is not None and any("d" in formula for formula in found):
            text += f" ({_listed(wide)} at d = 2048)"
        return text

    def _same_lines(self) -> list[tuple[str, str]]:
        """Return the other conventions that are the same function, their own ε included."""
        others = [
            f"{name} with {_listed(weights)}"
            for name, weights in self.equivalents.items()
            if name not in (self.convention, "official")
            and self.eps in (None, conventions[name].eps)
        ]
        return [("same as", "; ".join(others))] if others else []


def _formula(two: float, three: float, four: float) -> str:
    """Return a weight as it goes with d, from its values at d = 2, 3 and 4."""
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
