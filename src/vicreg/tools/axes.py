"""The axes of the arrays that a function takes, in place of (n, d)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from vicreg.tools.backends import Floats

__all__ = ["Axes"]

_AXIS = re.compile(r"(\d*)([nd]?)")
#: Letters that people name axes by. Time, height and width have a length of 1.
_LETTERS = {"b": "n", "c": "d", "t": "1", "h": "1", "w": "1"}


@dataclass(frozen=True)
class Axes:
    """How n samples of d features are arranged on the axes of an array.

    Parameters
    ----------
    sizes : tuple of int
        The length of each axis; 0 for the one that takes the samples or the features that the
        other axes leave.
    of_features : tuple of bool
        For each axis, whether its places are features. Those of the others are samples.
    """

    sizes: tuple[int, ...] = (0, 0)
    of_features: tuple[bool, ...] = (False, True)

    @classmethod
    def of(cls, text: str | None) -> Axes:
        """Return the axes of a text such as "n,d,2,4,4"; None is "n,d".

        Raises
        ------
        ValueError
            It is no such text.
        """
        words = re.split(r"[,\s]+", ("n,d" if text is None else text).strip("()[] ").lower())
        matches = [_AXIS.fullmatch(_LETTERS.get(word, word)) for word in words]
        axes = [match.groups() for match in matches if match and match[0]]
        free = sorted(kind for number, kind in axes if not number)
        sizes = tuple(int(number or "0") for number, _ in axes)
        if len(axes) < len(words) or free != ["d", "n"] or sizes.count(0) > 2:
            raise ValueError(
                "shape must have n (samples) and d (features) once each; the other axes are "
                "numbers, for more samples, or numbers and d, for more features: 'n,d,1,1', "
                f"'n,d,2,4,4', 'd,n', 'n,4d,d'; got {text!r}"
            )
        return cls(sizes, tuple(kind == "d" for _, kind in axes))

    def arranged(self, z: Floats) -> Floats:
        """Return an array of shape (n, d) with these axes.

        Raises
        ------
        ValueError
            The samples or the features do not fill the axes.
        """
        return z.reshape(self._lengths(*z.shape)).transpose(np.argsort(self._order))

    def restored(self, array: Floats, n: int, d: int) -> Floats:
        """Return an array with these axes in the shape (n, d)."""
        return array.transpose(self._order).reshape(n, d)

    @property
    def _order(self) -> list[int]:
        """The axes of samples, then those of features."""
        return sorted(range(len(self.sizes)), key=self.of_features.__getitem__)

    def _lengths(self, n: int, d: int) -> list[int]:
        """Return the length of each axis in that order."""
        lengths = []
        for total, are_features, what in ((n, False, "samples"), (d, True, "features")):
            own = [
                size
                for size, kind in zip(self.sizes, self.of_features, strict=True)
                if kind == are_features
            ]
            others = math.prod(size for size in own if size)
            if total % others:
                raise ValueError(f"{total} {what} do not fill axes of {others}")
            lengths += [size or total // others for size in own]
        return lengths
