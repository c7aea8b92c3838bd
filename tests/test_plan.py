"""What a batch over ranks is said to cost is what the ranks send and multiply."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import ranks
from ranks import Thread, Threads, on_threads

from vicreg import vicreg_value_and_grad
from vicreg.distributed import Plan, plan

HEADER = 15  # numbers, in front of what is gathered


def sent(rows: Sequence[int], d: int, dtype: str, views: int, method: str) -> set[int]:
    """Return the bytes that the ranks send in a call after the first, if sent around a ring."""
    size, threads = len(rows), Threads(len(rows))
    whole = [view.astype(dtype) for view in ranks.whole(rows, (d,), views)]

    def of_rank(comm: Thread) -> None:
        mine = ranks.own(whole, rows, comm.rank)
        vicreg_value_and_grad(*mine, comm=comm, method=method)
        threads.barrier.wait()
        threads.bytes[comm.rank] = Counter()
        vicreg_value_and_grad(*mine, comm=comm, method=method)

    assert on_threads(size, of_rank, threads) == [None] * size
    gathers_rows = plan(rows, d, size, method=method).route == "gram"
    header = HEADER * (np.dtype(dtype).itemsize if gathers_rows else max(whole[0].itemsize, 4))
    return {
        (size - 1) * (of["all_gather"] - header)
        + math.ceil(2 * (size - 1) * of["all_reduce"] / size)
        for of in threads.bytes
    }


@pytest.mark.parametrize("method", ["auto", "gram", "covariance"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(
    ("rows", "d", "views"),
    [
        ((8, 8), 40, 2),
        ((30, 30), 4, 2),
        ((5, 2, 9), 12, 2),
        ((6, 0, 5), 20, 3),
        ((1, 7, 3, 4), 33, 2),
    ],
)
def test_bytes_are_those_that_are_sent(
    rows: tuple[int, ...], d: int, views: int, dtype: str, method: str
) -> None:
    itemsize = np.dtype(dtype).itemsize
    planned = plan(rows, d, len(rows), views=views, itemsize=itemsize, method=method)
    assert sent(rows, d, dtype, views, method) == {planned.bytes_sent}


def test_multiply_adds_are_those_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in PyTorch, which has a counter: two per multiply-add."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    rows, d = (9, 3), 32
    whole = [torch.asarray(view) for view in ranks.whole(rows, (d,))]

    def of_rank(comm: Thread, method: str) -> int:
        mine = ranks.own(whole, rows, comm.rank)
        vicreg_value_and_grad(*mine, comm=comm, method=method)
        with FlopCounterMode(display=False) as counter:
            vicreg_value_and_grad(*mine, comm=comm, method=method)
        return counter.get_total_flops()

    for method in ("gram", "covariance"):
        counted = on_threads(2, lambda comm, method=method: of_rank(comm, method))
        assert max(counted) == 2 * plan(rows, d, 2, method=method).multiply_adds


def test_the_route_is_the_one_that_costs_less() -> None:
    for n in (1, 8, 64, 512):
        for d in (4, 64, 1024):
            for size in (1, 2, 16):
                chosen = plan(n, d, size)
                costs = {route: chosen.cost_of(route).together for route in ("gram", "covariance")}
                assert costs[chosen.route] == min(costs.values())
    assert plan(64, 8192, 64).route == "gram"
    assert plan(4096, 256, 64).route == "covariance"
    # What sends a byte less may do 64 multiply-adds more.
    assert plan(316, 1024, 4).route == "gram"  # 63.7 more
    assert plan(72, 96, 2).route == "covariance"  # 64.03 more


def test_one_rank_sends_nothing() -> None:
    alone = plan(256, 2048, 1)
    assert alone.bytes_sent == 0
    assert alone.multiply_adds == 2 * 2 * 256 * 256 * 2048


def test_it_prints_both_routes_and_marks_the_one_that_is_taken() -> None:
    text = str(plan(256, 4096, 2)).splitlines()
    assert [line.split()[0] for line in text[2:]] == ["gram", "covariance"]
    assert text[0].startswith("512 samples on 2 ranks, ")
    assert "8.39 MB" in text[2]
    assert "4.29 GFLOP" in text[2]  # two for each multiply-add
    assert ["taken" in line for line in text] == [False, False, True, False]
    assert "taken" in str(plan(256, 4096, 2, method="covariance")).splitlines()[3]
    assert "1 rank," in str(plan(2, 2, 1))
    assert "1 MB" in str(plan(125_000, 1, 3, views=1, itemsize=4, method="gram"))
    assert "1 MB" in str(plan(249_873, 1, 2, views=1, itemsize=4, method="gram"))  # 999,500 bytes


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((256.0, 8, 2), {}, TypeError, "n_per_rank must be an integer; got 256.0"),
        ((-1, 8, 2), {}, ValueError, "n_per_rank must be at least 0; got -1"),
        ((8, 0, 2), {}, ValueError, "d must be at least 1; got 0"),
        ((8, 8, 0), {}, ValueError, "world_size must be at least 1; got 0"),
        (([4, 4], 8, 3), {}, ValueError, "each of the 3 ranks; got 2 numbers"),
        ((8, 8, 2), {"views": 1.5}, TypeError, "views must be an integer; got 1.5"),
        ((8, 8, 2), {"itemsize": 0}, ValueError, "itemsize must be at least 1; got 0"),
        ((8, 8, 2), {"method": "fast"}, ValueError, "method must be .*; got 'fast'"),
    ],
)
def test_what_it_cannot_plan_is_refused(
    arguments: Any, settings: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=re.compile(message)):
        plan(*arguments, **settings)


def test_settings_are_given_by_name() -> None:
    assert plan(n_per_rank=4, d=8, world_size=2) == plan(4, 8, 2)
    with pytest.raises(TypeError, match="3 positional arguments"):
        plan(4, 8, 2, 1)


def test_numbers_of_numpy_are_integers() -> None:
    assert plan(np.int64(4), np.int32(8), np.int64(2)) == Plan((4, 4), 8, 2, 4, "gram")
