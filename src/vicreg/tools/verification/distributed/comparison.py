"""What the ranks computed beside what one process computes for the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.dtypes import UNIT_ROUNDOFF
from vicreg.tools.verification.definition import Definition, Terms, Three, Views
from vicreg.tools.verification.distributed.batches import Batch
from vicreg.tools.verification.distributed.job import Question

__all__ = ["Compared", "Whole", "compared", "relative_error", "whole_by_definition"]


@dataclass(frozen=True)
class Whole:
    """A batch in one process.

    Parameters
    ----------
    value : float
        The loss of the whole batch.
    rows : array of float64, shape (2, n, d)
        Its gradient with respect to the embeddings.
    alone : array of float64, shape (ranks,), or None
        The loss of each rank's rows alone; None if a rank has too few of them.
    rows_alone : array of float64, shape (2, n, d), or None
        The gradient of each of these with respect to that rank's rows.
    """

    value: float
    rows: Floats
    alone: Floats | None
    rows_alone: Floats | None


@dataclass(frozen=True)
class Compared:
    """A batch over several ranks, and the same in one process.

    Parameters
    ----------
    batch : Batch
        The batch.
    whole : Whole
        The truth.
    values : array of float64, shape (ranks,)
        The value on each rank.
    rows : array of float64, shape (2, n, d)
        The gradient on each rank with respect to its own rows.
    parameters : array of float64
        The gradient of all parameters of the linear map, averaged by DistributedDataParallel.
    moves : array of float64, shape (ranks, ranks), or None
        The derivative of each rank's value (first axis) along a direction of each rank's rows.
    dtype : str
        The narrowest dtype in the computation.
    label : str
        The convention of this package's loss; "" for a user's function.
    """

    batch: Batch
    whole: Whole
    values: Floats
    rows: Floats
    parameters: Floats
    moves: Floats | None
    dtype: str
    label: str = ""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.values)

    @property
    def limit(self) -> float:
        """The largest relative error of a pass: half of the digits.

        That is far above the rounding of these small sums, and far below the share of any fault.
        """
        return float(UNIT_ROUNDOFF[self.dtype] ** 0.5)

    @property
    def value_error(self) -> float:
        """The largest error of a value, relative to the truth."""
        return max(relative_error(value, np.asarray(self.whole.value)) for value in self.values)

    @property
    def gradient_error(self) -> float:
        """The error of the averaged gradient of the parameters, relative to its norm."""
        return relative_error(self.parameters, _of_parameters(self.batch, self.whole.rows))

    @property
    def value_passed(self) -> bool:
        """Whether the value is that of the whole batch on every rank."""
        return self.value_error <= self.limit

    @property
    def gradient_passed(self) -> bool:
        """Whether the averaged gradient is that of the whole batch."""
        return self.gradient_error <= self.limit

    @property
    def passed(self) -> bool:
        """Whether both are right."""
        return self.value_passed and self.gradient_passed


def relative_error(values: Floats, truth: Floats) -> float:
    """Return the norm of the difference over that of the truth; infinity for a NaN."""
    error, size = float(np.linalg.norm(values - truth)), float(np.linalg.norm(truth))
    if np.isnan(error) or np.isnan(size):
        return float("inf")
    return error / size if size else (0.0 if error == 0.0 else float("inf"))


def compared(question: Question, whole: Whole, answers: Sequence[Mapping[str, Any]]) -> Compared:
    """Return the answers of the ranks to a question beside the truth."""
    dtypes = [question.dtype, *(str(answer["value_dtype"]) for answer in answers)]
    moves = [answer["moves"] for answer in answers if "moves" in answer]
    return Compared(
        question.batch,
        whole,
        values=np.array([float(answer["value"]) for answer in answers]),
        rows=np.concatenate([answer["rows"] for answer in answers], axis=1),
        parameters=np.concatenate([answers[0]["weight"].ravel(), answers[0]["bias"]]),
        moves=np.array(moves) if moves else None,
        dtype=max(set(dtypes) & set(UNIT_ROUNDOFF), key=UNIT_ROUNDOFF.__getitem__),
        label=question.convention or "",
    )


def whole_by_definition(batch: Batch, definition: Definition, weights: Three) -> Whole:
    """Return a batch in one process, by a published formula in float64."""
    value, rows = _by_definition(batch.views, definition, weights)
    alone = rows_alone = None
    if min(batch.rows) > 1:
        parts = [batch.views[:, batch.part(rank)] for rank in range(len(batch.rows))]
        values, gradients = zip(
            *(_by_definition(part, definition, weights) for part in parts), strict=True
        )
        alone, rows_alone = np.array(values), np.concatenate(gradients, axis=1)
    return Whole(value, rows, alone, rows_alone)


def _by_definition(
    views: Iterable[Floats], definition: Definition, weights: Three
) -> tuple[float, Floats]:
    terms = Terms(Views(list(views), exactly=False), definition)
    gradients = np.stack([gradient.high for gradient in terms.gradients(weights)])
    return float(terms.value(weights).high), gradients


def _of_parameters(batch: Batch, rows: Floats) -> Floats:
    """Return the gradient of the linear map's parameters, from that of the embeddings."""
    weight = np.einsum("vnd,vne->de", rows, batch.inputs)
    return np.concatenate([weight.ravel(), rows.sum(axis=(0, 1))])
