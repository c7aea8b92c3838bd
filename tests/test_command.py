"""The command: what it prints, and one line and exit status 2 for what it cannot do."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from typer.testing import CliRunner, Result

import vicreg
from vicreg import conventions
from vicreg._conventions import codebases, codebases_of
from vicreg.tools.command import application, main
from vicreg.tools.command.conventions import chosen_conventions
from vicreg.tools.requirements import RequirementError


def run(*arguments: str, width: int = 80) -> Result:
    return CliRunner().invoke(application(), arguments, env={"COLUMNS": str(width)})


def refused(result: Result, *parts: str) -> None:
    """Assert exit status 2, no traceback, and one line with every one of `parts`."""
    assert result.exit_code == 2
    line = result.stderr.strip()
    assert "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize("width", [80, 120])
def test_conventions_prints_every_one_whole(width: int) -> None:
    result = run("conventions", width=width)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in result.stdout
    for name, convention in conventions.items():
        rows = [line for line in lines if line.strip().startswith(name + " ")]
        assert len(rows) == 2
        assert f"{convention.eps:g}" in rows[0].split()
        assert convention.hinge_on in rows[0].split()
        assert convention.covariance_divisor in rows[0].split()
        weights = (
            "none"
            if convention.weights is None
            else ", ".join(f"{w:g}" for w in convention.weights)
        )
        assert weights in rows[1]
    assert "Which one do you have?" in result.stdout
    for name, codebase in codebases.items():
        (row,) = (line.split() for line in lines if line.split()[:1] == [name])
        assert row[1] == codebase.convention


def test_conventions_as_json_are_the_data() -> None:
    printed = json.loads(run("conventions", "--json").stdout)
    assert list(printed) == list(conventions)
    for name, fields in printed.items():
        for field, value in dataclasses.asdict(conventions[name]).items():
            assert fields[field] == (list(value) if isinstance(value, tuple) else value)
        assert fields["codebases"] == list(codebases_of(name))


def test_a_convention_may_be_given_by_a_codebases_name() -> None:
    assert chosen_conventions(["Lightly", "eb_jepa", "official"]) == ("official", "eb-jepa")
    with pytest.raises(RequirementError, match=r"--convention must .*: did you mean 'lightly'\?"):
        chosen_conventions(["lihgtly"])


def test_demo_trains_and_says_what_to_see(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "demo.svg"
    result = run("demo", "--epochs", "1", "--seed", "5", "--plot", str(file))
    assert result.exit_code == 0, result.output
    assert "numpy, 1 epoch, seed 5" in result.stdout
    for name in ("VICReg (this loss)", "without the variance term", "untrained encoder"):
        assert name in result.stdout
    assert "Probe accuracy" in result.stdout
    assert "Without the variance term" in result.stdout
    assert "\x1b" not in result.stdout
    assert file.exists()
    assert max(map(len, result.stdout.replace(str(file), "").splitlines())) <= 80


def test_demo_refuses_before_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    refused(run("demo", "--plot", str(tmp_path / "a.xyz")), "suffix must be one of", "png")
    refused(run("demo", "--plot", str(tmp_path / "no" / "a.png")), "is no directory")
    (tmp_path / "folder.png").mkdir()
    refused(run("demo", "--plot", str(tmp_path / "folder.png")), "is a directory")


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"torch": ("PyTorch", "torch"), "cupy": ("CuPy", "cupy-cuda12x")}
    for library, (name, package) in packages.items():
        monkeypatch.setitem(sys.modules, library, None)
        line = f"vicreg: {name} is not installed: pip install {package}"
        refused(run("demo", "--backend", library), line)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused(run("demo"), "scikit-learn is not installed: pip install scikit-learn")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "sklearn")
    refused(run("demo", "--plot", "a.png"), "matplotlib is not installed")


def test_cupy_without_a_gpu_says_so() -> None:
    pytest.importorskip("cupy")
    from backends import BACKENDS, why_not

    (cupy,) = (backend for backend in BACKENDS if backend.name == "cupy")
    if why_not(cupy) is None:
        pytest.skip("there is a GPU")
    refused(run("demo", "--backend", "cupy"), "CuPy finds no CUDA device")


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--epochs", "0"),
        ("demo", "--seed", "-1"),
        ("demo", "--backend", "tensorflow"),
        ("demo", "--epochs", "many"),
        ("vikreg",),
        ("conventions", "--yaml"),
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["vicreg", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vicreg: ")
    command = "vicreg" if arguments[0] == "vikreg" else f"vicreg {arguments[0]}"
    assert printed.err.endswith(f": see {command} --help\n")
    assert printed.err.count("\n") == 1
    assert arguments[-1].lstrip("-") in printed.err or arguments[1] in printed.err


def test_main_ends_with_the_status_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code in ((["conventions"], 0), (["demo", "--plot", "a.xyz"], 2), ([], 0)):
        monkeypatch.setattr(sys, "argv", ["vicreg", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == code
        assert "Traceback" not in capsys.readouterr().err


def test_a_diverged_run_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vicreg.tools.demo.study import DivergedError

    def diverged(*_: object, **__: object) -> None:
        raise DivergedError("training diverged in epoch 3")

    monkeypatch.setattr("vicreg.tools.demo.study.run_study", diverged)
    monkeypatch.setattr(sys, "argv", ["vicreg", "demo"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "vicreg: training diverged in epoch 3\n"


def test_an_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vicreg.tools.demo.study.run_study", interrupted)
    monkeypatch.setattr(sys, "argv", ["vicreg", "demo"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip().endswith("vicreg: stopped")


def test_help_teaches() -> None:
    for arguments in (("--help",), ("demo", "--help"), ("conventions", "--help")):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "vicreg " + ("demo" if "conventions" not in arguments else "conv") in result.stdout
    assert "--plot" in run("demo", "--help").stdout


def test_version() -> None:
    assert run("--version").stdout == f"vicreg {vicreg.__version__}\n"


def test_without_its_packages_the_command_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "vicreg: the command needs typer and rich: pip install typer rich\n"
    )


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("vicreg")
    ran = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("vicreg ")
