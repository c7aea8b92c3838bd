"""``vicreg bench --count``: what a call costs, counted without a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vicreg.tools.command.errors import UsageError
from vicreg.tools.command.shared import (
    chosen,
    report_console,
    say_written,
    stderr_console,
    write_json,
    write_text,
)
from vicreg.tools.requirements import RequirementError

__all__ = ["check_options", "count"]

#: What `machine.description` says of the machine.
_MACHINE = ("platform", "processor")
#: What a number of a GPU can be: a time that follows is finite, as JSON has it.
_LEAST, _MOST = 1e-9, 1e9


def check_options(
    count_only: bool, measured: Mapping[str, Any], gpu: Mapping[str, float | None]
) -> None:
    """Check that an option belongs to what is asked for, with or without ``--count``.

    Parameters
    ----------
    count_only : bool
        Whether ``--count`` is given.
    measured, gpu : mapping
        The options that go without it, and the numbers that go with it, by name.
    """
    for option, value in measured.items() if count_only else ():
        if value:
            raise UsageError(f"{option} does not go with --count")
    for option, number in gpu.items():
        if number is None:
            continue
        if not count_only:
            raise UsageError(f"{option} goes with --count")
        if not _LEAST <= number <= _MOST:  # neither does NaN
            raise UsageError(f"{option} must be from {_LEAST:g} to {_MOST:g}; got {number}")


def count(
    names: Sequence[str] | None,
    devices: Sequence[str] | None,
    problems: Sequence[Any],
    gpu: Mapping[str, float | None],
    files: Mapping[str, Path | None],
) -> None:
    """Count, print the tables and write the files.

    Parameters
    ----------
    names, devices : sequence of str or None
        What ``--backend`` and ``--device`` take.
    problems : sequence of Problem
        The problems.
    gpu, files : mapping
        The numbers of the GPU and the files, by option.
    """
    from vicreg.tools.benchmark.counting.estimate import Gpu
    from vicreg.tools.benchmark.counting.report import as_json
    from vicreg.tools.benchmark.counting.study import COUNTED, DEVICES, count_study
    from vicreg.tools.progress import late_progress

    names = chosen("--backend with --count", names or COUNTED, COUNTED)
    devices = chosen("--device with --count", devices or DEVICES, DEVICES)
    given = {_field(option): number for option, number in gpu.items() if number is not None}
    with late_progress(stderr_console(), len(names) * len(problems)) as on_step:
        study = count_study(names, problems, Gpu(**given), devices, on_step)
    if not study.rows:
        reasons = [": ".join(one) for one in study.not_counted]
        raise RequirementError(f"nothing could be counted: {'; '.join(reasons)}")
    _show(study, report_console(files["--json"]))
    write_json(files["--json"], as_json(study))
    if files["--html"]:
        from vicreg.tools.benchmark.counting.page import as_html

        write_text(files["--html"], as_html(study, _repeats(study, devices)))
    say_written(files)


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _show(study: Any, console: Any) -> None:
    from vicreg.tools.benchmark.counting import report

    for dtype in dict.fromkeys(row.problem.dtype for row in study.rows):
        rows = [row for row in study.rows if row.problem.dtype == dtype]
        what = f"{rows[0].problem.mode}, {dtype}, {rows[0].problem.views} views"
        console.print(report.as_table(*report.counts_cells(rows), f"Counted: {what}"))
        if any(row.estimate for row in rows):
            title = f"Estimated for a GPU: {what}"
            console.print(report.as_table(*report.estimates_cells(rows), title))
    console.print(report.COUNTS, style="dim")
    if any(row.estimate for row in study.rows):
        console.print(f"\nEstimated: {report.estimates(study.gpu)}", style="dim")
    if study.not_counted:
        console.print("\nNot counted:")
        for what, why in study.not_counted:
            console.print(f"  {what}: {why}", markup=False)
    console.print("\nCounted with:")
    # Nothing depends on the machine.
    made_with = {name: study.made_with[name] for name in study.made_with if name not in _MACHINE}
    versions = ", ".join(f"{name} {which}" for name, which in made_with.items())
    console.print(f"  {versions}", markup=False)


def _repeats(study: Any, devices: Sequence[str]) -> str:
    """Return a command that counts the same."""
    problems = [row.problem for row in study.rows]
    options: dict[str, Sequence[str]] = {
        "--backend": [row.library for row in study.rows],
        "--device": devices,
        "--size": [f"{one.n}x{one.d}" for one in problems],
        "--dtype": [one.dtype for one in problems],
        "--mode": [problems[0].mode],
        "--launch-us": [f"{study.gpu.launch_us:g}"],
        "--bandwidth-tbs": [f"{study.gpu.bandwidth_tbs:g}"],
        "--tflops": [f"{study.gpu.tflops:g}"],
    }
    words = [
        f"{option} {value}"
        for option, values in options.items()
        for value in dict.fromkeys(values)
    ]
    return " ".join(["vicreg bench --count", *words])
