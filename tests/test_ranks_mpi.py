"""Ranks of MPI: values and gradients of NumPy arrays are those of one process."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from errors import largest_error, rounding

from vicreg import vcreg_value_and_grad, vicreg_loss, vicreg_value_and_grad

if importlib.util.find_spec("mpi4py") is None:
    pytest.skip("mpi4py is not installed", allow_module_level=True)
if shutil.which("mpiexec") is None:
    pytest.skip("there is no mpiexec: Open MPI is not installed", allow_module_level=True)

HERE = Path(__file__).parent
ROWS = {2: (3, 8), 4: (6, 0, 1, 5)}
SHAPES = {"wide": (40,), "narrow": (4,), "positions": (3, 20)}
VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5, "penalty": "smooth_l1"}


@pytest.fixture(scope="module", params=ROWS)
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[Any, Any]]:
    """What each rank found."""
    size = request.param

    def run(folder: Path) -> None:
        # Open MPI refuses root and more ranks than cores unless it is told that both are meant.
        allowed = {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        script = [sys.executable, str(HERE / "mpi_ranks.py"), str(folder)]
        ended = subprocess.run(
            ["mpiexec", "-n", str(size), *script],
            env=os.environ | allowed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    folder = ranks.once(tmp_path_factory, f"mpi{size}", run)
    return [pickle.loads((folder / f"{rank}.results").read_bytes()) for rank in range(size)]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient(shape: str, dtype: str, results: list[dict[Any, Any]]) -> None:
    rows = ROWS[len(results)]
    whole = [view.astype(dtype) for view in ranks.whole(rows, SHAPES[shape])]
    wanted, wanted_gradients = vicreg_value_and_grad(*[view.astype(float) for view in whole])
    computed = "float64" if dtype == "float64" else "float32"
    n, d = sum(rows), SHAPES[shape][-1]
    for result in results:
        value, gradients = result[shape, dtype]
        assert largest_error(value, wanted) <= rounding(computed, n, d)
        assert {gradient.dtype for gradient in gradients} == {np.dtype(dtype)}
    for place in range(2):
        got = np.concatenate([result[shape, dtype][1][place] for result in results])
        assert largest_error(got, wanted_gradients[place]) <= rounding(dtype, n, d)
    wanted, wanted_gradient = vcreg_value_and_grad(whole[0].astype(float), **VCREG)
    n *= whole[0][0, ..., 0].size
    for result in results:
        value, _ = result["vcreg", shape, dtype]
        assert largest_error(value, wanted) <= rounding(computed, n, d)
    got = np.concatenate([result["vcreg", shape, dtype][1] for result in results])
    assert largest_error(got, wanted_gradient) <= rounding(dtype, n, d)


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_samples(shape: str, results: list[dict[Any, Any]]) -> None:
    """Of the first rank all weigh 0, and the second may have no rows."""
    rows = ROWS[len(results)]
    weights = ranks.weights(rows, *SHAPES[shape][:-1])
    views = ranks.hidden(ranks.whole(rows, SHAPES[shape]), weights)
    wanted, right = vicreg_value_and_grad(*views, sample_weight=weights)
    of_one, its_own = vcreg_value_and_grad(views[0], sample_weight=weights, **VCREG)
    bound = rounding("float64", weights.size, SHAPES[shape][-1])
    found = [result["weighted", shape] for result in results]
    for (value, _), (own, _) in found:
        assert largest_error(value, wanted) <= bound
        assert largest_error(own, of_one) <= bound
    for place, gradient in enumerate(right):
        got = np.concatenate([gradients[place] for (_, gradients), _ in found])
        assert largest_error(got, gradient) <= bound
    got = np.concatenate([gradient for _, (_, gradient) in found])
    assert largest_error(got, its_own) <= bound


def test_ranks_that_differ_are_told_who_does(results: list[dict[Any, Any]]) -> None:
    for result in results:
        assert "the number of features must be the same on every rank" in result["refused"]
        assert "4 on rank 0; 5 on rank 1" in result["refused"]


def test_a_communicator_of_some_of_the_ranks(results: list[dict[Any, Any]]) -> None:
    for result in results:
        value, size = result["half"]
        if size > 1:
            wanted = vicreg_loss(*ranks.whole((2,) * size, (5,)))
        else:
            wanted = vicreg_loss(*ranks.whole((2,), (5,)))
        assert largest_error(value, wanted) <= rounding("float64", 2 * size, 5)
