"""``vicreg verify``: check that libraries, or a function, compute the right loss."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vicreg.tools.command.errors import UsageError, one_line_errors
from vicreg.tools.command.functions import (
    METAVAR,
    Kwargs,
    Output,
    Shape,
    files_of,
    library_hint,
    printable,
)
from vicreg.tools.command.shared import (
    Backends,
    Conventions,
    Devices,
    Dtypes,
    JsonFile,
    check_files,
    chosen,
    chosen_conventions,
    report_console,
    say_written,
    stderr_console,
    write_json,
    write_text,
)
from vicreg.tools.command.verify_distributed import verify_distributed
from vicreg.tools.dtypes import DTYPES, FULL
from vicreg.tools.libraries import NAMES, names_where
from vicreg.tools.requirements import RequirementError, require

if TYPE_CHECKING:
    from vicreg.tools.loading import Target

__all__ = ["add_to"]

_HELP = """Check that libraries, or your own function, compute the same loss and gradient.

Without arguments: NumPy, PyTorch, JAX, MLX and CuPy, as far as they are installed, on all of
their devices, in float16, bfloat16, float32 and float64. Each computes values and gradients in
every way, on every path that the code takes by size, in every convention, for hard inputs and for
large ones. They are compared with exact arithmetic. It takes a minute. The exit status is 0 if all
agree, and 1 if any differs.

With --distributed N: the loss of a batch whose rows are spread over N ranks, unevenly, beside one
process with the whole batch: the value on each rank, and the gradient after the averaging of
DistributedDataParallel. A target is compared with itself in one process. It is called with the
rows of a rank, and communicates by torch.distributed, whose group there is (gloo; NCCL with a GPU
for each rank); with --backend jax it is called inside shard_map, with the axis "ranks". What is
wrong is said in words. Ranks that hang are stopped.

\b
vicreg verify                                  in a minute
vicreg verify --full                           all libraries and all inputs
vicreg verify --backend torch --backend dask   two libraries
vicreg verify --markdown report.md             with a report to keep
vicreg verify --namespace my_arrays            a library of your own
vicreg verify --target my_code:my_loss --backend torch
                                               your own loss against official
vicreg verify --target ./my_code.py:MyLoss --kwargs 'std_coeff=1'
                                               a class, made with arguments
vicreg verify --distributed 3                  this package on three ranks
vicreg verify --distributed 3 --target my_code:my_loss
                                               your own, with its gather layer
"""

#: The longest --timeout: a day, in seconds.
_LONGEST = 86_400


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command(help=_HELP)
    def verify(
        backend: Backends = None,
        dtype: Dtypes = None,
        device: Devices = None,
        convention: Conventions = None,
        namespace: Annotated[
            list[str] | None,
            typer.Option(metavar="MODULE", help="Any namespace of the array API standard."),
        ] = None,
        target: Annotated[
            str | None,
            typer.Option(
                metavar=METAVAR,
                help="Your own function of two arrays (n, d), held to a convention (official); "
                "its gradient by the library's autodiff, or else by finite differences. The "
                "module may be a file, my_code.py.",
            ),
        ] = None,
        kwargs: Kwargs = None,
        output: Output = None,
        shape: Shape = None,
        distributed: Annotated[
            int | None,
            typer.Option(
                min=2,
                max=64,
                metavar="N",
                help="Compare N ranks on this machine with one process.",
            ),
        ] = None,
        timeout: Annotated[
            float | None,
            typer.Option(
                metavar="SECONDS",
                help="How long a rank may take for one batch with --distributed: 10 by default.",
            ),
        ] = None,
        json_file: JsonFile = None,
        markdown_file: Annotated[
            Path | None,
            typer.Option("--markdown", metavar="FILE", help="Write the report as Markdown."),
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="The seed of the inputs.")] = 0,
        full: Annotated[
            bool,
            typer.Option(
                "--full",
                help="Every library that is installed, and every input in every convention and "
                "dtype too: many minutes, and it says beforehand how many.",
            ),
        ] = False,
    ) -> None:
        with one_line_errors("verify"):
            require("numpy")
            from vicreg.tools.loading import Target

            files = {"--json": json_file, "--markdown": markdown_file}
            check_files(files, files_of(target))
            if timeout is not None and distributed is None:
                raise UsageError("--timeout is of --distributed")
            if timeout is not None and not 1 <= timeout <= _LONGEST:  # neither does NaN
                raise UsageError(f"--timeout must be of 1 to {_LONGEST} seconds; got {timeout}")
            own = None if target is None else Target(target, kwargs or (), output, shape)
            if own is None and (kwargs or output is not None or shape is not None):
                raise UsageError("--kwargs, --output and --shape are of --target")
            if distributed is not None and shape is not None:
                raise UsageError("--distributed gives arrays (n, d): it has no --shape")
            if target is not None or distributed is not None:
                option = "--target" if distributed is None else "--distributed"
                if namespace:
                    raise UsageError(f"{option} takes its library by --backend")
                if full:
                    raise UsageError(f"--full is of libraries; {option} has one suite")
            if distributed is not None:
                settings = (backend, dtype, device, convention, seed, timeout or 10.0, files)
                passed = verify_distributed(distributed, own, *settings)
            elif own is not None:
                passed = _verify_target(own, backend, dtype, device, convention, seed, files)
            else:
                passed = _verify_libraries(
                    backend, namespace, dtype, device, convention, seed, full, files
                )
        if not passed:
            raise typer.Exit(1)


_Files = dict[str, Path | None]


def _verify_libraries(
    names: Sequence[str] | None,
    namespaces: Sequence[str] | None,
    dtypes: Sequence[str] | None,
    devices: Sequence[str] | None,
    conventions: Sequence[str] | None,
    seed: int,
    full: bool,
    files: _Files,
) -> bool:
    from vicreg.tools.progress import duration, steps_progress
    from vicreg.tools.verification.costs import expected_steps, pace_of_this_machine
    from vicreg.tools.verification.definition import DEFINITIONS
    from vicreg.tools.verification.plan import setups
    from vicreg.tools.verification.suite import run_suite

    chosen_dtypes = chosen("--dtype", dtypes or DTYPES, DTYPES)
    formulas = chosen_conventions(conventions or tuple(DEFINITIONS))
    not_asked: tuple[str, ...] = ()
    if not full and not names and not namespaces:
        names = names_where("is_default")
        not_asked = tuple(name for name in NAMES if name not in names)
    backends, left_out = _backends(names, namespaces, devices, chosen_dtypes)
    if not_asked:
        left_out[", ".join(not_asked)] = "run with --full, or by name (--backend)"
    left_out |= {
        f"{backend}, large inputs": "each of its numbers is an object of Python"
        for backend in backends
        if not backend.takes_large
    }
    planned = setups(chosen_dtypes, formulas, full)
    steps = expected_steps(backends, planned)
    if full:
        expected = pace_of_this_machine() * sum(step.seconds for step in steps)
        stderr_console().print(f"This will take about {duration(expected)}.", highlight=False)
    with steps_progress(stderr_console(), steps) as on_step:
        results = run_suite(backends, planned, seed, on_step)
    results.left_out.update(left_out)
    count = sum(len(one.errors) for one in results.measurements)
    title = f"{len(backends)} libraries and devices, {count} comparisons with the truth"
    _show(results, backends, title, files)
    return results.passed


def _verify_target(
    target: "Target",
    names: Sequence[str] | None,
    dtypes: Sequence[str] | None,
    devices: Sequence[str] | None,
    conventions: Sequence[str] | None,
    seed: int,
    files: _Files,
) -> bool:
    from vicreg.tools.functions import FunctionError, LossFunction
    from vicreg.tools.progress import steps_progress
    from vicreg.tools.verification.costs import expected_target_steps
    from vicreg.tools.verification.explanation import explanations
    from vicreg.tools.verification.target import TARGET_CASES, run_target

    (convention, *more) = chosen_conventions(conventions or ["official"])
    if more:
        raise UsageError("--convention may be given once with --target")
    # In half precision the squares of plain code overflow, or are too coarse to judge.
    chosen_dtypes = chosen("--dtype", dtypes or FULL, FULL)
    with redirect_stdout(sys.stderr):  # the module may print
        function = target.load()
    backends, left_out = _backends(names or ["numpy"], None, devices, chosen_dtypes)
    given = (names or ["numpy"])[0]
    steps = expected_target_steps(backends, chosen_dtypes, TARGET_CASES)
    try:
        functions = [
            LossFunction(function, backend, target.output, target.shape) for backend in backends
        ]
        with redirect_stdout(sys.stderr), steps_progress(stderr_console(), steps) as on_case:
            results = run_target(functions, chosen_dtypes, convention, seed, on_case, TARGET_CASES)
    except FunctionError as error:
        raise FunctionError(f"{error}{library_hint(error, given)}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    results.left_out.update(left_out)
    results.left_out["positions"] = "a function of two arrays (n, d) has none"
    title = f"{target.path} against {convention}"
    _show(results, backends, title, files)
    if not results.passed:
        lines = [
            f"On {one.backend}: {line}."
            for one in functions
            for line in explanations(one, convention, results, seed)
        ]
        failed = [one for one in results.measurements if one.values["loss"] > 1.0]
        for name in dict.fromkeys(one.backend.partition(" ")[0] for one in failed):
            answer = _identified(function, name, target)
            lines.append(f"\nWhat it is on {name}, by vicreg identify:\n{answer}")
        for line in lines:
            report_console(files["--json"]).print(printable(line), markup=False, soft_wrap=True)
    return results.passed


def _identified(function: Callable[..., Any], backend: str, target: "Target") -> str:
    from vicreg.tools.identification import identify

    try:
        with redirect_stdout(sys.stderr):
            return str(identify(function, backend, output=target.output, shape=target.shape))
    except RequirementError as error:  # it takes no other shapes than those above
        return str(error)


def _backends(
    names: Sequence[str] | None,
    namespaces: Sequence[str] | None,
    devices: Sequence[str] | None,
    dtypes: Sequence[str],
) -> tuple[list[Any], dict[str, str]]:
    """Return the backends, and why others are left out; raise if there are none."""
    from vicreg.tools.backends import find_backends

    # --namespace without --backend means that namespace only.
    known = () if namespaces and not names else chosen("--backend", names or NAMES, NAMES)
    available, left_out = find_backends((*known, *(namespaces or ())), devices or ())
    without: dict[str, list[str]] = {}
    for backend in available:
        for dtype in dtypes:
            if dtype not in backend.dtypes:
                without.setdefault(dtype, []).append(str(backend))
    left_out |= {dtype: f"not available in {', '.join(those)}" for dtype, those in without.items()}
    backends = [one for one in available if set(one.dtypes) & set(dtypes)]
    if not backends:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise RequirementError(f"nothing to run on: {reasons}")
    return backends, left_out


def _show(results: Any, backends: Sequence[Any], title: str, files: _Files) -> None:
    from vicreg.tools.machine import description
    from vicreg.tools.verification import report

    console = report_console(files["--json"])
    console.print(report.results_table(results, title))
    console.print(report.UNIT, style="dim")
    paths = report.paths_table(results)
    if paths is not None:
        console.print()
        console.print(paths)
        console.print(report.PATHS_CAPTION, style="dim")
    pairs = report.pairs_table(results)
    if pairs is not None:
        console.print()
        console.print(pairs)
        console.print(report.PAIRS, style="dim")
    if results.left_out:
        console.print("\nDid not run:")
        for name, why in results.left_out.items():
            console.print(f"  {name}: {why}", markup=False, soft_wrap=True)
    if any("finite difference" in one.gradients for one in results.measurements):
        console.print("\nGradients are by finite differences where there is no autodiff.")
    console.print()
    if results.passed:
        console.print("[green]All agree[/green] with the truth, to the rounding of each dtype.")
    else:
        console.print("[bold red]Not all agree.[/bold red]")
    for line in report.failures(results):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    common = report.in_common(results)
    if common:
        console.print(f"All that failed is of: {common}.", markup=False, soft_wrap=True)
    made_with = description(backends)
    write_json(files["--json"], report.as_json(results, made_with))
    text = report.as_markdown(results, made_with, f"vicreg verify: {title}")
    write_text(files["--markdown"], text)
    say_written(files)
