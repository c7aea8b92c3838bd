"""The command: what it prints, and one line and exit status 2 for what it cannot do."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from typer.testing import CliRunner, Result

import vicreg
from vicreg import conventions
from vicreg._conventions import codebases, codebases_of
from vicreg.tools.command import application, main
from vicreg.tools.command.shared import chosen_conventions
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


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["--json"], None),
        (["--json", "--"], None),
        (["--json", "out.json"], "out.json"),
        (["--json", "OUT.JSON"], "OUT.JSON"),
        (["--json=out.json"], "out.json"),
        (["--json=out.txt"], "out.txt"),
        (["--json=-"], None),
    ],
    ids=str,
)
def test_json_goes_to_its_file_or_alone_to_standard_output(
    arguments: list[str], file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("conventions", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ([file] if file else [])
    written = Path(file).read_text() if file else result.stdout
    assert list(json.loads(written)) == list(conventions)
    if file:
        assert "What each computes" in result.stdout
        assert result.stdout.endswith(f"\nWritten: {file}\n")


def test_a_file_to_read_that_follows_json_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("z.npy", np.eye(4, 3))
    before = Path("z.npy").read_bytes()
    for arguments in (["--json", "z.npy"], ["z.npy", "--json"], ["--json", "--", "z.npy"]):
        result = run("diagnose", *arguments)
        assert json.loads(result.stdout)["d"] == 3
    result = run("diagnose", "--json", "out.json", "z.npy", "--plot", "--json")
    refused(result, "suffix must be one of")  # what --plot takes is never its --json
    refused(run("diagnose", "--", "--json"), "cannot read '--json'")  # a file of that name
    assert run("diagnose", "--json", "out.json", "z.npy").exit_code == 0
    assert json.loads(Path("out.json").read_text())["d"] == 3
    assert Path("z.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vicreg d", ["demo", "diagnose"]),
        ("vicreg bench --js", ["--json"]),
        ("vicreg bench --json --backend n", ["numpy", "ndonnx"]),
        ("vicreg demo --backend c", ["cupy"]),
        ("vicreg identify math:hypot --backend t", ["torch"]),
        ("vicreg bench --mode value-", ["value-and-grad"]),
        ("vicreg bench --device cu", ["cuda"]),
        ("vicreg verify --dtype float32 --dtype b", ["bfloat16"]),
        ("vicreg verify --convention alg", ["algorithm1"]),
        ("vicreg diagnose z.npy --convention light", ["lightly"]),
    ],
    ids=str,
)
def test_names_complete_in_the_shell(
    words: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asked as the script of ``vicreg --show-completion`` asks."""
    monkeypatch.setenv("_VICREG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setattr(sys, "argv", ["vicreg"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert capsys.readouterr().out.split() == expected


def test_the_script_that_completes_is_that_of_this_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr(sys, "argv", ["vicreg", "--show-completion", "bash"])
    with pytest.raises(SystemExit):
        main()
    assert "_VICREG_COMPLETE=complete_bash" in capsys.readouterr().out


def test_demo_trains_and_says_what_to_see(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, data = tmp_path / "demo.svg", tmp_path / "demo.json"
    files = ("--plot", str(file), "--json", str(data))
    result = run("demo", "--epochs", "1", "--seed", "5", *files)
    assert result.exit_code == 0, result.output
    assert "numpy, 1 epoch, seed 5" in result.stdout
    for name in ("VICReg (this loss)", "without the variance term", "untrained encoder"):
        assert name in result.stdout
    assert "Probe accuracy" in result.stdout
    assert "Without the variance term" in result.stdout
    assert "\x1b" not in result.stdout
    assert file.exists()
    assert max(map(len, result.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    written = json.loads(data.read_text())
    assert (written["backend"], written["epochs"], written["seed"]) == ("numpy", 1, 5)
    for name, encoder in written["encoders"].items():
        assert f"{encoder['mean_std']:.4f}" in result.stdout
        assert len(encoder["singular_values"]) == encoder["rank_limit"]
        assert [set(terms) for terms in encoder["history"]] == (
            [] if name == "untrained encoder" else [{"loss", *vicreg.VICRegTerms._fields}]
        )
    for line in written["findings"]:
        assert line in " ".join(result.stdout.split())


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


def test_the_installed_command_runs_and_so_does_the_module() -> None:
    for command in ([Path(sys.executable).with_name("vicreg")], [sys.executable, "-m", "vicreg"]):
        ran = subprocess.run([*command, "--nothing"], capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert ran.stderr.startswith("vicreg: No such option: --nothing")
