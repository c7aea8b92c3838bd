"""The picture of the README, `docs/_static/demo.png`: what `vicreg demo --plot` draws.

It is the only picture that lies in the repository, since the README is read where no site is
built. To renew it, which takes half a minute:

    python docs/pictures/readme.py
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from vicreg.tools.demo.plot import draw
from vicreg.tools.demo.study import run_study


def save(file: Path, epochs: int) -> None:
    """Train with the demo's default settings, and draw the result with a palette, to be small."""
    drawn = io.BytesIO()
    draw(run_study("numpy", epochs=epochs)).savefig(drawn, dpi=160, format="png")
    Image.open(drawn).convert("RGB").quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--plot", type=Path, default=Path(__file__).parents[1] / "_static" / "demo.png"
    )
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    save(arguments.plot, arguments.epochs)
