"""What a mask and other weights cost: the time with `sample_weight` over that without, in turns.

    python benchmarks/weights.py

Two random float32 views on the CPU have a mask, of booleans, that leaves one sample of eight out,
or weights of 0.5, 1.5 and 2.5. Of each library, size and function the median of the ratios is
printed, with its quartiles; JAX is under ``jit``. The exit status is always 0, since figures
depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from wanted import LIBRARIES, on_cpu, timed

from vicreg import vicreg_loss, vicreg_value_and_grad
from vicreg.tools.backends import Backend
from vicreg.tools.benchmark.computations import Problem
from vicreg.tools.benchmark.timing import ratio
from vicreg.tools.progress import steps_progress

SIZES = ((256, 2048), (256, 8192), (4096, 512))
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "value": vicreg_loss,
    "value and gradient": vicreg_value_and_grad,
}


def main() -> None:
    """Measure, and print one line per library, function, size and kind of weights."""
    console = Console(highlight=False)
    console.print("time with weights of samples over that without them", markup=False)
    with steps_progress(Console(stderr=True), len(LIBRARIES) * len(SIZES) * 2) as on_step:
        for library in LIBRARIES:
            backend = on_cpu(library)
            for what, function in FUNCTIONS.items():
                for n, d in SIZES:
                    on_step(f"{library}, {n} x {d}, {what}")
                    with backend.active(), backend.full_precision():
                        times = timed(_calls(backend, function, n, d), backend.synchronise)
                    size = f"{n} x {d}"
                    for kind in ("mask", "weights"):
                        of = ratio(times[kind], times["none"])
                        console.print(
                            f"{library:8}{what:20}{size:>12}   {kind:9}"
                            f"{of.median:.2f} ({of.low:.2f} to {of.high:.2f})"
                        )


def _calls(
    backend: Backend, function: Callable[..., Any], n: int, d: int
) -> dict[str, Callable[[], Any]]:
    views, places = Problem(n, d).arrays(backend), np.arange(n)
    mask = backend.asarray(places % 8 > 0, "bool")
    weights = backend.asarray(places % 3 + 0.5, "float32")

    def weighted(weight: Any, *views: Any) -> Any:
        return function(*views, sample_weight=weight)

    def plain(*views: Any) -> Any:
        return function(*views)

    if backend.always_compiled:
        weighted, plain = backend.compiled(weighted), backend.compiled(plain)
    return {
        "mask": lambda: weighted(mask, *views),
        "weights": lambda: weighted(weights, *views),
        "none": lambda: plain(*views),
    }


if __name__ == "__main__":
    main()
