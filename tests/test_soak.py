"""Many calls: from eight threads at once, over thousands of steps, with a hundred batch sizes."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from backends import Backend
from errors import largest_error, rounding

from vicreg import vicreg_loss, vicreg_value_and_grad

THREADS = 8
#: Both routes, positions, and three views.
SHAPES = [(2, 6, 9), (2, 9, 6), (2, 5, 2, 7), (3, 6, 9)]

STEPS = 10_000
SAMPLES, INPUTS, FEATURES = 32, 8, 64


def found(xp: Backend, views: tuple[Any, ...]) -> list[np.ndarray]:
    loss, gradients = vicreg_value_and_grad(*views)
    arrays = [loss, *gradients, vicreg_loss(*views)]
    if xp.name == "torch":
        given = [view.clone().requires_grad_() for view in views]
        vicreg_loss(*given).backward()
        arrays += [view.grad for view in given]
    return [xp.numpy(array) for array in arrays]


@pytest.mark.long_on("dask")
def test_eight_threads_get_the_same_bits(xp: Backend) -> None:
    """Each takes the problems in an order of its own, so that different ones meet."""
    if xp.name == "ndonnx":
        pytest.skip("it builds its graphs anew for each call, which takes minutes in all")
    rng = np.random.default_rng(0)
    problems = [tuple(map(xp.asarray, rng.standard_normal(shape))) for shape in SHAPES]
    wanted = [found(xp, views) for views in problems]
    start = Barrier(THREADS, timeout=60)

    def in_thread(number: int) -> list[list[np.ndarray]]:
        start.wait()
        order = np.roll(np.arange(len(problems)), number)
        results = {place: found(xp, problems[place]) for place in order}
        return [results[place] for place in range(len(problems))]

    with ThreadPoolExecutor(THREADS) as pool:
        for results in pool.map(in_thread, range(THREADS)):
            for arrays, right in zip(results, wanted, strict=True):
                assert len(arrays) == len(right)
                for array, its_own in zip(arrays, right, strict=True):
                    np.testing.assert_array_equal(array, its_own)


def resident() -> int:
    """Return the bytes of memory of this process."""
    file = Path("/proc/self/statm")
    if not file.exists():
        pytest.skip("there is no /proc/self/statm to read the memory from")
    return int(file.read_text().split()[1]) * 4096


def check_memory(
    step: Callable[[], object], count_arrays: Callable[[], int], steps: int = STEPS
) -> None:
    """Take `steps` steps; check that memory and arrays are then where they were before."""

    def taken(number: int) -> None:
        for _ in range(number):
            step()
        gc.collect()

    taken(steps // 10)
    arrays, memory = count_arrays(), resident()
    taken(steps)
    assert count_arrays() == arrays
    # Less than half of one array of features for each step.
    assert resident() - memory < SAMPLES * FEATURES * 4 / 2 * steps
    tracemalloc.start()
    try:
        grown = []
        for _ in range(4):
            before, _ = tracemalloc.get_traced_memory()
            taken(steps // 10)
            after, _ = tracemalloc.get_traced_memory()
            grown.append(after - before)
    finally:
        tracemalloc.stop()
    # Less than the smallest object for each step. What leaks grows all the time, and what Python
    # keeps for itself does now and then.
    assert min(grown) < 16 * (steps // 10)


@pytest.mark.long
def test_training_in_pytorch_leaves_memory_where_it_was() -> None:
    torch = pytest.importorskip("torch")
    from vicreg.torch import VCReg, VICRegLoss

    torch.manual_seed(0)
    regularize = VCReg(variance_weight=1.0, covariance_weight=0.1)
    layers = torch.nn.Linear(INPUTS, 16), regularize, torch.nn.Linear(16, FEATURES)
    encoder, criterion = torch.nn.Sequential(*layers), VICRegLoss()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-3)
    image = torch.randn(2, SAMPLES, INPUTS)

    def step() -> None:
        terms = criterion.terms(*map(encoder, image + 0.1 * torch.randn_like(image)))
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        terms.scalars()

    def tensors() -> int:
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    check_memory(step, tensors)


@pytest.mark.long
@pytest.mark.parametrize("is_compiled", [True, False], ids=["jit", "as called"])
def test_training_in_jax_leaves_memory_where_it_was(is_compiled: bool) -> None:
    jax = pytest.importorskip("jax")
    keys = jax.random.split(jax.random.key(0), 3)
    weights = 0.1 * jax.random.normal(keys[0], (INPUTS, FEATURES), dtype="float32")
    images = jax.random.normal(keys[1], (2, SAMPLES, INPUTS), dtype="float32")

    def loss(weights: Any, images: Any) -> Any:
        return vicreg_loss(*(image @ weights for image in images))

    grad = jax.grad(loss)
    if is_compiled:
        grad = jax.jit(grad)
    trained = [weights]

    def step() -> None:
        trained[0] = trained[0] - 1e-3 * grad(trained[0], images)

    # As called, a step takes fifty times as long.
    check_memory(step, lambda: len(jax.live_arrays()), STEPS if is_compiled else STEPS // 5)


@pytest.mark.long
def test_a_hundred_batch_sizes_are_compiled_a_handful_of_times() -> None:
    """Some graphs of at most as many samples as features, and one of more."""
    torch = pytest.importorskip("torch")
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(vicreg_loss, fullgraph=True, dynamic=True, backend=counter)
    generator = torch.Generator().manual_seed(0)
    d = 50
    for n in np.random.default_rng(0).permutation(np.arange(2, 102)).tolist():
        batch = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
        views = [view.clone().requires_grad_() for view in batch]
        got, right = compiled(*views), vicreg_loss(*views)
        bound = 4 * rounding("float64", n, d)
        assert largest_error(got.detach().numpy(), right.detach().numpy()) <= bound
        for gradient, wanted in zip(
            *(torch.autograd.grad(loss, views) for loss in (got, right)), strict=True
        ):
            assert largest_error(gradient.numpy(), wanted.numpy()) <= bound
    assert counter.frame_count <= 5
