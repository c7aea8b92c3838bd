"""The output of the demonstration in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from vicreg.tools.demo.encoder import TermValues
from vicreg.tools.demo.study import NO_COVARIANCE, NO_VARIANCE, VICREG, OnEpoch, Study

__all__ = ["CAPTION", "as_json", "findings", "results_table", "training_progress"]

CAPTION = (
    "Std (the mean over features) and effective rank are of the embeddings, behind the expander; "
    "the probe is a linear classifier (ridge) of the encoder's representation, in front of it. "
    "All on held-out images."
)

#: Below this share of VICReg's standard deviation the features have collapsed.
_COLLAPSED = 0.1
#: Below this share of VICReg's effective rank the rank has fallen.
_FALLEN = 0.8


def results_table(study: Study) -> Table:
    """Return the table of the variants: standard deviation, effective rank, probe accuracy.

    Parameters
    ----------
    study : Study
        The study.

    Returns
    -------
    rich.table.Table
        At most 80 columns wide.
    """
    table = Table(title=f"{study.backend}, {_epochs(study)}, seed {study.seed}")
    table.add_column("Encoder")
    for heading in ("Std", "Effective rank", "Probe accuracy"):
        table.add_column(heading, justify="right")
    for name, outcome in study.outcomes.items():
        table.add_row(
            name,
            f"{outcome.mean_std:.4f}",
            f"{outcome.effective_rank:.1f} of {outcome.rank_limit}",
            f"{outcome.probe_accuracy:.1%}",
        )
    return table


def findings(study: Study) -> list[str]:
    """Return what the numbers show, one sentence per removed term.

    Parameters
    ----------
    study : Study
        The study.

    Returns
    -------
    list of str
    """
    return [_on_variance(study), _on_covariance(study)]


def _on_variance(study: Study) -> str:
    std, reference = (study.outcomes[name].mean_std for name in (NO_VARIANCE, VICREG))
    if std < _COLLAPSED * reference:
        return (
            "Without the variance term the features collapse: "
            f"their std is {std:.2g}, against {reference:.2g} with it."
        )
    return (
        f"Without the variance term the std is {std:.2g}, against {reference:.2g} with it: "
        f"no collapse after {_epochs(study)}."
    )


def _on_covariance(study: Study) -> str:
    rank, reference = (study.outcomes[name].effective_rank for name in (NO_COVARIANCE, VICREG))
    if rank < _FALLEN * reference:
        return (
            "Without the covariance term the effective rank falls: "
            f"to {rank:.1f}, against {reference:.1f} with it."
        )
    return (
        f"Without the covariance term the effective rank is {rank:.1f}, against {reference:.1f} "
        f"with it: no clear fall after {_epochs(study)}."
    )


def _epochs(study: Study) -> str:
    return f"{study.epochs} epoch{'' if study.epochs == 1 else 's'}"


def as_json(study: Study) -> dict[str, Any]:
    """Return the results as data.

    Parameters
    ----------
    study : Study
        The study.

    Returns
    -------
    dict
        The settings, the findings, and for each encoder its measures and the terms of each epoch.
    """
    return {
        "backend": study.backend,
        "epochs": study.epochs,
        "seed": study.seed,
        "findings": findings(study),
        "encoders": {
            name: {
                "mean_std": outcome.mean_std,
                "effective_rank": outcome.effective_rank,
                "rank_limit": outcome.rank_limit,
                "probe_accuracy": outcome.probe_accuracy,
                "singular_values": outcome.singular_values.tolist(),
                "history": [terms._asdict() for terms in outcome.history],
            }
            for name, outcome in study.outcomes.items()
        },
    }


@contextmanager
def training_progress(console: Console, epochs: int) -> Iterator[OnEpoch]:
    """Show the epoch and the terms of each variant while it trains.

    Parameters
    ----------
    console : rich.console.Console
        The console; if it is not a terminal, one line is printed after each variant.
    epochs : int
        The number of epochs of each variant.

    Yields
    ------
    callable
        The ``on_epoch`` for `vicreg.tools.demo.study.run_study`.
    """
    if console.is_terminal:
        with _bars(console) as progress:
            yield _bar_updater(progress, epochs)
    else:
        yield _line_printer(console, epochs)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[terms]}"),
        console=console,
    )


def _bar_updater(progress: Progress, epochs: int) -> OnEpoch:
    tasks: dict[str, TaskID] = {}

    def on_epoch(name: str, epoch: int, terms: TermValues) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=epochs, terms="")
        shown = f"inv {terms.invariance:.2g} var {terms.variance:.2g} cov {terms.covariance:.2g}"
        progress.update(tasks[name], completed=epoch, terms=shown)

    return on_epoch


def _line_printer(console: Console, epochs: int) -> OnEpoch:
    def on_epoch(name: str, epoch: int, terms: TermValues) -> None:
        if epoch == epochs:
            console.print(
                f"{name}: invariance {terms.invariance:.2g}, variance {terms.variance:.2g}, "
                f"covariance {terms.covariance:.2g}",
                soft_wrap=True,
                highlight=False,
            )

    return on_epoch
