"""Trainings by this loss go where those by the published formula go, in every library.

examples/trajectories.py trains them: by default for a few steps, and in the long test as it is
run, for all of its steps, and on two ranks of each library. By default there are two ranks of
NumPy here, and of PyTorch in `test_ranks_torch`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import ranks
from test_examples_ranks import EXAMPLES, output_of

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

SCRIPT: Path = EXAMPLES / "trajectories.py"


@pytest.fixture
def trajectories() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def pairs(trajectories: ModuleType) -> list[tuple[np.ndarray, np.ndarray]]:
    return trajectories.pairs(9, "float64")


@pytest.mark.parametrize(
    "library", ["PyTorch", "NumPy", pytest.param("JAX", marks=pytest.mark.long)]
)
def test_in_float64_the_weights_agree(trajectories: ModuleType, pairs: list, library: str) -> None:
    """After every step: Adam divides by roots of small squares, which rounding moves."""
    if library not in trajectories.LIBRARIES:
        pytest.skip(f"{library} is not installed")
    published = trajectories.in_torch("float64", terms=trajectories.published)
    wanted = trajectories.weights_of(published, pairs, every=1)
    assert wanted.dtype == np.float64
    weights = trajectories.weights_of(trajectories.LIBRARIES[library]("float64"), pairs, every=1)
    assert np.abs(weights - wanted).max() < 1e-8
    assert np.abs(wanted[-1] - wanted[0]).max() > 5e-3  # nine steps of about the rate of 1e-3


def test_on_two_ranks_the_weights_agree(trajectories: ModuleType, pairs: list) -> None:
    """NumPy on threads, with other numbers of rows: each rank has the weights of one process."""
    published = trajectories.in_torch("float64", terms=trajectories.published)
    wanted = trajectories.weights_of(published, pairs, every=1)

    def of_rank(comm: ranks.Thread) -> np.ndarray:
        layers = trajectories.initial_layers(0, "float64")
        trainer = trajectories.StandardTrainer(layers, {}, np, comm)
        own = trajectories.own_rows(pairs, comm.rank)
        return trajectories.weights_of(trainer, own, every=1)

    first, second = ranks.on_threads(2, of_rank)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - wanted).max() < 1e-8


def test_the_order_of_the_samples_changes_rounding_alone(
    trajectories: ModuleType, pairs: list
) -> None:
    reordered = trajectories.reordered(pairs, seed=1)
    for views, others in zip(pairs, reordered, strict=True):
        for view, other in zip(views, others, strict=True):
            assert not np.array_equal(view, other)
    runs = [
        trajectories.weights_of(
            trajectories.in_torch("float64", terms=trajectories.published), order, every=3
        )
        for order in (pairs, reordered)
    ]
    distances = trajectories.apart(*runs)
    assert distances.shape == (3,)
    assert (distances > 0).all()
    assert (distances < 1e-9).all()


@pytest.mark.long
def test_the_example(trajectories: ModuleType) -> None:
    """It asserts what it says: 1e-8 in float64, and in float32 no faster than rounding."""
    needs = ("matplotlib", "threadpoolctl")
    output = output_of(SCRIPT.name, needs=needs, limit=400)  # a minute alone, eleven trainings
    float64, float32 = output.split("float32: ")
    for name in [*trajectories.LIBRARIES, *trajectories.ON_RANKS]:
        assert f"  {name}:" in float64
    for name in ["another order", *trajectories.LIBRARIES]:
        assert f"  {name}:" in float32
