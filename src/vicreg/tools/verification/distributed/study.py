"""Run the ranks and the single process, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vicreg._typing import Method
from vicreg.tools.functions import FunctionError
from vicreg.tools.loading import Target
from vicreg.tools.processes import Limits
from vicreg.tools.progress import Step
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.distributed.batches import (
    Batch,
    batches_for,
    batches_for_package,
)
from vicreg.tools.verification.distributed.comparison import (
    Compared,
    Whole,
    compared,
    whole_by_definition,
)
from vicreg.tools.verification.distributed.explanation import Known, explained, known_convention
from vicreg.tools.verification.distributed.job import Job, Question
from vicreg.tools.verification.distributed.launching import run_ranks

__all__ = ["Results", "Rows", "Setting", "run_package", "run_target"]

OnStep = Callable[[str], None]


def _silently(line: str) -> None:
    pass


@dataclass
class Rows:
    """The results for batches of the same rows.

    Parameters
    ----------
    rows : tuple of int
        The rows of each rank.
    compared : list of Compared
        Those batches that the ranks computed.
    failure : str
        Why they did not compute the others; empty if they did.
    findings : list of str
        What is wrong, in sentences.
    """

    rows: tuple[int, ...]
    compared: list[Compared]
    failure: str = ""
    findings: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all batches were computed, and rightly."""
        return not self.failure and all(one.passed for one in self.compared)


@dataclass(frozen=True)
class Setting:
    """How the ranks run.

    Parameters
    ----------
    size : int
        The number of ranks, at least 2.
    backend : {"torch", "jax"}
        The library.
    dtypes : tuple of str
        The dtypes of the embeddings: "float64", "float32".
    device : {"cpu", "cuda"}
        Where the ranks compute; on CUDA each has a GPU of its own.
    seed : int
        The seed of the batches.
    limits : Limits
        The time that the ranks have.
    """

    size: int
    backend: str = "torch"
    dtypes: tuple[str, ...] = ("float64",)
    device: str = "cpu"
    seed: int = 0
    limits: Limits = field(default_factory=Limits)

    @property
    def where(self) -> str:
        """The ranks in words."""
        return f"{self.size} ranks, {self.backend} {self.device}"

    def batches(self, of_package: bool = False) -> list[Batch]:
        """Return the batches; JAX shards even rows alone."""
        batches = (batches_for_package if of_package else batches_for)(self.size, self.seed)
        return [batch for batch in batches if batch.is_even or self.backend == "torch"]

    def questions(self, conventions: Sequence[str] = ()) -> list[Question]:
        """Return what `run_package` asks of conventions, or what `run_target` asks.

        Of the other dtypes than the first only the first convention is asked.
        """
        if conventions:
            return [
                Question(batch, dtype=dtype, convention=convention, method=_method(batch))
                for batch in self.batches(of_package=True)
                for place, dtype in enumerate(self.dtypes)
                for convention in (conventions[:1] if place else conventions)
            ]
        batches = self.batches()
        return [
            # Finite differences take long, and a batch of each shape is enough.
            Question(batch, dtype=dtype, moving=batch.seed == batches[0].seed)
            for batch in batches
            for dtype in self.dtypes
        ]

    def steps(self, conventions: Sequence[str] = ()) -> list[Step]:
        """Return the steps of `run_package` for conventions, or those of `run_target`."""
        starts = [1] * (not conventions) + [self.size]
        batches = [Step("batch", 0.1) for _ in self.questions(conventions)]
        return [Step("start", 2.0 + size) for size in starts] + batches


@dataclass
class Results:
    """The results of a function.

    Parameters
    ----------
    title : str
        What ran where.
    setting : Setting
        How the ranks ran.
    groups : list of Rows
        By the rows that the ranks have.
    """

    title: str
    setting: Setting
    groups: list[Rows]

    @property
    def passed(self) -> bool:
        """Whether all passed."""
        return all(group.passed for group in self.groups)


def run_target(target: Target, setting: Setting, on_step: OnStep = _silently) -> Results:
    """Hold a user's function of two tensors on several ranks to itself in one process.

    Parameters
    ----------
    target : Target
        The function.
    setting : Setting
        How the ranks run.
    on_step : callable
        Called with one line of text at each step.

    Returns
    -------
    Results
        Uneven rows first, then even ones.

    Raises
    ------
    FunctionError
        The function cannot be called in one process.
    """
    questions = setting.questions()
    on_step("in one process")
    wholes = _wholes(target, questions, setting)
    groups = _run_groups(target, questions, wholes, setting, on_step)
    known = known_convention([one for group in groups for one in group.compared])
    for group in groups:
        group.findings = explained(group.compared, known)
    return Results(f"{target.path} on {setting.where}", setting, groups)


def run_package(
    conventions: Sequence[str], setting: Setting, on_step: OnStep = _silently
) -> Results:
    """Hold this package's loss on several ranks to the published formulas of the whole batch.

    Parameters
    ----------
    conventions : sequence of str
        The names of the formulas.
    setting : Setting
        How the ranks run.
    on_step : callable
        Called with one line of text at each step.

    Returns
    -------
    Results
        Uneven rows first, then even ones, a single row on a rank, and none.
    """
    questions = setting.questions(conventions)
    known = {name: Known(DEFINITIONS[name], DEFINITIONS[name].weights) for name in conventions}
    wholes = [whole_by_definition(one.batch, *known[one.convention or ""]) for one in questions]
    groups = _run_groups(None, questions, wholes, setting, on_step)
    for group in groups:
        for name in conventions:
            results = [one for one in group.compared if one.label == name]
            group.findings += [f"{name}: {line}" for line in explained(results, known[name])]
    return Results(f"vicreg on {setting.where}", setting, groups)


def _method(batch: Batch) -> Method:
    """Return the route for a batch: both are taken, and what is chosen by size."""
    if min(batch.rows) < 2:
        return "auto"
    return "gram" if batch.n <= batch.d else "covariance"


def _wholes(target: Target, questions: Sequence[Question], setting: Setting) -> list[Whole]:
    """Return the batches in one process: whole, and each rank's rows alone."""
    parts = [
        replace(question, alone=alone, moving=False)
        for question in questions
        for alone in (None, *range(setting.size))
    ]
    ran = run_ranks(_job(target, parts, setting), 1, setting.limits)
    if ran.failure:
        raise FunctionError(f"in one process: {ran.failure}")
    answers = iter(answer for (answer,) in ran.answers)
    wholes = []
    for _ in questions:
        whole = next(answers)
        alone = [next(answers) for _ in range(setting.size)]
        wholes.append(
            Whole(
                float(whole["value"]),
                whole["rows"],
                np.array([float(one["value"]) for one in alone]),
                np.concatenate([one["rows"] for one in alone], axis=1),
            )
        )
    return wholes


def _job(target: Target | None, questions: list[Question], setting: Setting) -> Job:
    return Job(setting.backend, target, setting.device, questions, setting.limits.step / 2)


def _run_groups(
    target: Target | None,
    questions: Sequence[Question],
    wholes: Sequence[Whole],
    setting: Setting,
    on_step: OnStep,
) -> list[Rows]:
    """Return the results by rows; what fails with some rows leaves the others to a new start."""
    groups = {one.batch.rows: Rows(one.batch.rows, []) for one in questions}
    place = 0
    while place < len(questions):
        rest = list(questions[place:])
        on_step(f"starting {setting.size} ranks")

        def on_done(count: int, rest: list[Question] = rest) -> None:
            if count < len(rest):
                on_step(str(rest[count].batch))

        ran = run_ranks(_job(target, rest, setting), setting.size, setting.limits, on_done)
        for question, answers in zip(rest, ran.answers, strict=False):
            one = compared(question, wholes[place], answers)
            groups[question.batch.rows].compared.append(one)
            place += 1
        if ran.failure:
            rows = questions[place].batch.rows
            groups[rows].failure = ran.failure
            while place < len(questions) and questions[place].batch.rows == rows:
                place += 1
    return list(groups.values())
