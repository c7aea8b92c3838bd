"""Check the package on the GPUs of this machine, measure it there, and write one report.

    python benchmarks/gpu.py [--device cuda] [--folder benchmarks/reports] [--minutes 10]

For each library that finds a GPU: the tests that are representative, on its arrays there;
``vicreg verify``; ``vicreg bench``; and the times that ``vicreg bench --count`` estimates from
what it counts, beside those measured. The report is gpu.json, and gpu.md as a page to read.
The exit status is 0 if all agree, 1 if something fails or does not end in time, and 2 without a
GPU. ``--device cpu --quick`` runs the same on a CPU, to try this script; it needs ``--folder``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vicreg.tools.backends import Backend, find_backends
from vicreg.tools.benchmark.computations import VICREG
from vicreg.tools.benchmark.counting.estimate import H100
from vicreg.tools.benchmark.counting.study import BACKWARD, CLOSED_FORM, COUNTED
from vicreg.tools.machine import description

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "benchmarks" / "reports"
LIBRARIES = ("cupy", "torch", "jax", "mlx")

#: The tests of values, gradients, axes, dtypes, devices and bad input: see CONTRIBUTING.md.
TESTS = ("pytest", "-q", "-m", "representative and not long", "-p", "no:cacheprovider")
#: Where the launches, the bytes or the products take longest, on a large GPU.
SIZES = ("32x64", "256x8192", "2048x2048")
#: What the numbers of the model are measured with: elements to add, rows to multiply.
ELEMENTS, ROWS = 2**26, 8192
QUICK_ELEMENTS, QUICK_ROWS = 2**20, 256

Step = dict[str, Any]


class Deadline:
    """The time that the steps have together."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def share(self, parts: int) -> Deadline:
        """Return a deadline after an equal part of the time left, so that each has some."""
        return Deadline((self._end - time.monotonic()) / 60 / parts)

    def run(self, command: Sequence[str], **variables: str) -> Step:
        """Run a module of Python; return what was run, how it ended and how long it took."""
        start = time.monotonic()
        left = max(self._end - start, 0.1)
        full = [sys.executable, "-m", *command]
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | variables
        try:
            ran = subprocess.run(
                full, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=left
            )
        except subprocess.TimeoutExpired:
            ended, said = None, "it did not end in time"
        else:
            ended, said = ran.returncode, last_line(ran.stderr) or last_line(ran.stdout)
        taken = round(time.monotonic() - start, 1)
        step = {"command": shlex.join(command), "passed": ended == 0, "seconds": taken}
        return step if ended == 0 else step | {"said": said}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def tests(backend: Backend, deadline: Deadline, folder: Path) -> Step:
    """Run the representative tests on the arrays of one library on one device."""
    file = folder / "tests.xml"
    where = ("--library", backend.name, "--device", backend.device)
    step = deadline.run([*TESTS, *where, f"--junitxml={file}"])
    step["command"] = step["command"].replace(f" --junitxml={file}", "")
    return step | (counted(file) if file.exists() else {})


def counted(file: Path) -> dict[str, int]:
    """Return how many tests a file of pytest names, and how they ended."""
    suite = next(ElementTree.parse(file).iter("testsuite"))
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


def verify(backend: Backend, deadline: Deadline, folder: Path) -> Step:
    """Run ``vicreg verify``."""
    where = ["--backend", backend.name, "--device", backend.device]
    return with_report(["vicreg", "verify", *where], deadline, folder / "verify.json")


def bench(backend: Backend, deadline: Deadline, folder: Path, quick: bool) -> Step:
    """Run ``vicreg bench``."""
    where = ["--backend", backend.name, "--device", backend.device]
    sizes = [word for size in SIZES for word in ("--size", size)]
    command = ["vicreg", "bench", *where, *(["--quick"] if quick else sizes)]
    return with_report(command, deadline, folder / "bench.json")


def count(
    backend: Backend,
    deadline: Deadline,
    folder: Path,
    numbers: Mapping[str, float],
    measured: Step,
) -> Step:
    """Run ``vicreg bench --count`` for this GPU, at the sizes that were measured."""
    command = ["vicreg", "bench", "--count", "--backend", backend.name]
    for option, number in numbers.items():
        command += [f"--{option.replace('_', '-')}", f"{number:.4g}"]
    results = measured.get("report", {}).get("results", ())
    for size in dict.fromkeys(f"{one['n']}x{one['d']}" for one in results):
        command += ["--size", size]
    return with_report(command, deadline, folder / "count.json")


def with_report(command: list[str], deadline: Deadline, file: Path) -> Step:
    step = deadline.run([*command, "--json", str(file)])
    step["command"] = shlex.join(command)
    return step | ({"report": json.loads(file.read_text())} if file.exists() else {})


def numbers_of(backend: Backend, elements: int, rows: int) -> dict[str, float]:
    """Measure the three numbers by which `bench --count` knows a GPU.

    A compiled program launches its operations without Python: there it keeps the default.
    """

    def array(*shape: int) -> Any:
        return backend.asarray(np.ones(shape), "float32")

    with backend.active(), backend.full_precision():
        one, many, square = array(2), array(elements), array(rows, rows)
        launches = 1000
        launch = seconds(lambda: [one + one for _ in range(launches)][-1], backend) / launches
        adding = seconds(lambda: many + many, backend)
        multiplying = seconds(lambda: square @ square, backend)
    return {
        "launch_us": H100.launch_us if backend.always_compiled else 1e6 * launch,
        "bandwidth_tbs": 1e-12 * 2 * 4 * elements / adding,  # one read, one write
        "tflops": 1e-12 * 2 * rows**3 / multiplying,
    }


def seconds(call: Callable[[], Any], backend: Backend) -> float:
    """Return the least of five times, after a call that may compile."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        backend.synchronise(call())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def compared(measured: Step, counted: Step) -> list[dict[str, Any]]:
    """Return the measured and the estimated time of each problem."""
    estimates = {
        (one["n"], one["d"], one["computation"]): one["estimated_seconds"]["call"]
        for one in counted.get("report", {}).get("results", ())
        if one["estimated_seconds"] is not None
    }
    rows = []
    for one in measured.get("report", {}).get("results", ()):
        size = one["n"], one["d"]
        # What is timed is the loss and its backward pass where there is one.
        estimated = estimates.get((*size, BACKWARD), estimates.get((*size, CLOSED_FORM)))
        if estimated is not None:
            median = one["seconds"][VICREG]["median"]
            row = {"n": one["n"], "d": one["d"], "measured": median, "estimated": estimated}
            rows.append(row | {"measured_over_estimated": median / estimated})
    return rows


def modelled(
    backend: Backend, deadline: Deadline, folder: Path, quick: bool, measured: Step
) -> dict[str, Any]:
    """Return the numbers of the model, the step that estimates by them, and the comparison."""
    size = (QUICK_ELEMENTS, QUICK_ROWS) if quick else (ELEMENTS, ROWS)
    try:
        numbers = numbers_of(backend, *size)
    except Exception as error:  # a library may raise anything; the other steps are reported
        failed = {"command": "numbers_of", "passed": False, "seconds": 0.0, "said": str(error)}
        return {"numbers": {}, "step": failed, "rows": []}
    step = count(backend, deadline, folder, numbers, measured)
    return {"numbers": numbers, "step": step, "rows": compared(measured, step)}


def checked(backend: Backend, deadline: Deadline, quick: bool) -> dict[str, Any]:
    """Return what one library on one device shows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = {
            "tests": tests(backend, deadline, folder),
            "verify": verify(backend, deadline, folder),
            "bench": bench(backend, deadline, folder, quick),
        }
        model: dict[str, Any] = {"numbers": {}, "rows": []}
        if backend.name in COUNTED:
            model = modelled(backend, deadline, folder, quick, steps["bench"])
            steps["count"] = model.pop("step")
    where = {"library": backend.name, "device": backend.device, "name": backend.device_name}
    return where | {"steps": steps, "model": model}


def report_of(backends: Iterable[Backend], deadline: Deadline, quick: bool) -> dict[str, Any]:
    backends = list(backends)
    return {
        "made_with": description(backends),
        "results": [
            checked(backend, deadline.share(len(backends) - place), quick)
            for place, backend in enumerate(backends)
        ],
    }


def passed(report: Mapping[str, Any]) -> bool:
    steps = [step for one in report["results"] for step in one["steps"].values()]
    return all(step["passed"] for step in steps)


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as a page."""
    lines = [
        "# On a GPU",
        "",
        "`nox -s gpu` wrote this page, and the data beside it in gpu.json.",
        "",
    ]
    lines += [", ".join(f"{name} {which}" for name, which in report["made_with"].items()), ""]
    for one in report["results"]:
        name = f" ({one['name']})" if one["name"] else ""
        lines += [f"## {one['library']} on {one['device']}{name}", ""]
        lines += ["| step | passed | seconds | command |", "|---|---|---|---|"]
        for what, step in one["steps"].items():
            ended = "yes" if step["passed"] else f"no: {step['said']}"
            tests = f" ({step['tests'] - step['skipped']} tests)" if "tests" in step else ""
            lines.append(f"| {what}{tests} | {ended} | {step['seconds']} | `{step['command']}` |")
        lines += [*model_lines(one["model"]), ""]
    return "\n".join(lines)


def model_lines(model: Mapping[str, Any]) -> list[str]:
    """Return the table of the measured and the estimated times, where there are any."""
    if not model["rows"]:
        return []
    numbers = "{launch_us:.3g} µs a launch, {bandwidth_tbs:.3g} TB/s and {tflops:.3g} TFLOP/s:"
    return [
        "",
        "Value and gradient in float32, measured and estimated from counts with",
        numbers.format(**model["numbers"]),
        "",
        "| n × d | measured, ms | estimated, ms | ratio |",
        "|---|---|---|---|",
        *(
            f"| {row['n']} × {row['d']} | {1e3 * row['measured']:.3g} | "
            f"{1e3 * row['estimated']:.3g} | {row['measured_over_estimated']:.2f} |"
            for row in model["rows"]
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="as cuda, mps or cuda:1; by default every GPU's first")
    parser.add_argument("--folder", type=Path, help="for the report; benchmarks/reports")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all steps together")
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds")
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    given = parser.parse_args(arguments)
    if given.device == "cpu" and given.folder is None:
        parser.error("--device cpu needs --folder: a report of a CPU is not for the repository")
    wanted = [given.device] if given.device else []
    found, left_out = find_backends(given.library or LIBRARIES, wanted)
    on_gpu = [one for one in found if given.device == "cpu" or one.device.split(":")[0] != "cpu"]
    first = list({one.name: one for one in reversed(on_gpu)}.values())[::-1]
    if not first:
        names = dict.fromkeys(one.name for one in found)
        reasons = [*left_out.values(), *(f"{name} has the CPU alone" for name in names)]
        print(f"no GPU: {'; '.join(dict.fromkeys(reasons))}", file=sys.stderr)
        return 2
    report = report_of(first, Deadline(given.minutes), given.quick)
    folder = given.folder or REPORTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(as_markdown(report), encoding="utf-8")
    print(as_markdown(report))
    return 0 if passed(report) else 1


if __name__ == "__main__":
    sys.exit(main())
