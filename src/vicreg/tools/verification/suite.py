"""The conformance suite: run each library, and compare it with the truth and the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg._core.layout import dtype_name
from vicreg.tools.backends import Array, Backend
from vicreg.tools.backends.numpy import NumpyBackend
from vicreg.tools.verification.cases import Case
from vicreg.tools.verification.definition import TERMS, Three
from vicreg.tools.verification.plan import Setup
from vicreg.tools.verification.problems import Problem, problem
from vicreg.tools.verification.questions import Answer, Asked, Question, Way

__all__ = ["COMPILED_AHEAD", "Measurement", "Results", "measured", "run_suite"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """The errors of one library on one problem.

    Parameters
    ----------
    backend, dtype, case, convention, path, route : str
        What was measured. A user's function has no path, and its route is unknown.
    values, gradients : dict of str to float
        The errors by quantity, in multiples of the bound, which is u times the size of the problem
        times its condition. Derivatives of all kinds are in `gradients`.
    complaint : str
        An exception, a wrong dtype or a wrong shape; empty if there is none.
    """

    backend: str
    dtype: str
    case: str
    convention: str
    path: str = ""
    route: str = ""
    values: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    complaint: str = ""

    @property
    def errors(self) -> dict[str, float]:
        """All errors by quantity."""
        return self.values | self.gradients

    @property
    def passed(self) -> bool:
        """Whether every error is within its bound."""
        return not self.complaint and all(error <= 1.0 for error in self.errors.values())


class _ComplaintError(Exception):
    """An array has another shape or dtype than the interface promises."""


class _Asking:
    """Several questions to a library, as one function of arrays that can be compiled."""

    def __init__(self, backend: Backend, way: Way, questions: Sequence[Question]) -> None:
        self._backend, self._way, self._questions = backend, way, questions
        self._answers: list[tuple[Question, Answer]] = []
        self._complaints: list[tuple[Question, str]] = []
        self._function = backend.as_used(self._everything)

    def compile(self, arrays: Sequence[Array], directions: Sequence[Array], quickly: bool) -> None:
        """Compile the function for arrays like these, before it is called."""
        self._function = self._backend.compiled_ahead(
            self._everything, (tuple(arrays), tuple(directions)), quickly
        )

    def __call__(
        self,
        arrays: Sequence[Array],
        directions: Sequence[Array],
        questions: Sequence[Question],
    ) -> tuple[list[Answer], list[str]]:
        """Return the answers to some of the questions, and complaints about the others."""
        outputs = self._function(tuple(arrays), tuple(directions))
        self._backend.synchronise(outputs)  # all at once, which is faster than one by one
        # Compiled code returns arrays only: the rest of an answer is known since it was traced.
        answers = [
            answer._replace(arrays=arrays)
            for (question, answer), arrays in zip(self._answers, outputs, strict=True)
            if question in questions
        ]
        return answers, [said for question, said in self._complaints if question in questions]

    def _everything(self, arrays: tuple[Array, ...], directions: tuple[Array, ...]) -> list[Array]:
        asked = Asked(self._backend, self._way, arrays, directions)
        self._answers, self._complaints = [], []
        for question in self._questions:
            try:
                self._answers += ((question, answer) for answer in question(asked))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a library under test may raise anything
                said = f"{_raised(error)}, asked for {_subject(question)}"
                self._complaints.append((question, said))
        return [answer.arrays for _, answer in self._answers]


def _raised(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"raised {type(error).__name__}: {lines[0]}"


def _subject(question: Question) -> str:
    return question.__name__.strip("_").replace("_", " ")


# The values and gradients of a library by name; None after a complaint.
_Returned = dict[str, Any] | None


def measured(
    backend: Backend,
    way: Way,
    given: Problem,
    questions: Sequence[Question],
    asking: _Asking | None = None,
) -> tuple[Measurement, _Returned]:
    """Return the errors of `backend` on one problem, and what it returned, in NumPy.

    Parameters
    ----------
    backend : Backend
        The library.
    way : Way
        How the functions are called.
    given : Problem
        The problem.
    questions : sequence of Question
        The questions.
    asking : optional
        The questions as one function, if it was made before, for another input.

    Returns
    -------
    Measurement, dict or None
    """
    judge = _Judge(backend, given)
    complaints: list[str] = []
    try:
        with np.errstate(all="ignore"), backend.active():
            asking = asking or _Asking(backend, way, questions)
            arrays, directions = (
                tuple(_given(backend, given, view) for view in views)
                for views in (given.views, given.input.directions)
            )
            answers, complaints = asking(arrays, directions, questions)
            for answer in answers:
                complaints += judge.complaints_about(answer)
            complaints += judge.complaints_about_changes(arrays)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library under test may raise anything
        complaints.append(_raised(error))
    measurement = Measurement(
        str(backend),
        given.dtype,
        given.case.name,
        given.convention,
        str(way.path),
        _route(given),
        judge.values,
        judge.gradients,
        complaints[0] if complaints else "",
    )
    return measurement, None if complaints else judge.returned


def _route(given: Problem) -> str:
    if given.definition.delta is not None:
        return "smooth L1"
    by_gram = given.rounding.by_gram(given.case.n, given.case.d)
    return "Gram route" if by_gram else "covariance route"


def _given(backend: Backend, given: Problem, view: Floats) -> Array:
    return backend.asarray(given.case.as_given(view), given.dtype)


class _Judge:
    """Computes the errors of the answers about one problem."""

    def __init__(self, backend: Backend, given: Problem) -> None:
        self._backend, self._given = backend, given
        self.values: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        self.returned: dict[str, Any] = {}

    def complaints_about(self, answer: Answer) -> list[str]:
        """Record the error of an answer; return complaints about its shape and dtype."""
        try:
            self._judge(answer)
        except _ComplaintError as complaint:
            return [str(complaint)]
        return []

    def _judge(self, answer: Answer) -> None:
        given = self._given if answer.view is None else self._given.alone(answer.view)
        weights, directions = answer.weights, given.input.directions
        if answer.kind == "value":
            value = self._number(answer)
            self.values[answer.name] = given.value_error(weights, value)
            self.returned[answer.name] = value
        elif answer.kind == "change":
            change = self._number(answer)
            self.gradients[answer.name] = given.change_error(weights, change)
        elif answer.kind == "curvature":
            changes = self._arrays(answer)
            error = given.curvature_error(weights, changes, answer.moving)
            self.gradients[answer.name] = error
        else:
            gradients = self._arrays(answer)
            beside = directions if answer.beside else None
            error = given.gradient_error(weights, gradients, beside)
            self.gradients[answer.name] = error
            self.returned[answer.name] = gradients

    def complaints_about_changes(self, arrays: Sequence[Array]) -> list[str]:
        """Return a complaint if the views were modified."""
        same = all(
            np.array_equal(self._backend.to_numpy(array), self._given.case.as_given(view))
            for array, view in zip(arrays, self._given.views, strict=True)
        )
        return [] if same else ["the views were changed"]

    def _number(self, answer: Answer) -> float:
        array = answer.arrays
        if tuple(array.shape) != ():
            raise _ComplaintError(
                f"the {answer.name} must be 0-d; it has shape {tuple(array.shape)}"
            )
        self._check_dtype(answer.name, array, self._given.value_dtype)
        return float(self._backend.to_numpy(array))

    def _arrays(self, answer: Answer) -> list[Floats | None]:
        case = self._given.case
        shape = case.as_given(self._given.views[0]).shape
        converted: list[Floats | None] = []
        for array in answer.arrays:
            if array is None:
                converted.append(None)
                continue
            if tuple(array.shape) != shape:
                raise _ComplaintError(
                    f"the {answer.name} must have shape {shape}; it has {tuple(array.shape)}"
                )
            self._check_dtype(answer.name, array, self._given.dtype)
            converted.append(case.as_stated(self._backend.to_numpy(array)))
        return converted

    def _check_dtype(self, name: str, array: Array, wanted: str) -> None:
        if dtype_name(array) != wanted:
            raise _ComplaintError(f"the {name} must be {wanted}; it is {dtype_name(array)}")


@dataclass
class Results:
    """The results of a run of the suite.

    Parameters
    ----------
    seed : int
        The seed of the inputs.
    measurements : list of Measurement
        All measurements, in order.
    distances : dict
        By two libraries and a dtype, the largest difference between their values, and between
        their gradients, in multiples of the bound.
    left_out : dict of str to str
        What did not run, and why.
    """

    seed: int
    measurements: list[Measurement] = field(default_factory=list)
    distances: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something ran, and everything is within its bound."""
        return bool(self.measurements) and all(one.passed for one in self.measurements)


def run_suite(
    backends: Sequence[Backend],
    planned: Sequence[Setup],
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> Results:
    """Run all planned setups in every library.

    Parameters
    ----------
    backends : sequence of Backend
        The libraries.
    planned : sequence of Setup
        The setups.
    seed : int
        The seed of the inputs.
    on_step : callable
        Called with a line of text before the truth of each setup, and before each library runs
        it, to show progress.

    Returns
    -------
    Results
    """
    results = Results(seed)
    with _on_one_thread(backends), _Compiling(backends, planned, seed) as compiling:
        for place, setup in enumerate(planned):
            compiling.start(place + COMPILED_AHEAD)
            here = [backend for backend in backends if setup.is_for(backend)]
            if not here:
                continue
            on_step(f"the truth: {setup}")
            problems = [_problem(setup, case, seed) for case in setup.cases]
            for given in problems:
                given.gradient_bounds(given.definition.weights)
            returned: dict[str, list[_Returned]] = {}
            for backend in here:
                on_step(f"{backend} {setup.dtype}: {setup}")
                asking = compiling.compiled(place, backend)
                outcomes = [
                    measured(backend, setup.way, given, setup.questions_of(case, backend), asking)
                    for case, given in zip(setup.cases, problems, strict=True)
                ]
                results.measurements += [measurement for measurement, _ in outcomes]
                returned[str(backend)] = [values for _, values in outcomes]
            for pair, distance in _distances(problems, returned):
                value, gradient = results.distances.get((*pair, setup.dtype), (0.0, 0.0))
                further = max(value, distance[0]), max(gradient, distance[1])
                results.distances[*pair, setup.dtype] = further
    return results


def _problem(setup: Setup, case: Case, seed: int) -> Problem:
    way = setup.way
    return problem(
        case,
        setup.dtype,
        way.convention,
        way.definition,
        seed=seed,
        method=way.method,
        sizes=way.path.sizes,
    )


@contextmanager
def _on_one_thread(backends: Sequence[Backend]) -> Iterator[None]:
    """Run the truth and the libraries on one thread, since the arrays are small."""
    with ExitStack() as stack:
        for backend in (NumpyBackend("numpy", "cpu", ()), *backends):
            stack.enter_context(backend.on_one_thread())
        yield


#: How many setups a library that compiles may be ahead of the one that runs.
COMPILED_AHEAD = 16


class _Compiling:
    """What is to be compiled, ahead of what runs: it takes more time than all the rest."""

    def __init__(self, backends: Sequence[Backend], planned: Sequence[Setup], seed: int) -> None:
        self._backends = [one for one in backends if one.always_compiled]
        self._planned, self._seed = planned, seed
        self._pool = ThreadPoolExecutor(1)
        self._begun: dict[tuple[int, str], tuple[_Asking, Future[None]]] = {}

    def __enter__(self) -> _Compiling:
        for place in range(COMPILED_AHEAD):
            self.start(place)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, place: int) -> None:
        """Start to compile the setup at `place`."""
        for setup in self._planned[place : place + 1]:
            for backend in filter(setup.is_for, self._backends):
                asked = setup.questions_of(setup.cases[0], backend)
                asking = _Asking(backend, setup.way, asked)
                begun = self._pool.submit(_compile, asking, backend, setup, self._seed)
                self._begun[place, str(backend)] = asking, begun

    def compiled(self, place: int, backend: Backend) -> _Asking | None:
        """Return the compiled questions of a setup; None if there is nothing to compile."""
        if (place, str(backend)) not in self._begun:
            return None
        asking, begun = self._begun.pop((place, str(backend)))
        begun.exception()  # wait; an exception will be raised again by the call
        return asking


def _compile(asking: _Asking, backend: Backend, setup: Setup, seed: int) -> None:
    given = _problem(setup, setup.cases[0], seed)
    with np.errstate(all="ignore"), backend.active():
        arrays = [_given(backend, given, view) for view in given.views]
        directions = [_given(backend, given, view) for view in given.input.directions]
        asking.compile(arrays, directions, quickly=not setup.optimised)


_OF_DISTANCES: tuple[tuple[str, Three | None], ...] = (
    ("loss", None),
    *zip(TERMS, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), strict=True),
)


def _distances(
    problems: Sequence[Problem], returned: dict[str, list[_Returned]]
) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    for a, b in itertools.combinations(returned, 2):
        apart = [
            _apart(given, *each)
            for given, *each in zip(problems, returned[a], returned[b], strict=True)
        ]
        yield (a, b), (max(value for value, _ in apart), max(grad for _, grad in apart))


def _apart(given: Problem, a: _Returned, b: _Returned) -> tuple[float, float]:
    """Return the distances of two libraries in values and gradients; infinite if one failed."""
    if a is None or b is None:
        return np.inf, np.inf
    values = [0.0]
    for name, unit in _OF_DISTANCES:
        if name in a and name in b:
            bound = given.value_bound(unit or given.definition.weights)
            values.append(_difference(np.asarray(a[name]), np.asarray(b[name]), bound))
    gradients = [0.0]
    if "gradient" in a and "gradient" in b:
        bounds = given.gradient_bounds(given.definition.weights)
        gradients += itertools.starmap(
            _difference, zip(a["gradient"], b["gradient"], bounds, strict=True)
        )
    return max(values), max(gradients)


def _difference(a: Floats, b: Floats, bounds: Floats | float) -> float:
    with np.errstate(all="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b) / bounds)
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))
