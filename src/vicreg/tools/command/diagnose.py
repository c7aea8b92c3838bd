"""``vicreg diagnose``: how far saved embeddings have collapsed."""

import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vicreg._diagnostics import Diagnosis
from vicreg._verdicts import LEVELS
from vicreg.tools.background import interruptible
from vicreg.tools.command.errors import UsageError, one_line_errors
from vicreg.tools.command.functions import printable
from vicreg.tools.command.shared import (
    CONVENTIONS,
    STDOUT,
    JsonFile,
    PlotFile,
    check_files,
    chosen,
    chosen_conventions,
    names_completed,
    say_written,
    stderr_console,
    write_json,
)
from vicreg.tools.embeddings import load
from vicreg.tools.requirements import RequirementError, require

__all__ = ["add_to"]

_HELP = """Say how far saved embeddings have collapsed.

FILE is an array of floating-point numbers with one sample per row: .npy, .npz, .pt, .pth or
.safetensors. No code in it is run. OTHER is another view of the same samples, for the invariance
term only.

\b
vicreg diagnose z.npy                      as a report, with the verdict first
vicreg diagnose z1.npy z2.npy              with the invariance term
vicreg diagnose views.npz --key z1         one array of several
vicreg diagnose z.npy --plot z.png         with a figure
vicreg diagnose z.npy --json               as data, for a program
vicreg diagnose z.pt --fail-on collapsed   exit status 1 if it has collapsed
"""

#: What ``--fail-on`` takes, the worst first. A file with NaN is refused before it is judged; what
#: overflows is not, and is worse than each of these.
_FAILURES = tuple(level for level in LEVELS if level not in ("not-finite", "healthy"))


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command(help=_HELP)
    def diagnose(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The embeddings.")],
        other: Annotated[
            Path | None, typer.Argument(metavar="OTHER", help="Another view of them.")
        ] = None,
        convention: Annotated[
            str,
            typer.Option(
                metavar="NAME",
                autocompletion=names_completed(CONVENTIONS),
                help="Whose terms: see vicreg conventions.",
            ),
        ] = "official",
        key: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME",
                help="Which array, of a file that holds several; given again, that of OTHER.",
            ),
        ] = None,
        fail_on: Annotated[
            str | None,
            typer.Option(
                metavar="LEVEL",
                autocompletion=names_completed(_FAILURES),
                help="Exit with status 1 if the verdict is this or worse. From the worst on: "
                f"{', '.join(_FAILURES)}.",
            ),
        ] = None,
        plot: PlotFile = None,
        json_file: JsonFile = None,
    ) -> None:
        with one_line_errors("diagnose"):
            require("numpy")
            files = {"--plot": plot, "--json": json_file}
            check_files(files, [file] if other is None else [file, other])
            chosen_conventions([convention])
            failures = _failures(fail_on)
            diagnosis = interruptible(
                lambda: _diagnosed(_keyed(file, other, key or ()), convention),
                stderr_console(),
                printable(f"Diagnosing {file.name}"),
            )
            if json_file != STDOUT:
                print(diagnosis)
            write_json(json_file, _as_data(diagnosis))
            if plot is not None:
                from vicreg.tools.diagnostics_plot import save_plot

                save_plot(diagnosis, file.name, plot)
            say_written(files)
            if diagnosis.level in failures:
                if json_file == STDOUT:
                    print(f"vicreg: {diagnosis.verdict}", file=sys.stderr)
                raise typer.Exit(1)


def _failures(fail_on: str | None) -> tuple[str, ...]:
    """Return the levels that make the command fail."""
    if fail_on is None:
        return ()
    (level,) = chosen("--fail-on", [fail_on], _FAILURES)
    return LEVELS[: LEVELS.index(level) + 1]


def _keyed(file: Path, other: Path | None, keys: Sequence[str]) -> list[tuple[Path, str | None]]:
    """Return each file with the key of its array."""
    files = [file] if other is None else [file, other]
    if len(keys) > len(files):
        raise UsageError(
            f"--key must be given once for each file at most; got {len(keys)} for {len(files)}"
        )
    return [(each, keys[min(i, len(keys) - 1)] if keys else None) for i, each in enumerate(files)]


def _diagnosed(files: Sequence[tuple[Path, str | None]], convention: str) -> Diagnosis:
    import numpy as np

    from vicreg._conventions import convention_named
    from vicreg._diagnostics import diagnose

    z, *others = (load(file, key) for file, key in files)
    for other in others:
        if other.shape != z.shape or other.dtype != z.dtype:
            raise RequirementError(
                f"{str(files[1][0])!r} must have the shape and dtype of {str(files[0][0])!r}; got "
                f"{tuple(other.shape)}, {other.dtype} and {tuple(z.shape)}, {z.dtype}"
            )
    # An overflow shows in the report, so that NumPy need not warn.
    with np.errstate(all="ignore"):
        try:
            second = others[0] if others else None
            return diagnose(z, other=second, convention=convention_named(convention))
        except (TypeError, ValueError) as error:
            raise RequirementError(str(error)) from error


def _as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the fields of `diagnosis` for JSON, with null for infinities and NaN."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    measured = {field.name: plain(getattr(diagnosis, field.name)) for field in fields(diagnosis)}
    judged = {name: getattr(diagnosis, name) for name in ("verdict", "level", "collapsed")}
    return judged | measured
