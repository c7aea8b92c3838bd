"""``vicreg bench`` and ``benchmarks/``: they measure what they say. No test judges a time."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from backends import BACKENDS, why_not
from test_command import refused, run

from vicreg import vicreg_loss
from vicreg.tools.backends import backend_named
from vicreg.tools.benchmark import computations, memory, study
from vicreg.tools.benchmark import report as report_of
from vicreg.tools.benchmark.computations import (
    COMPUTATIONS,
    MODES,
    PRODUCTS,
    PUBLISHED,
    VICREG,
    Problem,
    UnavailableError,
    build_ahead,
    build_call,
    scalar_of,
)
from vicreg.tools.benchmark.published import LIBRARIES, published_formula
from vicreg.tools.benchmark.timing import Effort, Quartiles, Times, ratio, time_in_turns

SCRIPTS = Path(__file__).parent.parent / "benchmarks"
SMALL = ("--size", "6x9", "--size", "12x9", "--size", "6x5", "--quick")
EFFORT = Effort(rounds=3, sample=1e-6, budget=1e-3, fewest=2, patience=60.0)


def installed(*names: str) -> list[str]:
    """Return those of `names` that can run here."""
    return [b.name for b in BACKENDS if b.name in names and why_not(b) is None]


# The published formula and the products.


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (32, 64)])
def test_the_published_formula_is_the_official_loss(name: str, shape: tuple[int, int]) -> None:
    if name not in installed(name):
        pytest.skip(f"{name} cannot run here")
    backend = backend_named(name)
    dtype = "float32" if backend.device != "cpu" else "float64"
    problem = Problem(*shape, dtype)
    with backend.active(), backend.full_precision():
        views = problem.arrays(backend)
        theirs = float(backend.to_numpy(published_formula(name)(*views)))
        ours = float(backend.to_numpy(vicreg_loss(*views)))
    assert ours == pytest.approx(theirs, rel=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("name", LIBRARIES)
def test_both_gradients_are_the_same(name: str) -> None:
    backend = backend_named(name) if name in installed(name) else None
    if backend is None or not backend.differentiates:
        pytest.skip("no gradient of the published formula")
    problem = Problem(7, 5)
    with backend.active(), backend.full_precision():
        views = problem.arrays(backend)
        outputs = [build_call(one, backend, problem, views)() for one in (VICREG, PUBLISHED)]
        (_, ours), (_, theirs) = outputs
        for one, other in zip(ours, theirs, strict=True):
            expected = backend.to_numpy(other)
            np.testing.assert_allclose(backend.to_numpy(one), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_products_are_what_their_count_says(mode: str, shape: tuple[int, int]) -> None:
    """Each product is run and its multiply-adds counted from the shapes that met."""
    done = []

    class Counted:
        def __init__(self, shape: tuple[int, int]) -> None:
            self.shape = shape

        @property
        def T(self) -> Counted:  # noqa: N802 - the standard's name
            return Counted(self.shape[::-1])

        def __matmul__(self, other: Counted) -> Counted:
            assert self.shape[1] == other.shape[0]
            done.append(self.shape[0] * self.shape[1] * other.shape[1])
            return Counted((self.shape[0], other.shape[1]))

    problem = Problem(*shape, mode=mode)
    views = [Counted(shape) for _ in range(problem.views)]
    outputs = build_call(PRODUCTS, backend_named("numpy"), problem, views)()
    assert len(done) == problem.views * problem.products == (4 if mode == MODES[0] else 2)
    assert sum(done) == problem.multiply_adds
    assert problem.flops == 2 * sum(done)
    if mode == MODES[0]:
        assert all(one.shape == shape for one in outputs)


def test_what_does_not_exist_says_why() -> None:
    numpy = backend_named("numpy")
    with pytest.raises(UnavailableError, match="no autodiff"):
        build_call(PUBLISHED, numpy, Problem(4, 3), [])
    with pytest.raises(UnavailableError, match="two features"):
        build_call(PUBLISHED, numpy, Problem(4, 1, mode="value"), [])
    with pytest.raises(NotImplementedError, match="no compiler"):
        build_call(VICREG, numpy, Problem(4, 3, compiled=True), [])


# Timing, by a clock that each call moves.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds()

        return call


def ignore(output: object) -> None:
    """Wait for nothing."""


def test_times_are_those_of_a_call() -> None:
    clock = Clock()
    calls = {"fast": clock.takes(lambda: 1e-4), "slow": clock.takes(lambda: 0.5)}
    effort = Effort(rounds=9, sample=0.01, budget=2.0, fewest=3, patience=60.0)
    times = time_in_turns(calls, ignore, effort, clock)
    assert times["fast"].calls == 100
    assert len(times["fast"].samples) == 9
    assert times["fast"].quartiles.median == pytest.approx(1e-4)
    assert times["slow"].calls == 1
    assert times["slow"].samples == pytest.approx([0.5] * 3)
    assert ratio(times["slow"], times["fast"]).median == pytest.approx(5000)


@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.9, 2.1, 60.0])
def test_slow_sides_share_their_rounds(seconds: float) -> None:
    clock = Clock()
    calls = {name: clock.takes(lambda s=s: s) for name, s in (("a", 0.25), ("b", seconds))}
    effort = Effort(rounds=17, sample=0.01, budget=2.0, fewest=3, patience=60.0)
    times = time_in_turns(calls, ignore, effort, clock)
    turns = [{i for i, s in enumerate(t.rounds) if s is not None} for t in times.values()]
    assert turns[1] <= turns[0]
    assert len(turns[1]) == 1 if seconds > 2 else len(turns[1]) >= 3


def test_a_machine_that_slows_down_favours_neither() -> None:
    clock = Clock()
    slowness = itertools.count(1)
    pace = [1.0]

    def first() -> float:
        pace[0] = next(slowness)
        return 0.02 * pace[0]

    calls = {"a": clock.takes(first), "b": clock.takes(lambda: 0.04 * pace[0])}
    effort = Effort(rounds=2, sample=0.01, budget=1e3, fewest=2, patience=1e3)
    times = time_in_turns(calls, ignore, effort, clock)
    # In the second round b comes first, still at the pace of the first round.
    assert times["a"].samples == pytest.approx([0.04, 0.06])
    assert times["b"].samples == pytest.approx([0.08, 0.08])


def test_each_call_is_waited_for() -> None:
    waited: list[object] = []
    made = itertools.count()
    effort = Effort(rounds=3, sample=0.0, budget=1.0, fewest=2, patience=1.0)
    time_in_turns({"a": lambda: next(made)}, waited.append, effort)
    assert waited == list(range(next(made)))


def test_the_ratio_is_of_the_rounds_both_had() -> None:
    over = Times((4.0, None, 9.0, 100.0), 1)
    under = Times((2.0, 1.0, 3.0, None), 1)
    assert ratio(over, under) == Quartiles(2.5, 2.25, 2.75)
    assert Quartiles.of([3.0]) == Quartiles(3.0, 3.0, 3.0)


# Studies.


def test_the_library_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = backend_named("numpy")
    waited: list[Any] = []
    monkeypatch.setattr(type(numpy), "synchronise", lambda self, output: waited.append(output))
    found = study.run_study([numpy], [Problem(6, 4, mode="value")], EFFORT, lambda _: ())
    (one,) = found.results
    calls = sum((1 + len(times.samples)) * times.calls for times in one.times.values())
    assert len(waited) >= calls - 3  # the first, untimed, are waited for too
    assert one.difference == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["torch", "jax", "mlx", "dask"])
def test_synchronise_returns_when_all_is_there(name: str) -> None:
    if name not in installed(name):
        pytest.skip(f"{name} cannot run here")
    backend = backend_named(name)
    with backend.active():
        x = backend.asarray(np.ones((3, 2)), "float32")
        backend.synchronise((x + 1, (x, x * 2)))
        assert backend.watch_memory() is None or backend.device != "cpu"


def test_compiled_sides_return_the_same(recwarn: pytest.WarningsRecorder) -> None:
    for name in installed("jax", "mlx"):
        backend = backend_named(name)
        with backend.active():
            for mode in MODES:
                problem = Problem(6, 4, mode=mode)
                views = problem.arrays(backend)
                build = build_ahead if name == "jax" else build_call
                losses = [
                    float(backend.to_numpy(scalar_of(build(VICREG, backend, one, views)())))
                    for one in (problem, Problem(6, 4, mode=mode, compiled=True))
                ]
                assert losses[0] == pytest.approx(losses[1], rel=1e-6)
            backend.forget_compiled()


def test_a_side_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arrays: object) -> None:
        raise RuntimeError("not today\nand more")

    monkeypatch.setattr(computations, "published_formula", lambda library: fails)
    numpy = [backend_named("numpy")]
    wanted = [Problem(6, 4, mode="value")]
    found = study.run_study(numpy, wanted, EFFORT, lambda _: ())
    assert set(found.results[0].times) == {VICREG, PRODUCTS}
    reason = ("numpy 6 x 4 float32, published", "raised RuntimeError: not today")
    assert reason in found.not_measured
    monkeypatch.setattr(computations, "vicreg_loss", fails)
    assert study.run_study(numpy, wanted, EFFORT, lambda _: ()).results == []


def test_a_side_beyond_patience_or_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy, wanted = [backend_named("numpy")], [Problem(6, 4, mode="value")]
    impatient = Effort(rounds=3, sample=1e-6, budget=1e-3, fewest=2, patience=0.0)
    found = study.run_study(numpy, wanted, impatient, lambda _: ())
    assert set(found.results[0].times) == {VICREG}
    assert found.results[0].faster is None
    assert found.results[0].over_products is None
    assert any("beyond 0" in why for _, why in found.not_measured)
    wide = [Problem(2, 64, mode="value")]
    monkeypatch.setattr(study, "available_memory", lambda: 10_000)
    found = study.run_study(numpy, wide, EFFORT, lambda _: ())
    assert set(found.results[0].times) == {VICREG, PRODUCTS}
    assert any("d x d matrices" in why for _, why in found.not_measured)
    monkeypatch.setattr(study, "available_memory", lambda: 1)
    found = study.run_study(numpy, wide, EFFORT, lambda _: ())
    assert found.results == []
    assert any("its views and gradients take about" in why for _, why in found.not_measured)


# A busy machine.


def result(over_products: list[float], load: float | None = 0.5) -> study.Result:
    """A result of which `over_products` are the ratios of the rounds."""
    ones = Times((1.0,) * len(over_products), 1)
    times = {VICREG: Times(tuple(over_products), 1), PRODUCTS: ones}
    return study.Result("numpy", "cpu", Problem(6, 4), times, load=load)


@pytest.mark.parametrize(
    ("rounds", "load", "mark"),
    [
        ([1.1, 1.2, 1.3], 0.5, ""),
        ([0.7, 0.8, 0.9], 0.5, ""),
        ([0.7, 1.2, 1.3], 0.5, "~"),  # quartiles of 0.95 and 1.25
        ([1.1, 1.2, 1.3], 1.2, ""),
        ([1.1, 1.2, 1.3], 1.3, "~"),
        ([1.1, 1.2, 1.3], None, ""),
    ],
)
def test_a_ratio_is_uncertain_about_1_and_on_a_busy_machine(
    rounds: list[float], load: float | None, mark: str
) -> None:
    one = result(rounds, load)
    found = study.Study([one], [], {})
    assert report_of.ratio_of(one, one.over_products) == f"{mark}{rounds[1]:.2f}"
    data = report_of.as_json(found)
    assert data["results"][0]["over_products"]["uncertain"] is bool(mark)
    assert data["results"][0]["busy"] is (load == 1.3)
    assert data["results"][0]["load_per_core"] == load
    assert len(data["uncertain"]) == len(mark)
    assert all(line.startswith("~: ") for line in data["uncertain"])
    assert ("a load of 1.3 a core" in "".join(data["uncertain"])) is (load == 1.3)
    cell = next(iter(report_of.results_table(found, "float32", "").columns[3].cells))
    assert (cell.plain, cell.style) == (f"{mark}{rounds[1]:.2f}", "dim" if mark else "")


def test_the_load_is_that_of_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = itertools.chain([3.0, 8.0], itertools.repeat(1.0))
    monkeypatch.setattr("os.getloadavg", lambda: (next(loads), 0.0, 0.0), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    numpy, wanted = [backend_named("numpy")], [Problem(6, 4), Problem(6, 5)]
    found = study.run_study(numpy, wanted, EFFORT, lambda _: ())
    assert [(one.load, one.is_busy) for one in found.results] == [(2.0, True), (0.25, False)]
    monkeypatch.delattr("os.getloadavg")
    found = study.run_study(numpy, wanted[:1], EFFORT, lambda _: ())
    assert found.results[0].load is None


def test_the_command_says_beforehand_that_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = ("bench", "--backend=numpy", "--size=6x4", "--quick")
    for load, is_busy in ((0.5, False), (1.5, True)):
        monkeypatch.setattr("vicreg.tools.machine.load_per_core", lambda load=load: load)
        result = run(*quick, "--json")
        assert ("busy" in result.stderr) is is_busy
        assert json.loads(result.stdout)["results"][0]["d"] == 4


# Memory.


def test_peak_memory_is_above_the_inputs() -> None:
    peak = memory.peak_memory(PRODUCTS, backend_named("numpy"), Problem(64, 65536))
    # The outputs alone are two arrays of 16 MiB. What holds one more copy would pass 60.
    assert 30 < peak / 2**20 < 60


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(memory.PeakUnknownError, match="no autodiff"):
        memory.peak_memory(PUBLISHED, backend_named("numpy"), Problem(4, 3))
    assert (memory.available_memory() or 1) > 0


# The command.


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict, Path]:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("bench")
    kinds = {"json": "json", "html": "html", "plot": "png"}
    files = [f"--{option}={folder / f'bench.{kind}'}" for option, kind in kinds.items()]
    chosen = [f"--backend={name}" for name in installed("numpy", "torch", "jax")]
    result = run("bench", *SMALL, *chosen, *files)
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads((folder / "bench.json").read_text()), folder


def test_the_table_names_what_ran(report: tuple[str, dict, Path]) -> None:
    printed, _, folder = report
    shown = [line for line in printed.splitlines() if str(folder) not in line]
    assert max(map(len, shown)) <= 80
    sizes = re.findall(r"^ *(?:numpy)? +(\d+ x \d+)", printed, flags=re.M)
    assert sizes[:3] == ["6 x 5", "6 x 9", "12 x 9"]  # sorted, unlike those given
    for part in ("value-and-grad, float32", "6 x 9", "12 x 9", "MiB", "numpy", "Not measured:"):
        assert part in printed
    assert "\x1b" not in printed


def test_the_data_agree_with_themselves(report: tuple[str, dict, Path]) -> None:
    _, data, _ = report
    assert {one["library"] for one in data["results"]} == set(installed("numpy", "torch", "jax"))
    assert len(data["results"]) == 3 * len(installed("numpy", "torch", "jax"))
    for one in data["results"]:
        n, d = one["n"], one["d"]
        assert one["flops_of_products"] == 2 * 2 * 2 * n * d * min(n, d)
        ours = one["seconds"][VICREG]
        assert one["gflops"] == pytest.approx(one["flops_of_products"] / ours["median"] / 1e9)
        for times in one["seconds"].values():
            taken = [seconds for seconds in times["rounds"] if seconds is not None]
            assert times["median"] == statistics.median(taken)
            assert 0 < times["lower_quartile"] <= times["median"] <= times["upper_quartile"]
            assert times["calls_a_sample"] >= 1
        same = zip(ours["rounds"], one["seconds"][PRODUCTS]["rounds"], strict=True)
        ratios = [a / b for a, b in same if a is not None and b is not None]
        assert one["over_products"]["median"] == pytest.approx(statistics.median(ratios))
        if one["library"] == "numpy":
            assert one["faster_than_published"] is None
            continue
        theirs = one["seconds"][PUBLISHED]["rounds"]
        pairs = zip(theirs, ours["rounds"], strict=True)
        ratios = [a / b for a, b in pairs if a is not None and b is not None]
        assert one["faster_than_published"]["median"] == pytest.approx(statistics.median(ratios))
        assert one["relative_difference_from_published"] < 1e-5
        assert one["compiled"] is (one["library"] == "jax")


def test_the_data_name_what_they_were_made_with(report: tuple[str, dict, Path]) -> None:
    _, data, _ = report
    assert {"vicreg", "python", "processor", "numpy", "threads of numpy"} <= set(data["made_with"])
    reasons = {one["what"]: one["why"] for one in data["not_measured"]}
    has_gpu = any(one["device"] != "cpu" for one in data["results"])
    assert has_gpu or "none is found" in reasons["a GPU"]
    assert "autodiff" in reasons["numpy, published"]
    for one in data["results"]:
        assert set(one["peak_bytes_above_inputs"]) == (
            {VICREG} if (one["n"], one["d"]) == (12, 9) else set()
        )


def test_the_page_needs_nothing_but_itself(report: tuple[str, dict, Path]) -> None:
    _, data, folder = report
    page = (folder / "bench.html").read_text()
    assert not re.search(r"https?:|<script|<link|<img|src=|@import|url\((?!#)", page)
    for part in ("<!DOCTYPE html>", "<svg", "Not measured", "How it was measured", "On what"):
        assert part in page
    for one in data["results"]:
        assert f"<td>{one['n']} x {one['d']}</td>" in page
    command = re.search(r"<code>(.*?)</code>", page)
    assert command is not None
    assert command[1].startswith("vicreg bench --backend numpy")
    assert "--size 6x5 --size 6x9 --size 12x9" in command[1]
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_legible_on_a_dark_screen(report: tuple[str, dict, Path]) -> None:
    page = (report[2] / "bench.html").read_text()
    assert "@media (prefers-color-scheme: dark)" in page
    plots = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert "currentColor" in plots
    # No plot brings its own black text or white ground.
    assert not re.search(r"(fill|stroke): *(#000000|#ffffff|black|white)(?!; opacity: 0)", plots)


def test_the_value_alone_has_a_published_one_on_numpy() -> None:
    result = run("bench", "--backend=numpy", "--size=6x9", "--mode=value", "--quick")
    assert result.exit_code == 0, result.output
    assert "numpy, published" not in result.stdout
    assert re.search(r"6 x 9 .*x *$", result.stdout, flags=re.M)


def test_what_could_not_be_measured_is_listed() -> None:
    arguments = ("--backend=numpy", "--compile", "--dtype=bfloat16", "--dtype=float64")
    result = run("bench", *arguments, "--size=6x4", "--size=6x1", "--quick", width=200)
    assert result.exit_code == 0, result.output
    assert "numpy bfloat16: the library has no such dtype there" in result.stdout
    assert "numpy compiled: numpy has no compiler" in result.stdout


def test_where_nothing_could_be_measured_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "available_memory", lambda: 1)
    result = run("bench", "--backend=numpy", "--size=6x4", "--quick")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        "vicreg: nothing could be measured: numpy 6 x 4 float32: its views and gradients take"
    )


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: object, **named: object) -> None:
        raise AssertionError("there was work")

    monkeypatch.setattr(study, "run_study", work)


def test_bad_usage_is_one_line(no_work: None, tmp_path: Path) -> None:
    for bad in ("12", "0x4", "1x4", "4x0", "4x", "axb", "-4x4", "4x4x4", "4 x 4", ""):
        refused(run("bench", f"--size={bad}"), "--size must be samples x features", repr(bad))
    large = ("--size=999999999x1", "--size=6x4", "--size=8192x8192")
    refused(run("bench", "--quick", *large), "too large for --quick", "8192x8192, 999999999x1")
    refused(run("bench", "--backend", "tensorflow"), "--backend must be one of numpy, torch")
    refused(run("bench", "--dtype", "int8"), "--dtype must be one of float64", "'int8'")
    refused(run("bench", "--mode", "both"), "--mode must be one of value-and-grad, value")
    refused(run("bench", "--backend=numpy", "--device=npu"), "nothing to run on", "not on npu")
    refused(run("bench", "--backend=numpy", "--dtype=bfloat16"), "nothing to run on")
    refused(run("bench", "--json", str(tmp_path / "no" / "a.json")), "is no directory")
    refused(run("bench", "--html", str(tmp_path)), "is a directory")
    refused(run("bench", "--plot", str(tmp_path / "a.txt")), "its suffix must be one of")
    same = str(tmp_path / "same.png")
    refused(run("bench", f"--json={same}", "--plot", same), "must be different files")
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bench.json"
    file.write_text("before")

    def full(path: Path, *arguments: object, **named: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    arguments = ("--backend=numpy", "--size=6x4", "--quick", "--json", str(file))
    result = run("bench", *arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("bench.json': No space left on device")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_help_teaches() -> None:
    printed = run("bench", "--help").stdout
    for option in ("--size", "--mode", "--compile", "--quick", "--json", "--html", "--plot"):
        assert option in printed


def test_the_plots_of_compilers_and_devices() -> None:
    pytest.importorskip("matplotlib")
    from vicreg.tools.benchmark.plots import draw, draw_panel, panels

    times = {name: Times((0.1, 0.2, 0.3), 1) for name in COMPUTATIONS}
    results = [
        study.Result("torch", device, Problem(n, 8, compiled=compiled), times, peaks={VICREG: 9})
        for device in ("cpu", "cuda:0")
        for n in (4, 8)
        for compiled in (False, True)
    ]
    assert [one.label for one in results[:2]] == ["torch", "torch compiled"]
    assert results[-1].label == "torch cuda:0 compiled"
    found = study.Study(results, [], {"vicreg": "0", "processor": "$x$"})
    by_title = {panel.title: panel for panel in panels(found)}
    for title in ("The loss eager and compiled", "The loss on the CPU and on the GPU"):
        panel = by_title[title]
        assert panel.draw is not None
        (axis,) = draw_panel(panel).axes
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert len(labels) == (4 if "compiled" in title else 2)
    assert len(draw(found).axes) == 6


def test_uncertain_bars_are_marked_and_pale() -> None:
    pytest.importorskip("matplotlib")
    from vicreg.tools.benchmark.plots import draw_panel, panels

    times = {VICREG: Times((1.0, 1.0, 1.0), 1), PUBLISHED: Times((2.0, 2.0, 2.0), 1)}
    results = [
        study.Result("torch", "cpu", Problem(n, 8), times, load=load)
        for n, load in ((4, 0.5), (8, 2.0))
    ]
    (axis,) = draw_panel(panels(study.Study(results, [], {}))[0]).axes
    assert [text.get_text() for text in axis.texts] == ["2.00", "~2.00"]
    assert [bar.get_alpha() for bar in axis.patches] == [1, 0.4]


# The scripts beside the package.


@pytest.fixture(scope="module")
def wanted() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wanted", SCRIPTS / "wanted.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanted"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [(40, 9), (9, 40)], ids=str)
def test_the_layer_is_timed_beside_its_own_function(
    wanted: ModuleType, size: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    calls = wanted.layer_calls(*size)
    torch.testing.assert_close(calls[VICREG](), calls[PUBLISHED](), rtol=1e-4, atol=1e-6)
    assert calls[PRODUCTS]().shape == size


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_the_checks_are_timed_without_the_loss(wanted: ModuleType, name: str) -> None:
    if name not in installed(name):
        pytest.skip(f"{name} cannot run here")
    with wanted.checks_alone(backend_named(name)) as call:
        assert call().shape == (32, 64)


def test_a_figure_is_met_on_its_own_side(wanted: ModuleType) -> None:
    for measured, least, most in ((1.0, False, True), (2.0, True, True), (3.0, True, False)):
        assert wanted.Figure("", "", 2.0, measured, "x", at_least=True).is_met is least
        assert wanted.Figure("", "", 2.0, measured, "x").is_met is most
    assert wanted.Figure("", "", 2.0, None, "x").is_met is None


def test_wanted_and_measured_stand_beside_each_other(
    wanted: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "LIBRARIES": ("numpy",),
        "FULL": EFFORT,
        "SIZES": ((6, 9),),
        "OVER_PRODUCTS": {(6, 9): {"numpy": 9e5}},
        "GROWTH": {"features grow": {"d = 3": Problem(6, 3), "d = 4": Problem(6, 4)}},
    }.items():
        monkeypatch.setattr(wanted, name, value)
    wanted.main()
    printed = capsys.readouterr().out
    assert re.search(r"6 x 9 time over the products +numpy +<= 900000 x +[0-9.]+ x +met", printed)
    assert re.search(
        r"4096 x 512 layer over its products +torch +<= 1.3 x +- *$", printed, flags=re.M
    )
    assert re.search(r"numpy features grow +d = 3 +[0-9]", printed)
    for part in ("numpy checks and dispatch", "import vicreg, beyond", "processor"):
        assert part in printed


def compared(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / "compare.py", *arguments, "--library=numpy"]
    command += ["--size=4x3", "--rounds=3"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_each_checkout_is_timed_with_its_own_package(tmp_path: Path) -> None:
    """One of them sleeps where the other does nothing."""
    folders = [tmp_path / "slow", tmp_path / "fast"]
    for folder, seconds in zip(folders, (0.02, 0.0), strict=True):
        (folder / "vicreg").mkdir(parents=True)
        (folder / "vicreg" / "__init__.py").write_text(
            "import time\nvicreg_loss = None\n"
            f"def vicreg_value_and_grad(*views): time.sleep({seconds})\n"
        )
    for pair, expected in ((folders, "0"), (folders[::-1], "[1-9][0-9]*")):
        ran = compared(*pair)
        assert ran.returncode == 0, ran.stderr
        row = rf"numpy +vicreg_value_and_grad +4x3 +[0-9.]+ +[0-9.]+ +{expected}\.[0-9]+ \("
        assert re.search(row, ran.stdout), ran.stdout


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    ran = compared(tmp_path)
    assert ran.returncode == 1
    assert f"{tmp_path} holds no package vicreg" in ran.stderr


@pytest.mark.long
def test_a_batch_over_ranks_is_counted_as_the_plan_says() -> None:
    pytest.importorskip("torch")
    from vicreg.distributed import plan

    command = [sys.executable, str(SCRIPTS / "ranks.py"), "--rounds", "1", "--features", "768"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    counts = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) bytes sent", out)]
    assert len(counts) == 8
    for place, (n, size) in enumerate([(256, 2), (512, 2), (512, 1), (128, 4)]):
        sent, usual = counts[2 * place : 2 * place + 2]
        # The header of 15 numbers goes to each other rank.
        assert sent == plan(n, 768, size).bytes_sent + 60 * (size - 1)
        assert usual == 3 * (size - 1) * n * 768 * 4 * 2
