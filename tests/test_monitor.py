"""`CollapseMonitor`: when it looks, what it says, and that it says it once, on every library."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from test_examples_ranks import output_of

from vicreg import CollapseMonitor, diagnose
from vicreg import _monitor as room

RNG = np.random.default_rng(0)
SPREAD, POINT = RNG.standard_normal((24, 6)), np.ones((24, 6))
SAME = "embeddings, step 2: Collapsed: every sample is the same. Look at the variance term"


def values_of(xp: Backend, values: np.ndarray) -> Any:
    if not hasattr(xp.xp, "linalg"):
        pytest.skip(f"{xp} has no linalg extension")
    return xp.asarray(values)


def test_it_warns_once(xp: Backend) -> None:
    spread, point = values_of(xp, SPREAD), values_of(xp, POINT)
    monitor = CollapseMonitor(every_n_steps=2)
    assert monitor(point) is None  # a step that it does not look at
    assert not monitor.collapsed
    with pytest.warns(UserWarning, match=SAME):
        first = monitor(point)
    assert monitor.collapsed
    monitor(spread)
    assert monitor(point) == first  # and no other warning
    assert first == diagnose(point).scalars()
    assert (first["dead_features"], first["collapsed"]) == (6, 1)
    assert all(type(value) in (int, float) for value in first.values())


def test_what_is_not_finite_counts_as_collapsed() -> None:
    monitor = CollapseMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="Not finite.* Look at the learning rate"):
        monitor(np.where(SPREAD > 2, np.nan, SPREAD))
    assert monitor.collapsed


def test_it_says_nothing_of_what_is_healthy(xp: Backend) -> None:
    z = values_of(xp, SPREAD)
    monitor = CollapseMonitor(every_n_steps=1)
    scalars = monitor({"projector": z, "encoder.layer": z})
    assert not monitor.collapsed
    wanted = diagnose(z)
    assert scalars == wanted.scalars("projector/") | wanted.scalars("encoder.layer/")


@pytest.mark.parametrize(("shape", "axis"), [((300, 3), 1), ((3, 300), 0), ((20, 3, 5, 4), 1)])
def test_it_takes_so_many_samples_from_everywhere(
    xp: Backend, shape: tuple[int, ...], axis: int
) -> None:
    values = RNG.standard_normal(shape)
    z = values_of(xp, values)
    rows = CollapseMonitor(max_samples=32, feature_axis=axis).sample(z)
    got, every = xp.numpy(rows), np.moveaxis(xp.numpy(z), axis, -1).reshape(-1, 3)
    assert got.shape == (32, 3)
    places = [int(np.argmax((every == row).all(1))) for row in got]
    assert len(set(places)) == 32
    assert (every[places] == got).all()
    assert max(places) > 0.7 * len(every)
    if len(shape) == 4:  # of each position
        assert {place % 20 for place in places} == set(range(20))


def test_fewer_samples_are_all_taken() -> None:
    assert (CollapseMonitor(max_samples=40).sample(SPREAD) == SPREAD).all()


def test_it_diagnoses_no_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(room, "diagnose", lambda z: (shapes.append(z.shape), diagnose(z))[1])
    monitor = CollapseMonitor(every_n_steps=3, max_samples=8)
    looked = [monitor(SPREAD) is not None for _ in range(7)]
    assert looked == [False, False, True, False, False, True, False]
    assert shapes == [(8, 6)] * 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "every_n_steps must be 1 or more; got 0"),
        ({"every_n_steps": 2.5}, TypeError, "every_n_steps must be an integer; got 2.5"),
        ({"max_samples": 1}, ValueError, "max_samples must be 2 or more; got 1"),
        ({"feature_axis": "last"}, TypeError, "feature_axis must be"),
    ],
)
def test_it_refuses_settings(settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        CollapseMonitor(**settings)


def test_it_names_what_is_no_array_in_the_first_step() -> None:
    with pytest.raises(TypeError, match="projector must be an array"):
        CollapseMonitor(every_n_steps=100)({"projector": [[1.0]]})


def test_jax_calls_it_outside_what_it_compiles() -> None:
    jax = pytest.importorskip("jax")
    from vicreg.jax import CollapseMonitor as OfJax

    assert OfJax is CollapseMonitor
    with pytest.raises(TypeError, match="call the monitor outside"):
        jax.jit(CollapseMonitor())(jax.numpy.asarray(SPREAD))


class TestOfModules:
    """`vicreg.torch.CollapseMonitor`."""

    @pytest.fixture
    def torch(self) -> Any:
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        return torch

    @pytest.fixture
    def model(self, torch: Any) -> Any:
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Sequential(torch.nn.Linear(6, 6)), torch.nn.ReLU(True)
        )
        torch.nn.init.zeros_(model[1][0].weight)
        return model

    def test_it_looks_at_the_last_output_of_the_steps_that_are_due(
        self, torch: Any, model: Any
    ) -> None:
        from vicreg.torch import CollapseMonitor

        monitor = CollapseMonitor(model, "0", every_n_steps=2)
        x = torch.randn(3, 2, 10, 4)
        for step in range(3):
            for view in x[step]:
                model(view).sum().backward()
            scalars = monitor.step()
            assert (scalars is not None) == (step == 1)
            if step == 1:
                assert scalars == diagnose(model[0](x[1, 1])).scalars("0/")
        monitor.remove()
        monitor.remove()
        model(x[0, 0])
        assert not monitor._samples
        assert not model[0]._forward_hooks

    def test_it_warns_of_the_module_that_collapsed(self, torch: Any, model: Any) -> None:
        from vicreg.torch import CollapseMonitor

        with CollapseMonitor(model, ["0", "1.0"], every_n_steps=1) as monitor:
            model(torch.randn(10, 4))
            with pytest.warns(UserWarning, match=r"^1\.0, step 1: Collapsed"):
                monitor.step()
            assert monitor.collapsed
            model(torch.randn(10, 4))
            monitor.step()

    def test_what_comes_next_may_work_in_place(self, torch: Any, model: Any) -> None:
        from vicreg.torch import CollapseMonitor

        torch.nn.init.constant_(model[1][0].bias, -1.0)
        torch.nn.init.eye_(model[1][0].weight)
        x = torch.randn(10, 4)
        with CollapseMonitor(model, "1", every_n_steps=1) as monitor:
            model(x)
            assert monitor.step() == diagnose(model[:2](x)).scalars("1/")

    def test_features_on_another_axis(self, torch: Any) -> None:
        from vicreg.torch import CollapseMonitor

        model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1))
        x = torch.randn(6, 3, 4, 4)
        with CollapseMonitor(model, "0", every_n_steps=1, feature_axis=1) as monitor:
            rows = model(x).movedim(1, -1).reshape(-1, 5)
            scalars = monitor.step()
        assert scalars == diagnose(rows).scalars("0/")

    def test_eval_mode_does_not_count(self, torch: Any, model: Any) -> None:
        from vicreg.torch import CollapseMonitor

        with CollapseMonitor(model, "0", every_n_steps=1) as monitor:
            model.eval()(torch.randn(10, 4))
            with pytest.warns(UserWarning, match=r"\['0'\] were not in this step"):
                assert monitor.step() == {}
            assert monitor.step() == {}  # said once

    def test_it_refuses(self, torch: Any, model: Any) -> None:
        from vicreg.torch import CollapseMonitor

        with pytest.raises(ValueError, match="got 'projector', and there are '0', '1'"):
            CollapseMonitor(model, "projector")
        recurrent = torch.nn.Sequential(torch.nn.LSTM(4, 4))
        CollapseMonitor(recurrent, "0")
        with pytest.raises(TypeError, match="one tensor each; got tuple of '0'"):
            recurrent(torch.randn(5, 4))

    def test_it_names_what_it_refuses_in_the_first_step(self, torch: Any, model: Any) -> None:
        from vicreg.torch import CollapseMonitor

        CollapseMonitor(model, "0", every_n_steps=100)
        with pytest.raises(ValueError, match="0 must have at least 2 samples"):
            model(torch.randn(1, 4))

    @pytest.mark.long
    def test_a_compiled_model(self, torch: Any, model: Any) -> None:
        from vicreg.torch import CollapseMonitor

        x = torch.randn(10, 4)
        with CollapseMonitor(model, "0", every_n_steps=2) as monitor:
            compiled = torch.compile(model, backend="aot_eager")
            for step in range(1, 5):
                compiled(x).sum().backward()
                assert (monitor.step() is None) == step % 2


class TestCallback:
    """`vicreg.lightning.CollapseMonitor`."""

    def trained(self, package: str, **settings: Any) -> tuple[Any, list[Any], list[str]]:
        torch = pytest.importorskip("torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning = pytest.importorskip(package)
            from vicreg.lightning import CollapseMonitor

        class Model(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.projector = torch.nn.Linear(4, 8)
                torch.nn.init.zeros_(self.projector.weight)

            def training_step(self, batch: list[Any], _: int) -> Any:
                return self.projector(batch[0]).var()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.0)

        logged: list[Any] = []

        class Logger(lightning.loggers.logger.DummyLogger):
            def log_metrics(self, metrics: dict[str, float], step: int) -> None:
                logged.append((step, metrics))

        monitor = CollapseMonitor("projector", **settings)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[monitor],
            logger=Logger(),
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.TensorDataset(torch.randn(60, 4))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=10))
        said = [str(warning.message) for warning in caught if "projector" in str(warning.message)]
        return trainer, logged, said

    @pytest.mark.parametrize(
        "package",
        ["lightning.pytorch", pytest.param("pytorch_lightning", marks=pytest.mark.long)],
    )
    def test_it_logs_warns_and_stops(self, package: str) -> None:
        trainer, logged, said = self.trained(package, every_n_steps=2, stop=True)
        assert [step for step, _ in logged] == [2]
        assert logged[0][1]["projector/collapsed"] == 1
        assert len(said) == 1
        assert trainer.global_step == 2
        assert trainer.callbacks[0].collapsed
        assert not trainer.model.projector._forward_hooks
        assert doctest.testmod(importlib.import_module("vicreg.lightning")).failed == 0

    @pytest.mark.long
    def test_it_lets_the_training_go_on(self) -> None:
        trainer, logged, said = self.trained("lightning.pytorch", every_n_steps=2)
        assert [step for step, _ in logged] == [2, 4, 6]
        assert len(said) == 1
        assert trainer.global_step == 6

    @pytest.mark.long
    def test_two_processes_stop_together(self) -> None:
        script = str(Path(__file__).parent / "lightning_ranks.py")
        output = output_of(script, needs=("torch", "lightning"))
        for line in ("rank 0 ended after 2", "rank 1 ended after 2", "logged 1 at 2"):
            assert output.count(line) == 1, output
        assert output.count("Collapsed: every sample is the same") == 1, output


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "vicreg.lightning", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs Lightning .* vicreg\.torch"):
        importlib.import_module("vicreg.lightning")


def test_the_package_imports_no_library_for_it() -> None:
    code = (
        "import sys, vicreg; vicreg.CollapseMonitor;"
        "print([m for m in ('torch', 'jax', 'numpy', 'lightning') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr
