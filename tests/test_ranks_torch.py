"""Several processes of torch.distributed: values and gradients are those of one process.

Four processes run tests/torch_ranks.py once; the tests read what each of them found.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from errors import largest_error, rounding

torch = pytest.importorskip("torch")

import torch_ranks  # noqa: E402
from torch_ranks import DTYPES, ROWS, SHAPES, TIMEOUT, VCREG  # noqa: E402

from vicreg import vcreg_value_and_grad, vicreg_value_and_grad  # noqa: E402
from vicreg.tools.demo.encoder import initial_layers  # noqa: E402
from vicreg.tools.demo.trainers.torch import TorchTrainer  # noqa: E402
from vicreg.tools.processes import Limits, run_together  # noqa: E402
from vicreg.torch import VICRegLoss, attach_vcreg  # noqa: E402

MEMBERS = {2: (1, 3), 3: (0, 1, 2), 4: (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of the four processes found."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    folder = ranks.once(tmp_path_factory, "torch", _run)
    return [pickle.loads((folder / str(rank) / "results").read_bytes()) for rank in range(4)]


def _run(folder: Path) -> None:
    folders = [folder / str(rank) for rank in range(4)]
    for each in folders:
        each.mkdir()
    script = str(Path(torch_ranks.__file__))
    commands = [[sys.executable, script, str(rank), "4", str(folders[rank])] for rank in range(4)]
    environment = {"OMP_NUM_THREADS": "1"}
    ends = run_together(commands, folders, [environment] * 4, Limits(60, 240, 30))
    assert [end.status for end in ends] == [0] * 4, "\n".join(end.output for end in ends)


def of_ranks(results: list[dict[Any, Any]], size: int, *name: Any) -> list[Any]:
    """Return what each rank of the group of `size` found; whole names where there are no more."""
    key = name if len(name) > 1 else name[0]
    found = [results[rank][key] for rank in MEMBERS[size]]
    for each in found:
        assert not (isinstance(each, str) and each.startswith("Traceback")), each
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ROWS)
def test_loss_and_gradient(
    size: int, shape: str, dtype: str, results: list[dict[Any, Any]]
) -> None:
    whole = ranks.whole(ROWS[size], SHAPES[shape])
    rounded = [torch.asarray(view).to(getattr(torch, dtype)).double().numpy() for view in whole]
    wanted, wanted_gradients = vicreg_value_and_grad(*rounded)
    found = of_ranks(results, size, "exact", size, shape, dtype)
    n, d = sum(ROWS[size]), SHAPES[shape][-1]
    computed = "float64" if dtype == "float64" else "float32"
    for each in found:
        assert largest_error(each["loss"], wanted) <= rounding(computed, n, d)
        assert largest_error(each["value"], wanted) <= rounding(computed, n, d)
    for place in range(2):
        for way in ("backward", "gradients"):
            got = np.concatenate([each[way][place] for each in found])
            assert largest_error(got, wanted_gradients[place]) <= rounding(dtype, n, d)


@pytest.mark.parametrize("penalty", ["square", "smooth_l1"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ROWS)
def test_vcreg(size: int, shape: str, penalty: str, results: list[dict[Any, Any]]) -> None:
    z, _ = ranks.whole(ROWS[size], SHAPES[shape])
    wanted, wanted_gradient = vcreg_value_and_grad(z, **VCREG, penalty=penalty)
    found = of_ranks(results, size, "layer", size, shape, penalty)
    tolerance = rounding("float64", z.shape[0] * z[0, ..., 0].size, z.shape[-1])
    scale = max(np.abs(wanted_gradient).max(), 1.0)  # the layer adds to a gradient of 1
    for each in found:
        assert largest_error(each["loss"], wanted) <= tolerance
    for way in ("added", "gradient"):
        got = np.concatenate([each[way] for each in found])
        assert np.abs(got - wanted_gradient).max() <= tolerance * scale


@pytest.mark.parametrize("penalty", ["square", "smooth_l1"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ROWS)
def test_weighted_samples(
    size: int, shape: str, penalty: str, results: list[dict[Any, Any]]
) -> None:
    """Of the first rank all weigh 0, and the second may have no rows."""
    found = of_ranks(results, size, "weighted", size, shape, penalty)
    weights = ranks.weights(ROWS[size], *SHAPES[shape][:-1])
    views = ranks.hidden(ranks.whole(ROWS[size], SHAPES[shape]), weights)
    wanted, gradients = vicreg_value_and_grad(*views, sample_weight=weights)
    of_one, gradient = vcreg_value_and_grad(
        views[0], sample_weight=weights, penalty=penalty, **VCREG
    )
    bound = rounding("float64", weights.size, SHAPES[shape][-1])
    for each in found:
        for loss in each["losses"]:
            assert largest_error(loss, wanted) <= bound
        for loss in each["vcreg"]:
            assert largest_error(loss, of_one) <= bound
    for place, right in enumerate(gradients):
        for way in ("backward", "gradients"):
            got = np.concatenate([each[way][place] for each in found])
            assert largest_error(got, right) <= bound
            assert not got[weights == 0].any()
    for way in ("of vcreg", "of the layer"):
        got = np.concatenate([each[way] for each in found])
        assert largest_error(got, gradient) <= bound


def in_one_process(size: int, way: str) -> list[np.ndarray]:
    """Return the gradients of the model of `torch_ranks.train` for the whole batch."""
    encoder, criterion = torch_ranks.model(), VICRegLoss()
    rows = ROWS[size]
    if way == "no_sync":
        x1, x2 = torch_ranks.images(rows, seed=1)
        criterion(encoder(x1), encoder(x2)).backward()
    if way == "attached":
        # In the order of the ranks, each with both views of its rows: what the layer sees.
        attach_vcreg(encoder, ["0"], **VCREG)
    x1, x2 = torch_ranks.images(rows)
    z1, z2 = encoder(torch.cat([x1, x2])).chunk(2)
    criterion(z1, z2).backward()
    return torch_ranks.gradients_of(encoder)


@pytest.mark.parametrize(
    ("size", "way"),
    [
        (2, "plain"),
        (4, "plain"),
        (2, "no_sync"),
        (2, "attached"),
        (2, "compiled"),
        (2, "in chunks"),
        (3, "in chunks"),
        (4, "fully_shard"),
    ],
)
def test_a_model_ends_at_the_gradients_of_one_process(
    size: int, way: str, results: list[dict[Any, Any]]
) -> None:
    wanted = np.concatenate([gradient.ravel() for gradient in in_one_process(size, way)])
    for gradients in of_ranks(results, size, "train", size, way):
        got = np.concatenate([gradient.ravel() for gradient in gradients])
        assert largest_error(got, wanted) <= 1e-12


def test_a_training_ends_at_the_weights_of_one_process(results: list[dict[Any, Any]]) -> None:
    trainer = TorchTrainer(initial_layers(0, "float64"), {})
    wanted = torch_ranks.trained(trainer, torch_ranks.pairs())
    start = np.concatenate(
        [part.ravel() for pair in initial_layers(0, "float64") for part in pair]
    )
    assert np.abs(wanted - start).max() > 1e-3  # it has moved
    for weights in of_ranks(results, 2, "trajectory", 2):
        assert np.abs(weights - wanted).max() < 1e-8


def test_one_warning_a_process_says_that_the_batch_is_its_own(
    results: list[dict[Any, Any]],
) -> None:
    for local, ours, first, second in of_ranks(results, 4, "warned"):
        assert local == ours == second == []
        (message,) = first
        assert "TorchCommunicator()" in message
        assert "LOCAL" in message
        assert "4 processes" in message


def test_ranks_that_differ_are_told_who_does(results: list[dict[Any, Any]]) -> None:
    for told in of_ranks(results, 3, "refused"):
        for time in ("first", "later"):
            assert "5 on ranks 0, 1; 6 on rank 2" in told[f"features {time}"]
            assert "float64 on ranks 0, 1; torch.float32 on rank 2" in told[f"dtype {time}"]
            assert "2 on ranks 0, 1; 3 on rank 2" in told[f"views {time}"]
            assert "weights" in told[f"weights {time}"]
            assert "'official' on ranks 0, 1; 'paper' on rank 2" in told[f"convention {time}"]
            assert "0, 0, 1" in told[f"samples {time}"]


def test_a_rank_that_fails_leaves_the_others_waiting_for_the_timeout_of_the_group(
    results: list[dict[Any, Any]],
) -> None:
    _, (kind, seconds) = results[0]["left waiting"], results[1]["left waiting"]
    assert kind.endswith("Error")
    assert seconds < TIMEOUT + 10


def test_a_process_that_is_not_in_the_group_is_told_so(results: list[dict[Any, Any]]) -> None:
    for rank in set(MEMBERS[4]) - set(MEMBERS[2]):
        assert "this process in it" in results[rank]["outside"]


def test_a_copy_of_the_module_is_of_the_same_processes(results: list[dict[Any, Any]]) -> None:
    for original, copy in of_ranks(results, 2, "copied"):
        assert original == copy
