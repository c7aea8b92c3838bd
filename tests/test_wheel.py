"""The wheel: what is in it, and that it works beside one array library and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
(TORCH,) = (line for line in EXTRAS["cpu"] if line.startswith("torch=="))

#: What is installed, and how users get a loss and its gradient there.
ALONE = {
    "numpy": (
        "numpy",
        "import numpy as xp; z = xp.eye(3)",
        "gradient = vicreg.vicreg_value_and_grad(z, 2 * z)[1][0]",
    ),
    "torch": (
        TORCH,
        "import torch; z = torch.eye(3, requires_grad=True)",
        "vicreg.VICRegLoss()(z, 2 * z.detach()).backward(); gradient = z.grad",
    ),
    "jax": (
        "jax",
        "import jax; z = jax.numpy.eye(3)",
        "gradient = jax.grad(vicreg.jax.vicreg_loss)(z, 2 * z)",
    ),
}


def pip(*arguments: str | Path) -> None:
    """Run pip, and skip the test where it has no index to ask."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found" in ran.stderr or "No module named pip" in ran.stderr:
        pytest.skip(f"pip finds no packages here: {ran.stderr.splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT)
    (file,) = folder.glob("vicreg-*.whl")
    return file


@pytest.mark.long
def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"vicreg"}
    assert "vicreg/py.typed" in names
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert not any("test_" in name or "conftest" in name for name in names)


@pytest.mark.long
def test_the_readmes_links_work_on_the_page_of_an_index(wheel: Path) -> None:
    """None is relative, and each that leads to the project leads to a file that there is."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = archive.read(name).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    source, site = PROJECT["urls"]["Source"], PROJECT["urls"]["Documentation"]
    files = []
    for link in links:
        if on_site := re.fullmatch(rf"{site}/en/latest/(.+)\.html(#.*)?", link):
            files.append(f"docs/{on_site[1]}.md")
        else:
            in_source = re.fullmatch(rf"{source}/(?:raw|blob)/main/([^#]+)(#.*)?", link)
            assert in_source, link
            assert ("/raw/" in link) == link.endswith(".png"), link
            files.append(in_source[1])
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).exists()] == []
    in_clone = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text())
    assert sorted(files) == sorted(in_clone)


@pytest.mark.long
@pytest.mark.parametrize("library", list(ALONE))
def test_it_works_beside_one_library(library: str, wheel: Path, tmp_path: Path) -> None:
    package, make, differentiate = ALONE[library]
    venv.create(tmp_path / "env")
    programs = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip("--python", programs / "python", "install", "-q", package, wheel)
    others = [other for other in ALONE if other not in (library, "numpy")]
    script = f"""
import vicreg
{make}
terms = vicreg.vicreg_terms(z, z)
assert abs(float(vicreg.vicreg_loss(z, z) - 25 * terms.variance - terms.covariance)) < 1e-4
{differentiate}
assert tuple(gradient.shape) == (3, 3) and float(abs(gradient).max()) > 0
assert not any(hasattr(vicreg, other) for other in {others})
"""
    subprocess.run([programs / "python", "-W", "ignore", "-c", script], check=True)
    ran = subprocess.run([programs / "vicreg", "demo"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == "vicreg: the command needs typer and rich: pip install typer rich\n"
