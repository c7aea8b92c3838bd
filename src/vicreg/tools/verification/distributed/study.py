"""Run the ranks and the single process, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vicreg.tools.functions import FunctionError
from vicreg.tools.processes import Limits
from vicreg.tools.verification.distributed.batches import Batch, batches_for
from vicreg.tools.verification.distributed.comparison import Compared, Whole, compared
from vicreg.tools.verification.distributed.explanation import explained, known_convention
from vicreg.tools.verification.distributed.job import Job, Question
from vicreg.tools.verification.distributed.launching import run_ranks

__all__ = ["Results", "Rows", "run_target"]


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


@dataclass
class Results:
    """The results of a function, by the rows that the ranks have."""

    title: str
    library: str
    size: int
    seed: int
    groups: list[Rows]

    @property
    def passed(self) -> bool:
        """Whether all passed."""
        return all(group.passed for group in self.groups)


def run_target(
    path: str,
    size: int,
    dtypes: Sequence[str] = ("float64",),
    device: str = "cpu",
    seed: int = 0,
    limits: Limits | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Results:
    """Hold a user's function of two tensors on several ranks to itself in one process.

    Parameters
    ----------
    path : str
        The function as MODULE:FUNCTION.
    size : int
        The number of ranks, at least 2.
    dtypes : sequence of str
        The dtypes of the embeddings: "float64", "float32".
    device : {"cpu", "cuda"}
        Where the ranks compute.
    seed : int
        The seed of the batches.
    limits : Limits, optional
        The time that ranks have.
    on_step : callable
        Called with one line of text before each step, of which there are `steps`.

    Returns
    -------
    Results
        Uneven rows first, then even ones.

    Raises
    ------
    FunctionError
        The function cannot be called in one process.
    """
    limits = limits or Limits()
    batches = [(batch, dtype) for batch in batches_for(size, seed) for dtype in dtypes]
    on_step(f"{path} in one process")
    wholes = _wholes(path, batches, device, limits)
    questions = [
        Question(batch, dtype=dtype, moving=batch.seed == batches[0][0].seed)
        for batch, dtype in batches
    ]
    groups = _run_groups(questions, wholes, path, size, device, limits, on_step)
    known = known_convention([one for group in groups for one in group.compared])
    for group in groups:
        if group.compared:
            group.findings = explained(group.compared, known)
    return Results(f"{path} on {size} ranks", "torch", size, seed, groups)


def _wholes(
    path: str, batches: Sequence[tuple[Batch, str]], device: str, limits: Limits
) -> list[Whole]:
    """Return the batches in one process: whole, and each rank's rows alone."""
    questions = [
        Question(batch, alone, dtype)
        for batch, dtype in batches
        for alone in (None, *range(len(batch.rows)))
    ]
    ran = run_ranks(Job(path, device, questions, 0.8 * limits.step), 1, limits)
    if ran.failure:
        raise FunctionError(f"in one process: {ran.failure}")
    answers = iter(ran.answers)
    wholes = []
    for batch, _ in batches:
        (whole,) = next(answers)
        alone = [next(answers)[0] for _ in batch.rows]
        wholes.append(
            Whole(
                float(whole["value"]),
                whole["rows"],
                np.array([float(one["value"]) for one in alone]),
                np.concatenate([one["rows"] for one in alone], axis=1),
            )
        )
    return wholes


def _run_groups(
    questions: Sequence[Question],
    wholes: Sequence[Whole],
    path: str | None,
    size: int,
    device: str,
    limits: Limits,
    on_step: Callable[[str], None],
) -> list[Rows]:
    """Return the results by rows; what fails with some rows leaves the others to a new start."""
    groups: dict[tuple[int, ...], Rows] = {}
    place = 0
    while place < len(questions):
        rest = list(questions[place:])
        on_step(f"starting {size} ranks")
        ran = run_ranks(
            Job(path, device, rest, 0.8 * limits.step),
            size,
            limits,
            lambda count, rest=rest: on_step(str(rest[min(count, len(rest) - 1)].batch)),  # type: ignore[misc]
        )
        for question, answers in zip(rest, ran.answers, strict=False):
            group = groups.setdefault(question.batch.rows, Rows(question.batch.rows, []))
            whole = wholes[place]
            label = question.convention or ""
            group.compared.append(compared(question.batch, whole, answers, question.dtype, label))
            place += 1
        if ran.failure:
            rows = questions[place].batch.rows
            groups.setdefault(rows, Rows(rows, [])).failure = ran.failure
            while place < len(questions) and questions[place].batch.rows == rows:
                place += 1
    return list(groups.values())
