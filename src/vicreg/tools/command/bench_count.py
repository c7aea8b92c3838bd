"""``vicreg bench --count``: what a call costs, counted without a clock."""

from __future__ import annotations

import math
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
)
from vicreg.tools.dtypes import DTYPES
from vicreg.tools.requirements import RequirementError

__all__ = ["check_options", "count"]

#: What `machine.description` says of the machine.
_MACHINE = ("platform", "processor")


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
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"{option} must be a finite number above 0; got {number}")


def count(
    names: Sequence[str] | None,
    devices: Sequence[str] | None,
    sizes: Sequence[tuple[int, int]],
    dtypes: Sequence[str] | None,
    mode: str,
    gpu: Mapping[str, float | None],
    json_file: Path | None,
) -> None:
    """Count, print the tables and write the data."""
    from vicreg.tools.benchmark.computations import MODES
    from vicreg.tools.benchmark.counting.estimate import Gpu
    from vicreg.tools.benchmark.counting.report import as_json
    from vicreg.tools.benchmark.counting.study import COUNTED, DEVICES, count_study
    from vicreg.tools.benchmark.study import problems
    from vicreg.tools.progress import late_progress

    names = chosen("--backend with --count", names or COUNTED, COUNTED)
    devices = chosen("--device with --count", devices or DEVICES, DEVICES)
    dtypes = chosen("--dtype", dtypes or ["float32"], DTYPES)
    chosen("--mode", [mode], MODES)
    given = {_field(option): number for option, number in gpu.items() if number is not None}
    wanted = problems(sizes, dtypes, mode, False)
    with late_progress(stderr_console(), len(names) * len(wanted)) as on_step:
        study = count_study(names, wanted, Gpu(**given), devices, on_step)
    if not study.rows:
        reasons = [": ".join(one) for one in study.not_counted]
        raise RequirementError(f"nothing could be counted: {'; '.join(reasons)}")
    _show(study, report_console(json_file))
    write_json(json_file, as_json(study))
    say_written({"--json": json_file})


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _show(study: Any, console: Any) -> None:
    from vicreg.tools.benchmark.counting import report

    for dtype in dict.fromkeys(row.problem.dtype for row in study.rows):
        rows = [row for row in study.rows if row.problem.dtype == dtype]
        what = f"{rows[0].problem.mode}, {dtype}, {rows[0].problem.views} views"
        console.print(report.counts_table(rows, f"Counted: {what}"))
        if any(row.estimate for row in rows):
            console.print(report.estimates_table(rows, f"Estimated for a GPU: {what}"))
    console.print(report.COUNTS, style="dim")
    if any(row.estimate for row in study.rows):
        console.print()
        console.print(f"Estimated: {report.estimates(study.gpu)}", style="dim")
    if study.not_counted:
        console.print("\nNot counted:")
        for what, why in study.not_counted:
            console.print(f"  {what}: {why}", markup=False)
    console.print("\nCounted with:")
    # Nothing depends on the machine.
    made_with = {name: study.made_with[name] for name in study.made_with if name not in _MACHINE}
    versions = ", ".join(f"{name} {which}" for name, which in made_with.items())
    console.print(f"  {versions}", markup=False)
