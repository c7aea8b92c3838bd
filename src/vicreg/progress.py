"""How far a tool has come: a bar, or lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["steps_progress"]


@contextmanager
def steps_progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Show what is being run, as a bar; where there is no terminal, a line a tenth of the way.

    Parameters
    ----------
    console : rich.console.Console
        Where to.
    total : int
        How many steps there are.

    Yields
    ------
    callable
        Called with a line as each step begins.
    """
    if not console.is_terminal:
        yield _tenths(console, total)
        return
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        begun = iter(range(total + 1))

        def on_step(line: str) -> None:
            progress.update(task, description=line, completed=next(begun, total))

        yield on_step


def _tenths(console: Console, total: int) -> Callable[[str], None]:
    done = iter(range(total + 1))

    def on_step(line: str) -> None:
        step = next(done, total)
        if step * 10 // total > (step - 1) * 10 // total:
            console.print(f"{step * 100 // total:3d} % {line}", soft_wrap=True, highlight=False)

    return on_step
