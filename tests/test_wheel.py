"""The wheel: what is in it, and that it works beside one array library and nothing else."""

from __future__ import annotations

import os
import re
import runpy
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
    """None is relative, and none leads to an address that the project does not state."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = archive.read(name).decode()
    assert "# vicreg: self-supervised learning" in page
    home = PROJECT.get("urls", {}).get("Source")
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        assert link.startswith(("https://", "#")), link
        assert home is None or link.startswith(home), link


@pytest.mark.parametrize("source", [None, "https://example.org/vicreg"])
def test_the_readme_for_an_index(source: str | None) -> None:
    for_an_index = runpy.run_path(str(ROOT / "hatch_build.py"))["for_an_index"]
    rest = "[web](https://e.org), [here](#d)\n"
    wanted = f"Pages, {rest}"
    if source is not None:
        picture = f"![all\nof it]({source}/raw/main/docs/a.png)\n\n"
        wanted = f"{picture}[Pages]({source}/blob/main/docs/b.md#c), {rest}"
    readme = f"![all\nof it](docs/a.png)\n\n[Pages](docs/b.md#c), {rest}"
    assert for_an_index(readme, source).startswith(wanted)


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
