"""Every option given bad input: one line, status 2, no work. Every example of the help works."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
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
from vicreg.tools.requirements import ToolError

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
    ("bench", "--launch-us"): (("--count",), (*NUMBERS, "0", "1e-320", "1e308")),
    ("bench", "--bandwidth-tbs"): (("--count",), (*NUMBERS, "0", "1e-320", "1e308")),
    ("bench", "--tflops"): (("--count",), (*NUMBERS, "0", "1e-320", "1e308")),
    ("bench", "--json"): ((), FILES),
    ("bench", "--html"): ((), FILES),
    ("bench", "--plot"): ((), FIGURES),
    ("conventions", "--json"): ((), FILES),
}

Ended = tuple[int, str, str]

#: What takes long.
WORK = (
    "demo.study.run_study",
    "benchmark.study.run_study",
    "benchmark.counting.study.count_study",
    "verification.suite.run_suite",
    "verification.distributed.study.run_package",
)
WORK_ON_TARGETS = (
    "verification.target.run_target",
    "verification.distributed.study.run_target",
    "identification.identify_loss",
)
#: What an example with a word needs.
NEEDS = {
    "torch": "torch",
    ".pt ": "torch",
    "--distributed": "torch",
    "jax": "jax",
    "dask": "dask",
    "my_arrays": "array_api_strict",
    "pytorch_metric_learning": "pytorch_metric_learning",
}


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


HELP = {name: subcommand.help for name, subcommand in get_command(application()).commands.items()}
#: The lines of the help as they are laid out, and the commands among them.
LINES = [
    (name, line)
    for name, text in {"": get_command(application()).help, **HELP}.items()
    for paragraph in text.split("\n\n")
    if paragraph.startswith("\b")
    for line in paragraph.split("\n")[1:]
]
EXAMPLES = sorted({line.split("  ")[0] for _, line in LINES if line.startswith("vicreg ")})

LOSSES = """
import numpy as np

class MyLoss:
    def __init__(self, std_coeff=25.0):
        pass

    def __call__(self, x, y):
        return ((x - y) ** 2).mean()

mine = my_loss = MyLoss()

def video(x, y):
    return {"total": my_loss(x, y)}
"""


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples of the help read."""
    for name in ("losses", "my_code"):
        (tmp_path / f"{name}.py").write_text(LOSSES)
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "my_arrays.py").write_text("from array_api_strict import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    view = np.eye(6, 4)
    for name in ("z", "z1", "z2"):
        np.save(tmp_path / f"{name}.npy", view)
    np.savez(tmp_path / "views.npz", z1=view, z2=view)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_in_the_help_works(
    example: str,
    command: Callable[..., Ended],
    own_files: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As far as to its work, where that takes long."""
    for word, package in NEEDS.items():
        if word in example:
            pytest.importorskip(package)
    if ".pt " in example:
        import torch

        torch.save(torch.ones(6, 4), tmp_path / "z.pt")

    def work(*_: object, **__: object) -> None:
        raise ToolError("the work began")

    for function in (*WORK, *WORK_ON_TARGETS):
        monkeypatch.setattr(f"vicreg.tools.{function}", work)
    _, name, *options = shlex.split(example)
    status, out, err = command(name, *options)
    if name in ("conventions", "diagnose"):
        assert status == ("--fail-on" in options), err
        assert out
    else:
        assert status == 1, err
        assert err.endswith("vicreg: the work began\n")


@pytest.mark.parametrize("name", ["", *HELP])
def test_the_lines_of_the_help_fit_into_80_columns(
    name: str, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = command(*([name] if name else []), "--help")
    assert status == 0
    printed = [line.rstrip() for line in out.splitlines()]
    for of, line in LINES:
        if of == name:
            assert f" {line}".rstrip() in printed


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("there was work")

    for function in WORK:
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
        ("bench", "--count", "--backend=mlx"),
        ("bench", "--tflops=50"),
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


@pytest.mark.parametrize(
    "arguments",
    [("identify", "losses:mine"), ("verify", "--target=losses:mine", "--backend=numpy")],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("module", ["losses", "./losses.py"])
def test_the_code_of_a_target_is_never_replaced(
    arguments: tuple[str, ...],
    module: str,
    command: Callable[..., Ended],
    own_files: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for function in WORK_ON_TARGETS:
        monkeypatch.setattr(f"vicreg.tools.{function}", lambda *_, **__: pytest.fail("work"))
    arguments = tuple(word.replace("losses", module) for word in arguments)
    status, _, err = command(*arguments, "--json=losses.py")
    assert status == 2
    assert err.startswith("vicreg: --json must not replace 'losses.py', which is read")
    assert (tmp_path / "losses.py").read_text() == LOSSES


def test_a_package_whose_import_raises_anything_is_said(
    command: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib raises a ValueError where MPLBACKEND names none."""
    (tmp_path / "matplotlib.py").write_text("raise ValueError('no such backend')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "matplotlib")
    assert command("diagnose", "z.npy", "--plot=z.png") == (
        2,
        "",
        "vicreg: matplotlib cannot be imported: no such backend\n",
    )


#: A process in which NumPy cannot be found.
WITHOUT_NUMPY = """
import importlib.abc, sys

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from vicreg.tools.command import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "diagnose z.npy",
        "demo",
        "identify math:hypot",
        "verify --target=math:hypot",
        "verify --distributed=2",
        "bench",
        "conventions --json",
    ],
)
def test_without_numpy(arguments: str) -> None:
    command = [sys.executable, "-c", WITHOUT_NUMPY, *arguments.split()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if arguments.startswith("conventions"):
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("{")
    else:
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == "vicreg: NumPy is not installed: pip install numpy\n"


class TestStreams:
    """The command as a process of its own, with streams that are full, closed or not read."""

    def run(self, arguments: str, streams: str) -> Ended:
        command = f"{sys.executable} -m vicreg {arguments} {streams}"
        ended = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
        return ended.returncode, ended.stdout, ended.stderr

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.save(tmp_path / "z.npy", np.eye(4))
        monkeypatch.chdir(tmp_path)

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    @pytest.mark.parametrize("arguments", ["diagnose z.npy --json", "--help"])
    def test_no_space_for_the_output(self, arguments: str) -> None:
        wanted = (1, "", "vicreg: cannot write: No space left on device\n")
        assert self.run(arguments, ">/dev/full") == wanted

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    def test_no_space_for_an_error(self) -> None:
        assert self.run("diagnose none.npy", "2>/dev/full") == (2, "", "")

    @pytest.mark.skipif(os.name == "nt", reason="of a POSIX shell")
    @pytest.mark.parametrize(
        ("arguments", "streams", "status"),
        [("diagnose z.npy --json=z.json", "<&- >&- 2>&-", 0), ("diagnose none.npy", "2>&-", 2)],
    )
    def test_closed_streams(self, arguments: str, streams: str, status: int) -> None:
        assert self.run(arguments, streams) == (status, "", "")
        if status == 0:
            assert Path("z.json").read_text().startswith("{")

    @pytest.mark.skipif(os.name == "nt", reason="of a POSIX shell")
    def test_a_reader_that_has_gone(self) -> None:
        status, out, err = self.run("diagnose z.npy --json", "| true")
        assert (status, out, err) == (0, "", "")  # of the shell's last command

    @pytest.mark.skipif(os.name == "nt", reason="it has no such signal")
    def test_an_interrupt_before_the_work(self, tmp_path: Path) -> None:
        """While packages are imported, which takes longer than some subcommands."""
        (tmp_path / "rich.py").write_text(
            "import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(60)"
        )
        # A shell that runs the tests in the background lets them ignore the signal.
        heeding = (
            "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "runpy.run_module('vicreg', run_name='__main__', alter_sys=True)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", heeding, "conventions"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not (tmp_path / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "vicreg: stopped\n")
