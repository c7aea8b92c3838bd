"""What each communicator is to the core: a rank, a size, a gather and a sum."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from errors import largest_error, rounding

from vicreg import vicreg_loss, vicreg_value_and_grad
from vicreg.distributed import LOCAL, JaxCommunicator, MPICommunicator, TorchCommunicator


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A process group of this process."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    meeting = (tmp_path / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield torch
    torch.distributed.destroy_process_group()


def test_torch(alone: Any) -> None:
    torch, comm = alone, TorchCommunicator()
    assert (comm.rank, comm.size) == (0, 1)
    array = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(comm.all_gather(array.T), array.T[None])
    assert torch.equal(comm.all_reduce(array.clone()), array)
    # What its ranks know of each other is the group's: a new communicator knows it too.
    assert comm.agreement is TorchCommunicator(torch.distributed.group.WORLD).agreement
    assert pickle.loads(pickle.dumps(comm)) == copy.deepcopy(comm) == comm
    z1, z2 = torch.randn(2, 8, 3)
    assert torch.equal(vicreg_loss(z1, z2, comm=comm), vicreg_loss(z1, z2))


def test_one_of_several_processes_is_told_once(
    alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, module = alone, importlib.import_module("vicreg._adapters.torch.communicator")
    monkeypatch.setattr(module, "_warned", False)
    views = torch.randn(2, 8, 3)
    vicreg_loss(*views)  # of one process: without a warning
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.warns(UserWarning, match="each of the 2 processes") as caught:
        vicreg_loss(*views)
    assert [warning.filename for warning in caught] == [__file__]  # it points to the caller
    vicreg_loss(*views)  # not again
    # In one graph too: the warning is given while it is compiled.
    monkeypatch.setattr(module, "_warned", False)
    with pytest.warns(UserWarning, match="each of the 2 processes"):
        torch.compile(vicreg_loss, fullgraph=True, backend="eager")(*views)


def test_jax_along_a_mapped_axis() -> None:
    jax = pytest.importorskip("jax")
    comm = JaxCommunicator("i")
    array = jax.numpy.arange(6.0).reshape(3, 2)

    def of_rank(row: Any) -> Any:
        return comm.rank, comm.size, comm.all_gather(row), comm.all_reduce(row)

    rank, size, gathered, total = jax.vmap(of_rank, axis_name="i")(array)
    assert rank.tolist() == [0, 1, 2]
    assert set(np.asarray(size).ravel().tolist()) == {3}
    assert np.array_equal(gathered, np.broadcast_to(array, (3, 3, 2)))
    assert np.array_equal(total, np.broadcast_to(array.sum(0), (3, 2)))


def test_jax_where_no_axis_is_mapped() -> None:
    jax = pytest.importorskip("jax")
    view = jax.numpy.ones((4, 3))
    with pytest.raises(ValueError, match=r"comm must be used where its axis is mapped.*'i'"):
        vicreg_loss(view, view, comm=JaxCommunicator("i"))


@pytest.mark.parametrize("size", [2, 1])
@pytest.mark.parametrize("shape", [(40,), (3,)], ids=["wide", "narrow"])
def test_a_loss_of_jax_along_a_mapped_axis(shape: tuple[int, ...], size: int) -> None:
    jax = pytest.importorskip("jax")
    whole = ranks.whole((4, 4), shape)
    views = [jax.numpy.asarray(view).reshape(size, 8 // size, *shape) for view in whole]
    comm = JaxCommunicator("i")

    def of_rank(*views: Any) -> Any:
        return vicreg_loss(*views, comm=comm), vicreg_value_and_grad(*views, comm=comm)

    losses, (values, gradients) = jax.vmap(of_rank, axis_name="i")(*views)
    wanted, wanted_gradients = vicreg_value_and_grad(*whole)
    tolerance = rounding("float64", 8, *shape)
    assert largest_error(losses, np.full(size, wanted)) <= tolerance
    assert largest_error(values, np.full(size, wanted)) <= tolerance
    for got, gradient in zip(gradients, wanted_gradients, strict=True):
        assert largest_error(got.reshape(8, *shape), gradient) <= tolerance


def test_local_sends_nothing() -> None:
    array = np.ones((2, 3))
    assert (LOCAL.rank, LOCAL.size, repr(LOCAL)) == (0, 1, "LOCAL")
    assert LOCAL.all_gather(array).shape == (1, 2, 3)
    assert LOCAL.all_reduce(array) is array


def test_they_say_which_arrays_they_send() -> None:
    assert TorchCommunicator.libraries == ("torch",)
    assert JaxCommunicator("i").libraries == ("jax",)
    assert MPICommunicator.libraries == ("numpy", "cupy")
    assert JaxCommunicator("i") == JaxCommunicator("i")  # or JAX would compile anew
