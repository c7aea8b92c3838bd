"""What ``vicreg verify --distributed`` says of a fault, on ranks that are simulated in NumPy.

A simulated rank's value is a sum of terms of the whole batch and of its own rows, by which its
gradient and the movement of its value follow from the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.distributed.batches import Batch, batches_for, batches_for_package
from vicreg.tools.verification.distributed.comparison import (
    Compared,
    Whole,
    relative_error,
    whole_by_definition,
)
from vicreg.tools.verification.distributed.explanation import (
    Known,
    explained,
    known_convention,
    per_cent,
)

OFFICIAL = Known(DEFINITIONS["official"], (25.0, 25.0, 1.0))
TERMS = ((25.0, 0.0, 0.0), (0.0, 25.0, 0.0), (0.0, 0.0, 1.0))
ALL = (1.0, 1.0, 1.0)
NONE = (0.0, 0.0, 0.0)


def batches(size: int, even: bool) -> list[Batch]:
    return [batch for batch in batches_for(size) if batch.is_even == even]


def terms_of(batch: Batch) -> list[Whole]:
    return [whole_by_definition(batch, OFFICIAL.definition, weights) for weights in TERMS]


def ranks(
    batch: Batch,
    values: tuple[Sequence[float], Sequence[float]] = (ALL, NONE),
    gradients: tuple[Sequence[float], Sequence[float]] | None = None,
    by_rank: Any = 1.0,
    moving: bool = False,
) -> Compared:
    """Return simulated ranks: the factors of the terms of the whole batch, and of own rows.

    The gradient is that of the values by default, as collectives of the framework would give it.
    """
    size, terms = len(batch.rows), terms_of(batch)
    whole, alone = values
    value = by_rank * np.ones(size) * sum(f * t.value for f, t in zip(whole, terms, strict=True))
    value += sum(f * t.alone for f, t in zip(alone, terms, strict=True))
    whole_gradient, own_gradient = gradients or values
    rows = sum(f * size * t.rows for f, t in zip(whole_gradient, terms, strict=True))
    rows = rows + sum(f * t.rows_alone for f, t in zip(own_gradient, terms, strict=True))
    moves = np.zeros((size, size))
    for rank in range(size):
        part = batch.part(rank)
        along = batch.direction[:, part]
        moves[:, rank] = sum(
            f * (t.rows[:, part] * along).sum() for f, t in zip(whole, terms, strict=True)
        )
        moves[rank, rank] += sum(
            f * (t.rows_alone[:, part] * along).sum() for f, t in zip(alone, terms, strict=True)
        )
    weight = np.einsum("vnd,vne->de", rows, batch.inputs) / size
    parameters = np.concatenate([weight.ravel(), rows.sum(axis=(0, 1)) / size])
    truth = whole_by_definition(batch, *OFFICIAL)
    moved = moves if moving else None
    return Compared(batch, truth, value, rows, parameters, moved, "float64")


def said(size: int = 3, even: bool = False, **fault: Any) -> list[str]:
    return explained([ranks(batch, **fault) for batch in batches(size, even)], OFFICIAL)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_nothing_is_said_of_what_is_right(size: int, even: bool) -> None:
    results = [ranks(batch) for batch in batches(size, even)]
    assert all(one.passed for one in results)
    assert explained(results, OFFICIAL) == []


def test_ranks_differ_in_data_means_and_rows() -> None:
    for size in (2, 3, 5):
        for batch in batches_for(size):
            parts = [batch.views[:, batch.part(rank)] for rank in range(size)]
            assert [part.shape[1] for part in parts] == list(batch.rows)
            means = np.array([part.mean(axis=(0, 1)) for part in parts])
            between = np.linalg.norm(means - means.mean(axis=0))
            assert between > 0.5 * np.linalg.norm(batch.views.std(axis=(0, 1)))
        assert {batch.n > batch.d for batch in batches_for(size)} == {True, False}
        assert {batch.is_even for batch in batches_for(size)} == {True, False}
        assert {min(batch.rows) for batch in batches_for_package(size)} >= {0, 1}


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("error", [1e-6, 1e-3])
def test_a_small_fault_is_no_pass(error: float, even: bool) -> None:
    (batch, *_) = batches(2, even)
    right = ranks(batch)
    values = right.values * np.array([1.0, 1.0 + error])
    assert not replace(right, values=values).value_passed
    rows = right.parameters.copy()
    rows[np.argmax(np.abs(rows))] *= 1 + 10 * error
    assert not replace(right, parameters=rows).gradient_passed
    assert not replace(right, parameters=np.nan * rows).gradient_passed


@pytest.mark.parametrize("even", [True, False])
def test_each_rank_alone(even: bool) -> None:
    value, gradient = said(even=even, values=(NONE, ALL), moving=True)
    assert value.startswith("The value is that of each rank's own rows alone: up to ")
    assert gradient.startswith("The gradient is that of each rank's own rows alone: up to ")
    assert gradient.endswith(" % off.")


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (3.0, "W = 3 times"),
        (1 / 3, "1/W = 1/3 of"),
        (9.0, "W² = 9 times"),
        (1 / 9, "1/W² = 1/9 of"),
        (1.5, "1.5 times"),
    ],
)
def test_factors(factor: float, words: str) -> None:
    (gradient,) = said(gradients=((factor,) * 3, NONE))
    off = per_cent(abs(factor - 1))
    assert gradient == f"The gradient is {words} the whole batch's: {off} off."
    value, *_ = said(values=((factor,) * 3, NONE), gradients=(ALL, NONE))
    assert value == f"The value is {words} the whole batch's: {off} off."


def test_a_backward_pass_that_loses_the_other_ranks_part() -> None:
    gradient, reason = said(gradients=((1 / 3,) * 3, NONE), moving=True)
    assert "1/W = 1/3 of" in gradient
    assert "the derivative of its own value only" in reason
    gradient, reason = said(gradients=((3.0,) * 3, NONE), moving=True)
    assert reason == "The backward pass gives W = 3 times the derivative of the ranks' values."
    _, reason = said(gradients=((1.0, 0.5, 2.0), NONE), moving=True)
    assert reason == "The backward pass is not the derivative of the values."


def test_a_term_of_each_rank_alone() -> None:
    fault = ((0.0, 1.0, 1.0), (1.0, 0.0, 0.0))
    own = "Its invariance term is computed from each rank's own rows."
    value, gradient, reason = said(values=fault, moving=True)
    assert value.endswith(f"it differs from rank to rank. {own}")
    assert gradient.endswith(own)
    assert reason.endswith("the fault is in the values.")
    # With even rows the average over the ranks mends it.
    (value,) = said(even=True, values=fault)
    assert value.endswith(f"its mean over the ranks is right. {own}")
    fault = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))
    value, gradient = said(values=fault)
    own = "Its variance and covariance terms are computed from each rank's own rows."
    assert value.endswith(own)
    assert gradient.endswith(own)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("size", [2, 4])
def test_factors_of_terms(size: int, even: bool) -> None:
    factors = (1.0, 1.0 / size, 0.0)
    (gradient,) = said(size, even, gradients=(factors, NONE))
    assert gradient.endswith(
        f" Its variance term is 1/W = 1/{size} of the whole batch's; its covariance term is "
        "missing."
    )


def test_terms_that_are_mixed_or_scaled() -> None:
    (gradient,) = said(gradients=((1.0, 0.5, 0.0), (0.0, 0.5, 3.0)))
    assert (
        "its covariance term is computed from each rank's own rows, W = 3 times that" in gradient
    )
    assert "Its variance term is 0.5 times the whole batch's, with a part" in gradient


def test_values_of_ranks() -> None:
    value, *_ = said(by_rank=np.array([1.0, 2.0, 3.0]))
    assert value.startswith("The value is 1, 2, 3 times the whole batch's, by rank")
    value, *_ = said(by_rank=np.array([0.5, 1.0, 1.5]))
    assert value.endswith("its mean over the ranks is right.")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("mean", "the mean over the ranks of the losses of their own rows"),
        ("rows", "the mean of the losses of the ranks' own rows, weighted by rows"),
        ("sum", "the sum of the losses of the ranks' own rows"),
    ],
)
def test_losses_of_own_rows_put_together(weights: str, words: str) -> None:
    results = []
    for batch in batches(3, even=False):
        one = ranks(batch, values=(NONE, ALL))
        shares = {"mean": np.ones(3) / 3, "sum": np.ones(3), "rows": np.array(batch.rows)}[weights]
        shares = shares / shares.sum() if weights == "rows" else shares
        results.append(replace(one, values=np.full(3, one.values @ shares)))
    value, *_ = explained(results, OFFICIAL)
    assert value.startswith(f"The value is {words}: ")


def test_one_term_averaged_over_the_ranks() -> None:
    results = []
    for batch in batches(3, even=False):
        first, second, third = terms_of(batch)
        value = first.value + second.alone.mean() + third.value
        results.append(replace(ranks(batch), values=np.full(3, value)))
    (value,) = explained(results, OFFICIAL)
    assert value.startswith("The value is the same on every rank, and up to ")
    assert value.endswith(
        "Its variance term is computed from each rank's own rows, and averaged over the ranks."
    )


def test_no_number_and_no_explanation() -> None:
    results = [ranks(batch) for batch in batches(2, even=True)]
    nothing = [replace(one, values=np.nan * one.values) for one in results]
    assert explained(nothing, OFFICIAL) == ["The value is no finite number."]
    nan = [
        replace(one, rows=np.nan * one.rows, parameters=np.nan * one.parameters) for one in results
    ]
    assert explained(nan, OFFICIAL) == ["The gradient is no finite number."]
    rng = np.random.default_rng(0)
    noise = [
        replace(
            one,
            values=one.values + 1.0,
            rows=rng.standard_normal(one.rows.shape),
            parameters=rng.standard_normal(one.parameters.shape),
        )
        for one in results
    ]
    for known in (OFFICIAL, None):
        value, gradient = explained(noise, known)
        assert value.startswith("The value is the same on every rank, and up to ")
        assert gradient.startswith("The gradient is up to ")
        assert value.endswith(" % off.")
        assert gradient.endswith(" % off.")


@pytest.mark.parametrize("name", sorted(set(DEFINITIONS) - {"vcreg"}))
def test_the_convention_of_a_function_is_known_from_one_process(name: str) -> None:
    weights = (3.0, 2.0, 0.5)
    results = [
        replace(ranks(batch), whole=whole_by_definition(batch, DEFINITIONS[name], weights))
        for batch in (*batches(2, even=True), *batches(2, even=False))
    ]
    known = known_convention(results)
    assert known is not None
    for one in results:
        again = whole_by_definition(one.batch, *known)
        assert relative_error(again.rows, one.whole.rows) < 1e-12


def test_a_function_of_no_convention_is_not_known() -> None:
    results = []
    for batch in batches(2, even=True):
        truth = whole_by_definition(batch, *OFFICIAL)
        results.append(replace(ranks(batch), whole=replace(truth, rows=truth.rows**3)))
    assert known_convention(results) is None
    assert known_convention([]) is None


def test_per_cent() -> None:
    assert [per_cent(error) for error in (4.0, 0.999, 0.5, 0.0123, 1e-6)] == [
        "400 %",
        "100 %",
        "50 %",
        "1.2 %",
        "0.0001 %",
    ]
