"""The loss of a batch over ranks is that of the whole batch, and so is its gradient.

The ranks are threads here: see test_ranks_torch.py, test_ranks_jax.py and test_ranks_mpi.py for
processes and devices. On every rank the rows have another mean.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ranks
from errors import UNIT_ROUNDOFF, largest_error, rounding
from ranks import EVEN, NONE, ONE_ROW, UNEVEN, Thread, Threads, on_threads

from vicreg import (
    conventions,
    covariance_loss,
    invariance_loss,
    variance_loss,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.distributed import LOCAL, MPICommunicator, TorchCommunicator

WIDE, NARROW = (40,), (5,)  # more features than samples, and fewer
CONVENTION = replace(conventions["official"], name="mine")
VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5}


@pytest.fixture(params=["numpy", "torch"])
def library(request: pytest.FixtureRequest) -> str:
    if request.param == "torch":
        pytest.importorskip("torch")
    return request.param


def as_library(views: list[np.ndarray], library: str, dtype: str = "float64") -> list[Any]:
    if library == "numpy":
        return [np.asarray(view, dtype=dtype) for view in views]
    import torch

    return [torch.asarray(view).to(getattr(torch, dtype)) for view in views]


def as_numpy(array: Any) -> np.ndarray:
    return np.asarray(array.double() if hasattr(array, "double") else array, dtype=np.float64)


def check(
    function: Any,
    rows: tuple[int, ...],
    shape: tuple[int, ...],
    library: str,
    dtype: str = "float64",
    views: int = 2,
    **settings: Any,
) -> None:
    """Assert that values and gradients are those of one process."""
    whole = as_library(ranks.whole(rows, shape, views), library, dtype)

    def of_rank(comm: Thread) -> Any:
        return function(*ranks.own(whole, rows, comm.rank), comm=comm, **settings)

    wanted, wanted_gradients = function(*whole, **settings)
    tolerance = rounding(dtype, sum(rows), shape[-1])
    by_rank = on_threads(len(rows), of_rank)
    for rank, result in enumerate(by_rank):
        if isinstance(result, Exception):
            raise result
        value, gradients = result
        assert as_numpy(value) == as_numpy(by_rank[0][0])
        assert largest_error(as_numpy(value), as_numpy(wanted)) <= tolerance
        if isinstance(gradients, tuple):
            assert all(
                g.shape == z.shape
                for g, z in zip(gradients, ranks.own(whole, rows, rank), strict=True)
            )
    if isinstance(wanted_gradients, tuple):
        for place, wanted_gradient in enumerate(wanted_gradients):
            got = np.concatenate([as_numpy(gradients[place]) for _, gradients in by_rank])
            assert largest_error(got, as_numpy(wanted_gradient)) <= tolerance
    else:
        got = np.concatenate([as_numpy(gradient) for _, gradient in by_rank])
        assert largest_error(got, as_numpy(wanted_gradients)) <= tolerance


@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("rows", [EVEN, UNEVEN, ONE_ROW, NONE], ids=str)
@pytest.mark.parametrize("method", ["auto", "gram", "covariance"])
def test_it_is_that_of_the_whole_batch(
    library: str, rows: tuple[int, ...], shape: tuple[int, ...], method: str
) -> None:
    check(vicreg_value_and_grad, rows, shape, library, method=method)


@pytest.mark.parametrize("name", [name for name in conventions if name != "vcreg"])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=["wide", "narrow"])
def test_in_every_convention(name: str, views: int, shape: tuple[int, ...]) -> None:
    check(vicreg_value_and_grad, UNEVEN, shape, "numpy", views=views, convention=name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=["wide", "narrow"])
def test_in_every_precision(library: str, dtype: str, shape: tuple[int, ...]) -> None:
    check(vicreg_value_and_grad, UNEVEN, shape, library, dtype)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 0), (0, 1, 3)])
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=["wide", "narrow"])
def test_for_any_weights(weights: tuple[int, ...], shape: tuple[int, ...]) -> None:
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    settings = dict(zip(names, weights, strict=True))
    check(vicreg_value_and_grad, UNEVEN, shape, "numpy", **settings)


@pytest.mark.parametrize("axes", [{}, {"sample_axis": (0, 1)}, {"feature_axis": (1, 2)}], ids=str)
def test_with_positions_and_axes(library: str, axes: dict[str, Any]) -> None:
    check(vicreg_value_and_grad, UNEVEN, (2, 30), library, **axes)
    check(vicreg_value_and_grad, UNEVEN, (3, 4), library, **axes)


@pytest.mark.parametrize("penalty", ["square", "smooth_l1"])
@pytest.mark.parametrize("shape", [WIDE, NARROW, (300,), (3, 8)], ids=str)
def test_vcreg(library: str, penalty: str, shape: tuple[int, ...]) -> None:
    check(vcreg_value_and_grad, UNEVEN, shape, library, views=1, penalty=penalty, **VCREG)


def values(function: Any, views: int, rows: tuple[int, ...] = UNEVEN, **settings: Any) -> None:
    whole = ranks.whole(rows, WIDE, views)
    wanted = np.asarray(function(*whole, **settings))

    def of_rank(comm: Thread) -> Any:
        return np.asarray(function(*ranks.own(whole, rows, comm.rank), comm=comm, **settings))

    for value in on_threads(len(rows), of_rank):
        assert largest_error(value, wanted) <= rounding("float64", sum(rows), *WIDE)


def test_single_terms_and_values_alone() -> None:
    values(invariance_loss, 2)
    values(variance_loss, 1)
    values(covariance_loss, 1)
    values(covariance_loss, 1, method="covariance")
    values(vicreg_loss, 2)
    values(vicreg_terms, 2)
    values(vcreg_loss, 1, **VCREG)


@pytest.mark.parametrize(
    ("large", "d"),
    [(3, 60), (3, 120), (12, 120)],
    ids=["by the definition", "kept apart", "in blocks"],
)
def test_features_far_larger_than_the_rest(large: int, d: int) -> None:
    """Orthogonal ones, so that the difference of the Gram route cancels: each way out of that."""
    rows = (9, 4, 11)
    n = sum(rows)
    whole = ranks.whole(rows, (d,))
    rng = np.random.default_rng(0)
    for view in whole:
        random = rng.standard_normal((n, large))
        orthogonal, _ = np.linalg.qr(random - random.mean(axis=0))
        view[:, :large] = 1e4 * n**0.5 * orthogonal
    views32 = [view.astype(np.float32) for view in whole]
    views64 = [view.astype(np.float64) for view in views32]
    exact, exact_gradients = vicreg_value_and_grad(*views64, method="covariance")
    # What the plain definition loses in float32: see the core's README for the factors.
    plain, plain_gradients = vicreg_value_and_grad(*views32, method="covariance")
    limit = 4 * max(largest_error(plain, exact), d**0.5 * UNIT_ROUNDOFF["float32"])

    def of_rank(comm: Thread) -> Any:
        return vicreg_value_and_grad(*ranks.own(views32, rows, comm.rank), comm=comm)

    by_rank = on_threads(3, of_rank)
    for value, _ in by_rank:
        assert largest_error(value, exact) <= limit
    for place, wanted in enumerate(exact_gradients):
        got = np.concatenate([gradients[place] for _, gradients in by_rank])
        limit = 8 * (d / n) ** 0.5 * largest_error(plain_gradients[place], wanted)
        assert largest_error(got, wanted) <= limit


def test_a_common_offset_costs_no_digits() -> None:
    for shape in (WIDE, NARROW):
        whole = [view + 1e4 for view in ranks.whole(UNEVEN, shape)]
        views32 = [view.astype(np.float32) for view in whole]
        wanted, _ = vicreg_value_and_grad(*[view.astype(np.float64) for view in views32])

        def of_rank(comm: Thread, views: list[np.ndarray] = views32) -> Any:
            return vicreg_loss(*ranks.own(views, UNEVEN, comm.rank), comm=comm)

        for value in on_threads(3, of_rank):
            assert largest_error(value, wanted) <= rounding("float32", sum(UNEVEN), *shape)


def test_constant_features_have_a_gradient_of_zero() -> None:
    whole = [np.full((sum(UNEVEN), 4), 7.3)] * 2

    def of_rank(comm: Thread) -> Any:
        return vicreg_value_and_grad(*ranks.own(whole, UNEVEN, comm.rank), comm=comm)

    for _, gradients in on_threads(3, of_rank):
        assert all(np.all(gradient == 0) for gradient in gradients)


def test_in_pytorch_each_rank_has_the_gradient_of_the_sum_of_the_losses() -> None:
    torch = pytest.importorskip("torch")
    for shape in (WIDE, NARROW):
        whole = [torch.asarray(view) for view in ranks.whole(UNEVEN, shape)]
        _, wanted = vicreg_value_and_grad(*whole)
        weight = torch.tensor(2.0, dtype=torch.float64)

        def of_rank(comm: Thread, whole: list[Any] = whole, weight: Any = weight) -> Any:
            of_ways = []
            for way in ("one pass", "terms", "an array for a weight"):
                mine = [view.clone().requires_grad_() for view in own(whole, comm)]
                if way == "one pass":
                    loss = vicreg_loss(*mine, comm=comm)
                elif way == "terms":
                    loss = vicreg_terms(*mine, comm=comm).loss
                else:
                    loss = vicreg_loss(*mine, comm=comm, covariance_weight=weight / 2)
                (3 * loss).backward()
                of_ways.append([view.grad for view in mine])
            return of_ways

        by_rank = on_threads(3, of_rank)
        for way in range(3):
            for place in range(2):
                got = torch.cat([of_ways[way][place] for of_ways in by_rank])
                error = largest_error(got, 3 * 3 * wanted[place])
                assert error <= rounding("float64", sum(UNEVEN), *shape)


def own(whole: list[Any], comm: Thread) -> list[Any]:
    return ranks.own(whole, UNEVEN, comm.rank)


def test_in_pytorch_a_backward_pass_reaches_no_rank_however_often() -> None:
    torch = pytest.importorskip("torch")
    for shape in (WIDE, NARROW):
        whole = [torch.asarray(view) for view in ranks.whole(UNEVEN, shape)]

        def of_rank(comm: Thread, whole: list[Any] = whole) -> Any:
            mine = [view.clone().requires_grad_() for view in own(whole, comm)]
            loss = vicreg_loss(*mine, comm=comm)
            before = comm.threads.calls[comm.rank].copy()
            # As often as no other rank, so that one that waits for the others fails.
            passes = [
                torch.autograd.grad(loss, mine, retain_graph=True) for _ in range(comm.rank + 1)
            ]
            assert comm.threads.calls[comm.rank] == before
            return passes

        for passes in on_threads(3, of_rank):
            assert not isinstance(passes, Exception), passes
            for gradients in passes:
                assert all(map(torch.equal, gradients, passes[0]))


def test_in_pytorch_the_graph_keeps_no_rows_of_other_ranks() -> None:
    torch = pytest.importorskip("torch")
    whole = [torch.asarray(view) for view in ranks.whole(UNEVEN, WIDE)]

    def of_rank(comm: Thread) -> Any:
        mine = [view.clone().requires_grad_() for view in own(whole, comm)]
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            loss = vicreg_loss(*mine, comm=comm, method="gram")
        assert loss.grad_fn.objective.batch.gathered is None
        return sum(sizes), sum(view.numel() for view in mine)

    for saved, given in on_threads(3, of_rank):
        assert saved == 2 * given  # the views and their gradients


def test_in_pytorch_there_is_no_second_derivative() -> None:
    torch = pytest.importorskip("torch")
    whole = [torch.asarray(view) for view in ranks.whole(UNEVEN, WIDE)]

    def of_rank(comm: Thread) -> Any:
        mine = [view.clone().requires_grad_() for view in own(whole, comm)]
        loss = vicreg_loss(*mine, comm=comm)
        return torch.autograd.grad(loss, mine, create_graph=True)

    for error in on_threads(3, of_rank):
        assert isinstance(error, NotImplementedError)
        assert "create_graph" in str(error)


# What the ranks send


def counted(shape: tuple[int, ...], method: str = "auto", calls: int = 3) -> Threads:
    whole, threads = ranks.whole(UNEVEN, shape), Threads(3)

    def of_rank(comm: Thread) -> Any:
        vicreg_value_and_grad(*own(whole, comm), comm=comm, method=method)
        threads.barrier.wait()
        threads.calls[comm.rank], threads.bytes[comm.rank] = Counter(), Counter()
        for _ in range(calls):
            vicreg_value_and_grad(*own(whole, comm), comm=comm, method=method)

    assert on_threads(3, of_rank, threads) == [None] * 3
    return threads


def test_after_the_first_call_the_views_are_gathered_together_and_nothing_else_is() -> None:
    threads = counted(WIDE)
    for calls, sent in zip(threads.calls, threads.bytes, strict=True):
        # The sums of squares of the products and of the differences.
        assert calls == {"all_gather": 3, "all_reduce": 6}
        rows = 2 * max(UNEVEN) * WIDE[0] * 8
        assert 3 * rows < sent["all_gather"] <= 3 * (rows + 15 * 8)
        assert sent["all_reduce"] == 3 * (2 + 1) * 8


def test_the_covariance_route_sends_means_and_covariances() -> None:
    d = WIDE[0]
    threads = counted(WIDE, "covariance")
    for calls, sent in zip(threads.calls, threads.bytes, strict=True):
        # The energies, the covariances, and the sum of the squares of the differences.
        assert calls == {"all_gather": 3, "all_reduce": 9}
        assert sent["all_gather"] == 3 * (2 * 2 * d + 15) * 8
        assert sent["all_reduce"] == 3 * (2 * d + 2 * d * d + 1) * 8


def test_calls_that_take_turns_gather_once_each() -> None:
    """As two losses of a training step do: what follows on a call is known from the last time."""
    rows, threads = (5, 2), Threads(2)
    losses = [ranks.whole(rows, (40,)), ranks.whole(rows, (4,))]

    def of_rank(comm: Thread) -> None:
        for turn in range(4):
            if turn == 2:
                threads.barrier.wait()
                threads.calls[comm.rank] = Counter()
            for whole in losses:
                vicreg_loss(*ranks.own(whole, rows, comm.rank), comm=comm)

    assert on_threads(2, of_rank, threads) == [None] * 2
    assert [calls["all_gather"] for calls in threads.calls] == [4, 4]


def test_a_rank_may_have_other_rows_in_each_call() -> None:
    batches = [((5, 2), 40), ((5, 3), 40), ((5, 3), 4), ((5, 2), 40), ((0, 8), 40), ((9, 9), 4)]
    batches += [((300, 2), 4)]  # more than one digit of the header holds

    def of_rank(comm: Thread) -> list[float]:
        results = []
        for _ in range(2):
            for rows, d in batches:
                mine = ranks.own(ranks.whole(rows, (d,)), rows, comm.rank)
                results.append(float(vicreg_loss(*mine, comm=comm)))
        return results

    wanted = [float(vicreg_loss(*ranks.whole(rows, (d,)))) for rows, d in batches] * 2
    for results in on_threads(2, of_rank):
        assert isinstance(results, list), results
        assert largest_error(results, wanted) <= rounding("float64", 302, 40)


def test_views_that_one_process_would_work_on_in_blocks() -> None:
    check(vicreg_value_and_grad, (4100, 2), (64,), "numpy")


@pytest.mark.parametrize("d", [80, 5])
@pytest.mark.parametrize("far", [0, 40])
def test_ranks_of_few_samples_and_of_many(d: int, far: int) -> None:
    """Of many, not the first is subtracted before the mean is taken, but the middle of three."""
    rows = (40, 3)
    whole = ranks.whole(rows, (d,))
    for view in whole:
        view[far] += 1e3  # the first of a rank
    loss, gradients = vicreg_value_and_grad(*whole)

    def of_rank(comm: Thread) -> None:
        got, own = vicreg_value_and_grad(*ranks.own(whole, rows, comm.rank), comm=comm)
        bound = rounding("float64", sum(rows), d)
        assert largest_error(got, loss) <= bound
        for one, right in zip(own, ranks.own(gradients, rows, comm.rank), strict=True):
            assert np.max(np.abs(one - right)) <= bound * max(map(np.max, map(np.abs, gradients)))

    assert on_threads(2, of_rank) == [None] * 2


# What is wrong with a batch is said on every rank


def refused(size: int, function: Any, *parts: str) -> None:
    """Assert that every rank raises a ValueError with each of `parts`, before and after a call."""
    good = ranks.whole((4,) * size, (6,))

    def after_a_call(comm: Thread) -> Any:
        vicreg_loss(*ranks.own(good, (4,) * size, comm.rank), comm=comm)
        return function(comm)

    for whole_function in (function, after_a_call):
        for error in on_threads(size, whole_function):
            assert isinstance(error, ValueError), error
            for part in parts:
                assert part in str(error)


def loss(comm: Thread, n: int = 4, d: int = 6, dtype: str = "float64", **settings: Any) -> Any:
    views = settings.pop("views", 2)
    whole = [view.astype(dtype) for view in ranks.whole((n,), (d,), views)]
    return vicreg_loss(*whole, comm=comm, **settings)


def test_ranks_that_differ_are_told_who_does() -> None:
    refused(
        3,
        lambda comm: loss(comm, d=6 + (comm.rank == 1)),
        "features must be the same on every rank of comm",
        "6 on ranks 0, 2; 7 on rank 1",
    )
    refused(2, lambda comm: loss(comm, views=2 + comm.rank), "views", "2 on rank 0; 3 on rank 1")
    refused(
        2,
        lambda comm: loss(comm, dtype=("float32", "float64")[comm.rank]),
        "the dtype",
        "float32 on rank 0; float64 on rank 1",
    )
    refused(
        2, lambda comm: loss(comm, convention=("paper", "official")[comm.rank]), "the convention",
        "'paper'", "'official'",
    )  # fmt: skip
    refused(2, lambda comm: loss(comm, variance_weight=comm.rank + 1.0), "weights", "2.0")
    refused(
        2,
        lambda comm: loss(comm, variance_weight=np.asarray(comm.rank + 1.0)),
        "the weights",
        "'an array of 1.0', 1.0) on rank 0",
    )
    refused(2, lambda comm: loss(comm, gamma=comm.rank + 1.0), "gamma", "1.0 on rank 0")
    refused(
        2,
        lambda comm: vicreg_loss(*ranks.whole((4,), (2, 2 + comm.rank, 6)), comm=comm),
        "the positions",
        "(2, 2) on rank 0; (2, 3) on rank 1",
    )


def test_what_is_too_long_to_show_differs_too() -> None:
    def of_rank(comm: Thread) -> Any:
        over_views = ("mean", "sum")[comm.rank]
        mine = replace(CONVENTION, source=300 * "x", variance_over_views=over_views)
        return loss(comm, convention=mine)

    refused(2, of_rank, "all arguments must be the same on every rank")


def test_ranks_that_disagreed_can_go_on() -> None:
    rows = (4, 4)
    whole = ranks.whole(rows, (6,))

    def of_rank(comm: Thread) -> float:
        with pytest.raises(ValueError, match="every rank"):
            loss(comm, d=6 + comm.rank)
        return float(vicreg_loss(*ranks.own(whole, rows, comm.rank), comm=comm))

    for value in on_threads(2, of_rank):
        assert largest_error(value, vicreg_loss(*whole)) <= rounding("float64", 8, 6)


def test_a_batch_without_two_samples_is_refused_on_every_rank() -> None:
    refused(3, lambda comm: loss(comm, n=int(comm.rank == 1)), "at least 2 samples", "0, 1, 0")
    refused(2, lambda comm: loss(comm, n=0), "at least 2 samples", "0, 0")


def test_other_arguments_are_refused() -> None:
    z = np.eye(3)
    with pytest.raises(TypeError, match=r"comm must be None or a Communicator.*TorchCommunicator"):
        vicreg_loss(z, z, comm="gloo")
    with pytest.raises(TypeError, match=r"call it, TorchCommunicator\(\)"):
        vicreg_loss(z, z, comm=TorchCommunicator)
    with pytest.raises(TypeError, match="comm must send arrays of numpy"):
        vicreg_loss(z, z, comm=TorchCommunicator())
    with pytest.raises(ValueError, match="at least 2 samples"):
        vicreg_loss(z[:1], z[:1], comm=LOCAL)
    with pytest.raises(ValueError, match="must not be empty"):
        vicreg_loss(z[:, :0], z[:, :0], comm=LOCAL)
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="comm must have a process group: call"):
        vicreg_loss(torch.eye(3), torch.eye(3), comm=TorchCommunicator())
    with pytest.raises(TypeError, match="comm must send arrays of torch"):
        vicreg_loss(torch.eye(3), torch.eye(3), comm=MPICommunicator())


def test_alone_it_is_the_loss_of_this_process_bit_for_bit() -> None:
    whole = ranks.whole((8,), WIDE)
    wanted, wanted_gradients = vicreg_value_and_grad(*whole)
    for comm in (LOCAL, Thread(Threads(1), 0)):
        value, gradients = vicreg_value_and_grad(*whole, comm=comm)
        assert value == wanted
        assert all(np.array_equal(*pair) for pair in zip(gradients, wanted_gradients, strict=True))
