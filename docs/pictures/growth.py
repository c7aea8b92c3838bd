"""How time, bytes and memory grow: what `benchmarks/growth.py` wrote to `growth.json` here.

python docs/pictures/growth.py --plot growth.svg
"""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", required=True, metavar="FILE")
    arguments = parser.parse_args()
    script = runpy.run_path(str(HERE.parents[1] / "benchmarks" / "growth.py"))
    script["draw"](json.loads((HERE / "growth.json").read_text()), arguments.plot)
