"""The plan: which questions for which input, in which dtype, on which path, by which route.

All combinations would take an hour. With the parts below each library has, at least once,

=====================  ===========================================================================
every                  in every
=====================  ===========================================================================
path                   route (Gram, covariance), dtype, and every question about two views
convention             full dtype; both routes, each in one dtype or another
hard input             path, in a full dtype and a half one; and dtype
path                   method that the shape would not take by itself; 3 views, each choice of
                       those that are differentiated; positions, and features on other axes;
                       second derivative; VCReg, its two penalties, positions and none
threshold of a size    public function, as it comes
=====================  ===========================================================================

A library that compiles (JAX) compiles all questions for inputs of one shape at once, which takes
most of its time. So it has only some of the lower rows, with each path among them. It compiles
with all optimisations for each path by each route in one full dtype and for large inputs, and
otherwise without those of its compiler's back end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vicreg.tools.backends import Backend
from vicreg.tools.verification import questions
from vicreg.tools.verification.cases import CASES, LARGE, MORE, VCREG, Case
from vicreg.tools.verification.definition import DEFINITIONS, Definition
from vicreg.tools.verification.paths import AS_CALLED, PATHS, Path
from vicreg.tools.verification.problems import FULL
from vicreg.tools.verification.questions import (
    BASIC,
    EVERY,
    PARTS,
    REST,
    SECOND,
    THREE,
    Question,
    Way,
)

__all__ = ["Setup", "setups"]


@dataclass(frozen=True)
class Setup:
    """Questions about inputs of one shape and dtype, with one way to call the functions.

    Parameters
    ----------
    way : Way
        How the functions are called.
    dtype : str
        The dtype of the inputs.
    cases : tuple of Case
        The inputs.
    questions : tuple of Question
        The questions about the first input. The others have those of them that are in `BASIC`.
    compiled : tuple of Question, optional
        The questions for a library that compiles: the same if None, none if empty.
    optimised : bool
        Whether such a library compiles with all optimisations, or faster, to slower code.
    """

    way: Way
    dtype: str
    cases: tuple[Case, ...]
    questions: tuple[Question, ...]
    compiled: tuple[Question, ...] | None = None
    optimised: bool = False

    def __str__(self) -> str:
        names = self.cases[0].name
        more = len(self.cases) - 1
        return f"{names}{f' and {more} more' if more else ''}, {self.way.path}"

    def is_for(self, backend: Backend) -> bool:
        """Whether `backend` has any of these questions."""
        return (
            self.dtype in backend.dtypes
            and bool(self.questions_of(self.cases[0], backend))
            and (backend.takes_large or self.cases[0].exactly)
        )

    def questions_of(self, case: Case, backend: Backend) -> tuple[Question, ...]:
        """Return the questions for `backend` about a case."""
        asked = self.questions
        if backend.always_compiled and self.compiled is not None:
            asked = self.compiled
        if backend.multiplies_slowly and asked == questions.LARGEST:
            return questions.LARGEST_OF_SLOW
        if case is self.cases[0]:
            return asked
        return tuple(question for question in asked if question in BASIC)


def setups(
    dtypes: Sequence[str],
    conventions: Sequence[str],
    full: bool = False,
    paths: Sequence[Path] = PATHS,
) -> list[Setup]:
    """Return all setups, in order.

    Parameters
    ----------
    dtypes, conventions : sequences of str
        The dtypes and conventions to check.
    full : bool
        Whether to add every case in every convention and dtype.
    paths : sequence of Path
        The paths through the core.

    Returns
    -------
    list of Setup
    """
    found = [
        *_second_derivatives(dtypes, conventions, paths),
        *_routes(dtypes, conventions, paths),
        *_against_the_shape(dtypes, conventions, paths),
        *_square(dtypes, conventions, paths),
        *_axes(dtypes, conventions, paths),
        *_three_views(dtypes, conventions, paths),
    ]
    if "vcreg" in conventions:
        found += _vcreg(dtypes, paths)
    if AS_CALLED.sizes in [path.sizes for path in paths]:
        found += _large(dtypes, conventions)
    if full:
        found += _everything(dtypes, conventions)
    return found


def _only(is_chosen: bool) -> tuple[Question, ...] | None:
    """Return the questions for a library that compiles: the same ones, or none."""
    return None if is_chosen else ()


def _named(*names: str) -> tuple[Case, ...]:
    by_name = {case.name: case for case in (*CASES, *MORE, *VCREG, *LARGE)}
    return tuple(by_name[name] for name in names)


_WIDE = _named("wide", "dead", "one ×1000", "many ×1000", "offset", "scales", "collapsed")
_TALL = _named("tall", "dead, tall", "offset, tall", "whitened")
#: γ on each path.
_GAMMAS = (1.0, 1.25, 1.0, 0.75)


def _full(dtypes: Sequence[str]) -> list[str]:
    return [dtype for dtype in dtypes if dtype in FULL]


def _way(path: Path, place: int, convention: str, method: str = "auto", **axes: Any) -> Way:
    definition = replace(DEFINITIONS[convention], gamma=_GAMMAS[place % len(_GAMMAS)])
    return Way(path, convention, definition, method, **axes)


def _turn(choices: Sequence[str], number: int) -> str:
    return choices[number % len(choices)]


def _routes(
    dtypes: Sequence[str], conventions: Sequence[str], paths: Sequence[Path]
) -> Iterator[Setup]:
    """Yield each path by each route in each dtype.

    There are eight such pairs in a dtype, and ten conventions. In the next dtype each convention
    moves on by two places, so that two full dtypes and a half one have each by both routes. A path
    has every second hard input in one dtype, and the others in the next.
    """
    for row, dtype in enumerate(dtypes):
        for place, path in enumerate(paths):
            for route, cases in enumerate((_WIDE, _TALL)):
                optimised = _turn(_full(dtypes) or dtypes, place + route)
                convention = _turn(conventions, place + 4 * route + 2 * row)
                compiled = PARTS[row % 2] if dtype in FULL else BASIC
                if row == place % 2 and dtype in FULL:
                    compiled += REST
                drawn, *hard = cases
                chosen = (drawn, *hard[(row + place) % 2 :: 2])
                way = _way(path, place, convention)
                yield Setup(way, dtype, chosen, EVERY, compiled, dtype == optimised)


def _left_over(conventions: Sequence[str], row: int) -> tuple[str, str]:
    """Return the two conventions that `_routes` leaves out in the dtype of that row."""
    return _turn(conventions, 2 * row + 8), _turn(conventions, 2 * row + 9)


def _against_the_shape(
    dtypes: Sequence[str], conventions: Sequence[str], paths: Sequence[Path]
) -> Iterator[Setup]:
    for place, path in enumerate(paths):
        for number, (method, cases) in enumerate((("gram", _TALL), ("covariance", _WIDE[:3]))):
            dtype = _turn(_full(dtypes) or dtypes, place + number)
            convention = _turn(conventions, 3 * place + number)
            way = _way(path, place, convention, method)
            yield Setup(way, dtype, cases, BASIC, _only(place == number))


def _square(
    dtypes: Sequence[str], conventions: Sequence[str], paths: Sequence[Path]
) -> Iterator[Setup]:
    for row, dtype in enumerate(dtypes):
        path, compiled_for = paths[row % len(paths)], _turn(_full(dtypes) or dtypes, 1)
        way = _way(path, row, _left_over(conventions, row)[1])
        yield Setup(way, dtype, _named("square"), BASIC, _only(dtype == compiled_for))


def _axes(
    dtypes: Sequence[str], conventions: Sequence[str], paths: Sequence[Path]
) -> Iterator[Setup]:
    cases = _named("positions", "positions, tall", "features first")
    for (place, path), (number, case) in itertools.product(enumerate(paths), enumerate(cases)):
        dtype = _turn(dtypes, place + number)
        convention = _turn(conventions, place + 2 * number)
        way = _way(path, place, convention, **case.axes)
        yield Setup(way, dtype, (case,), BASIC, _only(place == number))


def _three_views(
    dtypes: Sequence[str], conventions: Sequence[str], paths: Sequence[Path]
) -> Iterator[Setup]:
    cases = _named("3 views", "3 views, tall")
    for (place, path), (number, case) in itertools.product(enumerate(paths), enumerate(cases)):
        dtype = _turn(_full(dtypes) or dtypes, place + number)
        way = _way(path, place, _turn(conventions, 2 * place + 3 * number))
        compiled = THREE if (place + number) % 2 == 0 else ()
        yield Setup(way, dtype, (case,), THREE, compiled)


def _second_derivatives(
    dtypes: Sequence[str], conventions: Sequence[str], paths: Sequence[Path]
) -> Iterator[Setup]:
    """Yield second derivatives, in full precision only: half precision is too coarse."""
    for (place, path), (number, case) in itertools.product(
        enumerate(paths), enumerate(_named("small", "small, tall"))
    ):
        for dtype in _full(dtypes)[:1]:
            way = _way(path, place, _turn(conventions, 2 * place + number))
            compiled = _only((place, number) in ((0, 0), (3, 1)))
            yield Setup(way, dtype, (case,), SECOND, compiled)


_VCREG_FORMULA = replace(DEFINITIONS["vcreg"], weights=(0.0, 2.0, 0.5), gamma=1.25, eps=1e-3)
#: With a δ that some covariances exceed.
_SMOOTH = replace(_VCREG_FORMULA, delta=0.125)


def _vcreg_way(path: Path, case: Case, definition: Definition) -> Way:
    return Way(path, "vcreg", definition, **case.axes)


def _vcreg(dtypes: Sequence[str], paths: Sequence[Path]) -> Iterator[Setup]:
    for (place, path), (number, case) in itertools.product(enumerate(paths), enumerate(VCREG)):
        for penalty, definition in enumerate((_VCREG_FORMULA, _SMOOTH)):
            way = _vcreg_way(path, case, definition)
            dtype = _turn(dtypes, place + number)
            chosen = (place, number, penalty) in ((0, 2, 0), (0, 3, 1), (3, 0, 1), (3, 5, 0))
            yield Setup(way, dtype, (case,), questions.VCREG, _only(chosen))


def _large(dtypes: Sequence[str], conventions: Sequence[str]) -> Iterator[Setup]:
    """Yield large inputs, for the public functions with the default sizes."""
    tall, wide, *of_one_view = LARGE
    for number, (dtype, asked) in enumerate(
        zip(_full(dtypes), (BASIC, questions.LARGE), strict=False)
    ):
        way = _way(AS_CALLED, 0, _left_over(conventions, number)[0])
        yield Setup(way, dtype, (tall,), asked, optimised=True)
    for dtype in _full(dtypes)[-1:]:
        way = _way(AS_CALLED, 0, _turn(conventions, 2))
        yield Setup(way, dtype, (wide,), questions.LARGEST, optimised=True)
        if "vcreg" not in conventions:
            continue
        for case in of_one_view:
            definition = _SMOOTH if case.name == "64 × 600" else _VCREG_FORMULA
            way = _vcreg_way(AS_CALLED, case, definition)
            yield Setup(way, dtype, (case,), questions.VCREG, optimised=True)


def _everything(dtypes: Sequence[str], conventions: Sequence[str]) -> Iterator[Setup]:
    """Yield each case in each convention and dtype, those of one shape together."""
    shapes: dict[tuple[object, ...], list[Case]] = {}
    for case in CASES:
        shapes.setdefault((case.shape, *case.axes.values()), []).append(case)
    for dtype, convention, cases in itertools.product(dtypes, conventions, shapes.values()):
        way = Way(PATHS[0], convention, DEFINITIONS[convention], **cases[0].axes)
        yield Setup(way, dtype, tuple(cases), BASIC, optimised=True)
