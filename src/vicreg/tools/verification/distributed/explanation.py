"""Why a loss over several ranks differs from one process, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.identification.fitting import fit
from vicreg.tools.verification.definition import DEFINITIONS, TERMS, Definition, Three
from vicreg.tools.verification.distributed.comparison import (
    Compared,
    Whole,
    relative_error,
    whole_by_definition,
)

__all__ = ["Known", "explained", "known_convention", "per_cent"]

#: Factors differ from 1 if they do by more than this, and finite differences are as good.
_SEEN = 1e-4
_UNITS: tuple[Three, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Known(NamedTuple):
    """The formula that a function computes in one process, with its weights."""

    definition: Definition
    weights: Three


def known_convention(results: Sequence[Compared]) -> Known | None:
    """Return the convention whose terms add up to the gradient in one process, if there is one."""
    if not results:
        return None
    limit = max(one.limit for one in results)
    truth = _flat([one.whole.rows for one in results])
    for definition in DEFINITIONS.values():
        terms = [_terms(one, definition) for one in results]
        columns = np.stack(
            [_flat([of_batch[k].rows for of_batch in terms]) for k in range(3)], axis=1
        )
        factors = np.nan_to_num(fit(columns, truth).factors)
        if relative_error(columns @ factors, truth) <= limit:
            first, second, third = (float(factor) for factor in factors)
            return Known(definition, (first, second, third))
    return None


def explained(results: Sequence[Compared], known: Known | None) -> list[str]:
    """Return what is wrong with the value and with the gradient; nothing if both are right.

    Parameters
    ----------
    results : sequence of Compared
        Results of one function on batches whose rows are all even or all uneven.
    known : Known or None
        What the function computes in one process. It serves batches in which each rank has rows
        enough for a loss of its own.

    Returns
    -------
    list of str
        One sentence or several for each quantity that is wrong.
    """
    if not results:
        return []
    known = known if _have_alone(results) else None
    lines = []
    if not all(one.value_passed for one in results):
        lines += _of_value(results, known)
    if not all(one.gradient_passed for one in results):
        lines += _of_gradient(results, known)
    return lines


def per_cent(error: float) -> str:
    """Return a relative error in per cent: "33 %", "0.012 %"."""
    share = 100 * error
    return f"{share:.0f} %" if share >= 99.5 else f"{share:.2g} %"


# --- the value ----------------------------------------------------------------------------


def _of_value(results: Sequence[Compared], known: Known | None) -> list[str]:
    size = results[0].size
    truth = np.repeat([[one.whole.value] for one in results], size, axis=1)
    values = np.stack([one.values for one in results])
    off = f"up to {per_cent(max(one.value_error for one in results))} off"
    if not np.all(np.isfinite(values)):
        return ["The value is no finite number."]
    limit = 10 * max(one.limit for one in results)

    def like(model: Floats) -> bool:
        return relative_error(values, model) <= limit

    is_same = like(np.repeat(values[:, :1], size, axis=1))
    mean_is_right = relative_error(values.mean(axis=1), truth[:, 0]) <= limit
    mean = "; its mean over the ranks is right" if mean_is_right else ""
    of_ranks_alone = _of_ranks_alone(results) if _have_alone(results) else {}
    for words, model in of_ranks_alone.items():
        if like(model):
            return [f"The value is {words}: {off}{mean}."]
    factors = (values * truth).sum(axis=0) / (truth**2).sum(axis=0)
    if like(factors * truth):
        if is_same:
            return [f"The value is {_times_whole(factors[0], size)}."]
        each = ", ".join(f"{factor:.4g}" for factor in factors)
        return [f"The value is {each} times the whole batch's, by rank{mean}."]
    how = "The value is the same on every rank, and" if is_same else "The value is"
    differs = "" if is_same else "; it differs from rank to rank"
    terms = _value_by_term(results, known, values, is_same)
    return [f"{how} {off}{mean or differs}.{terms}"]


def _of_ranks_alone(results: Sequence[Compared]) -> dict[str, Floats]:
    """Return what the values are if no rank knows of the others' rows, in words."""
    alone = np.stack([_alone(one.whole) for one in results])
    rows = np.array([one.batch.rows for one in results])
    by_rows = (alone * rows).sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True)
    mean, everywhere = alone.mean(axis=1, keepdims=True), np.ones_like(alone)
    return {
        "that of each rank's own rows alone": alone,
        "the mean over the ranks of the losses of their own rows": mean * everywhere,
        "the mean of the losses of the ranks' own rows, weighted by rows": by_rows * everywhere,
        "the sum of the losses of the ranks' own rows": results[0].size * mean * everywhere,
    }


def _value_by_term(
    results: Sequence[Compared], known: Known | None, values: Floats, is_same: bool
) -> str:
    if known is None:
        return ""
    whole, alone = [], []
    for one in results:
        of_batch = _terms(one, known.definition)
        whole.append([np.repeat(term.value, one.size) for term in of_batch])
        of_ranks = [_alone(term) for term in of_batch]
        alone.append([np.full_like(v, v.mean()) if is_same else v for v in of_ranks])
    size = results[0].size
    averaged = ", and averaged over the ranks" if is_same else ""
    # The mean over ranks of as many rows each is that of the batch.
    skip_first = is_same and all(one.batch.is_even for one in results)
    return _by_term(
        known,
        [_flat([of_batch[k] for of_batch in whole]) for k in range(3)],
        [_flat([of_batch[k] for of_batch in alone]) for k in range(3)],
        values.ravel(),
        skip_first,
        10 * max(one.limit for one in results),
        f"computed from each rank's own rows{averaged}",
        size,
    )


def _have_alone(results: Sequence[Compared]) -> bool:
    return all(one.whole.alone is not None for one in results)


def _alone(whole: Whole) -> Floats:
    assert whole.alone is not None
    return whole.alone


def _rows_alone(whole: Whole) -> Floats:
    assert whole.rows_alone is not None
    return whole.rows_alone


# --- the gradient -------------------------------------------------------------------------


def _of_gradient(results: Sequence[Compared], known: Known | None) -> list[str]:
    size = results[0].size
    off = f"up to {per_cent(max(one.gradient_error for one in results))} off"
    rows = _flat([one.rows for one in results])
    # The averaging divides by the number of ranks.
    right = size * _flat([one.whole.rows for one in results])
    if not np.all(np.isfinite(rows)):
        return ["The gradient is no finite number."]
    limit = 10 * max(one.limit for one in results)
    lines = []
    factor = float(rows @ right / (right @ right))
    if relative_error(rows, factor * right) <= limit:
        lines = [f"The gradient is {_times_whole(factor, size)}."]
    elif _have_alone(results):
        alone = _flat([_rows_alone(one.whole) for one in results])
        factor = float(rows @ alone / (alone @ alone))
        if relative_error(rows, factor * alone) <= limit:
            times = "" if abs(factor - 1) <= _SEEN else f"{_times(factor, size)} "
            lines = [f"The gradient is {times}that of each rank's own rows alone: {off}."]
        else:
            lines = [f"The gradient is {off}.{_gradient_by_term(results, known, rows)}"]
    return (lines or [f"The gradient is {off}."]) + _of_backward(results)


def _gradient_by_term(results: Sequence[Compared], known: Known | None, rows: Floats) -> str:
    if known is None:
        return ""
    size = results[0].size
    terms = [_terms(one, known.definition) for one in results]
    return _by_term(
        known,
        [size * _flat([of_batch[k].rows for of_batch in terms]) for k in range(3)],
        [_flat([_rows_alone(of_batch[k]) for of_batch in terms]) for k in range(3)],
        rows,
        all(one.batch.is_even for one in results),
        10 * max(one.limit for one in results),
        "computed from each rank's own rows",
        size,
    )


def _of_backward(results: Sequence[Compared]) -> list[str]:
    """Return how the gradient differs from the derivative of the ranks' values."""
    own, every, given = [], [], []
    for one in results:
        if one.moves is None:
            continue
        products = one.rows * one.batch.direction
        given += [products[:, one.batch.part(rank)].sum() for rank in range(one.size)]
        own += list(np.diag(one.moves))
        every += list(one.moves.sum(axis=0))
    if not given or _near(own, every):
        return []
    if _near(given, every):
        return ["The backward pass is the derivative of the values: the fault is in the values."]
    if _near(given, own):
        return [
            "The backward pass gives a rank the derivative of its own value only, and loses the "
            "other ranks' part: a gather whose backward pass does not add up the gradients of "
            "all ranks, or divides their sum by W."
        ]
    factor = float(np.dot(given, every) / np.dot(every, every))
    if _near(given, factor * np.array(every)):
        times = _times(factor, results[0].size)
        return [f"The backward pass gives {times} the derivative of the ranks' values."]
    return ["The backward pass is not the derivative of the values."]


def _flat(arrays: Sequence[Floats]) -> Floats:
    return np.concatenate([array.ravel() for array in arrays])


def _near(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> bool:
    return relative_error(np.asarray(a), np.asarray(b)) <= _SEEN


# --- the terms ----------------------------------------------------------------------------


def _terms(one: Compared, definition: Definition) -> list[Whole]:
    return [whole_by_definition(one.batch, definition, unit) for unit in _UNITS]


def _by_term(
    known: Known,
    whole: Sequence[Floats],
    alone: Sequence[Floats],
    values: Floats,
    skip_first_alone: bool,
    limit: float,
    of_own_rows: str,
    size: int,
) -> str:
    """Return which terms are wrong, if whole terms and terms of own rows add up to the values."""
    places = [k for k in range(3) if abs(known.weights[k]) > limit]
    with_alone = [k for k in places if not (k == 0 and skip_first_alone)]
    columns = [known.weights[k] * whole[k] for k in places]
    columns += [known.weights[k] * alone[k] for k in with_alone]
    best = fit(np.stack(columns, axis=1), values, float(np.max(np.abs(columns))))
    if not best.unique or relative_error(best.values, values) > limit:
        return ""
    factors = np.where(np.abs(best.factors) <= _SEEN, 0.0, best.factors)
    of_alone = dict(zip(with_alone, factors[len(places) :], strict=True))
    faults: dict[str, list[str]] = {}
    for place, factor in zip(places, factors[: len(places)], strict=True):
        fault = _fault(factor, of_alone.get(place, 0.0), of_own_rows, size)
        if fault:
            faults.setdefault(fault, []).append(TERMS[place])
    parts = "; its ".join(f"{_all_terms(terms)} {fault}" for fault, terms in faults.items())
    return f" Its {parts}." if parts else ""


def _fault(whole: float, alone: float, of_own_rows: str, size: int) -> str:
    """Return what a term is instead of the whole batch's; "" if it is that."""
    if not alone:
        if not whole:
            return "missing"
        return "" if abs(whole - 1) <= _SEEN else f"{_times(whole, size)} the whole batch's"
    times = "" if abs(alone - 1) <= _SEEN else f", {_times(alone, size)} that"
    if whole:
        return f"{whole:.4g} times the whole batch's, with a part {of_own_rows} added"
    return of_own_rows + times


def _all_terms(terms: Sequence[str]) -> str:
    if len(terms) == 1:
        return f"{terms[0]} term is"
    return f"{', '.join(terms[:-1])} and {terms[-1]} terms are"


def _times_whole(factor: float, size: int) -> str:
    return f"{_times(factor, size)} the whole batch's: {per_cent(abs(factor - 1))} off"


def _times(factor: float, size: int) -> str:
    """Return a factor in words, by the number W of ranks."""
    powers: dict[float, str] = {size: f"W = {size} times", size**2: f"W² = {size**2} times"}
    powers |= {1 / size: f"1/W = 1/{size} of", 1 / size**2: f"1/W² = 1/{size**2} of"}
    for power, words in powers.items():
        if abs(factor / power - 1) <= _SEEN:
            return words
    return f"{factor:.4g} times"
