"""A batch that is spread over ranks: what each of them needs of the others' rows.

Each rank has the terms of the whole batch, and their gradients by its own rows. What it needs of
the other ranks is had in one of two ways:

gathered
    Every rank has all rows, once. For the Gram route, where each sample is multiplied with each
    other: a rank forms its own rows of K, and of the gradient, from them.
summed
    Every rank has the mean of all rows, from the mean of each rank's. Any other sum over the
    samples is a sum of the ranks' sums.

The gradient needs nothing more from the others than the value does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vicreg._conventions import conventions, samples_needed
from vicreg._core import plan, sums
from vicreg._core.agreement import Own, checksum
from vicreg._core.communicator import Communicator
from vicreg._core.largest import Features
from vicreg._core.layout import as_computed
from vicreg._core.library import Library
from vicreg._core.objective import Objective
from vicreg._core.sample_weights import SampleWeights, of_each, total_of
from vicreg._core.samples import Samples
from vicreg._core.sizes import Sizes

Array = Any


@dataclass(frozen=True)
class Batch:
    """The batch of all ranks, as one of them has it."""

    comm: Communicator
    counts: tuple[int, ...]  # the rows of each rank
    gathered: Array | None = None  # (k, ..., n, d), the rows of all ranks
    mean: Array | None = None  # (k, ..., 1, d), of all rows, less `Samples.shift` of these
    weight_total: Array | None = None  # (..., 1, 1), of the samples of all ranks
    weights: SampleWeights | None = None  # of the rows of all ranks, where they are gathered

    @property
    def count(self) -> int:
        """The number of samples, n."""
        return sum(self.counts)

    def samples(
        self, xp: Library, z: Array, sizes: Sizes, place: Any, weights: SampleWeights | None
    ) -> Samples:
        """Return the samples of all views, or of the one at `place`.

        Of them `z` are here, and have these `weights`.
        """
        if self.gathered is None:
            mean: Any = self.mean
            return SummedSamples(xp, z, sizes, mean[place], self, weights)
        everyone = Samples(xp, self.gathered[place], sizes, weights=self.weights)
        return GatheredSamples(xp, z, sizes, everyone, self, weights)


class SummedSamples(Samples):
    """The rows that are here of a batch: each sum over the samples is over all ranks."""

    def __init__(
        self,
        xp: Library,
        z: Array,
        sizes: Sizes,
        mean: Array | None,
        batch: Batch,
        weights: SampleWeights | None,
    ) -> None:
        super().__init__(xp, z, sizes, mean, weights)
        self.count, self._comm = batch.count, batch.comm

    @property
    def energies(self) -> Array:
        """As in `Samples`."""
        if self._energies is None:
            self._energies = self._comm.all_reduce(self.xp.centred_energies(self))
        return self._energies

    def total_of_squares(self, arrays: Sequence[Array]) -> Array:
        """As in `Samples`."""
        return self._comm.all_reduce(super().total_of_squares(arrays))

    def squares_of_each_set(self, array: Array) -> Array:
        """As in `Samples`."""
        return self._comm.all_reduce(super().squares_of_each_set(array))

    def centred_products(self, scale: Any) -> Array:
        """As in `Samples`."""
        return self._comm.all_reduce(super().centred_products(scale))

    def products_with(self, array: Array) -> Array:
        """As in `Samples`."""
        return self._comm.all_reduce(super().products_with(array))


class GatheredSamples(SummedSamples):
    """The rows that are here of a batch, and those of all ranks beside them."""

    def __init__(
        self,
        xp: Library,
        z: Array,
        sizes: Sizes,
        everyone: Samples,
        batch: Batch,
        weights: SampleWeights | None,
    ) -> None:
        super().__init__(xp, z, sizes, None, batch, weights)
        self._everyone = everyone

    @property
    def everyone(self) -> Samples:
        """As in `Samples`."""
        return self._everyone

    @property
    def mean(self) -> Array:
        """As in `Samples`."""
        return self._everyone.mean

    @property
    def energies(self) -> Array:
        """As in `Samples`."""
        return self._everyone.energies

    def _centre(self) -> Array:
        shifted = self.z - self._everyone.shift
        return self._less(self.mean, shifted)

    def own_columns(self, columns: Array, features: Features) -> Array:
        """As in `Samples`."""
        return features.columns(self.centred)

    def sample_products(self, array: Array, scale: Any) -> Array:
        """As in `Samples`."""
        # What is 0 in these samples need not be so in the others.
        everyone = self.xp.matrix_transpose(self._everyone.centred)
        return self.xp.scaled_product(array, everyone, scale)

    def forget_centred(self) -> None:
        """As in `Samples`."""
        super().forget_centred()
        self._everyone.forget_centred()


def joined(
    xp: Library, arrays: Sequence[Array], objective: Objective, weights: Sequence[Any]
) -> Objective:
    """Return `objective` for the batch of all ranks; for that of this one if there is no other.

    `arrays` are the views, and the weights of their samples if the objective has them.

    Raises
    ------
    ValueError
        On every rank: they differ in something else than their rows, or have together fewer
        samples than the terms need.
    """
    comm = objective.comm
    if comm is None:
        return objective
    views, weight = objective.split(arrays)
    own = [objective.axes.in_order(xp, view) for view in views]
    each = None if weight is None else of_each(xp, weight, views[0], objective.axes)
    payload = functools.partial(_payload, xp, own, each, objective)
    if comm.size == 1:
        counts: tuple[int, ...] = (own[0].shape[-2],)
    elif comm.runs_one_program:
        counts = (own[0].shape[-2],) * comm.size
        received = comm.all_gather(payload(counts))
    else:
        brought = _brought(own[0], len(own), objective, tuple(weights))
        counts, received = comm.agreement.exchange(xp, comm, brought, payload, own[0].device)
    needed = samples_needed(objective.convention)
    if sum(counts) < needed:
        raise ValueError(
            f"the ranks of comm must have at least {needed} samples together; got "
            f"{sum(counts)}: {', '.join(map(str, counts))}"
        )
    if comm.size == 1:
        return replace(objective, comm=None)
    objective = _with_route(objective, counts, own[0].shape[-1])
    if gathers(objective, counts, own[0].shape[-1]):
        if each is not None:
            each = _rows(xp, comm.all_gather(_filled(xp, each, max(counts))), counts)
        rows = _rows(xp, received, counts)
        batch = gathered_batch(xp, comm, counts, rows, each, objective)
    elif each is None:
        shares: Sequence[Any] = [count / sum(counts) for count in counts]
        batch = Batch(comm, counts, mean=_mean(received, shares, counts, comm.rank))
    else:
        totals = comm.all_gather(total_of(xp, each, objective.sizes.summed))
        total = sums.total(totals[rank] for rank in range(comm.size))
        safe = xp.where(total == 0, xp.ones_like(total), total)
        shares = [totals[rank] / safe for rank in range(comm.size)]
        mean = _mean(received, shares, counts, comm.rank)
        batch = Batch(comm, counts, mean=mean, weight_total=total)
    return replace(objective, batch=batch)


def gathered_batch(
    xp: Library,
    comm: Communicator,
    counts: tuple[int, ...],
    rows: Array,
    each: Array | None,
    objective: Objective,
) -> Batch:
    """Return the batch of which every rank has all `rows`, of which `each` are the weights."""
    rows = as_computed(xp, rows)
    if each is None:
        return Batch(comm, counts, gathered=rows)
    total = total_of(xp, each, objective.sizes.summed)
    weights = objective.sample_weights(xp, each, total)
    cleaned = weights.clean(rows)
    return Batch(comm, counts, gathered=cleaned, weight_total=total, weights=weights)


def _rows(xp: Library, received: Any, counts: tuple[int, ...]) -> Array:
    """Return the rows of all ranks, without what fills them up."""
    rows = [received[rank][..., :n, :] for rank, n in enumerate(counts) if n]
    return xp.concat(rows, axis=-2)


def _with_route(objective: Objective, counts: tuple[int, ...], d: int) -> Objective:
    """Return `objective` with the route that the batch takes: the same on every rank."""
    if objective.method != "auto":
        return objective
    return replace(objective, method=plan.cheaper_route(counts, d))


def gathers(objective: Objective, counts: tuple[int, ...], d: int) -> bool:
    """Return whether each rank needs the rows of all, of which the ranks have `counts`."""
    is_gram = _with_route(objective, counts, d).method == "gram"
    return is_gram and objective.penalty == "square" and objective.computed[2]


def _payload(
    xp: Library,
    own: Sequence[Array],
    each: Array | None,
    objective: Objective,
    counts: tuple[int, ...],
) -> Array:
    """Return what this rank sends: its rows, filled up to the most of any rank, or their mean."""
    if gathers(objective, counts, own[0].shape[-1]):
        return _filled(xp, xp.stack(own), max(counts))
    return xp.stack([_shift_and_mean(xp, as_computed(xp, z), each, objective) for z in own])


def _filled(xp: Library, rows: Array, count: int) -> Array:
    """Return `rows` with rows of 0 after them: `count` in all."""
    missing = count - rows.shape[-2]
    return rows if missing <= 0 else xp.concat([rows, _empty(xp, rows, missing)], axis=-2)


def _shift_and_mean(xp: Library, z: Array, each: Array | None, objective: Objective) -> Array:
    """Return the shift of the rows, and their mean less it, ``(..., 2, d)``; 0 if no rows."""
    if z.shape[-2] == 0:
        return _empty(xp, z, 2)
    weights = None
    if each is not None:
        # A mean has no correction: of a rank with less than it the samples count in the mean too.
        weights = SampleWeights(xp, each, total_of(xp, each, objective.sizes.summed), 0)
        z = weights.clean(z)
    samples = Samples(xp, z, objective.sizes, weights=weights)
    return xp.concat([samples.shift, samples.mean], axis=-2)


def _empty(xp: Library, like: Array, rows: int) -> Array:
    *sets, _, d = like.shape
    return xp.zeros((*sets, rows, d), dtype=like.dtype, device=like.device)


def _mean(received: Array, shares: Sequence[Any], counts: tuple[int, ...], rank: Any) -> Array:
    """Return the mean of all rows less the shift of this rank's, ``(k, ..., 1, d)``.

    From differences of rows, so that it is rounded on the scale of the spread. `shares` says how
    much each rank's mean counts.
    """
    own_shift = received[rank][..., :1, :]
    return sums.total(
        share * ((of_rank[..., :1, :] - own_shift) + of_rank[..., 1:, :])
        for share, count, of_rank in zip(shares, counts, received, strict=True)
        if count
    )


def _brought(z: Array, views: int, objective: Objective, weights: tuple[Any, ...]) -> Own:
    numbers = tuple(w if isinstance(w, float) else f"an array of {float(w)}" for w in weights)
    *positions, n, d = z.shape
    return _described(objective, views, (*positions, d), str(z.dtype), numbers, n)


@functools.lru_cache(maxsize=256)
def _described(
    objective: Objective,
    views: int,
    shape: tuple[int, ...],
    dtype: str,
    weights: tuple[Any, ...],
    count: int,
) -> Own:
    convention = objective.convention
    is_published = conventions.get(convention.name) == convention
    settings = {
        "the number of views": views,
        "the number of features": shape[-1],
        "the positions": shape[:-1],
        "the dtype": dtype,
        "the convention": repr(convention.name) if is_published else convention,
        "the weights": weights,
        "the terms that are computed": objective.computed,
        "whether sample_weight is given": objective.weighted,
    } | {name: getattr(objective, name) for name in _SETTINGS}
    shown = {name: str(value)[:_SHOWN] for name, value in settings.items()}
    form = (views, shape, dtype, objective.method, objective.penalty, objective.computed)
    return Own(checksum(form), shown, checksum(settings), count)


#: Of an objective, what must be the same on every rank, beside its convention.
_SETTINGS = (
    "gamma",
    "eps",
    "method",
    "axes",
    "penalty",
    "delta",
    "published_gradient",
    "pairs",
)
_SHOWN = 300  # characters of a setting in an error
