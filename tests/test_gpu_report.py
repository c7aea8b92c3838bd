"""``benchmarks/gpu.py``: what it says without a GPU, and its report, tried on a CPU."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vicreg.tools.backends import backend_named
from vicreg.tools.benchmark import report
from vicreg.tools.benchmark.computations import Problem
from vicreg.tools.benchmark.counting import report as counting_report
from vicreg.tools.benchmark.counting.study import BACKWARD, CLOSED_FORM, count_study
from vicreg.tools.benchmark.study import run_study
from vicreg.tools.benchmark.timing import Effort

pytest.importorskip("rich")

ROOT = Path(__file__).parents[1]
EFFORT = Effort(rounds=3, sample=1e-6, budget=1e-3, fewest=2, patience=60.0)


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Answers:
    """In place of the commands: what they would have written."""

    def __init__(self, failing: str = "") -> None:
        self.commands: list[list[str]] = []
        self._failing = failing

    def share(self, parts: int) -> _Answers:
        return self

    def run(self, command: list[str]) -> dict[str, Any]:
        self.commands.append(command)
        results: list[dict[str, Any]] = []
        size = {"n": 32, "d": 64}
        if "--count" in command:
            for name, estimated in ((CLOSED_FORM, 1e-3), (BACKWARD, 2e-3), ("published", 9.0)):
                results.append(
                    size | {"computation": name, "estimated_seconds": {"call": estimated}}
                )
            results.append(size | {"computation": BACKWARD, "estimated_seconds": None})
        elif "bench" in command:
            results.append(size | {"seconds": {"vicreg": {"median": 3e-3}}})
        if "--json" in command:
            Path(command[-1]).write_text(json.dumps({"results": results}))
        fails = bool(self._failing) and self._failing in command
        step = {"command": " ".join(command), "passed": not fails, "seconds": 1.0}
        return step | ({"said": "one differs"} if fails else {})


def test_without_a_gpu_it_says_in_one_line_what_it_looked_for(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [backend_named("numpy")], {"cupy": "CuPy finds no CUDA device"}
    monkeypatch.setattr(gpu, "find_backends", lambda names, devices: found)
    assert gpu.main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no GPU: CuPy finds no CUDA device; numpy has the CPU alone\n")


def test_a_report_of_a_cpu_is_not_written_among_those_of_gpus(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--device", "cpu"])
    assert "needs --folder" in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["", "verify"])
def test_the_report(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    failing: str,
) -> None:
    """Of NumPy on a CPU, under the name of a library that is counted."""
    backend, answers = backend_named("numpy"), _Answers(failing)
    monkeypatch.setattr(gpu, "find_backends", lambda names, devices: ([backend], {}))
    monkeypatch.setattr(gpu, "COUNTED", ("numpy",))
    monkeypatch.setattr(gpu, "Deadline", lambda minutes: answers)
    arguments = ["--device", "cpu", "--quick", "--folder", str(tmp_path)]
    assert gpu.main(arguments) == (1 if failing else 0)

    whole = json.loads((tmp_path / "gpu.json").read_text())
    (one,) = whole["results"]
    assert list(one["steps"]) == ["tests", "verify", "bench", "count"]
    assert [step["passed"] for step in one["steps"].values()] == [True, not failing, True, True]
    (row,) = one["model"]["rows"]  # of the backward pass, which is what is timed
    assert (row["estimated"], row["measured"]) == (2e-3, 3e-3)
    assert row["measured_over_estimated"] == pytest.approx(1.5)
    numbers = one["model"]["numbers"]
    assert min(numbers["bandwidth_tbs"], numbers["tflops"], numbers["launch_us"]) > 0
    assert answers.commands[-1][-4:-2] == ["--size", "32x64"]
    assert "numpy" in whole["made_with"]

    page = (tmp_path / "gpu.md").read_text()
    assert page == capsys.readouterr().out.removesuffix("\n")
    assert "| 32 × 64 | 3 | 2 | 1.50 |" in page
    assert ("no: one differs" in page) is bool(failing)
    assert str(tmp_path) not in page.replace("\\", "/")


def test_a_step_that_does_not_end_in_time_fails(gpu: ModuleType) -> None:
    step = gpu.Deadline(0).run(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(9)"])
    assert not step["passed"]
    assert step["said"] == "it did not end in time"


def test_libraries_share_the_time(gpu: ModuleType) -> None:
    whole = gpu.Deadline(9)
    assert whole.share(3)._end - time.monotonic() == pytest.approx(180, abs=1)
    assert whole.share(1)._end == pytest.approx(whole._end, abs=1)


def test_tests_are_counted(gpu: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "tests.xml"
    file.write_text(
        '<testsuites><testsuite errors="0" failures="1" skipped="2" tests="9"/></testsuites>'
    )
    assert gpu.counted(file) == {"tests": 9, "failures": 1, "errors": 0, "skipped": 2}


def test_the_numbers_are_those_of_what_is_timed(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "seconds", lambda call, backend: (np.asarray(call()), 0.5)[1])
    numbers = gpu.numbers_of(backend_named("numpy"), 1000, 10)
    assert numbers["launch_us"] == pytest.approx(500.0)  # half a second for a thousand
    assert numbers["bandwidth_tbs"] == pytest.approx(1.6e-8)  # 4000 bytes read, and written
    assert numbers["tflops"] == pytest.approx(4e-9)  # 1000 multiply-adds


def test_what_is_said_of_gpus_agrees_with_the_reports() -> None:
    reported = (ROOT / "benchmarks" / "reports" / "gpu.json").exists()
    readme = (ROOT / "README.md").read_text()
    assert ("**no GPU has run it yet**" in readme) is not reported


def test_the_reports_of_the_command_have_what_is_compared(gpu: ModuleType) -> None:
    """What `bench --json` and `bench --count --json` write, of one size."""
    problem = Problem(5, 7)
    backend = backend_named("numpy")
    timed = run_study([backend], [problem], EFFORT, lambda _: ())
    counted = count_study(["cupy"], [problem])
    (row,) = gpu.compared(
        {"report": json.loads(json.dumps(report.as_json(timed)))},
        {"report": json.loads(json.dumps(counting_report.as_json(counted)))},
    )
    assert (row["n"], row["d"]) == (5, 7)
    assert row["measured"] == timed.results[0].times["vicreg"].quartiles.median
    assert row["estimated"] == counted.rows[0].estimate.seconds
