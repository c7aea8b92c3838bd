"""Where the time of a call goes: what stands in the way of a wanted figure.

    python benchmarks/breakdown.py
    python benchmarks/breakdown.py --library numpy --size 256x2048

A call is a value and gradient of two random float32 views on the CPU. First it is timed in turns
with others, none of them under a profiler: with the products that every implementation needs, with
taking the mean of each feature off the views, with the published formula, and in PyTorch with the
closed form, which has no autograd, and with the checks alone. Then comes a profile of the call:

- of PyTorch its own profiler's, by operation. What is left of the call's time is outside of all
  operations: Python, autograd, the checks, and giving memory back. Of a compiled call it shows
  what the compiler made, and how long it takes to find the program again.
- of NumPy that of ``cProfile``, by function.
- of JAX the trace of its profiler, by instruction of the compiled program. Instructions run side
  by side, so that together they take longer than the call.

The exit status is always 0, since figures depend on the machine.
"""

from __future__ import annotations

import argparse
import cProfile
import gzip
import json
import math
import pstats
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from wanted import LIBRARIES, checks_alone, empty_table, layer_calls, on_cpu, timed

from vicreg import vicreg_loss, vicreg_value_and_grad
from vicreg.tools.backends import Backend
from vicreg.tools.benchmark.computations import (
    PRODUCTS,
    PUBLISHED,
    VICREG,
    Problem,
    build_call,
)
from vicreg.tools.benchmark.report import short
from vicreg.tools.machine import description

Call = Callable[[], Any]

#: By library, the sizes of which a wanted figure was missed.
SIZES = {
    "torch": ("32x64", "256x2048"),
    "jax": ("256x8192",),
    "numpy": ("256x2048", "256x8192", "4096x512"),
}
LAYER = (256, 4096)
#: How many parts of a profile are listed by name.
LISTED = 8
#: How many letters of such a name.
LONGEST = 32
#: How often a call is made under a profiler: for about so many seconds, at most so often.
SECONDS, MOST_CALLS = 1.0, 200


class Part(NamedTuple):
    """A part of a call, and how many seconds it takes."""

    name: str
    seconds: float
    is_product: bool = False  # whether it is a matrix product


def main() -> None:
    """Measure, and print one table per library and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="all by default")
    parser.add_argument("--size", action="append", metavar="NxD", type=_size)
    options = parser.parse_args()
    console = Console(highlight=False)
    console.print(", ".join(description().values()), markup=False, soft_wrap=True)
    summary = _of_numbers("In ms", "call", "products", *_SHARES.values())
    for title, seconds, parts in _breakdowns(options.library or LIBRARIES, options.size):
        console.print(_table(title, seconds, parts))
        totals = [sum(part.seconds for part in parts if _kind(part) == kind) for kind in _SHARES]
        both = [seconds["the call"], seconds["the products alone"], *totals]
        summary.add_row(title, *(short(1e3 * each) for each in both))
    console.print(summary)


Breakdown = tuple[str, dict[str, float], list[Part]]


def _breakdowns(libraries: Sequence[str], sizes: Sequence[tuple[int, int]]) -> Iterator[Breakdown]:
    """Yield a title, the times of the call and of others, and the parts of the call."""
    for library in libraries:
        backend = on_cpu(library)
        for size in sizes or map(_size, SIZES[library]):
            with backend.active(), backend.full_precision():
                yield f"{library}, {size[0]} x {size[1]}", *_of(backend, size)
                if library == "torch":
                    title = f"torch.compile, {size[0]} x {size[1]}"
                    yield title, *_of_compiled(backend, size)
        if library == "torch" and not sizes:
            calls = layer_calls(*LAYER)
            calls = {"the call": calls[VICREG], "the products alone": calls[PRODUCTS]}
            title = f"VCReg's layer, {LAYER[0]} x {LAYER[1]}"
            yield title, _seconds(calls), _profile_of_torch(calls["the call"])


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a size must be as 256x2048; got {text!r}")
    return int(match[1]), int(match[2])


def _of(backend: Backend, size: tuple[int, int]) -> tuple[dict[str, float], list[Part]]:
    """Return the times of the call and of others, and the parts of the call."""
    problem = Problem(*size)
    arrays = problem.arrays(backend)
    call = build_call(VICREG, backend, problem, arrays)
    calls: dict[str, Call] = {
        "the call": call,
        "the products alone": build_call(PRODUCTS, backend, problem, arrays),
        "centring alone": _centring(backend, arrays),
    }
    if backend.differentiates:
        calls["the published formula"] = build_call(PUBLISHED, backend, problem, arrays)
    if backend.name == "numpy":
        return _seconds(calls), _profile_of_functions(call)
    if backend.name == "jax":
        return _seconds(calls, backend.synchronise), _profile_of_jax(backend, arrays)
    calls["the closed form, without autograd"] = lambda: vicreg_value_and_grad(*arrays)
    seconds = _seconds(calls)
    with checks_alone(backend) as checks:
        seconds |= _seconds({"the checks alone": checks})
    return seconds, _profile_of_torch(call)


def _of_compiled(backend: Backend, size: tuple[int, int]) -> tuple[dict[str, float], list[Part]]:
    import torch._inductor.config as inductor

    backend.forget_compiled()
    problem = Problem(*size, compiled=True)
    arrays = problem.arrays(backend)
    calls = {
        "the call": build_call(VICREG, backend, problem, arrays),
        "the call, not compiled": build_call(
            VICREG, backend, replace(problem, compiled=False), arrays
        ),
        "the products alone": build_call(
            PRODUCTS, backend, replace(problem, compiled=False), arrays
        ),
    }
    seconds = _seconds(calls)
    backend.forget_compiled()
    with inductor.patch({"cpp.enable_kernel_profile": True}):
        return seconds, _profile_of_torch(calls["the call"], is_compiled=True)


def _seconds(calls: Mapping[str, Call], synchronise: Any = lambda _: None) -> dict[str, float]:
    times = timed(calls, synchronise)
    return {name: each.quartiles.median for name, each in times.items()}


def _centring(backend: Backend, arrays: Sequence[Any]) -> Call:
    def centre(*views: Any) -> tuple[Any, ...]:
        return tuple(view - view.mean(0) for view in views)

    function = backend.compiled(centre) if backend.always_compiled else centre
    return lambda: function(*arrays)


def _repeated(call: Call) -> tuple[int, float]:
    """Return how often to repeat `call` under a profiler, and its seconds without one."""
    (seconds,) = _seconds({"": call}).values()
    return min(MOST_CALLS, math.ceil(SECONDS / seconds)), seconds


# Profiles.


def _profile_of_torch(call: Call, is_compiled: bool = False) -> list[Part]:
    from torch.profiler import ProfilerActivity, profile

    calls, seconds = _repeated(call)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            call()
    products = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}
    parts = [
        Part(
            event.key.removeprefix("aten::"),
            1e-6 * event.self_cpu_time_total / calls,
            event.key in products,
        )
        for event in profiled.key_averages()
        # Where nothing is compiled all else are functions of autograd, whose time is Python's.
        if is_compiled or event.key.startswith("aten::")
    ]
    rest = seconds - sum(part.seconds for part in parts)
    return [*parts, Part(_OUTSIDE, max(rest, 0.0))]


def _profile_of_functions(call: Call) -> list[Part]:
    calls, _ = _repeated(call)
    with cProfile.Profile() as profile:
        for _ in range(calls):
            call()
    stats: Any = pstats.Stats(profile)
    return [
        Part(_function_name(file, name), own / calls, name == "matmul")
        for (file, _, name), (_, _, own, _, _) in stats.stats.items()
    ]


def _function_name(file: str, name: str) -> str:
    path = Path(file)
    if path.suffix != ".py":
        return " ".join(re.findall(r"'(.*?)'", name)) or name.strip("<>")
    return f"{name}, {path.parent.name}/{path.name}"


def _profile_of_jax(backend: Backend, arrays: Sequence[Any]) -> list[Part]:
    import jax

    function: Any = jax.value_and_grad(vicreg_loss, argnums=tuple(range(len(arrays))))
    compiled: Any = backend.compiled_ahead(function, arrays)
    calls, _ = _repeated(lambda: backend.synchronise(compiled(*arrays)))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                backend.synchronise(compiled(*arrays))
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if operation is not None:
            spent[operation] += event["dur"]
    return [
        Part(f"{of}, {name}", 1e-6 * spent[name] / calls, is_product)
        for name, of, is_product in _instructions(compiled.as_text())
        if name in spent
    ]


def _instructions(program: str) -> Iterator[tuple[str, str, bool]]:
    """Yield each instruction of a program, what it is of, and whether it is a product."""
    bodies = dict(re.findall(r"^%?([\w.\-]+) \(.*\{\n((?:.*\n)*?)\}", program, flags=re.M))
    entry = program.partition("\nENTRY ")[2]
    for name, line in re.findall(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*)", entry, flags=re.M):
        of = re.search(r'op_name="([^"]*)"', line)
        calls = re.search(r"calls=%?([\w.\-]+)", line)
        body = bodies.get(calls[1], "") if calls else line
        yield name, of[1].rpartition("/")[2] if of else "", " dot(" in body


# The tables.


_OUTSIDE = "outside of all operations"
#: What the summary adds up of a profile, by kind.
_SHARES = {"product": "in products", "other": "in others", "outside": "outside"}


def _kind(part: Part) -> str:
    return "product" if part.is_product else "outside" if part.name == _OUTSIDE else "other"


def _of_numbers(title: str, *headings: str) -> Table:
    table = empty_table(title, *headings)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _table(title: str, seconds: Mapping[str, float], parts: Sequence[Part]) -> Table:
    table = _of_numbers(title, "ms", "% of call", "x products")
    whole, products = seconds["the call"], seconds["the products alone"]

    def add(name: str, spent: float) -> None:
        table.add_row(
            name, short(1e3 * spent), f"{100 * spent / whole:.0f}", short(spent / products)
        )

    for name, spent in seconds.items():
        add(name, spent)
    table.add_section()
    add("profile: matrix products", sum(part.seconds for part in parts if part.is_product))
    others = sorted((part for part in parts if not part.is_product), key=_seconds_of, reverse=True)
    for part in others[:LISTED]:
        add(f"profile: {part.name[:LONGEST]}", part.seconds)
    add("profile: all others", sum(map(_seconds_of, others[LISTED:])))
    return table


def _seconds_of(part: Part) -> float:
    return part.seconds


if __name__ == "__main__":
    main()
