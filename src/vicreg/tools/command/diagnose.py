"""``vicreg diagnose``: how far saved embeddings have collapsed."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vicreg._diagnostics import Diagnosis
from vicreg.tools.command.errors import one_line_errors
from vicreg.tools.requirements import RequirementError, ToolError, require

__all__ = ["add_to"]

_HELP = """Say how far saved embeddings have collapsed.

FILE is an array of floating-point numbers, as numpy.save writes it, with one sample per row. OTHER
is another view of the same samples, for the invariance term only.

\b
vicreg diagnose z.npy                      as a report
vicreg diagnose z1.npy z2.npy              with the invariance term
vicreg diagnose z.npy --plot z.png         with a figure
vicreg diagnose z.npy --json               as data, for a program
"""

_MAGIC = b"\x93NUMPY"
_DTYPES = ("float16", "float32", "float64")


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command(help=_HELP)
    def diagnose(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The embeddings: .npy.")],
        other: Annotated[
            Path | None, typer.Argument(metavar="OTHER", help="Another view of them: .npy.")
        ] = None,
        convention: Annotated[
            str, typer.Option(help="Whose terms: see vicreg conventions.")
        ] = "official",
        plot: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Draw a figure: .png, .svg or .pdf."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the data as JSON.")] = False,
    ) -> None:
        with one_line_errors():
            require("numpy")
            if plot is not None:
                from vicreg.tools.files import check_figure_file

                check_figure_file(plot)
            diagnosis = _diagnosed(file, other, convention)
            print(json.dumps(_as_data(diagnosis), indent=2) if as_json else diagnosis)
            if plot is not None:
                from vicreg.tools.diagnostics_plot import save_plot

                save_plot(diagnosis, file.name, plot)
                if not as_json:
                    print(f"The figure is in {plot}")


def _diagnosed(file: Path, other: Path | None, convention: str) -> Diagnosis:
    import numpy as np

    from vicreg._conventions import convention_named
    from vicreg._diagnostics import diagnose

    z = _loaded(file)
    second = None if other is None else _loaded(other)
    if second is not None and (second.shape != z.shape or second.dtype != z.dtype):
        raise RequirementError(
            f"{str(other)!r} must have the shape and dtype of {str(file)!r}; got "
            f"{second.shape}, {second.dtype} and {z.shape}, {z.dtype}"
        )
    # An overflow shows as infinity in the report, so that NumPy need not warn.
    with np.errstate(all="ignore"):
        try:
            return diagnose(z, other=second, convention=convention_named(convention))
        except (TypeError, ValueError) as error:
            raise RequirementError(str(error)) from error


def _loaded(file: Path) -> Any:
    """Return the embeddings in `file`, or raise an error of one line."""
    array = _read(file)
    name = repr(str(file))
    if array.dtype.name not in _DTYPES:
        raise RequirementError(
            f"{name} holds {array.dtype}: embeddings are {', '.join(_DTYPES[:-1])} or "
            f"{_DTYPES[-1]}; convert them by z.astype('float32') and save them again"
        )
    if array.ndim != 2 or 0 in array.shape:
        raise RequirementError(
            f"{name} must hold an array of two axes, samples and features; got shape {array.shape}"
        )
    if array.shape[0] < 2:
        raise RequirementError(f"{name} holds one sample: nothing can vary in fewer than two")
    _check_finite(array, name)
    return array.astype(array.dtype.newbyteorder("="))


def _read(file: Path) -> Any:
    import numpy as np

    name = repr(str(file))
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_MAGIC))
            if start == _MAGIC:
                opened.seek(0)
                # A pickle could run code.
                return np.load(opened, allow_pickle=False)
    except OSError as error:
        raise RequirementError(f"cannot read {name}: {error.strerror or error}") from error
    except MemoryError as error:
        raise RequirementError(f"cannot read {name}: it does not fit into memory") from error
    except Exception as error:  # NumPy may raise anything for a broken header
        if "pickle" in str(error):
            raise RequirementError(f"{name} holds Python objects, which are not loaded") from error
        raise RequirementError(f"{name} is damaged: {_first_line(error)}") from error
    if start.startswith(b"PK"):
        raise RequirementError(f"{name} is an archive: save one array by numpy.save")
    raise RequirementError(f"{name} is no .npy file: save the array by numpy.save")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_finite(array: Any, name: str) -> None:
    import numpy as np

    bad = ~np.isfinite(array)
    if bad.any():
        rows = np.flatnonzero(bad.any(axis=1))
        raise ToolError(
            f"{name}: {bad.sum()} of {array.size} values are NaN or infinite, in {len(rows)} of "
            f"{len(array)} samples (the first is sample {rows[0]}); nothing can be said of them"
        )


def _as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the fields of `diagnosis` for JSON, with null for infinities and NaN."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {field.name: plain(getattr(diagnosis, field.name)) for field in fields(diagnosis)}
