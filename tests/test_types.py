"""What mypy and pyright make of users' code: run by `nox -s types`."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = Path(__file__).parent / "typed"


def errors_of_mypy(file: Path, folder: Path) -> dict[int, str]:
    """Return mypy's errors by their line; in `folder` there are no settings of it."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(file)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not ran.stderr
    found = re.findall(rf"^{re.escape(str(file))}:(\d+): error: (.*)", ran.stdout, flags=re.M)
    assert bool(found) == bool(ran.stdout), ran.stdout
    return {int(line): said for line, said in found}


def errors_of_pyright(file: Path, folder: Path) -> dict[int, str]:
    """Return pyright's errors by their line."""
    command = [sys.executable, "-m", "pyright", "--outputjson"]
    command += ["--pythonpath", sys.executable, str(file)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = json.loads(ran.stdout)["generalDiagnostics"]
    errors = [one for one in found if one["severity"] == "error"]
    return {one["range"]["start"]["line"] + 1: one["message"] for one in errors}


@pytest.mark.long
@pytest.mark.parametrize("errors", [errors_of_mypy, errors_of_pyright])
def test_of_users_code_what_is_right_passes_and_what_is_wrong_fails(
    errors: Callable[[Path, Path], dict[int, str]], tmp_path: Path
) -> None:
    checker = errors.__name__.removeprefix("errors_of_")
    for package in (checker, "torch", "jax"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; nox -s types installs it")
    assert errors(CODE / "right.py", tmp_path) == {}
    wrong = CODE / "wrong.py"
    marked = {
        number
        for number, line in enumerate(wrong.read_text().splitlines(), start=1)
        if line.endswith("# wrong")
    }
    found = errors(wrong, tmp_path)
    assert set(found) == marked, {line: found.get(line) for line in set(found) ^ marked}
    for line, argument in ((12, "offical"), (13, "grams"), (16, "lightyl")):
        assert argument in found[line]
