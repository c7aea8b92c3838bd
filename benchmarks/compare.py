"""Compare the speed of two checkouts of the package, in turns.

    python benchmarks/compare.py OLD_SRC [NEW_SRC]

OLD_SRC and NEW_SRC are folders that hold the package `vicreg`, such as the `src` of another
checkout (`git worktree add ../old REVISION`, then ../old/src). NEW_SRC is by default this
checkout's. Each library runs in two processes, one for each checkout, which stay alive and are
timed in turns. The exit status is always 0, since figures depend on the machine. To see how much
of a ratio is chance, compare a checkout with itself: at 32 x 64 it can be 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES = ("32x64", "256x2048", "256x8192", "2048x2048", "4096x512")
VALUE_AND_GRAD, AUTODIFF = "vicreg_value_and_grad", "vicreg_loss, autodiff"
FUNCTIONS = {
    "torch": (VALUE_AND_GRAD, AUTODIFF),
    "jax": (VALUE_AND_GRAD, AUTODIFF),  # both under jit
    "numpy": (VALUE_AND_GRAD,),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: A pause before each timing, in which the threads of both processes go to sleep.
PAUSE = 0.05  # seconds


# The process of a checkout: it must run with any version of the package.


def serve(library: str, clock: str) -> None:
    """Answer each line of the input, ["prepare", function, n, d] or ["time", calls]."""
    import vicreg

    print(json.dumps(str(Path(vicreg.__file__).parent.parent)), flush=True)
    call: Callable[[], Any] = list  # replaced by "prepare"
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        if request == "prepare":
            call = prepared(library, *arguments)
            for _ in range(2):  # the first call may compile
                call()
            answer = seconds(call, 1, time.perf_counter)
        else:
            time.sleep(PAUSE)
            call()
            answer = seconds(call, *arguments, CLOCKS[clock])
        print(json.dumps(answer), flush=True)


def seconds(call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return clock() - start


def prepared(library: str, function: str, n: int, d: int) -> Callable[[], Any]:
    """Return a call that computes the loss and its gradients by two views, and waits for them."""
    import numpy as np

    from vicreg import vicreg_loss, vicreg_value_and_grad

    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal((n, d)).astype("float32") for _ in range(2))
    if library == "numpy":
        return lambda: vicreg_value_and_grad(x, y)
    if library == "torch":
        import torch

        views = [torch.from_numpy(x), torch.from_numpy(y)]
        if function == VALUE_AND_GRAD:
            return lambda: vicreg_value_and_grad(*views)
        leaves = [view.requires_grad_() for view in views]
        return lambda: torch.autograd.grad(vicreg_loss(*leaves), leaves)
    import jax

    chosen = {
        VALUE_AND_GRAD: lambda *views: vicreg_value_and_grad(*views),
        AUTODIFF: jax.value_and_grad(lambda *views: vicreg_loss(*views), argnums=(0, 1)),
    }
    compiled = jax.jit(chosen[function])
    arrays = jax.device_put((x, y))
    return lambda: jax.block_until_ready(compiled(*arrays))


# The parent process.


class Checkout:
    """A process that runs one library with the package of one folder."""

    def __init__(self, source: Path, library: str, clock: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--serve", library, clock],
            env=os.environ | {"PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if (imported := self._answer()) != str(source):
            self.close()
            raise SystemExit(f"{source} holds no package vicreg: {imported} was imported")

    def ask(self, *request: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(old: Checkout, new: Checkout, problem: tuple[Any, ...], rounds: int) -> str:
    """Return a line: the median times of both and of their ratio, with its quartiles."""
    from vicreg.tools.benchmark.timing import FULL, ratio, time_in_turns

    slower = max(one.ask("prepare", *problem) for one in (old, new))
    calls = max(1, round(FULL.sample / slower))
    spent = [0.0]

    def sample(one: Checkout) -> Callable[[], None]:
        def add() -> None:
            spent[0] += one.ask("time", calls)

        return add

    # A sample is one request, which repeats the call. The processes measure the time themselves,
    # so that it excludes the communication.
    samples = {"old": sample(old), "new": sample(new)}
    effort = replace(FULL, rounds=rounds, sample=0.0)
    times = time_in_turns(samples, lambda _: None, effort, lambda: spent[0])
    before, after = (1e3 * times[name].quartiles.median / calls for name in ("old", "new"))
    change = ratio(times["new"], times["old"])
    return f"{before:9.3f} {after:9.3f}   {change.median:.3f} ({change.low:.3f}-{change.high:.3f})"


def main() -> None:
    """Compare, and print one line per library, function and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent.parent / "src"
    parser.add_argument("old", type=Path, metavar="OLD_SRC")
    parser.add_argument("new", type=Path, metavar="NEW_SRC", nargs="?", default=here)
    parser.add_argument("--library", action="append", choices=list(FUNCTIONS))
    parser.add_argument("--size", action="append", metavar="NxD")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: of all threads together"
    )
    parser.add_argument("--rounds", type=int, default=41, help="slow calls get fewer")
    options = parser.parse_args()
    sources = [options.old.resolve(), options.new.resolve()]
    print(f"old: {sources[0]}\nnew: {sources[1]}\nms a call ({options.clock}), float32, two views")
    print(f"{'':8}{'':24}{'':>12} {'old':>9} {'new':>9}   new/old (quartiles)", flush=True)
    for library in options.library or FUNCTIONS:
        old, new = (Checkout(source, library, options.clock) for source in sources)
        for function in FUNCTIONS[library]:
            for size in options.size or SIZES:
                n, d = map(int, size.split("x"))
                line = compare(old, new, (function, n, d), options.rounds)
                print(f"{library:8}{function:24}{size:>12} {line}", flush=True)
        old.close()
        new.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
