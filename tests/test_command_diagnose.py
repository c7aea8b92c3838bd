"""``vicreg diagnose``: the report, the data, the figure, and one line for any other file."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner, Result

from vicreg import Diagnosis, diagnose
from vicreg.tools.command import application

Z = np.random.default_rng(0).standard_normal((40, 6))
CONSTANT = np.full((9, 4), 0.1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(application(), ["diagnose", *map(str, arguments)])


def refused(result: Result, *parts: str, status: int = 2) -> None:
    """Assert the exit status, no report, and one line with every one of `parts`."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    line = result.stderr.strip()
    assert line.startswith("vicreg: ")
    assert "\n" not in line
    for part in parts:
        assert part in line


def saved(folder: Path, array: np.ndarray, name: str = "z.npy") -> Path:
    np.save(folder / name, array, allow_pickle=True)
    return folder / name


def test_the_report_is_that_of_the_function(tmp_path: Path) -> None:
    result = run(saved(tmp_path, Z))
    assert result.exit_code == 0
    assert result.stdout == f"{diagnose(Z)}\n"
    result = run(saved(tmp_path, Z), saved(tmp_path, Z + 2, "other.npy"), "--convention", "paper")
    assert result.stdout == f"{diagnose(Z, other=Z + 2, convention='paper')}\n"


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
def test_every_floating_point_dtype(tmp_path: Path, dtype: str) -> None:
    z = Z.astype(dtype)
    native = z.astype(z.dtype.newbyteorder("="))
    assert run(saved(tmp_path, z)).stdout == f"{diagnose(native)}\n"


def test_json_is_the_data(tmp_path: Path) -> None:
    data = json.loads(run(saved(tmp_path, Z), "--json").stdout)
    wanted = vars(diagnose(Z))
    assert list(data) == list(wanted)
    for name, value in wanted.items():
        assert data[name] == (value.tolist() if isinstance(value, np.ndarray) else value)
    assert data["invariance"] is None


def test_json_has_null_for_what_overflows(tmp_path: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    result = run(saved(tmp_path, (Z * 1e30).astype(np.float32)), "--json")
    data = json.loads(result.stdout, parse_constant=no_constant)
    assert data["covariance"] is None
    assert 5 < data["effective_rank"] <= 6
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.ones((4, 3), int), ("holds int64", "float32", "convert")),
        (np.ones((4, 3), bool), ("holds bool",)),
        (np.ones((4, 3), complex), ("holds complex128",)),
        (np.zeros(4, [("a", "f4"), ("b", "f8")]), ("holds [('a', '<f4'), ('b', '<f8')]",)),
        (np.zeros((4, 3), "V2"), ("holds |V2",)),
        (np.full((4, 3), "text"), ("holds <U4",)),
        (np.ones((4, 3), "datetime64[s]"), ("holds datetime64[s]",)),
        (np.ones(4), ("two axes", "(4,)")),
        (np.ones((4, 3, 2)), ("two axes", "(4, 3, 2)")),
        (np.float64(3), ("two axes", "()")),
        (np.ones((0, 3)), ("(0, 3)",)),
        (np.ones((4, 0)), ("(4, 0)",)),
        (np.ones((1, 3)), ("one sample",)),
        (np.array([[{}, 1]], dtype=object), ("Python objects",)),
    ],
    ids=str,
)
def test_arrays_that_are_no_embeddings(tmp_path: Path, array: Any, parts: tuple) -> None:
    refused(run(saved(tmp_path, array)), "z.npy'", *parts)
    refused(run(saved(tmp_path, Z, "good.npy"), saved(tmp_path, array)), "z.npy'", *parts)


def with_header(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is no .npy file"),
        (b"1.0,2.0\n3.0,4.0\n", "is no .npy file"),
        (b"\x80\x04\x95.", "is no .npy file"),  # a pickle
        (b"PK\x03\x04 and more", "is an archive"),
        (b"\x93NUMPY", "is damaged"),
        (b"\x93NUMPY\x09\x00", "is damaged"),
        (with_header(b"{'descr': '<f8'"), "is damaged"),
        (
            with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}\n"),
            "is damaged",
        ),
        (
            with_header(
                b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1%s)}\n" % (b"0" * 30)
            ),
            "z.npy'",
        ),
    ],
    ids=range(9),
)
def test_files_that_are_no_arrays(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "z.npy"
    file.write_bytes(content)
    refused(run(file), "z.npy'", part)


def test_a_cut_off_file(tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.save(whole, Z)
    file = tmp_path / "z.npy"
    for length in range(7, len(whole.getvalue()) - 1, 37):
        file.write_bytes(whole.getvalue()[:length])
        refused(run(file), "is damaged")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(run(tmp_path / "none.npy"), "cannot read", "No such file")
    refused(run(tmp_path), "cannot read", "Is a directory")
    locked = saved(tmp_path, Z)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # nothing is locked to the administrator
        refused(run(locked), "cannot read", "Permission denied")


def test_views_that_differ(tmp_path: Path) -> None:
    first = saved(tmp_path, Z)
    for other in (Z[:, :5], Z.astype(np.float32)):
        refused(
            run(first, saved(tmp_path, other, "other.npy")),
            "other.npy' must have the shape and dtype of",
            str(other.shape),
            str(other.dtype),
        )


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    refused(run(saved(tmp_path, Z), "--convention", "mine"), "convention", "'mine'")
    one = saved(tmp_path, Z[:, :1], "one.npy")
    refused(run(one, "--convention", "vcreg"), "d(d - 1)")
    z = saved(tmp_path, Z)
    refused(run(z, z, "--convention", "vcreg"), "'vcreg' has no invariance term")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, bad: float) -> None:
    z = Z.copy()
    z[3, :2] = z[7, 1] = bad
    result = run(saved(tmp_path, z))
    refused(result, "3 of 240 values", "in 2 of 40 samples", "sample 3", status=1)


class TestPlot:
    @pytest.fixture(autouse=True)
    def matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_the_file(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"figure{suffix}"
        result = run(saved(tmp_path, Z), "--plot", file)
        assert result.stdout == f"{diagnose(Z)}\nWritten: {file}\n"
        assert file.stat().st_size > 10_000

    def test_beside_json_nothing_else_is_printed(self, tmp_path: Path) -> None:
        file = tmp_path / "figure.png"
        json.loads(run(saved(tmp_path, Z), "--json", "--plot", file).stdout)
        assert file.exists()

    def test_what_cannot_be_written_is_said_before_anything(self, tmp_path: Path) -> None:
        file = saved(tmp_path, Z)
        refused(run(file, "--plot", tmp_path / "a.xyz"), "suffix must be one of")
        refused(run(file, "--plot", tmp_path / "no" / "a.png"), "is no directory")

    @pytest.mark.parametrize(
        "z",
        [
            Z,
            CONSTANT,
            Z[:, :1],
            Z[:2],
            Z[:, :2] @ np.ones((2, 64)),
            Z * [1, 1, 0, 0, 1, 1],
            Z * np.logspace(-4, 4, 6),
            1e-6 * Z,
            np.random.default_rng(1).standard_normal((8, 8192)),
            (Z * 1e30).astype(np.float32),
        ],
        ids=range(10),
    )
    def test_nothing_overlaps(self, z: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            figure = drawn(diagnose(z))
        renderer = figure.canvas.get_renderer()
        boxes = [figure._suptitle.get_window_extent(renderer)]
        boxes += [axis.get_tightbbox(renderer) for axis in figure.axes]
        assert len(boxes) == 3
        for place, box in enumerate(boxes):
            assert figure.bbox.containsx(box.x0)
            assert figure.bbox.containsx(box.x1)
            assert figure.bbox.containsy(box.y0)
            assert figure.bbox.containsy(box.y1)
            for other in boxes[place + 1 :]:
                overlap = box.intersection(box, other)
                assert overlap is None or min(overlap.width, overlap.height) < 2

    def test_the_curves_are_the_data(self) -> None:
        z = Z * [3, 1, 0, 2, 1, 1]
        diagnosis = diagnose(z)
        spectrum, spread = drawn(diagnosis).axes
        whitened, values = spectrum.get_lines()
        np.testing.assert_array_equal(values.get_ydata(), diagnosis.singular_values[:5])
        # As much variance as the batch has, in each of the six directions alike.
        energy = np.sum((z - z.mean(axis=0)) ** 2)
        np.testing.assert_allclose(whitened.get_ydata(), math.sqrt(energy / 6))
        gamma, std = spread.get_lines()
        np.testing.assert_array_equal(gamma.get_ydata(), 1)
        np.testing.assert_array_equal(std.get_ydata(), np.sort(diagnosis.std)[:0:-1])
        assert "1 of 6 features" in spread.texts[0].get_text()
        assert "1 of 6 directions" in spectrum.texts[0].get_text()

    def test_a_whitened_batch_lies_on_its_reference(self) -> None:
        for n, d in ((40, 6), (8, 20)):
            limit = min(n - 1, d)
            basis, _ = np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(2).random((n, limit))])
            spectrum, _ = drawn(diagnose(basis[:, 1:] @ np.eye(limit, d))).axes
            whitened, values = spectrum.get_lines()
            np.testing.assert_allclose(values.get_ydata(), whitened.get_ydata()[0])

    def test_a_constant_batch_is_said(self) -> None:
        spectrum, spread = drawn(diagnose(CONSTANT)).axes
        assert "the samples are all the same" in spectrum.texts[0].get_text()
        assert "4 of 4 features" in spread.texts[0].get_text()

    def test_a_name_is_no_formula(self, tmp_path: Path) -> None:
        file = tmp_path / "figure.svg"
        assert run(saved(tmp_path, Z, "$x^2_$.npy"), "--plot", file).exit_code == 0


def drawn(diagnosis: Diagnosis) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from vicreg.tools.diagnostics_plot import draw

    figure = draw(diagnosis, "z.npy")
    FigureCanvasAgg(figure).draw()
    return figure


def test_without_its_requirements_it_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    file = saved(tmp_path, Z)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run(file, "--plot", tmp_path / "a.png"), "matplotlib is not installed")
    assert run(file).exit_code == 0


def test_help() -> None:
    shown = run("--help").stdout
    assert "vicreg diagnose z.npy --plot z.png" in shown
    assert "--json" in shown
