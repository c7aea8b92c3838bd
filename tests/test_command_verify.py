"""``vicreg verify``: what it prints and writes, its exit status, and one line for bad usage."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from test_command import refused, run

from vicreg._core.terms import Variance
from vicreg.tools.backends import find_backends
from vicreg.tools.verification import plan, target
from vicreg.tools.verification.paths import AS_CALLED, PATHS
from vicreg.tools.verification.suite import Measurement, Results

QUICK = ("--backend", "numpy", "--convention", "lightly", "--convention", "article")


@pytest.fixture(autouse=True)
def few_large_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the large inputs the first, and for targets none: the truth of others takes long."""
    monkeypatch.setattr(plan, "_large", lambda *a: iter(list(_LARGE_SETUPS(*a))[:1]))
    small = tuple(case for case in target.TARGET_CASES if case.exactly)
    monkeypatch.setattr(target, "TARGET_CASES", small)


_LARGE_SETUPS = plan._large
_TERMS = ("invariance", "variance", "covariance", "vicreg_terms, differentiated")


def test_two_libraries_agree_and_the_reports_say_all(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data, text = tmp_path / "report.json", tmp_path / "report.md"
    files = ("--json", str(data), "--markdown", str(text))
    dtypes = ("--dtype", "float32", "--dtype", "bfloat16")
    result = run("verify", *QUICK, "--backend", "torch", *dtypes, *files)
    assert result.exit_code == 0, result.output
    assert "All agree" in result.stdout
    assert "Each pair of libraries" in result.stdout
    assert "bfloat16: not available in numpy" in result.stdout
    assert max(map(len, result.stdout.replace(str(tmp_path), "").splitlines())) <= 80

    report = json.loads(data.read_text())
    assert report["passed"] is True
    assert report["seed"] == 0
    assert {"vicreg", "python", "numpy", "torch", "array-api-compat"} <= set(report["versions"])
    rows = {(row["library"], row["dtype"]): row for row in report["libraries"]}
    assert set(rows) == {("numpy", "float32"), ("torch", "float32"), ("torch", "bfloat16")}
    for row in rows.values():
        assert row["passed"] is True
        assert row["problems"] > 20
        assert 0 < row["value"]["error"] <= 1
        assert 0 < row["gradient"]["error"] <= 1
        assert "loss" in row["value"]["of"] or row["value"]["of"].endswith(_TERMS)
        assert row["gradient"]["path"] in map(str, (*PATHS, AS_CALLED))
    by_path = {(row["library"], row["path"]): row["error"] for row in report["paths"]}
    assert set(by_path) == {
        (name, str(path)) for name in ("numpy", "torch") for path in (*PATHS, AS_CALLED)
    }
    assert all(0 < error <= 1 for error in by_path.values())
    (pair,) = report["pairs"]
    assert pair["libraries"] == ["numpy", "torch"]
    assert 0 <= pair["value"] <= 2
    assert "All agree." in text.read_text()
    assert "| torch | bfloat16 |" in text.read_text()
    assert "| torch | one by one, in parts |" in text.read_text()
    assert "Each path through the code" in result.stdout
    lines = [line for line in result.stderr.splitlines() if "%" in line]
    assert [int(line.split("%")[0]) for line in lines] == sorted(
        int(line.split("%")[0]) for line in lines
    )
    assert lines
    assert all(line.endswith("left") for line in lines)


def times_hinge(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Multiply the variance's value, not its gradient."""
    right = Variance.of_view

    def wrong(*arguments: Any) -> Any:
        value, factors = right(*arguments)
        return value * factor, factors

    monkeypatch.setattr(Variance, "of_view", wrong)


def test_a_fault_is_a_failure_with_its_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times_hinge(monkeypatch, 1 + 1e-8)
    file = tmp_path / "report.json"
    arguments = ("--dtype", "float64", "--json", str(file))
    result = run("verify", *QUICK, *arguments)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "Not all agree." in result.stdout
    assert "the variance is off by" in result.stdout
    assert "(stacked; " in result.stdout
    report = json.loads(file.read_text())
    assert report["passed"] is False
    assert all(row["errors"]["variance"] > 1 for row in report["failures"])


def test_a_nan_is_a_failure_and_is_null_in_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times_hinge(monkeypatch, math.nan)
    file = tmp_path / "report.json"
    result = run("verify", *QUICK, "--dtype", "float32", "--json", str(file))
    assert result.exit_code == 1
    assert "no number" in result.stdout
    assert json.loads(file.read_text())["libraries"][0]["value"]["error"] is None


def test_what_cannot_run_is_never_left_out_silently() -> None:
    pytest.importorskip("cupy")
    from backends import BACKENDS, why_not

    (cupy,) = (backend for backend in BACKENDS if backend.name == "cupy")
    if why_not(cupy) is None:
        pytest.skip("there is a GPU")
    arguments = ("--backend", "cupy", "--dtype", "float64", "--seed", "4")
    result = run("verify", *QUICK, *arguments, width=300)
    assert result.exit_code == 0
    assert "cupy: CuPy finds no CUDA device" in result.stdout
    refused(run("verify", "--backend", "cupy"), "nothing to run on: CuPy finds no CUDA device")


def test_a_namespace_that_the_package_has_never_heard_of() -> None:
    pytest.importorskip("array_api_strict")
    arguments = ("--convention", "paper", "--dtype", "float32", "--device", "no_x64")
    result = run("verify", "--namespace", "array_api_strict", *arguments, width=120)
    assert result.exit_code == 0
    assert "array_api_strict no_x64" in result.stdout
    assert "torch" not in result.stdout


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody's own, importable from the current directory."""
    (tmp_path / "own_code_to_verify.py").write_text(
        """
import numpy as np

def loss(x, y, twice=1.0):
    n, d = x.shape
    invariance = ((x - y) ** 2).mean()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    hinge = [np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)).mean() for z in (x, y)]
    off = ~np.eye(d, dtype=bool)
    squares = [((z.T @ z / (n - 1))[off] ** 2).sum() / d for z in (x, y)]
    return 25 * invariance + 25 * twice * sum(hinge) / 2 + sum(squares)

def doubled(x, y):
    return loss(x, y, 2.0)

def raises(x, y):
    raise RuntimeError("not here")

def nothing(x, y):
    return None

def exits(x, y):
    raise SystemExit(0)

def single(x, y):
    if x.dtype != np.float32:
        raise TypeError("float32 alone")
    print("called")
    return loss(x, y)
"""
    )
    monkeypatch.chdir(tmp_path)
    return "own_code_to_verify"


def test_ones_own_function_agrees(own_code: str) -> None:
    result = run("verify", "--target", f"{own_code}:loss")
    assert result.exit_code == 0, result.output
    assert f"{own_code}:loss against official" in result.stdout


def test_a_function_of_one_dtype_that_prints(own_code: str) -> None:
    result = run("verify", "--target", f"{own_code}:single", "--dtype", "float32", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"] is True


def test_a_namespace_in_the_current_directory(own_code: str) -> None:
    Path("own_arrays_to_verify.py").write_text("from array_api_strict import *\n")
    pytest.importorskip("array_api_strict")
    arguments = ("--convention", "paper", "--dtype", "float32")
    assert run("verify", "--namespace", "own_arrays_to_verify", *arguments).exit_code == 0


@pytest.mark.long
def test_a_terminal_of_few_letters(own_code: str) -> None:
    """The command itself, since what encodes is the stream it was started with."""
    command = Path(sys.executable).with_name("vicreg")
    ran = subprocess.run(
        [command, "verify", "--target", f"{own_code}:doubled", "--dtype", "float64"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "60"},
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr


def test_ones_own_function_departs_and_how(own_code: str) -> None:
    result = run("verify", "--target", f"{own_code}:doubled", width=120)
    assert result.exit_code == 1
    assert "On numpy: the variance term is 2 times that of official." in result.stdout
    assert "algorithm1, with its published weights" in result.stdout
    against = ("--convention", "solo-learn")
    assert run("verify", "--target", f"{own_code}:doubled", *against).exit_code == 0


def test_pytorch_metric_learning_by_its_name() -> None:
    pytest.importorskip("pytorch_metric_learning")
    path = "pytorch_metric_learning.losses:VICRegLoss"
    result = run("verify", "--target", path, "--backend", "torch")
    assert result.exit_code == 0, result.output
    refused(run("verify", "--target", path), "raised TypeError", "try --backend torch")


def test_bad_usage_is_one_line(own_code: str, tmp_path: Path) -> None:
    refused(run("verify", "--target", f"{own_code}:raises"), "RuntimeError: not here")
    refused(run("verify", "--target", f"{own_code}:nothing"), "one real number", "NoneType")
    refused(run("verify", "--target", f"{own_code}:absent"), "has no 'absent'")
    refused(run("verify", "--target", "absent_module:loss"), "there is no module")
    refused(run("verify", "--target", "loss"), "must be MODULE:FUNCTION")
    twice = ("--convention", "paper", "--convention", "official")
    refused(run("verify", "--target", f"{own_code}:loss", *twice), "given once")
    refused(run("verify", "--target", f"{own_code}:loss", "--namespace", "numpy"), "--backend")
    refused(run("verify", "--backend", "tensorflow"), "--backend must be one of numpy, torch")
    refused(run("verify", "--dtype", "int8"), "--dtype must be one of float64", "'int8'")
    refused(run("verify", "--convention", "mine"), "--convention must be one of 'official'")
    refused(run("verify", "--device", "npu", "--backend", "numpy"), "nothing to run on")
    refused(run("verify", "--namespace", "nowhere_arrays"), "nowhere_arrays is not installed")
    refused(run("verify", "--json", str(tmp_path / "no" / "a.json")), "is no directory")
    refused(run("verify", "--markdown", str(tmp_path)), "is a directory")
    twice = str(tmp_path / "report")
    refused(run("verify", f"--json={twice}", "--markdown", twice), "must be different files")
    refused(run("verify", "--json=/dev/null"), "is no plain file")
    half = ("--dtype", "float16")
    refused(
        run("verify", "--target", f"{own_code}:loss", *half), "must be one of float64, float32"
    )
    refused(run("verify", "--target", f"{own_code}:exits"), "raised SystemExit")


def test_help_teaches() -> None:
    printed = run("verify", "--help").stdout
    options = ("--target", "--namespace", "--json", "--markdown", "--seed", "--device", "--full")
    for option in options:
        assert option in printed
    assert "vicreg verify --backend torch --backend dask" in printed


def test_failures_are_counted_when_there_are_many() -> None:
    from vicreg.tools.verification.report import failures, in_common, pairs_table, paths_table

    numpy = ("numpy", "float64")
    many = {"gradient": 0.5} | {f"gradient {place}": 3.0 + place for place in range(5)}
    one = Measurement(*numpy, "wide", "official", "stacked", "Gram route", {"loss": 2.0}, many)
    elsewhere = Measurement(*numpy, "wide", "official", "in parts", "Gram route", {"loss": 1.5})
    worse = Measurement(*numpy, "tall", "paper", complaint="raised MemoryError: none left")
    passed = Measurement("torch", "float32", "tall", "paper", values={"loss": 0.5})
    results = Results(0, [passed] + [one] * 20 + [elsewhere, worse])
    lines = failures(results)
    assert lines[0] == "numpy float64, paper, tall: raised MemoryError: none left"
    assert lines[1] == (
        "numpy float64, official, wide (stacked; Gram route): the gradient 4 is off by 7 times "
        "its bound, the gradient 3 is off by 6 times its bound, and 4 more"
    )
    # Another path's worst before the same one's others.
    assert lines[2] == (
        "numpy float64, official, wide (in parts; Gram route): the loss is off by 1.5 times its "
        "bound"
    )
    assert lines[-1] == "and 10 more (--json FILE has them all)"
    assert in_common(results) == "numpy; float64"
    assert pairs_table(results) is None
    assert paths_table(results) is not None


def test_the_command_without_arguments_takes_what_people_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And says of the others how they run."""
    asked = []

    def find(names, devices):
        asked.append(names)
        return find_backends(["numpy"], devices)

    monkeypatch.setattr("vicreg.tools.backends.find_backends", find)
    result = run("verify", "--dtype", "float32", "--convention", "official", width=120)
    assert result.exit_code == 0, result.output
    assert asked == [("numpy", "torch", "jax", "mlx", "cupy")]
    assert (
        "dask, array_api_strict, ndonnx, mparray: run with --full, or by name (--backend)"
        in result.stdout
    )


def test_full_says_beforehand_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--full", "--dtype", "float32", "--convention", "official")
    result = run("verify", "--backend", "numpy", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("This will take about ")
    assert "run with --full" not in result.stdout
    refused(run("verify", "--full", "--target", "math:hypot"), "--target has one suite")


@pytest.mark.long
def test_the_whole_of_it() -> None:
    """Everything that is asked without arguments, in a process of its own."""
    command_line = Path(sys.executable).with_name("vicreg")
    ran = subprocess.run([command_line, "verify"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    for library in ("numpy", "torch", "jax", "mlx"):
        if find_backends([library])[0]:
            assert f" {library} " in ran.stdout
