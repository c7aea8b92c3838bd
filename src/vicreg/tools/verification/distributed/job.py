"""What the ranks are asked, and what each of them answers, as files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vicreg import conventions, vicreg_loss
from vicreg._typing import Method
from vicreg.distributed import Communicator
from vicreg.tools.loading import Target
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.distributed.batches import Batch

__all__ = ["Answer", "Job", "Question", "read_answers", "read_job", "write_answer", "write_job"]

#: What one rank answers, with the names
#:
#: - "value" and "value_dtype",
#: - "rows", the gradient by this rank's embeddings, before any averaging over the ranks,
#: - "weight" and "bias", the gradients of the map's parameters averaged over the ranks,
#: - "moves", if wanted: the derivatives of the value along a direction of each rank's embeddings.
Answer = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One evaluation of the loss.

    Parameters
    ----------
    batch : Batch
        The batch, of which each rank takes its own rows.
    alone : int or None
        Instead, the rows of this rank only: for a single process.
    dtype : {"float64", "float32"}
        The dtype of the embeddings.
    convention : str or None
        The convention of this package's loss; None for the user's function.
    method : {"auto", "gram", "covariance"}
        The route of its covariance term.
    moving : bool
        Whether the derivatives of each rank's value by each rank's rows are wanted too.
    """

    batch: Batch
    alone: int | None = None
    dtype: str = "float64"
    convention: str | None = None
    method: Method = "auto"
    moving: bool = False

    def package_loss(self, comm: Communicator) -> Callable[..., Any]:
        """Return the loss of this package, of two arrays, over the ranks of `comm`."""
        assert self.convention is not None
        _, variance, covariance = DEFINITIONS[self.convention].weights
        return functools.partial(
            vicreg_loss,
            convention=conventions[self.convention],
            method=self.method,
            variance_weight=variance,
            covariance_weight=covariance,
            comm=comm,
        )


@dataclass(frozen=True)
class Job:
    """What all ranks compute.

    Parameters
    ----------
    backend : {"torch", "jax"}
        The library.
    target : Target or None
        The user's function, for questions without a convention.
    device : {"cpu", "cuda"}
        Where the ranks compute: on CUDA each on a GPU of its own.
    questions : list of Question
        In this order.
    seconds : float
        When a rank that has not answered records where it is.
    """

    backend: str
    target: Target | None
    device: str
    questions: list[Question]
    seconds: float

    @property
    def output(self) -> str | None:
        """Which part of the function's output is the loss."""
        return self.target.output if self.target else None


def write_job(job: Job, file: Path) -> None:
    """Write a job for `read_job`."""
    file.write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(file: Path) -> Job:
    """Return a job."""
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    questions = [
        Question(**one | {"batch": _batch(**one["batch"])}) for one in fields.pop("questions")
    ]
    target = fields.pop("target")
    return Job(questions=questions, target=target and Target(**target), **fields)


def _batch(rows: list[int], d: int, seed: int) -> Batch:
    return Batch(tuple(rows), d, seed)


def write_answer(folder: Path, number: int, answer: Answer) -> None:
    """Write one answer of a rank, completely or not at all."""
    unfinished = folder / "unfinished.npz"
    np.savez(unfinished, **answer)
    os.replace(unfinished, folder / f"{number}.done")


def read_answers(folder: Path, count: int) -> list[Answer]:
    """Return the answers that a rank has written, which may be fewer than `count`."""
    answers = []
    for number in range(count):
        file = folder / f"{number}.done"
        if not file.exists():
            break
        with np.load(file) as arrays:
            answers.append(dict(arrays))
    return answers
