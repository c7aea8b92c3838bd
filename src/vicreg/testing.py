"""Tests for an array library: that the loss and its gradient are right on its arrays.

In a library's tests::

    import pytest
    import my_arrays
    from vicreg.testing import check_conformance, conformance_problems

    @pytest.mark.parametrize("problem", conformance_problems(), ids=str)
    def test_vicreg(problem):
        check_conformance(my_arrays, problem)

``vicreg verify --namespace my_arrays`` does the same from the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg._conventions import convention_named
from vicreg.tools.backends.standard import StandardBackend
from vicreg.tools.verification.cases import CASES, MORE, Case
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.paths import PATHS, Path
from vicreg.tools.verification.problems import DTYPES, problem
from vicreg.tools.verification.questions import EVERY, Way
from vicreg.tools.verification.suite import Measurement, measured

__all__ = ["ConformanceProblem", "check_conformance", "conformance_problems"]


def __dir__() -> list[str]:
    return __all__


Array = Any
Floats = npt.NDArray[np.float64]


#: The hard inputs, and inputs with three views.
_CASES = (*CASES, *MORE[:2])


@dataclass(frozen=True)
class ConformanceProblem:
    """One hard input, in one dtype and one convention.

    `conformance_problems` makes them, and `check_conformance` takes them. ``str`` of one is its
    name, for a test.

    Parameters
    ----------
    case : vicreg.tools.verification.cases.Case
        The input.
    dtype : str
        The dtype of the arrays.
    convention : str
        A name in `vicreg.conventions`.
    seed : int, optional
        The seed of the random numbers in the input.

    Examples
    --------
    >>> from vicreg.testing import conformance_problems
    >>> problem = conformance_problems()[0]
    >>> problem.dtype, problem.convention, str(problem)
    ('float64', 'official', 'wide-float64-official')
    """

    case: Case
    dtype: str
    convention: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.case}-{self.dtype}-{self.convention}"


def conformance_problems(
    dtypes: Sequence[str] = ("float64", "float32"),
    conventions: Sequence[str] = tuple(DEFINITIONS),
    seed: int = 0,
) -> list[ConformanceProblem]:
    """Return the problems that an array library has to solve, to parametrise a test with.

    Parameters
    ----------
    dtypes : sequence of str, optional
        The dtypes to test, of "float64", "float32", "bfloat16" and "float16".
    conventions : sequence of str, optional
        Names in `vicreg.conventions`, or of codebases.
    seed : int, optional
        The seed of the random numbers in the inputs.

    Returns
    -------
    list of ConformanceProblem
        Each input in each dtype and each convention.

    Raises
    ------
    TypeError
        A convention is not a name.
    ValueError
        A dtype or a convention is unknown.

    Examples
    --------
    >>> from vicreg.testing import conformance_problems
    >>> problems = conformance_problems(dtypes=["float32"], conventions=["official"])
    >>> print(problems[0], len(problems))
    wide-float32-official 17
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"dtypes must be among {', '.join(DTYPES)}; got {dtype!r}")
    names = [convention_named(convention, "conventions").name for convention in conventions]
    return [
        ConformanceProblem(case, dtype, name, seed)
        for dtype in dtypes
        for case in _CASES
        for name in names
    ]


def check_conformance(
    namespace: Any,
    problem: ConformanceProblem,
    *,
    device: object = None,
    asarray: Callable[[Floats, str], Array] | None = None,
    to_numpy: Callable[[Array], Floats] | None = None,
) -> None:
    """Assert that the loss and its gradient are right on the arrays of a library.

    The code computes large arrays in other ways than small ones. The problem is solved in each of
    these ways.

    Parameters
    ----------
    namespace : module
        A namespace of the array API standard.
    problem : ConformanceProblem
        One of those that `conformance_problems` returns.
    device : object, optional
        A device of the namespace. By default it is the default device.
    asarray : callable, optional
        Makes an array of the library: ``asarray(values, dtype)`` takes a NumPy array in float64,
        of any shape, and the name of a dtype. By default the values go to ``namespace.asarray`` as
        nested lists of numbers.
    to_numpy : callable, optional
        Takes an array of the library, of any shape, and returns it as a NumPy array in float64. By
        default arrays are converted by DLPack, by ``__array__``, or element by element.

    Raises
    ------
    AssertionError
        The error of a value or a gradient is larger than rounding can explain, or its dtype or
        shape is wrong. The message says which, and by how much.

    Notes
    -----
    The results are compared with exact arithmetic on the formulas of `vicreg.conventions`. An
    error may be as large as the unit roundoff of the dtype times the size and the condition of
    the problem; ``vicreg.tools.verification.bounds`` derives these bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg.testing import check_conformance, conformance_problems
    >>> for problem in conformance_problems(conventions=["official"]):
    ...     check_conformance(np, problem)
    """
    backend = _GivenBackend(namespace, device, asarray, to_numpy)
    for path in PATHS:
        measurement = _on_path(backend, problem, path)
        if measurement.passed:
            continue
        wrong = [
            f"the {name} is off by {error:.3g} times its bound"
            for name, error in measurement.errors.items()
            if not error <= 1.0
        ]
        said = measurement.complaint or ", ".join(wrong)
        raise AssertionError(f"{problem} ({path}): {said}")


class _GivenBackend(StandardBackend):
    """A namespace with its author's conversions."""

    def __init__(
        self,
        namespace: Any,
        device: object,
        asarray: Callable[[Floats, str], Array] | None,
        to_numpy: Callable[[Array], Floats] | None,
    ) -> None:
        super().__init__(namespace, getattr(namespace, "__name__", "namespace"), device)
        self._asarray, self._to_numpy = asarray, to_numpy

    def asarray(self, values: Floats, dtype: str) -> Array:
        make = self._asarray or super().asarray
        return make(values, dtype)

    def to_numpy(self, array: Array) -> Floats:
        convert = self._to_numpy or super().to_numpy
        return convert(array)


def _on_path(backend: StandardBackend, chosen: ConformanceProblem, path: Path) -> Measurement:
    case, definition = chosen.case, DEFINITIONS[chosen.convention]
    way = Way(path, chosen.convention, definition, **case.axes)
    given = problem(
        case,
        chosen.dtype,
        chosen.convention,
        definition,
        seed=chosen.seed,
        sizes=path.sizes,
    )
    return measured(backend, way, given, EVERY)[0]
