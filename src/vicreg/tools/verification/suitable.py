"""The inputs for a user's function: of shapes that it accepts and computes in reasonable time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.identification.probes import (
    BATCHES,
    EVERY_D,
    Shape,
    shapes_to_try,
    takes_nothing,
)
from vicreg.tools.verification.cases import Case, case_of_size

__all__ = ["Suitable"]

#: A value that takes longer is slow, if it is more than twice that of a small input, and more than
#: this for each entry of a covariance or a view, of which plain code takes a tenth.
_SECONDS, _SECONDS_PER_ENTRY = 0.15, 5e-7
#: Of more features the truth itself takes long.
_MOST_FEATURES = 2048

_FEATURES = tuple(d for d in EVERY_D if d <= _MOST_FEATURES)
_Takes = Callable[[int, int], bool]


class Suitable:
    """The dtypes and the inputs that a function accepts, and what is left out.

    Parameters
    ----------
    function : LossFunction
        The function.
    dtypes : sequence of str
        The dtypes to use. A module with parameters takes that of its parameters alone.
    cases : sequence of Case
        The inputs to use. One whose shape the function refuses is enlarged until it does not.

    Raises
    ------
    FunctionError
        It takes no shape in any of the dtypes, or does not return a number.
    """

    def __init__(
        self, function: LossFunction, dtypes: Sequence[str], cases: Sequence[Case]
    ) -> None:
        self._function, self._cases = function, cases
        bases = {dtype: _first_shape(function, dtype, cases) for dtype in dtypes}
        taken = {dtype: base for dtype, base in bases.items() if base}
        if not taken:
            raise takes_nothing(function)
        self.dtypes, self._base = list(taken), next(iter(taken.values()))
        #: What is left out, and why; of the inputs, once they have all been yielded.
        self.left_out = {
            f"{function.name} on {function.backend} {dtype}": "it raises for every shape tried"
            for dtype in dtypes
            if dtype not in taken
        }
        self._seconds = cache(self._timed)

    def cases(self) -> Iterator[Case]:
        """Yield the inputs, each once."""
        yielded: set[Case] = set()
        refused: list[Case] = []
        slow: list[Case] = []
        for case in self._cases:
            if any(case.n >= other.n and case.d >= other.d for other in slow):
                slow.append(case)
                continue
            suited = _suited(case, self._base, lambda n, d: self._seconds(n, d) < math.inf)
            if suited is None:
                refused.append(case)
            elif self._is_slow(suited.n, suited.d):
                slow.append(case)
            elif suited not in yielded:
                yielded.add(suited)
                yield suited
        for cases, why in ((refused, "it takes no such shape"), (slow, "it takes long")):
            if cases:
                more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
                name = f"{self._function.name} on {self._function.backend}"
                self.left_out[f"{name}, {cases[0]}{more}"] = why
        if not yielded:
            raise FunctionError(
                f"{self._function.name} takes none of the inputs: it insists on another shape"
            )

    def _is_slow(self, n: int, d: int) -> bool:
        patience = max(_SECONDS, 2 * self._seconds(*self._base))
        return self._seconds(n, d) > patience + _SECONDS_PER_ENTRY * (n + d) * d

    def _timed(self, n: int, d: int) -> float:
        """Return the processor time of a value in seconds; inf if the shape is refused."""
        began = time.process_time()
        takes = self._function.takes(n, d, self.dtypes[0])
        return time.process_time() - began if takes else math.inf


def _first_shape(function: LossFunction, dtype: str, cases: Sequence[Case]) -> Shape | None:
    shapes = (*(Shape(case.n, case.d) for case in cases[:1]), *shapes_to_try())
    return next((shape for shape in shapes if function.takes(*shape, dtype)), None)


def _suited(case: Case, base: Shape, takes: _Takes) -> Case | None:
    """Return the case, in a shape that is at least as large; None if there is none."""
    if takes(case.n, case.d):
        return case
    is_wide = case.n <= case.d and not case.is_of_size
    n = _least(case.n, BATCHES, lambda n: takes(n, base.d))
    d = _least(max(case.d, (n or 0) * is_wide), _FEATURES, lambda d: takes(base.n, d))
    if case.n > case.d and not case.is_of_size:
        n = _least(case.n, BATCHES, lambda n: n > (d or 0) and takes(n, base.d))
    if n is None or d is None or not takes(n, d):
        return None
    if case.is_of_size:
        return case_of_size(n, d)
    suited = replace(case, shape=(n, d))
    # Whitened features exist for some n only.
    return suited if suited.views()[0].shape == suited.shape else None


def _least(length: int, others: Iterable[int], takes: Callable[[int], bool]) -> int | None:
    """Return the least of the lengths that is taken, from `length` on."""
    larger = sorted({length, *(other for other in others if other > length)})
    return next(filter(takes, larger), None)
