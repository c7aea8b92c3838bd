"""``vicreg bench``: the speed and the memory of the loss on this machine."""

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from vicreg.tools.command.bench_count import check_options, count
from vicreg.tools.command.errors import UsageError, one_line_errors
from vicreg.tools.command.shared import (
    Backends,
    Devices,
    Dtypes,
    JsonFile,
    PlotFile,
    check_files,
    chosen,
    names_completed,
    report_console,
    say_written,
    stderr_console,
    write_json,
    write_text,
)
from vicreg.tools.dtypes import DTYPES
from vicreg.tools.libraries import NAMES
from vicreg.tools.requirements import RequirementError, require

__all__ = ["add_to"]

_HELP = """Compare the speed and memory of every library and device of this machine.

The loss with its gradient is compared with the published formula in the same library, and with
the bare matrix products that it needs. It takes some minutes, and less than half a minute with
--quick. Without options: the default libraries that are installed, on every device, in float32.

\b
vicreg bench --quick                        a first look
vicreg bench                                all that is here
vicreg bench --backend torch --compile      eager and under torch.compile
vicreg bench --size 512x4096 --dtype float64
vicreg bench --html bench.html              a page with plots to hand on
vicreg bench --json bench.json              every sample, as data
vicreg bench --count                        what a call costs, without a clock
vicreg bench --count --backend torch --size 256x8192

--count prints the operations, the bytes and the multiply-adds of a call in PyTorch, CuPy and JAX,
and the time that they stand for on a GPU. It takes seconds, needs no GPU, and gives the same on a
busy machine.

A ratio with a ~ is uncertain: the machine was busy, or the quartiles are on both sides of 1.
"""


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command(help=_HELP)
    def bench(
        backend: Backends = None,
        device: Devices = None,
        size: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NxD", help="Samples x features, as 256x2048; may be given again."
            ),
        ] = None,
        dtype: Dtypes = None,
        mode: Annotated[
            str,
            typer.Option(
                metavar="MODE",
                autocompletion=names_completed(("value", "value-and-grad")),
                help="value or value-and-grad.",
            ),
        ] = "value-and-grad",
        compile_too: Annotated[
            bool, typer.Option("--compile", help="Measure under the library's compiler too.")
        ] = False,
        quick: Annotated[
            bool,
            typer.Option(
                "--quick",
                help="Few rounds; of two small sizes unless --size is given.",
            ),
        ] = False,
        count_only: Annotated[
            bool,
            typer.Option("--count", help="Count operations, bytes and multiply-adds instead."),
        ] = False,
        launch_us: Annotated[
            float | None,
            typer.Option(
                metavar="US",
                help="With --count: a GPU's microseconds to launch a call; 4.",
            ),
        ] = None,
        bandwidth_tbs: Annotated[
            float | None,
            typer.Option(
                metavar="TBS", help="With --count: its memory's 10^12 bytes a second; 3."
            ),
        ] = None,
        tflops: Annotated[
            float | None,
            typer.Option(
                metavar="TFLOPS", help="With --count: its products' 10^12 operations a second; 50."
            ),
        ] = None,
        json_file: JsonFile = None,
        html_file: Annotated[
            Path | None,
            typer.Option(
                "--html",
                metavar="FILE",
                help="Write a page with plots, or with --count of tables.",
            ),
        ] = None,
        plot: PlotFile = None,
    ) -> None:
        with one_line_errors("bench"):
            require("numpy")
            if html_file and not count_only:
                require("matplotlib")
            files = {"--json": json_file, "--html": html_file, "--plot": plot}
            gpu = {"--launch-us": launch_us, "--bandwidth-tbs": bandwidth_tbs, "--tflops": tflops}
            measures = {"--compile": compile_too, "--quick": quick, "--plot": plot}
            check_options(count_only, measures, gpu)
            check_files(files)
            sizes = _sizes(size, quick, bool(html_file or plot) and not count_only)
            wanted = _problems(sizes, dtype, mode, compile_too)
            if count_only:
                count(backend, device, wanted, gpu, files)
                return
            study = _measure(backend, device, wanted, quick)
            _show(study, report_console(json_file))
            _write(study, files, quick)


def _sizes(given: Sequence[str] | None, quick: bool, has_plots: bool) -> list[tuple[int, int]]:
    from vicreg.tools.benchmark.study import QUICK_SIZES, SIZES, SWEEP, is_quick

    if given:
        sizes = {_size(text) for text in given}
    elif quick:
        sizes = set(QUICK_SIZES)
    else:
        sizes = {*SIZES, *(SWEEP if has_plots else ())}
    if quick and (large := [(n, d) for n, d in sizes if not is_quick(n, d)]):
        named = ", ".join(f"{n}x{d}" for n, d in sorted(large))
        raise UsageError(f"--size is too large for --quick, which takes seconds; got {named}")
    return sorted(sizes)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})[x×]([0-9]{1,9})", text)
    if not match or int(match[1]) < 2 or int(match[2]) < 1:
        raise UsageError(
            f"--size must be samples x features, as 256x2048, of two samples or more; got {text!r}"
        )
    return int(match[1]), int(match[2])


def _problems(
    sizes: Sequence[tuple[int, int]], dtypes: Sequence[str] | None, mode: str, compile_too: bool
) -> Sequence[Any]:
    from vicreg.tools.benchmark.computations import MODES
    from vicreg.tools.benchmark.study import problems

    dtypes = chosen("--dtype", dtypes or ["float32"], DTYPES)
    chosen("--mode", [mode], MODES)
    return problems(sizes, dtypes, mode, compile_too)


def _measure(
    names: Sequence[str] | None,
    devices: Sequence[str] | None,
    wanted: Sequence[Any],
    quick: bool,
) -> Any:
    from vicreg.tools.backends import find_backends
    from vicreg.tools.benchmark.computations import PUBLISHED, VICREG
    from vicreg.tools.benchmark.study import LIBRARIES, run_study
    from vicreg.tools.benchmark.timing import FULL, QUICK
    from vicreg.tools.progress import steps_progress

    names = chosen("--backend", names or LIBRARIES, NAMES)
    backends, left_out = find_backends(names, devices or ())
    dtypes = dict.fromkeys(problem.dtype for problem in wanted)
    if not any(dtypes.keys() & set(one.dtypes) for one in backends):
        reasons = left_out.values() or [f"no {' or '.join(dtypes)} there"]
        raise RequirementError(f"nothing to run on: {'; '.join(dict.fromkeys(reasons))}")
    largest = max(((problem.n, problem.d) for problem in wanted), key=math.prod)
    _warn_if_busy()

    def memory(problem: Any) -> Sequence[str]:
        if not quick:
            return (VICREG, PUBLISHED)
        return (VICREG,) if (problem.n, problem.d) == largest else ()

    with ExitStack() as stack:
        steps: list[Any] = []
        study = run_study(
            backends,
            wanted,
            QUICK if quick else FULL,
            memory,
            lambda total: steps.append(
                stack.enter_context(steps_progress(stderr_console(), total))
            ),
            lambda line: steps[0](line),
        )
    if not study.results:
        reasons = [": ".join(one) for one in study.not_measured]
        raise RequirementError(f"nothing could be measured: {'; '.join(reasons)}")
    study.not_measured[:0] = left_out.items()
    if not devices and all(one.device == "cpu" for one in backends):
        study.not_measured.insert(0, ("a GPU", f"none is found here by {_listed(backends)}"))
    if quick:
        study.not_measured.append(("memory of other sizes and computations", "--quick"))
    return study


def _warn_if_busy() -> None:
    from vicreg.tools.benchmark.study import BUSY
    from vicreg.tools.machine import load_per_core

    load = load_per_core()
    if load is not None and load > BUSY:
        line = f"This machine is busy with other work (a load of {load:.1f} a core): its ratios"
        stderr_console().print(f"{line} will be uncertain.", highlight=False, soft_wrap=True)


def _listed(backends: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(one.name for one in backends))


def _show(study: Any, console: Any) -> None:
    from vicreg.tools.benchmark import report

    for dtype in dict.fromkeys(one.problem.dtype for one in study.results):
        mode = study.results[0].problem.mode
        title = f"{mode}, {dtype}, 2 views; {study.made_with['processor']}"
        console.print(report.results_table(study, dtype, title))
    console.print(report.CAPTION, style="dim")
    for line in report.uncertainties(study):
        console.print(line)
    if study.not_measured:
        console.print("\nNot measured:")
        for what, why in study.not_measured:
            console.print(f"  {what}: {why}", markup=False)
    console.print("\nMeasured with:")
    versions = ", ".join(f"{name} {which}" for name, which in study.made_with.items())
    console.print(f"  {versions}", markup=False)


def _write(study: Any, files: dict[str, Path | None], quick: bool) -> None:
    from vicreg.tools.benchmark.report import as_json

    write_json(files["--json"], as_json(study))
    if files["--html"]:
        from vicreg.tools.benchmark.page import as_html

        write_text(files["--html"], as_html(study, _repeats(study, quick)))
    if plot := files["--plot"]:
        from vicreg.tools.benchmark.plots import save_plot

        save_plot(study, plot)
    say_written(files)


def _repeats(study: Any, quick: bool) -> str:
    """Return a command that measures the same problems on the same libraries."""
    options: dict[str, list[str]] = {"--backend": [], "--device": [], "--size": [], "--dtype": []}
    for one in study.results:
        options["--backend"].append(one.library)
        options["--device"].append(one.device)
        options["--size"].append(f"{one.problem.n}x{one.problem.d}")
        options["--dtype"].append(one.problem.dtype)
    words = ["vicreg", "bench"]
    for option, values in options.items():
        words += [f"{option} {value}" for value in dict.fromkeys(values)]
    words.append(f"--mode {study.results[0].problem.mode}")
    if any(one.problem.compiled and not one.always_compiled for one in study.results):
        words.append("--compile")
    if quick:
        words.append("--quick")
    return " ".join(words)
