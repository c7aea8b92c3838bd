"""Dask: what does not fit in memory, read from disk in chunks, here and on a cluster."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import largest_error, rounding

import vicreg

dask = pytest.importorskip("dask")
from dask import array  # noqa: E402
from dask.core import get_dependencies  # noqa: E402

from vicreg._adapters.dask_passes import in_another_pass  # noqa: E402
from vicreg.tools.verification.paths import PATHS  # noqa: E402

SHAPE, CHUNKS = (60, 7), (9, 7)
KINDS = {
    "from memory": lambda z: array.from_array(z, chunks=CHUNKS),
    "of slices": lambda z: array.from_array(np.concatenate([z[:5], z]), chunks=CHUNKS)[5:],
    "in other chunks": lambda z: array.from_array(z, chunks=(60, 2)).rechunk(CHUNKS),
    "in chunks of features": lambda z: array.from_array(z, chunks=(11, 3)),
    "persisted": lambda z: array.from_array(z, chunks=CHUNKS).persist(),
    "float32": lambda z: array.from_array(z, chunks=CHUNKS).astype(np.float32),
}


def samples(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.standard_normal((2, *shape)) @ rng.standard_normal((shape[-1], shape[-1])) + 3.0


def on_disk(folder: Path, rows: int, features: int, count: int) -> list[Any]:
    """Return two views of `count` equal chunks, which are read where they are needed."""
    chunk = np.random.default_rng(4).standard_normal((rows, features))
    for place in range(2):
        (folder / str(place)).mkdir()
        whole = array.concatenate([array.from_array(chunk + place, -1)] * count)
        array.to_npy_stack(folder / str(place), whole)
    return [array.from_npy_stack(folder / str(place), mmap_mode=None) for place in range(2)]


class Nowhere:
    """Where gradients are written to that nobody needs."""

    def __setitem__(self, index: Any, rows: Any) -> None:
        pass


def loss(views: list[Any]) -> Any:
    return vicreg.vicreg_loss(*views)


def loss_and_gradients(views: list[Any]) -> Any:
    value, gradients = vicreg.vicreg_value_and_grad(*views)
    kept = [Nowhere() for _ in gradients]
    return value, array.store(list(gradients), kept, lock=False, compute=False)


def vcreg_gradient(views: list[Any]) -> Any:
    _, gradient = vicreg.vcreg_value_and_grad(views[0], variance_weight=1.0, covariance_weight=1.0)
    return array.store([gradient], [Nowhere()], lock=False, compute=False)


def diagnosis(views: list[Any]) -> Any:
    """Of the samples of both views."""
    return arrays(vicreg.diagnose(array.concatenate(views)))


def arrays(found: Any) -> dict[str, Any]:
    return {name: each for name, each in vars(found).items() if hasattr(each, "dask")}


@pytest.mark.parametrize("function", [loss, loss_and_gradients, vcreg_gradient, diagnosis])
def test_few_chunks_on_disk_are_in_memory(
    tmp_path: Path, function: Callable[[list[Any]], Any]
) -> None:
    """Of 2 × 30: those that are read, and what is formed of each."""
    # The tasks are Python objects, which count too: chunks are large beside them.
    rows, features, count = 4000, 60, 30
    views = on_disk(tmp_path, rows, features, count)
    output = function(views)
    dask.compute(function([view[:70] for view in views]))  # loads what a first call loads
    tracemalloc.start()
    with dask.config.set(scheduler="synchronous"):
        dask.compute(output)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 14 * rows * features * 8


@pytest.mark.parametrize(
    ("function", "times"), [(loss, 1), (loss_and_gradients, 2), (diagnosis, 3)]
)
def test_how_often_a_chunk_is_read(function: Callable[[list[Any]], Any], times: int) -> None:
    """But for the first of a view: it holds the first sample, which is subtracted from each."""
    count: Counter[float] = Counter()

    def read(chunk: np.ndarray) -> np.ndarray:
        count[float(chunk[0, 0])] += 1
        return chunk

    views = [
        array.from_array(z, chunks=CHUNKS).map_blocks(read, meta=np.empty((0, 0)))
        for z in samples(*SHAPE)
    ]
    with dask.config.set(scheduler="synchronous"):
        dask.compute(function(views))
    assert max(count.values()) == times
    assert len(count) == sum(view.numblocks[0] for view in views)


def test_a_pass_begins_when_all_is_known_that_it_needs(tmp_path: Path) -> None:
    """Only the tasks of the first pass need nothing: a cluster may begin those at any time."""
    views = on_disk(tmp_path, 10, 4, 5)
    _, gradients = vicreg.vicreg_value_and_grad(*views)
    tasks = dict(gradients[0].__dask_graph__())
    read = [key for key in tasks if str(key[0]).startswith("from-npy-stack")]
    assert len(read) == 2 * 2 * 5
    assert sum(not get_dependencies(tasks, key) for key in read) == 2 * 5


def test_what_a_pass_returns_may_follow_from_what_is_known() -> None:
    z = array.from_array(np.arange(12.0).reshape(6, 2), chunks=(2, 2))
    total = z.sum(axis=0)
    outputs = (z * total, 2 * total, total, array.zeros_like(z), z)
    for got, wanted in zip(in_another_pass(outputs, (total,)), outputs, strict=True):
        np.testing.assert_array_equal(got.compute(), wanted.compute())
        assert got.name != wanted.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", ["official", "jolibrain"])
def test_gradients_of_a_second_pass(kind: str, convention: str) -> None:
    z = samples(*SHAPE)
    views = [KINDS[kind](view) for view in z]
    settings = {"convention": convention}
    value, gradients = vicreg.vicreg_value_and_grad(*views, **settings)
    wanted, right = vicreg.vicreg_value_and_grad(
        *(np.asarray(view.compute(), np.float64) for view in views), **settings
    )
    bound = rounding(str(views[0].dtype), *SHAPE)
    assert float(value) == pytest.approx(float(wanted), rel=bound)
    for gradient, view, truth in zip(gradients, views, right, strict=True):
        assert (gradient.chunks, gradient.dtype) == (view.chunks, view.dtype)
        atol = bound * np.abs(truth).max()
        np.testing.assert_allclose(gradient.compute(), truth, rtol=0, atol=atol)
        np.testing.assert_allclose(gradient[20:31].compute(), truth[20:31], rtol=0, atol=atol)


def test_a_weight_of_zero_and_terms_that_need_no_second_pass() -> None:
    z = samples(*SHAPE)
    views = [array.from_array(view, chunks=CHUNKS) for view in z]
    for zero in ("invariance_weight", "variance_weight", "covariance_weight"):
        for others in ({}, {"variance_weight": 0.0, "covariance_weight": 0.0}):
            settings = {zero: 0.0, **others}
            _, gradients = vicreg.vicreg_value_and_grad(*views, **settings)
            _, right = vicreg.vicreg_value_and_grad(*z, **settings)
            for gradient, truth in zip(gradients, right, strict=True):
                np.testing.assert_allclose(gradient.compute(), truth, rtol=1e-12, atol=1e-14)


def test_a_diagnosis_is_computed_once_for_all_that_is_said_of_it() -> None:
    class Counting(dask.callbacks.Callback):
        computations = 0

        def _start(self, _: Any) -> None:
            self.computations += 1

    diagnosis = vicreg.diagnose(KINDS["from memory"](np.random.default_rng(0).random(SHAPE)))
    with Counting() as counting:
        assert diagnosis.verdict in str(diagnosis)
        assert diagnosis.scalars()["collapsed"] == diagnosis.collapsed
        assert "mean_std=" in repr(diagnosis)
    assert counting.computations == 1


def test_the_same_call_has_the_same_tasks() -> None:
    """So that a cluster computes nothing twice of what it has."""
    views = [array.from_array(view, chunks=CHUNKS) for view in samples(*SHAPE)]
    first, second = (vicreg.vicreg_value_and_grad(*views)[1] for _ in range(2))
    assert [gradient.name for gradient in first] == [gradient.name for gradient in second]
    assert set(first[0].__dask_graph__()) == set(second[0].__dask_graph__())


LIMIT = 300 * 2**20  # bytes, of a worker, of which a third is taken before anything is read


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two processes that are killed at `LIMIT`, and write nothing to disk to stay below it."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    share = "distributed.worker.memory"
    settings = {f"{share}.{name}": False for name in ("target", "spill", "pause")}
    with (
        dask.config.set({**settings, f"{share}.terminate": 0.95}),
        distributed.LocalCluster(
            processes=True,
            n_workers=2,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address=":0",
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [60, 6])
def test_a_cluster_computes_what_one_process_does(cluster: Any, kind: str, rows: int) -> None:
    """With more samples than features, and fewer."""
    z = samples(*SHAPE)
    views = [KINDS[kind](view)[:rows] for view in z]
    value, gradients, found = dask.compute(*vicreg.vicreg_value_and_grad(*views), diagnosis(views))
    whole = [np.asarray(view.compute(), np.float64) for view in views]
    wanted, right = vicreg.vicreg_value_and_grad(*whole)
    bound = rounding(str(views[0].dtype), *SHAPE)
    assert float(value) == pytest.approx(float(wanted), rel=bound)
    for gradient, truth in zip(gradients, right, strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=0, atol=bound * np.abs(truth).max())
    single = vicreg.diagnose(np.concatenate(whole))
    for name, each in found.items():
        np.testing.assert_allclose(each, getattr(single, name), rtol=8 * bound, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("function", [loss, loss_and_gradients, diagnosis])
def test_a_cluster_computes_what_its_memory_does_not_hold(
    cluster: Any, tmp_path: Path, function: Callable[[list[Any]], Any]
) -> None:
    """On two workers of 300 MiB each, of which the views alone would take 512 MiB."""
    views = on_disk(tmp_path, 8192, 64, 64)
    assert sum(view.nbytes for view in views) > 1.5 * LIMIT
    dask.compute(function(views))


@pytest.mark.parametrize("chunk", ["128MiB", "300B"], ids=["in one chunk", "in several"])
def test_weighted_samples_where_the_gram_difference_cancels(chunk: str) -> None:
    """Or is said to, on this path: the covariance is summed in the tasks, of each position.

    How large the chunks of features become, Dask's settings decide.
    """
    path = PATHS[-1]
    assert path.sizes.cancels > 1e9
    generator = np.random.default_rng(0)
    views, weight = generator.standard_normal((2, 6, 3, 10)), generator.integers(0, 3, (6, 3))
    settings = {"sample_weight": weight, "method": "gram"}
    loss, gradients = vicreg.vicreg_value_and_grad(*views, **settings)
    settings["sample_weight"] = array.from_array(weight, chunks=(6, 2))
    chunked = [array.from_array(view, chunks=(6, 2, 4)) for view in views]
    with dask.config.set({"array.chunk-size": chunk}):
        got, of_chunks = path.vicreg_value_and_grad(*chunked, **settings)
    bound = rounding("float64", 6, 10)
    assert largest_error(got.compute(), loss) <= bound
    for one, right in zip(of_chunks, gradients, strict=True):
        assert largest_error(one.compute(), right) <= bound


def test_many_runaway_features_in_several_chunks_of_them() -> None:
    """More than are kept apart, and orthogonal: the covariance is formed, chunk by chunk."""
    generator = np.random.default_rng(0)
    z = generator.standard_normal((64, 96))
    random = generator.standard_normal((64, 40))
    z[:, :40] = 1e4 * 8 * np.linalg.qr(random - random.mean(axis=0))[0]
    views = [z.astype(np.float32), -z.astype(np.float32)]
    settings = {"invariance_weight": 0.0, "variance_weight": 0.0}
    in_float64 = [view.astype(float) for view in views]
    exact, right = vicreg.vicreg_value_and_grad(*in_float64, method="covariance", **settings)
    plain, of_plain = vicreg.vicreg_value_and_grad(*views, method="covariance", **settings)
    with dask.config.set({"array.chunk-size": "4KiB"}):
        chunked = [array.from_array(view, chunks=(64, 20)) for view in views]
        loss, gradients = vicreg.vicreg_value_and_grad(*chunked, method="gram", **settings)
    # What the plain definition loses in float32, or what rounding alone may.
    least = rounding("float32", 64, 96)
    assert largest_error(loss.compute(), exact) <= 4 * max(largest_error(plain, exact), least)
    for gradient, its_plain, its_exact in zip(gradients, of_plain, right, strict=True):
        bound = 4 * max(largest_error(its_plain, its_exact), least)
        assert largest_error(gradient.compute(), its_exact) <= bound


def test_a_common_offset_costs_no_digits() -> None:
    """Where the mean of all is not waited for, all is counted from the first sample."""
    low = samples(*SHAPE)[0].astype(np.float32) + np.float32(1e6)
    settings = {"variance_weight": 1.0, "covariance_weight": 1.0}
    exact, right = vicreg.vcreg_value_and_grad(low.astype(float), **settings)
    chunked = array.from_array(low, chunks=CHUNKS)
    loss, gradient = vicreg.vcreg_value_and_grad(chunked, **settings)
    assert largest_error(loss.compute(), exact) <= rounding("float32", *SHAPE)
    assert largest_error(gradient.compute(), right) <= rounding("float32", *SHAPE)
