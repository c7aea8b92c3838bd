"""The report of a run over several ranks: a table, sentences, Markdown, JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from vicreg.tools.verification.distributed.comparison import Compared
from vicreg.tools.verification.distributed.explanation import per_cent
from vicreg.tools.verification.distributed.study import Results, Rows

__all__ = ["as_json", "as_markdown", "caption", "sentences", "table"]

_HEADINGS = ("Rows of the ranks", "n × d", "dtype", "Value", "Gradient", "")
_SHOWN_RANKS = 6


def table(results: Results) -> Table:
    """Return the table of the errors by batch, at most 80 columns wide."""
    shown = Table(box=box.SIMPLE_HEAD, title=results.title, title_justify="left")
    for heading in _HEADINGS:
        shown.add_column(heading, no_wrap=bool(heading))
    for *cells, passed in _cells(results):
        verdict = "[green]pass[/green]" if passed else "[bold red]FAIL[/bold red]"
        shown.add_row(*cells, verdict)
    return shown


def caption(results: Results) -> str:
    """Return what the errors are of."""
    size = results.setting.size
    rows = "" if results.setting.backend == "torch" else " JAX shards even rows alone."
    return (
        f"Each of the {size} ranks has rows of its own, with means of their own, and they are "
        "compared with one process that has all rows. The value is the worst rank's; the "
        f"gradient is that of shared parameters after {_AVERAGED[results.setting.backend]}. A "
        f"pass is right to half of the dtype's digits.{rows}"
    )


_AVERAGED = {
    "torch": "DistributedDataParallel's averaging",
    "jax": "the mean over the ranks, through shard_map",
}


def sentences(results: Results) -> list[str]:
    """Return what is wrong, for people; nothing if all passed."""
    lines: list[str] = []
    for group in results.groups:
        found = [*([f"No result: {group.failure}."] if group.failure else []), *group.findings]
        if found:
            lines.append(f"{_named(group)}:")
            lines += [f"  {line}" for line in found]
    return lines + _advice(results.groups)


def _advice(groups: list[Rows]) -> list[str]:
    """Return what the rows say together."""
    even = [group for group in groups if len(set(group.rows)) == 1]
    uneven = [group for group in groups if group not in even]
    if uneven and all(g.passed for g in even) and not any(g.passed for g in uneven):
        return [
            "It is right for even rows only: the last batch of an epoch is uneven, unless it is "
            "dropped (drop_last=True)."
        ]
    return []


def as_json(results: Results, made_with: Mapping[str, str]) -> dict[str, Any]:
    """Return the report as data."""
    return {
        "passed": results.passed,
        "title": results.title,
        "library": results.setting.backend,
        "ranks": results.setting.size,
        "device": results.setting.device,
        "seed": results.setting.seed,
        "versions": dict(made_with),
        "rows": [
            {
                "rows": list(group.rows),
                "passed": group.passed,
                "failure": group.failure,
                "findings": group.findings,
                "batches": [_batch(one) for one in group.compared],
            }
            for group in results.groups
        ],
    }


def _batch(one: Compared) -> dict[str, Any]:
    return {
        "samples": one.batch.n,
        "features": one.batch.d,
        "dtype": one.dtype,
        "convention": one.label or None,
        "value_error": _finite(one.value_error),
        "gradient_error": _finite(one.gradient_error),
        "passed": one.passed,
    }


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def as_markdown(results: Results, made_with: Mapping[str, str], title: str) -> str:
    """Return the report as Markdown."""
    lines = [f"# {title}", "", caption(results), ""]
    lines += [f"| {' | '.join(_HEADINGS)} |", "|" + " --- |" * len(_HEADINGS)]
    for *cells, passed in _cells(results):
        lines.append(f"| {' | '.join(cells)} | {'pass' if passed else 'FAIL'} |")
    lines += ["", "All agree." if results.passed else "Not all agree.", ""]
    lines += [f"- {line.strip()}" for line in sentences(results)]
    lines += ["", *(f"- {name}: {version}" for name, version in made_with.items())]
    return "\n".join(lines) + "\n"


def _cells(results: Results) -> Iterator[tuple[Any, ...]]:
    """Yield the cells of each row of the table, and whether it passed."""
    for group in results.groups:
        by_shape: dict[tuple[int, str], list[Compared]] = {}
        for one in group.compared:
            by_shape.setdefault((one.batch.d, one.dtype), []).append(one)
        rows = _rows(group)
        for (d, dtype), those in by_shape.items():
            value = _error(those, "value")
            gradient = _error(those, "gradient")
            shape = f"{those[0].batch.n} × {d}"
            yield rows, shape, dtype, value, gradient, all(one.passed for one in those)
            rows = ""
        if group.failure:
            yield rows, "", "", "none", "none", False


def _error(those: list[Compared], name: str) -> str:
    error = max(getattr(one, f"{name}_error") for one in those)
    if all(getattr(one, f"{name}_passed") for one in those):
        return f"{error:.0e}"
    return f"{per_cent(error)} off" if math.isfinite(error) else "no number"


def _rows(group: Rows) -> str:
    shown = ", ".join(map(str, group.rows[:_SHOWN_RANKS]))
    return shown + (", …" if len(group.rows) > _SHOWN_RANKS else "")


def _named(group: Rows) -> str:
    kind = "even rows" if len(set(group.rows)) == 1 else "uneven rows"
    return f"With {kind} ({_rows(group)})"
