"""Bad input to every option of every subcommand: one line, exit status 2, and no work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from typer.main import get_command

from vicreg.tools.command import application, main

NAMES = ("", "nan", "-1", "no_such", "🙂", "[red]", "--json")
NUMBERS = ("", "nan", "inf", "-inf", "-1", "1e999", "0x1", "many", "🙂")
WHOLE = (*NUMBERS, "1.5")
FILES = ("", ".", "no/such.json", f"{'a' * 300}.json", "/dev/null")
FIGURES = (*FILES, "-", "nan", "figure.txt", "figure.svg.gz.exe")

#: By subcommand and option or argument: what comes before it, and bad values.
BAD: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("demo", "--backend"): ((), NAMES),
    ("demo", "--epochs"): ((), (*WHOLE, "0")),
    ("demo", "--seed"): ((), WHOLE),
    ("demo", "--plot"): ((), FIGURES),
    ("demo", "--json"): ((), FILES),
    ("diagnose", "FILE"): ((), ("", "none.npy", ".", f"{'a' * 300}.npy", "text.npy", "🙂")),
    ("diagnose", "OTHER"): (("z.npy",), ("", "none.npy", ".", "text.npy", "wider.npy")),
    ("diagnose", "--convention"): (("z.npy",), NAMES),
    ("diagnose", "--key"): (("z.npy",), NAMES),
    ("diagnose", "--fail-on"): (("z.npy",), (*NAMES, "healthy")),
    ("diagnose", "--plot"): (("z.npy",), FIGURES),
    ("diagnose", "--json"): (("z.npy",), FILES),
    ("verify", "--backend"): ((), NAMES),
    ("verify", "--dtype"): ((), (*NAMES, "int8")),
    ("verify", "--device"): (("--backend=numpy",), NAMES),
    ("verify", "--convention"): ((), NAMES),
    ("verify", "--namespace"): ((), (*NAMES, "..", "numpy:ndarray")),
    ("verify", "--target"): ((), (*NAMES, "math:none", "math:pi", ":", "no.py:f", "math:hypot")),
    ("verify", "--kwargs"): (("--target=numpy:vdot",), ("", "a", "=1", "a=1=2", "no_such=1")),
    ("verify", "--output"): (("--target=numpy:vdot",), ("no_such", "..", "nan", "🙂")),
    ("verify", "--shape"): (("--target=numpy:vdot",), ("", "n", "d", "n,n", "nan", "n,d,-1")),
    ("verify", "--distributed"): ((), (*WHOLE, "0", "1", "65", "9" * 30)),
    ("verify", "--timeout"): (("--distributed=2",), (*NUMBERS, "0", "0.5", "1e9")),
    ("verify", "--json"): ((), FILES),
    ("verify", "--markdown"): ((), FILES),
    ("verify", "--seed"): ((), WHOLE),
    ("identify", "MODULE:FUNCTION"): ((), ("", ":", "math", "math:none", "no.py:f", "math:hypot")),
    ("identify", "--backend"): (("numpy:vdot",), NAMES),
    ("identify", "--kwargs"): (("numpy:vdot",), ("", "a", "=1", "a=1=2", "no_such=1")),
    ("identify", "--output"): (("numpy:vdot",), ("no_such", "..", "nan", "🙂")),
    ("identify", "--shape"): (("numpy:vdot",), ("", "n", "d", "n,n", "nan", "n,d,-1")),
    ("identify", "--json"): (("numpy:vdot",), FILES),
    ("bench", "--backend"): ((), NAMES),
    ("bench", "--device"): (("--backend=numpy",), NAMES),
    ("bench", "--size"): ((), (*NAMES, "nanxnan", "1x4", "4x0", "4x4x4", "infxinf", "1e3x4")),
    ("bench", "--dtype"): ((), (*NAMES, "int8")),
    ("bench", "--mode"): ((), NAMES),
    ("bench", "--json"): ((), FILES),
    ("bench", "--html"): ((), FILES),
    ("bench", "--plot"): ((), FIGURES),
    ("conventions", "--json"): ((), FILES),
}

Ended = tuple[int, str, str]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """Run the command in a folder with some files; return its status and what it printed."""
    np.save(tmp_path / "z.npy", np.eye(4))
    np.save(tmp_path / "wider.npy", np.eye(4, 5))
    (tmp_path / "text.npy").write_text("1, 2")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vicreg", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("there was work")

    for function in (
        "demo.study.run_study",
        "benchmark.study.run_study",
        "verification.suite.run_suite",
        "verification.distributed.study.run_package",
    ):
        monkeypatch.setattr(f"vicreg.tools.{function}", work)


@pytest.mark.parametrize(("subcommand", "option"), BAD, ids=lambda value: value)
def test_bad_input_is_one_line_and_status_2(
    subcommand: str, option: str, command: Callable[..., Ended], no_work: None
) -> None:
    before, values = BAD[subcommand, option]
    for value in values:
        given = f"{option}={value}" if option.startswith("--") else value
        status, out, err = command(subcommand, *before, given)
        assert (status, out) == (2, ""), (given, err)
        assert err.startswith("vicreg: "), (given, err)
        assert err.count("\n") == 1, (given, err)
        assert err.endswith("\n")


def test_every_option_is_in_the_table() -> None:
    def takes_a_value(parameter: Any) -> bool:
        return not getattr(parameter, "is_flag", False)

    subcommands = get_command(application()).commands.items()
    every = {
        (name, parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar)
        for name, subcommand in subcommands
        for parameter in subcommand.params
        if takes_a_value(parameter)
    }
    assert every == set(BAD)


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--epochs=0"),
        ("demo", "stray"),
        ("diagnose",),
        ("diagnose", "z.npy", "--convention=no_such"),
        ("diagnose", "z.npy", "--key=a", "--key=b"),
        ("identify",),
        ("identify", "numpy:vdot", "--backend=no_such"),
        ("verify", "--dtype=int8"),
        ("verify", "--timeout=5"),
        ("verify", "--distributed=2", "--timeout=nan"),
        ("verify", "--json=a.json", "--markdown=a.json"),
        ("bench", "--size=4"),
        ("bench", "--quick=1"),
        ("bench", "--jason"),
        ("conventions", "--json", "report.txt"),
    ],
    ids=" ".join,
)
def test_bad_usage_points_to_the_help_of_the_subcommand(
    arguments: tuple[str, ...], command: Callable[..., Ended], no_work: None
) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert err.endswith(f": see vicreg {arguments[0]} --help\n")
    assert err.count("\n") == 1


def test_bad_usage_of_no_subcommand_points_to_the_help_of_all(
    command: Callable[..., Ended],
) -> None:
    for arguments in (("vikreg",), ("--json",), ("",)):
        status, out, err = command(*arguments)
        assert (status, out) == (2, "")
        assert err.endswith(": see vicreg --help\n")
