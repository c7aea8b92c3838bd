"""``vicreg bench --count`` counts what a call costs, and no call costs more than before."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from backends import BACKENDS, why_not
from rich.console import Console
from test_command import refused, run

from vicreg import vicreg_value_and_grad
from vicreg._adapters.dispatch import library_of
from vicreg.tools.benchmark.computations import MODES, PUBLISHED, Problem
from vicreg.tools.benchmark.counting import standard
from vicreg.tools.benchmark.counting.counts import Counts
from vicreg.tools.benchmark.counting.estimate import Gpu, estimate
from vicreg.tools.benchmark.counting.report import as_table, counts_cells, estimates_cells
from vicreg.tools.benchmark.counting.study import (
    BACKWARD,
    CLOSED_FORM,
    COUNTED,
    VALUE,
    Row,
    count_study,
)

#: The most that one value and gradient of two float32 views may cost, by library, device and size:
#: calls, bytes read and written in units of one view, multiply-adds over those of the two products
#: a view, and the peak of what is alive above the inputs, in units of one view. Where the code
#: needs less, lower the numbers here; none may grow. On a CPU four calls a view are of rows alone,
#: and find a sample that is not far from all others.
BUDGETS = {
    ("torch", "cpu", 32, 64): (35, 72.8, 2.0, 10.2),
    ("torch", "cpu", 600, 400): (52, 62.1, 0.84, 5.57),
    ("torch", "cpu", 600, 600): (129, 69.5, 0.82, 4.64),
    ("torch", "cpu", 256, 2048): (80, 51.0, 0.88, 4.31),
    ("torch", "cpu", 256, 8192): (178, 50.0, 0.88, 2.36),
    ("torch", "gpu", 32, 64): (35, 51.9, 2.0, 8.3),
    ("torch", "gpu", 256, 2048): (59, 47.4, 1.13, 5.04),
    ("torch", "gpu", 256, 8192): (59, 46.6, 1.13, 5.02),
    ("torch", "gpu", 2048, 2048): (59, 50.6, 1.02, 6.07),
    ("torch", "gpu", 4096, 512): (35, 38.8, 1.0, 5.01),
    ("cupy", "gpu", 32, 64): (45, 93.4, 2.0, 12.3),
    ("cupy", "gpu", 256, 2048): (78, 66.8, 1.13, 6.63),
    ("cupy", "gpu", 256, 8192): (78, 64.7, 1.13, 6.39),
    ("cupy", "gpu", 2048, 2048): (83, 81.8, 1.02, 8.11),
    ("cupy", "gpu", 4096, 512): (51, 53.6, 1.0, 5.01),
}
#: What PyTorch's backward pass may add to the closed form.
BACKWARD_ADDS = (3, 4.1, 0.0, 0.0)


def needs(name: str) -> None:
    (backend,) = (one for one in BACKENDS if one.name == ("numpy" if name == "cupy" else name))
    if reason := why_not(backend):
        pytest.skip(reason)


def rows_of(name: str, device: str, *problem: Any) -> dict[str, Row]:
    """Return what is counted of one problem, by computation."""
    needs(name)
    study = count_study([name], [Problem(*problem)], devices=[device])
    assert not study.not_counted
    return {row.computation: row for row in study.rows}


def costs(row: Row) -> tuple[int, float, float, float]:
    return row.counts.calls, row.views_moved, row.over_products, row.peak_views


@pytest.mark.parametrize(("budget", "most"), BUDGETS.items(), ids=str)
def test_a_value_and_gradient_stays_within_its_budget(
    budget: tuple[str, str, int, int], most: tuple[int, float, float, float]
) -> None:
    rows = rows_of(*budget)
    used = costs(rows[CLOSED_FORM])
    assert all(one <= limit for one, limit in zip(used, most, strict=True)), used
    if BACKWARD in rows:
        added = [a - b for a, b in zip(costs(rows[BACKWARD]), used, strict=True)]
        assert all(one <= limit for one, limit in zip(added, BACKWARD_ADDS, strict=True)), added


#: The same of a backward pass through VCReg's layer, by device, n and d; with its one view.
LAYER_BUDGETS = {
    ("cpu", 32, 64): (24, 31.9, 2.0),
    ("cpu", 256, 4096): (63, 20.6, 0.875),
    ("meta", 32, 64): (24, 22.9, 2.0),
    ("meta", 256, 4096): (48, 20.4, 1.13),
    ("meta", 4096, 512): (24, 16.4, 1.0),
}


@pytest.mark.parametrize(("budget", "most"), LAYER_BUDGETS.items(), ids=str)
def test_a_layer_stays_within_its_budget(
    budget: tuple[str, int, int], most: tuple[int, float, float]
) -> None:
    torch = pytest.importorskip("torch")
    from vicreg.tools.benchmark.counting.torch import count
    from vicreg.torch import VCReg

    device, n, d = budget
    layer = VCReg(variance_weight=1.0, covariance_weight=1.0)
    z = torch.linspace(-1.0, 1.0, n * d, device=device).reshape(n, d).requires_grad_()
    incoming = torch.ones_like(z)
    counts = count(lambda: layer(z).backward(incoming))
    products = 2 * n * d * min(n, d)
    used = (counts.calls, counts.bytes_moved / (4 * n * d), counts.multiply_adds / products)
    assert all(one <= limit for one, limit in zip(used, most, strict=True)), used


#: What weights of samples add to a value and gradient, by library, device, size and what they are:
#: calls, and bytes in units of one view. On a CPU the samples of a mask are taken by themselves.
WEIGHTS_ADD = {
    ("torch", "cpu", 32, 64, "mask"): (21, 0.0),
    ("torch", "cpu", 32, 64, "weights"): (62, 30.9),
    ("torch", "gpu", 32, 64, "mask"): (38, 20.7),
    ("torch", "gpu", 32, 64, "weights"): (52, 32.7),
    ("torch", "gpu", 256, 2048, "mask"): (41, 5.62),
    ("torch", "gpu", 256, 2048, "weights"): (55, 17.6),
    ("cupy", "gpu", 32, 64, "mask"): (35, 10.6),
    ("cupy", "gpu", 32, 64, "weights"): (45, 18.6),
    ("cupy", "gpu", 256, 2048, "mask"): (36, 10.1),
    ("cupy", "gpu", 256, 2048, "weights"): (46, 18.1),
}


@pytest.mark.parametrize(("budget", "most"), WEIGHTS_ADD.items(), ids=str)
def test_weights_of_samples_stay_within_their_budget(
    budget: tuple[str, str, int, int, str], most: tuple[int, float]
) -> None:
    library, device, n, d, kind = budget
    needs(library)
    weight = np.arange(n) % 3 > 0 if kind == "mask" else np.arange(n) % 3 + 1.0
    z = np.linspace(-1.0, 1.0, n * d, dtype="float32").reshape(n, d)

    def counted(**weights: Any) -> Counts:
        arrays = [z, z[::-1].copy(), *weights.values()]

        def call(*given: Any) -> None:
            vicreg_value_and_grad(*given[:2], **dict(zip(weights, given[2:], strict=True)))

        if library == "cupy":
            return standard.count(call, arrays)
        torch = pytest.importorskip("torch")
        from vicreg.tools.benchmark.counting.torch import count

        on = "meta" if device == "gpu" else device
        tensors = [torch.tensor(array, device=on) for array in arrays]
        return count(lambda: call(*tensors))

    with_weights, without = counted(sample_weight=weight), counted()
    more_bytes = with_weights.bytes_moved - without.bytes_moved
    added = with_weights.calls - without.calls, more_bytes / z.nbytes
    assert all(one <= limit for one, limit in zip(added, most, strict=True)), added


# What one operation counts for. The arrays are float32: a (4, 6), b (6, 5), row (6,), k (2, 6).

A, B, ROW, OUT = 4 * 24, 4 * 30, 4 * 6, 4 * 20

Functions = dict[str, tuple[Callable[..., Any], tuple[int, int, int]]]

#: By name, of any library: a function of a, b and row, and its calls, bytes and multiply-adds.
OPERATIONS: Functions = {
    "a view": (lambda a, b, row: a[1:, ::2].T, (0, 0, 0)),
    "a new axis": (lambda a, b, row: row[None, :], (0, 0, 0)),
    "another shape": (lambda a, b, row: a.reshape(3, 8), (0, 0, 0)),
    "another shape that is copied": (lambda a, b, row: a.T.reshape(24), (1, 2 * A, 0)),
    "elementwise": (lambda a, b, row: a + a, (1, 3 * A, 0)),
    "with a number": (lambda a, b, row: 2.0 * a, (1, 2 * A, 0)),
    "a row over a matrix": (lambda a, b, row: a * row, (1, 2 * A + ROW, 0)),
    "part of an array": (lambda a, b, row: -a[:2], (1, A, 0)),
    "a condition": (lambda a, b, row: a > 0.5, (1, A + 24, 0)),
    "a product": (lambda a, b, row: a @ b, (1, A + B + OUT, 120)),
    "of transposes": (lambda a, b, row: b.T @ a.T, (1, A + B + OUT, 120)),
    "with itself": (lambda a, b, row: a @ a.T, (1, 2 * A + 4 * 16, 96)),
    "several": (lambda a, b, row: (a - row) @ b, (2, 3 * A + ROW + B + OUT, 120)),
}


def in_place(a: Any, b: Any, row: Any) -> Any:
    a += 1.0  # reads a and writes it
    a *= row
    return a


OPERATIONS["in place"] = in_place, (2, 4 * A + ROW, 0)


def in_torch(function: Callable[..., Any], *arrays: Any, device: str = "cpu") -> Counts:
    torch = pytest.importorskip("torch")
    from vicreg.tools.benchmark.counting.torch import count

    tensors = [torch.tensor(array, device=device) for array in arrays]
    return count(lambda: function(*tensors))


COUNTERS: dict[str, Callable[..., Counts]] = {
    "torch": in_torch,
    "torch meta": lambda function, *arrays: in_torch(function, *arrays, device="meta"),
    "cupy": lambda function, *arrays: standard.count(function, arrays),
}


def filled(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_counts_for(counter: str, name: str) -> None:
    function, expected = OPERATIONS[name]
    counts = COUNTERS[counter](function, filled(4, 6), filled(6, 5), filled(6))
    assert (counts.calls, counts.bytes_moved, counts.multiply_adds) == expected


def test_an_operation_of_pytorch_counts_for() -> None:
    torch = pytest.importorskip("torch")
    a, b, row = (torch.ones(shape) for shape in ((4, 6), (6, 5), (6,)))
    places = torch.zeros((4, 2), dtype=torch.int64)
    stack, out, square = torch.ones(2, 4, 6), torch.empty(4, 6), torch.ones(4, 4)
    expected: dict[str, tuple[Callable[[], Any], tuple[int, int, int]]] = {
        "memory alone": (lambda: torch.empty_like(a), (0, 0, 0)),
        "zeros of a shape": (lambda: torch.zeros_like(a), (1, A, 0)),
        "a broadcast array as it is stored": (lambda: row.expand(4, 6) + 0, (1, ROW + A, 0)),
        "over what is there": (lambda: a.fill_(1.0), (1, A, 0)),
        "into what is given": (lambda: torch.add(a, a, out=out), (1, 3 * A, 0)),
        "chosen elements": (lambda: a.gather(1, places), (1, 2 * 32 + 64, 0)),
        "written at indices": (lambda: a.scatter_(1, places, 0.0), (1, 32 + 64, 0)),
        "a product onto another": (lambda: square.addmm_(a, a.T), (1, 2 * 64 + 2 * A, 96)),
        "a sum": (lambda: a.sum(0), (1, A + ROW, 0)),
        "a batch of products": (lambda: stack @ b, (1, 2 * A + B + 2 * OUT, 240)),
        "a product added": (
            lambda: torch.addmm(torch.ones(5), a, b),
            (2, 20 + 20 + A + B + OUT, 120),
        ),
        "a matrix and a vector": (lambda: a @ row, (1, A + ROW + 16, 24)),
        "two vectors": (lambda: row @ row, (1, 2 * ROW + 4, 6)),
    }
    for name, (function, wanted) in expected.items():
        counts = in_torch(function)
        assert (counts.calls, counts.bytes_moved, counts.multiply_adds) == wanted, name


#: By name: a function of a (4, 6), and the peak of what is alive above it.
PEAKS: dict[str, tuple[Callable[..., Any], int]] = {
    "nothing but views": (lambda a: a[1:].T, 0),
    "one after another": (lambda a: [(a + number) is a for number in range(3)], A),
    "a result and what it is of": (lambda a: 2.0 * (a + 1.0), 2 * A),
    "a view keeps what it is of": (lambda a: ((a + a)[:1], a + 1.0, a + 2.0), 3 * A),
    "what is freed before the peak": (lambda a: ((a + 1.0) @ a.T) @ a, A + 64),
    "in place": (lambda a: in_place(a + 1.0, a, a), A),
}


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_what_is_alive_at_once(counter: str, name: str) -> None:
    function, expected = PEAKS[name]
    assert COUNTERS[counter](function, filled(4, 6)).peak_bytes == expected


def test_pytorchs_backward_pass_is_counted() -> None:
    torch = pytest.importorskip("torch")

    def backward(a: Any, b: Any) -> Any:
        return torch.autograd.grad((a.requires_grad_() @ b).sum(), a)

    # The product and the sum; backwards, the ones, and the product by the transpose.
    counts = in_torch(backward, filled(4, 6), filled(6, 5))
    assert counts.calls == 4
    assert counts.multiply_adds == 2 * 120


def test_an_operation_of_numpys_namespace_counts_for() -> None:
    def of(name: str, *settings: Any, **named: Any) -> Callable[[Any], Any]:
        return lambda a: getattr(a.__array_namespace__(), name)(a, *settings, **named)

    def replaced(a: Any) -> None:
        a[:, 1:3] = 0.0

    def at_indices(a: Any) -> None:
        xp = a.__array_namespace__()
        xp.put_along_axis(a, xp.asarray(np.zeros((1, 2), np.int64)), 0.0, axis=-1)

    def into(a: Any) -> Any:
        return a.__array_namespace__().subtract(a, 1.0, out=a)

    for function, wanted in (
        (of("zeros_like"), (1, A)),
        (of("empty_like"), (0, 0)),
        (of("sum", axis=0), (1, A + ROW)),
        (of("sqrt"), (1, 2 * A)),
        (of("permute_dims", (1, 0)), (0, 0)),
        (of("broadcast_to", (2, 4, 6)), (0, 0)),
        (of("astype", np.float64), (1, 3 * A)),
        (lambda a: a.__array_namespace__().stack([a, a]), (1, 4 * A)),
        (lambda a: a.__array_namespace__().where(a > 0, a, 0.0), (2, A + 24 + 24 + 2 * A)),
        (lambda a: a[:, [0, 2]], (1, 2 * 32)),
        (lambda a: a[1, 2], (0, 0)),
        (replaced, (1, 32)),
        (at_indices, (2, 16 + 16 + 32)),  # the indices are made, and read
        (into, (1, 2 * A)),
    ):
        counts = standard.count(function, [filled(4, 6)])
        assert (counts.calls, counts.bytes_moved) == wanted


def test_arrays_that_are_counted_have_the_shapes_that_numpy_has() -> None:
    shapes = []

    def gradient(*views: Any) -> None:
        loss, gradients = vicreg_value_and_grad(*views)
        shapes.extend([loss, *gradients])

    standard.count(gradient, [np.zeros((5, 7), np.float32)] * 2)
    assert [(one.shape, one.dtype) for one in shapes] == [((), np.float32)] + 2 * [
        ((5, 7), np.float32)
    ]
    assert library_of(shapes[0]) == "cupy"
    with pytest.raises(TypeError, match="no values"):
        bool(shapes[0])
    with pytest.raises(ValueError, match="no product"):
        standard.count(lambda a, b: a @ b, [filled(2, 3), filled(2, 3)])


def test_jax_is_counted_as_it_is_compiled() -> None:
    jax = pytest.importorskip("jax")
    from vicreg.tools.benchmark.counting.jax import count

    def function(a: Any, b: Any) -> Any:
        product = a @ (2.0 * b)  # one product, and one fusion for the multiplication
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x.T @ x, product)

    views = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((40, 60), (60, 50))]
    counts = count(function, views)
    assert counts.multiply_adds == 40 * 60 * 50  # those of the loop may never be done
    assert counts.peak_bytes >= 4 * 40 * 50  # the result alone
    assert 3 <= counts.calls <= 9
    assert counts.bytes_moved >= 4 * (40 * 60 + 3 * 60 * 50 + 40 * 50)


# The computations.


def test_the_published_formula_is_the_yardstick() -> None:
    """It makes three products of the d x d covariance a view: one forwards and two backwards."""
    n, d = 12, 40
    rows = rows_of("torch", "gpu", n, d)
    assert list(rows) == [CLOSED_FORM, BACKWARD, PUBLISHED]
    assert rows[PUBLISHED].over_products == pytest.approx(3 * d / (2 * n))
    by_value = rows_of("torch", "gpu", n, d, "float32", MODES[1])
    assert list(by_value) == [VALUE, PUBLISHED]
    assert by_value[PUBLISHED].over_products == pytest.approx(d / n)
    in_cupy = rows_of("cupy", "gpu", n, d, "float32", MODES[1])
    assert in_cupy[PUBLISHED].counts.multiply_adds == by_value[PUBLISHED].counts.multiply_adds


@pytest.mark.parametrize(("name", "device"), [("torch", "cpu"), ("torch", "gpu"), ("cupy", "gpu")])
def test_counts_are_the_same_each_time(name: str, device: str) -> None:
    first, second = (rows_of(name, device, 6, 9, "float64") for _ in range(2))
    assert first == second


# The estimate.


def test_a_call_takes_the_longer_of_launching_and_computing() -> None:
    gpu = Gpu(launch_us=5.0, bandwidth_tbs=2.0, tflops=10.0)
    for calls, moved, multiply_adds, seconds, bound_by in (
        (100, 2 * 10**8, 10**9, 5e-4, "launches"),
        (10, 8 * 10**8, 10**9, 4e-4 + 2e-4, "bytes"),
        (10, 2 * 10**8, 10**10, 1e-4 + 2e-3, "products"),
    ):
        time = estimate(Counts(calls, moved, multiply_adds), gpu)
        assert time.seconds == pytest.approx(seconds)
        assert time.bound_by == bound_by


# The command.


def test_the_report_and_the_data_agree() -> None:
    needs("torch")
    arguments = ("bench", "--count", "--backend=torch", "--backend=cupy", "--size=6x9")
    gpu = ("--launch-us=5", "--bandwidth-tbs=2", "--tflops=10")
    shown, data = run(*arguments, *gpu), run(*arguments, *gpu, "--json")
    assert shown.exit_code == data.exit_code == 0, shown.output
    parsed = json.loads(data.stdout)
    assert parsed["gpu"] == {"launch_us": 5.0, "bandwidth_tbs": 2.0, "tflops": 10.0}
    labels = [(row["library"], row["device"], row["computation"]) for row in parsed["results"]]
    torch = [CLOSED_FORM, BACKWARD, PUBLISHED]
    assert labels == [
        *(("torch", "cpu", computation) for computation in torch[:2]),
        *(("torch", "gpu", computation) for computation in torch),
        ("cupy", "gpu", CLOSED_FORM),
    ]
    for row in parsed["results"]:
        assert row["bytes_in_views"] == row["bytes"] / (6 * 9 * 4)
        assert row["over_products"] == row["multiply_adds"] / (2 * 2 * 6 * 9 * 6)
        assert row["peak_in_views"] == row["peak_bytes"] / (6 * 9 * 4) > 2  # the gradients alone
        line = rf"{row['computation']} +{row['calls']} +[\d.]+ +[\d.]+ +[\d.]+ *$"
        assert re.search(line, shown.stdout, flags=re.M), line
        time = row["estimated_seconds"]
        assert (time is None) is (row["device"] == "cpu")
        if time:
            assert time["launches"] == pytest.approx(5e-6 * row["calls"])
            assert time["bytes"] == pytest.approx(row["bytes"] / 2e12)
            assert time["products"] == pytest.approx(2 * row["multiply_adds"] / 1e13)
            launches = f"{1e3 * time['launches']:.2f}"
            assert re.search(rf"{row['computation']} +{launches} ", shown.stdout)


def test_the_page_has_all_and_its_command_repeats_it(tmp_path: Path) -> None:
    needs("torch")
    file = tmp_path / "count.html"
    arguments = ("--backend=torch", "--backend=cupy", "--size=6x9", "--tflops=30")
    assert run("bench", "--count", *arguments, f"--html={file}").exit_code == 0
    page = file.read_text()
    assert not re.search(r"https?:|<script|<link|<img|src=|@import|url\(", page)
    command = re.search(r"<code>vicreg (.*?)</code>", page)
    assert command is not None
    first, again = (
        json.loads(run(*words, "--json").stdout)
        for words in (("bench", "--count", *arguments), command[1].split())
    )
    assert first == again
    for row in first["results"]:
        assert f"<td>{row['computation']}</td><td>{row['calls']}</td>" in page


def test_the_tables_fit_into_80_columns() -> None:
    counts = Counts(12345, 10**12, 10**15, 10**12)
    problem = Problem(16384, 16384)
    time = estimate(counts, Gpu())
    rows = [Row("torch", "gpu", problem, name, counts, time) for name in (CLOSED_FORM, PUBLISHED)]
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    for cells in (counts_cells(rows), estimates_cells(rows)):
        console.print(as_table(*cells, ""))
    assert "…" not in printed.getvalue()
    assert "16384 x 16384" in printed.getvalue()


def test_what_could_not_be_counted_is_listed() -> None:
    needs("torch")
    arguments = ("--backend=torch", "--backend=cupy", "--dtype=bfloat16", "--size=6x1")
    result = run("bench", "--count", *arguments, width=200)
    assert result.exit_code == 0, result.output
    assert "cupy bfloat16: it has no such dtype" in result.stdout
    assert "torch 6 x 1 bfloat16, published: the published formula takes" in result.stdout
    nothing = run("bench", "--count", "--backend=cupy", "--dtype=bfloat16")
    refused(nothing, "nothing could be counted: cupy bfloat16")


def test_bad_usage_is_one_line() -> None:
    refused(run("bench", "--count", "--backend=numpy"), "--backend with --count", *COUNTED)
    refused(run("bench", "--count", "--device=cuda:7"), "--device with --count", "cpu, gpu")
    for option in ("--quick", "--compile", "--plot=a.png"):
        name = option.partition("=")[0]
        refused(run("bench", "--count", option), f"{name} does not go with --count")
    for option in ("--launch-us", "--bandwidth-tbs", "--tflops"):
        refused(run("bench", option, "1"), f"{option} goes with --count")
        for bad in ("0", "-1", "nan", "inf"):
            refused(run("bench", "--count", option, bad), f"{option} must be from 1e-09 to 1e+09")
