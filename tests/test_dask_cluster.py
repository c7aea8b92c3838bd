"""Embeddings that are larger than memory: Dask reads them from disk, on a cluster of workers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import largest_error, rounding

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

from vicreg import diagnose, vcreg_loss, vicreg_terms, vicreg_value_and_grad  # noqa: E402

VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5}
SHAPES = {"tall": (600, 24), "wide": (60, 300)}
CHUNKS = {"tall": (50, 24), "wide": (10, 100)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A client of two workers, each a process of its own."""
    with warnings.catch_warnings():
        # Its own, of a port that is taken and of files that it has closed by itself.
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
            ) as workers,
            distributed.Client(workers) as client,
        ):
            yield client


def on_disk(folder: Path, shape: str) -> tuple[list[np.ndarray], list[Any]]:
    """Return two views, and the same as arrays that read their chunks from files."""
    rng = np.random.default_rng(0)
    n, d = SHAPES[shape]
    views, chunked = [], []
    for name in ("z1", "z2"):
        z = rng.standard_normal((n, d)) + np.linspace(0, 5, n)[:, None]
        np.save(folder / f"{name}.npy", z)
        views.append(z)
        stored = np.load(folder / f"{name}.npy", mmap_mode="r")
        chunked.append(da.from_array(stored, chunks=CHUNKS[shape]))
    return views, chunked


@pytest.mark.parametrize("shape", ["tall", pytest.param("wide", marks=pytest.mark.long)])
def test_losses_gradients_and_diagnosis(cluster: Any, shape: str, tmp_path: Path) -> None:
    views, chunked = on_disk(tmp_path, shape)
    assert len(cluster.scheduler_info()["workers"]) == 2
    tolerance = rounding("float64", *SHAPES[shape])
    loss, gradients = vicreg_value_and_grad(*chunked)
    vcreg = vcreg_loss(chunked[0], **VCREG)
    terms = vicreg_terms(*chunked)
    loss, vcreg, terms, gradients = dask.compute(loss, vcreg, tuple(terms), gradients)
    wanted, wanted_gradients = vicreg_value_and_grad(*views)
    assert largest_error(loss, wanted) <= tolerance
    assert largest_error(vcreg, vcreg_loss(views[0], **VCREG)) <= tolerance
    for got, one in zip(terms, vicreg_terms(*views), strict=True):
        assert largest_error(got, one) <= tolerance
    for got, one in zip(gradients, wanted_gradients, strict=True):
        assert largest_error(got, one) <= tolerance
    found, known = diagnose(chunked[0]), diagnose(views[0])
    assert largest_error(float(found.effective_rank), float(known.effective_rank)) <= 1e-9
    assert int(found.dead_features) == int(known.dead_features)
