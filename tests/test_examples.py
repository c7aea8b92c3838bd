"""The examples run, and compute what they say."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_only_the_collapsed_encoder_is_warned_of(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["collapse_monitor.py"])
    with pytest.warns(UserWarning, match="Collapsed") as warned:
        runpy.run_path(str(EXAMPLES / "collapse_monitor.py"), run_name="__main__")
    assert [str(one.message).partition(":")[0] for one in warned] == ["projector, step 25"]
    alone, all_three = capsys.readouterr().out.split("all three terms\n")
    assert alone.count("step") == all_three.count("step") == 5


@pytest.fixture
def transfer() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("vcreg_transfer", EXAMPLES / "vcreg_transfer.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["vcreg_transfer"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_both_networks_begin_alike_and_part_by_the_regularization(transfer: ModuleType) -> None:
    task = transfer.Task.of(transfer.np.arange(5), seed=0)
    plain, nothing, regularized = (
        transfer.trained(task, 0, 1, weights)[0].state_dict()["0.weight"]
        for weights in (
            None,
            {"variance_weight": 0.0, "covariance_weight": 0.0},
            {"variance_weight": 1.0, "covariance_weight": 1.0},
        )
    )
    assert torch.equal(plain, nothing)
    assert not torch.equal(plain, regularized)


def test_the_tasks_share_no_digit_and_no_image(transfer: ModuleType) -> None:
    task = transfer.Task.of(transfer.np.array([1, 4, 5, 8, 9]), seed=0)
    assert sorted(set(task.labels.tolist())) == [0, 1, 2, 3, 4]
    assert len(task.images) + len(task.held_out_images) < 1000
    assert abs(len(task.images) - len(task.held_out_images)) <= 1


def test_it_prints_what_came_out(transfer: ModuleType, capsys: pytest.CaptureFixture) -> None:
    transfer.main(["--seeds", "2", "--epochs", "3"])
    out = capsys.readouterr().out
    for text in ("linear probe, the other digits", "effective rank of layer 3", "2 seeds"):
        assert text in out


def test_it_refuses_what_it_cannot_run(transfer: ModuleType) -> None:
    with pytest.raises(SystemExit, match="2"):
        transfer.main(["--seeds", "0"])
