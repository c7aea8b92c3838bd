"""What the documentation says is what happens: code blocks, examples, tables and commands."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SITE = sorted(
    page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts
)  # its cells run when it is built
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE)
BLOCKS = [
    (f"{page.name}, block {number}", block)
    for page in (ROOT / "README.md",)
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
    if "for step in" in block:  # a training: what it logs falls
        log = capsys.readouterr().out
        losses = [float(loss) for loss in re.findall(r"loss': ([\d.]+)", log)]
        assert losses[-1] < losses[0]


def test_readme_shows_a_first_use_of_each_library() -> None:
    for library in ("numpy", "torch", "jax"):
        first = re.compile(rf"^import {library}\b", flags=re.M)
        assert any(first.search(block) for name, block in BLOCKS if name.startswith("README"))


NOT_RUN = re.compile(r"\s*:caption: \"?Not run when this page is built: ")


def code_that_never_runs(page: str) -> list[str]:
    """Return the blocks of code that do not run when the site is built, without saying so."""
    found = []
    for _, kind, text in re.findall(
        r"^ *((?:`|:){3,}) *(\S*)[^\n]*\n(.*?)^ *\1 *$", page, flags=re.S | re.M
    ):
        if kind == "{code-block}" or not (kind.startswith("{") or kind in ("text", "")):
            found += [] if NOT_RUN.match(text) else [text]
        elif kind not in ("{code-cell}", "{command-output}"):
            found += code_that_never_runs(text)
    return found


def test_all_code_of_the_site_runs_or_says_why_not() -> None:
    assert {page.name: code_that_never_runs(page.read_text()) for page in SITE} == {
        page.name: [] for page in SITE
    }
    assert code_that_never_runs("::::{tip}\n```python\n1\n```\n::::\n") == ["1\n"]


def test_ci_runs_the_readmes_two_commands() -> None:
    commands = re.findall(r"^```sh\n(.*?)\n```", README, flags=re.S | re.M)
    assert len(commands) == 2
    for command in commands:
        assert "\n" not in command
        assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_links_lead_somewhere() -> None:
    for path in PAGES:
        prose = re.sub(r"^ *(`{3,}).*?^ *\1 *$", "", path.read_text(), flags=re.S | re.M)
        for link in re.findall(r"\]\(([^)#\s]+)[)#]", prose):
            is_label = not re.search(r"[./]", link)  # resolved when the site is built
            elsewhere = link.startswith(("https://", "/_build/"))
            assert is_label or elsewhere or (path.parent / link).exists(), link


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
        "_losses.vicregl",
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
