"""Scripts that draw a picture: run as a reader would run them, once light and once dark.

A script takes the file of its picture as `--plot FILE.svg`. It is run with the style of
`pictures/matplotlibrc`. For the dark copy the four greys of that style are replaced, so that each
script draws once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]

#: The colours of matplotlibrc that a dark page replaces.
DARK = {
    "#1f2328": "#e6e8eb",  # text
    "#6e7781": "#9aa4af",  # axes
    "#d8dee4": "#3d444d",  # grid
    "#fdfdfd": "#1a1c1e",  # what lies behind a label
}


def run_if_newer(script: Path, picture: Path) -> None:
    """Run `script` if it is newer than its `picture`, and keep what it printed beside that."""
    if not picture.exists() or picture.stat().st_mtime < script.stat().st_mtime:
        printed(picture).write_text(_run(script, picture))


def printed(picture: Path) -> Path:
    """Return the file of what a picture's script printed."""
    return picture.with_suffix(".txt")


def _run(script: Path, picture: Path) -> str:
    """Run `script`, make its picture and the dark copy of it, and return what it printed.

    Raises
    ------
    RuntimeError
        It failed, or drew no picture.
    """
    picture.parent.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--plot", str(picture)],
        env={**os.environ, "MATPLOTLIBRC": str(DOCS / "pictures")},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode or not picture.exists():
        raise RuntimeError(f"{script}: no picture\n{result.stdout}\n{result.stderr}")
    dark(picture).write_text(_darkened(picture.read_text()))
    return result.stdout


def dark(picture: Path) -> Path:
    """Return the file of a picture's dark copy."""
    return picture.with_stem(f"{picture.stem}-dark")


def _darkened(svg: str) -> str:
    for light, replacement in DARK.items():
        svg = svg.replace(light, replacement)
    return svg
