"""The same objects used again and again, in any order: each result is the definition's.

A cache that has gone stale, an array that is updated although somebody else has it, or memory
that is given away twice shows in the second use of an object, not in the first. Machines of
Hypothesis draw what is done next: arrays change in place, graphs are gone back through twice,
modules change their settings, dtype and mode, are copied and stored, compiled functions get
other shapes, and ranks other rows. After each step the result is held to the definition in
float64, within the bounds of `test_properties`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import definition
import numpy as np
import pytest
import ranks
from backends import Backend
from errors import rounding
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_properties import (
    CLOSED_FORM,
    COMPILED,
    WEIGHTS,
    Configuration,
    Derivatives,
    Layout,
    Views,
    as_held,
    computed,
    configurations,
    eager_ways,
    has_one_derivative,
    is_smooth,
    is_the_definition,
    occurrences,
    positions_of,
    scales_of_sets,
    the_same_each_time,
)

from vicreg import conventions, vicreg_loss, vicreg_value_and_grad
from vicreg.tools.verification.paths import AS_CALLED, PATHS

SEEDS = st.integers(0, 2**16)

FEW_OR_MANY = pytest.mark.parametrize(
    "count", [pytest.param(3, id="few"), pytest.param(100, id="many", marks=pytest.mark.long)]
)


def run(machine: Callable[[], RuleBasedStateMachine], count: int, steps: int = 20) -> None:
    """Run a machine `count` times, the same ones each time."""
    run_state_machine_as_test(
        machine,
        settings=the_same_each_time(
            count,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )


class Calls(RuleBasedStateMachine):
    """The public functions of one library, called with the same arrays again.

    No call changes its arguments, or what another one has returned.
    """

    def __init__(self, xp: Backend) -> None:
        super().__init__()
        self.xp = xp
        self.kept: list[tuple[Any, np.ndarray]] = []  # what was returned, and its values

    @initialize(data=st.data())
    def anew(self, data: st.DataObject) -> None:
        self.drawn = data.draw(configurations(self.xp, [CLOSED_FORM]))
        self.arrays = [self.xp.asarray(view, self.drawn.dtype) for view in self.drawn.given()]
        self.weight = self.drawn.sample_weight(self.xp)

    @rule(data=st.data())
    def other_arrays(self, data: st.DataObject) -> None:
        self.anew(data)

    def change(self, **fields: Any) -> None:
        self.drawn = dataclasses.replace(self.drawn, **fields)

    def change_batch(self, **fields: Any) -> None:
        self.change(batch=dataclasses.replace(self.drawn.batch, **fields))

    @rule(seed=SEEDS)
    def other_values(self, seed: int) -> None:
        """In place, where the library has that."""
        self.change_batch(seed=seed)
        self.write()

    def write(self) -> None:
        for place, view in enumerate(self.drawn.given()):
            values = self.xp.asarray(view, self.drawn.dtype)
            self.arrays[place] = overwritten(self.xp, self.arrays[place], values)

    @rule(data=st.data())
    def other_weights_of_samples(self, data: st.DataObject) -> None:
        n, *positions, _ = self.drawn.batch.shape
        before = self.weight
        times = data.draw(st.none() | occurrences(n) | occurrences(n, *positions))
        self.change(times=times)
        self.weight = self.drawn.sample_weight(self.xp)
        both = before is not None and self.weight is not None
        if both and (before.shape, before.dtype) == (self.weight.shape, self.weight.dtype):
            self.weight = overwritten(self.xp, before, self.weight)
        self.write()

    @rule(gamma=st.sampled_from([1.0, 0.5, 2.0]), method=st.sampled_from(["gram", "covariance"]))
    def other_settings(self, gamma: float, method: str) -> None:
        self.change(gamma=gamma)
        self.change_batch(method=method)

    @rule(name=st.sampled_from(sorted(conventions)))
    def another_convention(self, name: str) -> None:
        convention = conventions[name]
        weights = self.drawn.batch.weights
        if convention.invariance == "none":
            weights = (0.0, weights[1], weights[2] or 1.0)
            self.change(pairs=None)
        if convention.hinge_on == "variance":
            self.change(eps=None)
        self.change_batch(convention=convention, weights=weights)

    @rule(path=st.sampled_from(PATHS))
    def another_path(self, path: Any) -> None:
        self.change(path=path)

    @rule(data=st.data())
    def is_right(self, data: st.DataObject) -> None:
        way = data.draw(st.sampled_from(eager_ways(self.xp)))
        cotangents = st.tuples(*[st.sampled_from([None, 1.0, -0.5])] * 4).filter(any)
        self.change(
            way=way,
            wanted=tuple(data.draw(st.booleans()) for _ in self.arrays),
            cotangents=None if way == CLOSED_FORM else data.draw(st.none() | cotangents),
        )
        if not is_smooth(self.drawn, as_held(self.xp, self.drawn, self.arrays)):
            return
        before = [self.xp.numpy(array) for array in self.arrays]
        got = computed(self.xp, self.drawn, self.arrays, self.weight)
        is_the_definition(self.xp, self.drawn, self.arrays, got)
        for array, values in zip(self.arrays, before, strict=True):
            np.testing.assert_array_equal(self.xp.numpy(array), values)
        returned = [got.value, *got.gradients, got.along]
        self.kept += [(each, self.xp.numpy(each)) for each in returned if each is not None]

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def what_was_returned_is_used(self, data: st.DataObject) -> None:
        """A user may work in place on a gradient: it is nobody else's."""
        place = data.draw(st.integers(0, len(self.kept) - 1))
        array, values = self.kept.pop(place)
        if values.ndim:
            overwritten(self.xp, array, 0 * array)

    @invariant()
    def what_was_returned_stays(self) -> None:
        for array, values in self.kept:
            np.testing.assert_array_equal(self.xp.numpy(array), values)


def overwritten(xp: Backend, array: Any, values: Any) -> Any:
    """Return `array` with these values, in place where the library has that."""
    if xp.name == "torch":
        with xp.xp.no_grad():
            return array.copy_(values)
    if xp.name not in ("numpy", "cupy", "mlx", "array_api_strict"):
        return values
    array[...] = values
    return array


@pytest.mark.long_on("jax")
@FEW_OR_MANY
def test_calls_with_the_same_arrays(xp: Backend, count: int) -> None:
    is_slow = xp.name in ("jax", "dask", "ndonnx", "mparray")
    run(lambda: Calls(xp), min(count, 3) if is_slow else count)


class Compiled(RuleBasedStateMachine):
    """Compiled functions, each called with arrays of other shapes, dtypes and values."""

    def __init__(self, xp: Backend) -> None:
        super().__init__()
        self.xp, self.tools = xp, xp.tools_backend
        self.functions: dict[Any, Callable[..., Any]] = {}
        self.tools.forget_compiled()

    @rule(
        data=st.data(),
        name=st.sampled_from(["official", "article"]),
        method=st.sampled_from(["gram", "covariance"]),
    )
    def is_right(self, data: st.DataObject, name: str, method: str) -> None:
        drawn = data.draw(configurations(self.xp, [CLOSED_FORM]))
        shape = drawn.batch.shape
        ndim = len(shape)
        drawn = dataclasses.replace(
            drawn,
            batch=dataclasses.replace(
                drawn.batch, convention=conventions[name], method=method, weights=(1.0, 2.0, 3.0)
            ),
            layout=Layout(shape[:1], shape[1:-1], shape[-1:], tuple(range(ndim))),
            path=AS_CALLED,
            gamma=1.0,
            eps=None,
            pairs=None,
            wanted=(True,) * drawn.batch.count,
            way=COMPILED,
        )
        arrays = [self.xp.asarray(view, drawn.dtype) for view in drawn.given()]
        if not is_smooth(drawn, as_held(self.xp, drawn, arrays)):
            return
        weight = drawn.sample_weight(self.xp)
        given = arrays if weight is None else [*arrays, weight]
        wanted = [array is not weight for array in given]
        function = self.compiled(drawn, ndim, weight is not None)
        value, gradients = self.tools.differentiate(function, given, wanted)
        got = Derivatives(value, gradients[: len(arrays)])
        is_the_definition(self.xp, drawn, arrays, got)

    def compiled(self, drawn: Configuration, ndim: int, weighted: bool) -> Callable[..., Any]:
        """Return the function of these settings, which may have been called before."""

        def function(*arrays: Any) -> Any:
            views, weight = (arrays[:-1], arrays[-1]) if weighted else (arrays, None)
            return vicreg_loss(*views, sample_weight=weight, **drawn.settings)

        key = drawn.batch.convention.name, drawn.batch.method, ndim, weighted
        return self.functions.setdefault(key, self.tools.compiled(function))


@pytest.mark.long_on("jax")
@FEW_OR_MANY
def test_compiled_functions(xp: Backend, count: int) -> None:
    if xp.name not in ("jax", "mlx"):
        pytest.skip(f"{xp} has no such compiler")  # PyTorch's: test_stateful_torch
    run(lambda: Compiled(xp), min(count, 3) if xp.name == "jax" else count, steps=8)


#: What the ranks call with. Few elements: the definition takes a loss for each.
OF_RANKS: dict[str, st.SearchStrategy[Any]] = {
    "rows": st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(1, 3)),
    "shape": st.sampled_from([(2,), (5,), (2, 2)]),
    "library": st.sampled_from(["numpy", "torch"]),
    "dtype": st.sampled_from(["float64", "float32"]),
    "views": st.integers(2, 3),
    "name": st.sampled_from(["official", "tensorflow-gnn"]),
    "method": st.sampled_from(["auto", "gram", "covariance"]),
    "weights": st.sampled_from([(1.0, 2.0, 3.0), (1.0, 2.0, 0.0)]),
    "is_weighted": st.booleans(),
    "seed": SEEDS,
}


class Ranks(RuleBasedStateMachine):
    """Ranks that remember what they sent each other, with another batch in each call.

    What one expects of the others is that of the calls before.
    """

    size = 3

    def __init__(self) -> None:
        super().__init__()
        threads = ranks.Threads(self.size)
        self.comms = [ranks.Thread(threads, rank) for rank in range(self.size)]
        self.pool = ThreadPoolExecutor(self.size)
        self.called: list[dict[str, Any]] = []

    def teardown(self) -> None:
        self.pool.shutdown()

    def on_each(self, function: Callable[[ranks.Thread], Any]) -> list[Any]:
        return list(self.pool.map(function, self.comms))

    @rule(given=st.fixed_dictionaries(OF_RANKS))
    def called_with_others(self, given: dict[str, Any]) -> None:
        self.called.append(given)
        self.call(**given)

    @precondition(lambda self: self.called)
    @rule(data=st.data(), name=st.sampled_from(sorted(OF_RANKS)))
    def called_as_before_but_for_one_thing(self, data: st.DataObject, name: str) -> None:
        before = self.called[data.draw(st.integers(0, len(self.called) - 1))]
        self.call(**before | {name: data.draw(OF_RANKS[name])})

    @precondition(lambda self: self.called)
    @rule(rows=OF_RANKS["rows"], seed=SEEDS)
    def called_with_other_rows(self, rows: tuple[int, ...], seed: int) -> None:
        self.call(**self.called[-1] | {"rows": rows, "seed": seed})

    def call(
        self,
        rows: tuple[int, ...],
        shape: tuple[int, ...],
        library: str,
        dtype: str,
        views: int,
        name: str,
        method: str,
        weights: tuple[float, ...],
        is_weighted: bool,
        seed: int,
    ) -> None:
        """Each rank has the loss of the whole batch, and the gradient by its own rows."""
        whole = [view.astype(dtype) for view in ranks.whole(rows, shape, views, seed)]
        rng = np.random.default_rng(seed)
        times = rng.integers(0, 3, sum(rows)) if is_weighted else np.ones(sum(rows), dtype=int)
        times[-2:] = 1
        asarray: Any = np.asarray if library == "numpy" else _tensor
        settings = dict(zip(WEIGHTS, weights, strict=True)) | {"method": method}

        def of_rank(comm: ranks.Thread) -> Any:
            own = map(asarray, ranks.own(whole, rows, comm.rank))
            (weight,) = ranks.own([times.reshape(-1, *[1] * (len(shape) - 1))], rows, comm.rank)
            given = {"sample_weight": asarray(weight)} if is_weighted else {}
            return vicreg_value_and_grad(*own, convention=name, comm=comm, **settings, **given)

        got = self.on_each(of_rank)
        held = [view.astype(np.float64) for view in whole]
        sets = positions_of(held, times)
        convention = conventions[name]
        if not all(has_one_derivative(each, convention, 1.0) for each in sets):
            return

        def truth(views: Views) -> Any:
            return definition.loss(views, name, weights, times=times)

        size = scales_of_sets(sets, convention, 1.0)
        bound = 4 * rounding(dtype, times.sum(), shape[-1])
        right, of_views = truth(held), definition.gradients(truth, held)
        for rank, (loss, gradients) in enumerate(got):
            assert abs(float(loss) - right) <= bound * size.of_loss(weights)
            for gradient, wanted in zip(gradients, ranks.own(of_views, rows, rank), strict=True):
                error = np.abs(np.asarray(gradient, dtype=np.float64) - wanted)
                assert (error <= bound * times.max() * size.of_gradient(weights)).all()

    @rule(rank=st.integers(0, 2), seed=SEEDS)
    def called_with_another_setting_on_one(self, rank: int, seed: int) -> None:
        """Each is told, and all can go on."""
        whole = ranks.whole((2,) * self.size, (3,), seed=seed)

        def of_rank(comm: ranks.Thread) -> str:
            own = ranks.own(whole, (2,) * self.size, comm.rank)
            gamma = 2.0 if comm.rank == rank else 1.0
            with pytest.raises(ValueError, match="gamma must be the same on every rank"):
                vicreg_loss(*own, gamma=gamma, comm=comm)
            return "told"

        assert self.on_each(of_rank) == ["told"] * self.size


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.tensor(array)


@FEW_OR_MANY
def test_ranks_with_other_batches(count: int) -> None:
    pytest.importorskip("torch")
    run(Ranks, 3 * count, steps=12)
