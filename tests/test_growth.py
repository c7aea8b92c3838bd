"""What a value and gradient costs grows as the model says; ``benchmarks/growth.py`` shows it."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")  # which the script measures

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "growth.py"
REPORT = SCRIPT.parents[1] / "docs" / "pictures" / "growth.json"
DEVICES = ("torch gpu", "cupy gpu")


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("growth", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["growth"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


growth = script()
Size = growth.Size


def factors(library: str, size: object, **grown: int) -> tuple[float, float, float]:
    """Return by what bytes, multiply-adds and the peak grow from `size` to one with `grown`."""
    before, after = (growth.counted(library, one) for one in (size, replace(size, **grown)))
    return (
        after.bytes_moved / before.bytes_moved,
        after.multiply_adds / before.multiply_adds,
        after.peak_bytes / before.peak_bytes,
    )


@pytest.mark.parametrize("library", DEVICES)
def test_twice_the_features_cost_twice(library: str) -> None:
    """Of a fixed number of samples: the n x n matrices stay as they are."""
    for d in (1024, 4096, 8192):
        moved, multiply_adds, peak = factors(library, Size(256, d), d=2 * d)
        assert multiply_adds == 2
        assert 1.9 < moved <= 2
        assert 1.9 < peak <= 2


@pytest.mark.parametrize("library", DEVICES)
def test_twice_the_samples_cost_four_times_the_products_up_to_d(library: str) -> None:
    """And twice the passes over the views, beside those over the n x n matrices."""
    for n in (128, 256, 512):
        moved, multiply_adds, peak = factors(library, Size(n, 4096), n=2 * n)
        # Two thin products by the features kept apart, 32 at most, grow with n alone.
        assert multiply_adds == pytest.approx(4 * (n + 16) / (n + 32))
        assert 1.9 < moved < 2.1
        assert 1.9 < peak < 2.1


@pytest.mark.parametrize("library", DEVICES)
def test_twice_the_samples_cost_twice_beyond_d(library: str) -> None:
    d = 512
    for n in (2048, 8192):
        moved, multiply_adds, peak = factors(library, Size(n, d), n=2 * n)
        assert multiply_adds == 2
        assert 1.9 < moved <= 2
        # Beside four views or more there are four d x d matrices at most, which do not grow, and
        # some rows.
        assert 2 - d / (n + d) - 0.01 < peak <= 2


@pytest.mark.parametrize("library", DEVICES)
@pytest.mark.parametrize("size", [(256, 1024), (1024, 256)], ids=str)
def test_each_further_view_costs_the_same(library: str, size: tuple[int, int]) -> None:
    """And a few calls, since all views are one array."""
    three, four, eight = (growth.counted(library, Size(*size, views=k)) for k in (3, 4, 8))
    for name in ("bytes_moved", "multiply_adds", "peak_bytes"):
        each = getattr(four, name) - getattr(three, name)
        assert getattr(eight, name) - getattr(four, name) == pytest.approx(4 * each, rel=0.01)
    assert eight.multiply_adds == 8 / 3 * three.multiply_adds
    assert eight.calls - four.calls <= 4 * 12


@pytest.mark.parametrize("library", DEVICES)
def test_positions_cost_as_many_times_one_and_no_call_more(library: str) -> None:
    one = growth.counted(library, Size(32, 256))
    for positions in (4, 49, 196):
        moved, multiply_adds, peak = factors(library, Size(32, 256), positions=positions)
        assert multiply_adds == positions
        assert moved == pytest.approx(positions, rel=0.01)
        assert peak == pytest.approx(positions, rel=0.01)
        of_all = growth.counted(library, Size(32, 256, positions=positions))
        assert of_all.calls <= one.calls + 5  # to put them in order


def test_a_slope_is_the_exponent() -> None:
    grown = [1.0, 2.0, 4.0, 8.0]
    assert growth.slope(grown, [3 * one**1.5 for one in grown]) == pytest.approx(1.5)
    assert math.isnan(growth.slope([1.0], [1.0]))


@pytest.mark.long
def test_the_site_has_a_picture_of_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    growth.draw(json.loads(REPORT.read_text()), str(tmp_path / "growth.svg"))
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_the_script_measures_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "EFFORT", replace(growth.EFFORT, rounds=1, sample=0.0))
    small = {name: [Size(6, 9), Size(12, 9)] for name in growth.SERIES}
    monkeypatch.setattr(growth, "SERIES", small)
    monkeypatch.setattr(
        growth, "STRETCHES", {name: (name, *sizes) for name, sizes in small.items()}
    )
    one = dict.fromkeys(("call", "bytes", "multiply_adds"), 1e-9)
    monkeypatch.setattr(growth, "rates", lambda: one)
    report = json.loads(json.dumps(growth.measure(["numpy"], quick=True)))
    assert set(report["slopes"]["features"]) >= {"numpy, seconds", "model, seconds"}
    assert report["slopes"]["features"]["model, bytes"] == pytest.approx(1)
    assert "peak_bytes_measured" not in report["series"]["samples"][-1]
    lines = list(growth.printed(report))
    assert any(line.startswith("samples ") for line in lines)


def test_nothing_costs_more_than_the_site_says() -> None:
    report = json.loads(REPORT.read_text())
    for what, rows in report["series"].items():
        last = growth.SERIES[what][-1]
        assert [rows[-1][name] for name in ("n", "d", "views", "positions")] == [
            last.n,
            last.d,
            last.views,
            last.positions,
        ]
        for library in DEVICES:
            shown = rows[-1]["counts"][library]
            now = asdict(growth.counted(library, last))
            assert all(now[name] <= shown[name] for name in now), (library, last)
