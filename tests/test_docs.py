"""What the documentation says is what happens: code blocks, examples, tables and commands."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
from pathlib import Path

import pytest

from vicreg import conventions
from vicreg.distributed import plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCKS = [
    (f"{page.name}, block {number}", block)
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)
    )
]


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_code_runs(name: str, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("torch", "jax"):
        if re.search(rf"import {library}|vicreg\.{library}", block):
            pytest.importorskip(library)
    exec(compile(block, name, "exec"), {})
    if "print(" in block:
        out = capsys.readouterr().out
        assert "invariance=" in out or any(out in page.read_text() for page in PAGES)


def test_readme_shows_a_first_use_of_each_library() -> None:
    for library in ("numpy", "torch", "jax"):
        first = re.compile(rf"^import {library}\b", flags=re.M)
        assert any(first.search(block) for name, block in BLOCKS if name.startswith("README"))


def test_readme_table_is_the_data() -> None:
    rows = {
        cells[0].strip("`"): cells
        for line in README.splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert list(rows) == list(conventions)
    for name, convention in conventions.items():
        weights = convention.weights
        assert rows[name][2:] == [
            convention.invariance,
            convention.hinge_on,
            f"{convention.variance_correction} / {convention.covariance_correction}",
            f"{convention.eps:g}",
            convention.variance_over_views,
            convention.covariance_over_views,
            convention.covariance_divisor,
            "must be given" if weights is None else ", ".join(f"{w:g}" for w in weights),
        ]


def test_the_table_of_hard_inputs_is_the_data() -> None:
    from vicreg.tools.verification.cases import CASES

    page = (ROOT / "docs" / "verification.md").read_text()
    for case in CASES:
        shape = " × ".join(map(str, case.shape))
        rows = [line for line in page.splitlines() if re.match(r"\| [a-z]", line)]
        assert any(case.name in row and shape in row for row in rows), case


def test_the_costs_on_paper_are_what_their_command_prints() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert script["table"]() in page
    assert str(plan(n_per_rank=256, d=4096, world_size=2)) in page


def test_ci_runs_the_readmes_two_commands() -> None:
    commands = re.findall(r"^```sh\n(.*?)\n```", README, flags=re.S | re.M)
    assert len(commands) == 2
    for command in commands:
        assert "\n" not in command
        assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_links_lead_somewhere() -> None:
    for path in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert link.startswith("https://") or (path.parent / link).exists(), link


_NEEDED = {
    "torch": ("torch",),
    "jax": ("jax",),
    "lightning": ("torch", "lightning"),
    "distributed": ("torch", "jax"),
}


@pytest.mark.parametrize(
    "module",
    [
        "_losses.vicreg",
        "_losses.vcreg",
        "_diagnostics",
        "_monitor",
        "_conventions",
        "tools.identification",
        "tools.identification.result",
        "tools.loading",
        "_core.communicator",
        "_core.plan",
        "distributed",
        "testing",
        "torch",
        "jax",
        "lightning",
    ],
)
def test_examples_in_docstrings(module: str) -> None:
    for package in _NEEDED.get(module, ()):
        pytest.importorskip(package)
    found = doctest.testmod(importlib.import_module(f"vicreg.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
