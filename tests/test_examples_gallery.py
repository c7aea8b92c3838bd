"""Each example of the gallery runs as its page says, draws its picture and prints its result."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    name
    for page in sorted((ROOT / "docs" / "gallery").glob("*.md"))
    for name in re.findall(r"^```\{example\} (\w+)$", page.read_text(), flags=re.M)
]


def imported(script: Path) -> set[str]:
    """Return the packages that an example imports, wherever it does."""
    return set(re.findall(r"^ *(?:import|from) (\w+)", script.read_text(), flags=re.M))


@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_draws_and_prints(name: str, tmp_path: Path) -> None:
    script, picture = ROOT / "examples" / f"{name}.py", tmp_path / "tmp.svg"
    for package in sorted(imported(script)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    result = subprocess.run(
        [sys.executable, str(script), "--plot", str(picture)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
