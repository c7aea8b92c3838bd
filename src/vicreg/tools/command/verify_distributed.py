"""``vicreg verify --distributed``: a loss over several ranks beside one process."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vicreg.tools.command.errors import UsageError
from vicreg.tools.command.functions import printable
from vicreg.tools.command.shared import (
    chosen,
    chosen_conventions,
    report_console,
    say_written,
    stderr_console,
    write_json,
    write_text,
)
from vicreg.tools.dtypes import FULL
from vicreg.tools.requirements import require

if TYPE_CHECKING:
    from vicreg.tools.loading import Target

__all__ = ["LIBRARIES", "verify_distributed"]

#: Those that have ranks.
LIBRARIES = ("torch", "jax")


def verify_distributed(
    size: int,
    target: "Target | None",
    names: Sequence[str] | None,
    dtypes: Sequence[str] | None,
    devices: Sequence[str] | None,
    conventions: Sequence[str] | None,
    seed: int,
    timeout: float,
    files: dict[str, Path | None],
) -> bool:
    """Run, print and write the report; return whether all agree.

    The arguments are those of the command.
    """
    from vicreg.tools.functions import FunctionError
    from vicreg.tools.processes import Limits
    from vicreg.tools.progress import steps_progress
    from vicreg.tools.verification.definition import DEFINITIONS
    from vicreg.tools.verification.distributed.study import Setting, run_package, run_target

    backend = _only("--backend", chosen("--backend", names or LIBRARIES[:1], LIBRARIES))
    if target is not None and conventions:
        raise UsageError(
            "--convention is of this package's loss: with --distributed a target is compared with "
            "itself in one process"
        )
    formulas = chosen_conventions(conventions or tuple(DEFINITIONS))
    require(backend)
    setting = Setting(
        size,
        backend,
        chosen("--dtype", dtypes or (FULL if target is None else FULL[:1]), FULL),
        _device(backend, size, devices),
        seed,
        Limits(step=timeout),
    )
    of_package = formulas if target is None else ()
    with steps_progress(stderr_console(), setting.steps(of_package)) as on_step:
        if target is None:
            results = run_package(formulas, setting, on_step)
        else:
            try:
                results = run_target(target, setting, on_step)
            except FunctionError as error:
                hint = "" if names else "; a function of JAX arrays needs --backend jax"
                raise FunctionError(f"{error}{hint}") from error
    _show(results, files)
    return results.passed


def _only(option: str, names: tuple[str, ...]) -> str:
    if len(names) > 1:
        raise UsageError(f"{option} may be given once with --distributed")
    return names[0]


def _device(backend: str, size: int, devices: Sequence[str] | None) -> str:
    """Return "cuda" if there is a GPU for each rank and nothing else is asked for."""
    wanted = _only("--device", chosen("--device", devices or ("",), ("", "cpu", "cuda")))
    if wanted == "cpu":
        return wanted
    count = _gpus(backend)
    if wanted == "cuda" and count < size:
        raise UsageError(f"--device cuda needs a GPU for each of {size} ranks; got {count}")
    return "cuda" if count >= size else "cpu"


def _gpus(backend: str) -> int:
    if backend == "torch":
        import torch

        return torch.cuda.device_count() if torch.distributed.is_nccl_available() else 0
    return 0  # JAX: host devices


def _show(results: Any, files: dict[str, Path | None]) -> None:
    from vicreg.tools.machine import description
    from vicreg.tools.verification.distributed import report

    console = report_console(files["--json"])
    console.print(report.table(results))
    console.print(report.caption(results), style="dim")
    console.print()
    if results.passed:
        console.print("[green]All agree[/green] with one process.")
    else:
        console.print("[bold red]Not all agree[/bold red] with one process.")
    for line in report.sentences(results):
        console.print(printable(line), markup=False, soft_wrap=True)
    library = results.setting.backend
    made_with = description() | {library: version(library)}
    title = f"vicreg verify: {results.title}"
    write_json(files["--json"], report.as_json(results, made_with))
    write_text(files["--markdown"], report.as_markdown(results, made_with, title))
    say_written(files)
