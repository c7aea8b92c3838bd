"""The suite itself: its truth is true, its bounds hold and are narrow, and it finds faults."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
import types
from fractions import Fraction
from pathlib import Path

import definition as plain
import numpy as np
import pytest
from backends import why_not

from vicreg import conventions
from vicreg.backends import (
    NAMES,
    Backend,
    RequirementError,
    backend_named,
    backends_of,
    find_backends,
)
from vicreg.backends.numpy import NumpyBackend
from vicreg.core import statistics
from vicreg.functions import FunctionError, LossFunction, load_function
from vicreg.testing import check_conformance, conformance_problems
from vicreg.verification import definition as exact
from vicreg.verification.bounds import Rounding, rounding_bounds
from vicreg.verification.cases import CASES, rounded_to
from vicreg.verification.suite import DTYPES, Measurement, Problem, measured, problem, run_suite
from vicreg.verification.target import explanations, run_target

NUMPY = NumpyBackend("numpy", "cpu", ("float64", "float32", "float16"))
WIDE = CASES[0]


class TestTruth:
    def test_it_imports_nothing_of_the_package(self) -> None:
        tree = ast.parse(Path(exact.__file__).read_text())
        modules = [
            name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        ]
        assert not [name for name in modules if name.startswith("vicreg")]

    def test_it_knows_each_convention(self) -> None:
        assert set(exact.DEFINITIONS) == set(conventions)
        for name, convention in conventions.items():
            weights = convention.weights or (0.0, 1.0, 1.0)
            assert exact.DEFINITIONS[name].weights == weights

    @pytest.mark.parametrize("convention", conventions)
    @pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 2, 3, 6)])
    def test_it_is_the_plain_definition_and_its_derivative(
        self, convention: str, shape: tuple[int, ...]
    ) -> None:
        """Against the tests' own definition, differentiated by the complex step."""
        views = tuple(np.random.default_rng(1).standard_normal((2, *shape)) * 0.8)
        weights = exact.DEFINITIONS[convention].weights
        found = exact.exact_terms(exact.SampleSets(views), exact.DEFINITIONS[convention])
        terms = plain.terms(views, convention)
        for name, wanted in zip(exact.TERMS, terms, strict=True):
            assert float(found[name][0].high) == pytest.approx(complex(wanted).real, rel=1e-13)
        right = plain.gradients(lambda v: plain.loss(v, convention, weights), views)
        for gradient, wanted in zip(found["loss"][1], right, strict=True):
            np.testing.assert_allclose(
                gradient.high, wanted, rtol=0, atol=1e-13 * abs(wanted).max()
            )

    def test_it_is_what_was_published(self, published: list[dict]) -> None:
        for case in published:
            sets = exact.SampleSets((np.asarray(case["z1"]), np.asarray(case["z2"])))
            for source in case["published"]:
                definition = exact.DEFINITIONS[source["convention"]]
                weighted = dataclasses.replace(definition, weights=tuple(source["weights"]))
                value, gradients = exact.exact_terms(sets, weighted)["loss"]
                assert float(value.high) == pytest.approx(source["loss"], rel=1e-12)
                for gradient, name in zip(gradients, ("grad1", "grad2"), strict=True):
                    wanted = np.asarray(source[name])
                    np.testing.assert_allclose(
                        gradient.high, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max()
                    )

    def test_it_is_exact_to_twice_the_precision_of_a_float(self) -> None:
        mpmath = pytest.importorskip("mpmath")
        views = tuple(np.random.default_rng(2).standard_normal((2, 4, 3)))
        found = exact.exact_terms(exact.SampleSets(views), exact.DEFINITIONS["official"])
        with mpmath.workdps(60):
            wanted = _official_in_mpmath(mpmath, views)
            value, _ = found["loss"]
            got = mpmath.mpf(float(value.high)) + mpmath.mpf(float(value.low))
            assert abs(got - wanted) < abs(wanted) * mpmath.mpf(2) ** -104

    def test_an_error_is_measured_below_the_precision_of_a_float(self) -> None:
        third = exact._exact(np.asarray(exact._fixed(Fraction(1, 3)), dtype=object))
        assert float(third.error_of(np.asarray(1 / 3))) == pytest.approx(2.0**-54 / 3, rel=1e-9)


def _official_in_mpmath(mpmath: types.ModuleType, views: tuple[np.ndarray, ...]) -> object:
    def mean(values: list) -> object:
        return mpmath.fsum(values) / len(values)

    n, d = views[0].shape
    z1, z2 = ([[mpmath.mpf(float(x)) for x in column] for column in view.T] for view in views)
    invariance = mean(
        [(a - b) ** 2 for x, y in zip(z1, z2, strict=True) for a, b in zip(x, y, strict=True)]
    )
    variance = covariance = mpmath.mpf(0)
    for view in (z1, z2):
        centred = [[x - mean(column) for x in column] for column in view]
        c = [[mpmath.fdot(a, b) / (n - 1) for b in centred] for a in centred]
        variance += (
            mean([max(0, 1 - mpmath.sqrt(c[j][j] + mpmath.mpf(1e-4))) for j in range(d)]) / 2
        )
        covariance += mpmath.fsum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return 25 * invariance + 25 * variance + covariance


class TestBounds:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("seed", [0, 11])
    def test_numpy_and_torch_stay_within_them(self, dtype: str, seed: int) -> None:
        names = [name for name in ("numpy", "torch") if not find_backends([name])[1]]
        backends = [backend_named(name) for name in names]
        results = run_suite([b for b in backends if dtype in b.dtypes], [dtype], seed=seed)
        assert [one for one in results.measurements if not one.passed] == []

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_they_are_narrow_enough_to_find_a_change_of_the_ninth_digit(self, case) -> None:
        """Of the loss in float64, in the worst of the cases; near the 13th in the mildest."""
        given = problem(case, "float64", "official")
        value, bound = given.truth["loss"][0], given.bounds["loss"][0]
        assert bound < 1e-9 * float(value.high)
        if case is WIDE:
            assert bound < 1e-12 * float(value.high)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_they_grow_with_the_unit_roundoff_alone(self, case) -> None:
        """To first order: the same input in two dtypes has bounds in the ratio of their u."""
        views = tuple(rounded_to("float32", view) for view in case.views())
        definition = exact.DEFINITIONS["official"]
        low = rounding_bounds(views, definition, Rounding("float32", "float32"))
        high = rounding_bounds(views, definition, Rounding("float64", "float64"))
        for term in ("invariance", "variance"):
            if high[term][0] < 1e-100:  # what underflow loses, and nothing else
                continue
            ratio = low[term][0] / high[term][0] / 2.0**29
            assert 0.5 < ratio < 4, term

    def test_a_value_beyond_the_largest_float16_is_rightly_infinite(self) -> None:
        (scales,) = (case for case in CASES if case.name == "scales")
        given = problem(scales, "float16", "paper")
        exact_gradient = given.truth["loss"][1][0].high
        assert np.abs(exact_gradient).max() > 65504
        measurement, returned = measured(NUMPY, given)
        assert np.isinf(returned["gradient"][0]).any()
        assert measurement.passed
        finite = [np.where(np.isinf(g), 65504.0, g) for g in returned["gradient"]]
        assert given.gradient_error(finite) > 1

    def test_rounding_to_a_dtype_gives_numbers_that_it_has(self) -> None:
        torch = pytest.importorskip("torch")
        values = np.random.default_rng(0).standard_normal(1000) * np.logspace(-3, 3, 1000)
        for dtype in DTYPES:
            rounded = rounded_to(dtype, values)
            same = torch.tensor(rounded).to(getattr(torch, dtype)).double().numpy()
            np.testing.assert_array_equal(same, rounded)
            assert np.abs(rounded - values).max() <= 2.0**-8 * np.abs(values).max()


def check_backend(backend: Backend, given: Problem) -> Measurement:
    return measured(backend, given)[0]


FAULTS = {
    "the hinge off by 1e-9 of itself": ("hinge", lambda f: lambda *a: f(*a) * (1 + 1e-9)),
    "a slope half as large": ("hinge_slope", lambda f: lambda *a: f(*a) / 2),
    "no centring": ("centred_and_mean", lambda f: lambda xp, z: (z + 0.0, f(xp, z)[1])),
    "the mean of the squares": (
        "squared_deviations",
        lambda f: lambda xp, views: f(xp, views) / views[0].shape[-1],
    ),
    "half the deviations": ("deviations", lambda f: lambda xp, views: [f(xp, views)[0] * 0.5]),
    "a NaN": ("hinge", lambda f: lambda *a: f(*a) * math.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = FAULTS[fault]
    given = problem(WIDE, "float64", "official")
    assert check_backend(NUMPY, given).passed
    monkeypatch.setattr(statistics, name, wrong(getattr(statistics, name)))
    assert not check_backend(NUMPY, given).passed


class _FaultyBackend(NumpyBackend):
    """NumPy that returns what it should not."""

    def __init__(self, fault: str) -> None:
        super().__init__("faulty", "cpu", ("float64",))
        self.fault = fault
        self.differentiates = fault == "autodiff"

    def asarray(self, values, dtype):
        if self.fault == "raises":
            raise RuntimeError("no memory\nat all")
        if self.fault == "dtype":
            dtype = "float32"
        return super().asarray(values, dtype)

    def to_numpy(self, array):
        values = super().to_numpy(array)
        return values + 1 if self.fault == "changed" and values.ndim else values

    def differentiate(self, function, arrays):
        return function(*arrays), tuple(np.zeros_like(array) for array in arrays)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "raised RuntimeError: no memory"),
        ("dtype", "must be float64; it is float32"),
        ("changed", "the views were changed"),
    ],
)
def test_what_is_no_number_is_a_complaint(fault: str, said: str) -> None:
    measurement = check_backend(_FaultyBackend(fault), problem(WIDE, "float64", "official"))
    assert not measurement.passed
    assert said in measurement.complaint
    assert "\n" not in measurement.complaint


def test_a_wrong_derivative_is_found_where_the_closed_form_is_right() -> None:
    measurement = check_backend(_FaultyBackend("autodiff"), problem(WIDE, "float64", "official"))
    assert measurement.errors["gradient"] < 1 < measurement.errors["autodiff gradient"]


def test_each_pair_is_held_to_each_other() -> None:
    faulty = _FaultyBackend("dtype")
    results = run_suite([NUMPY, faulty], ["float64"], ["official"], [WIDE])
    assert results.distances["numpy", "faulty", "float64"] == (math.inf, math.inf)
    assert not results.passed
    again = NumpyBackend("again", "cpu", ("float64",))
    same = run_suite([NUMPY, again], ["float64"], ["official"], [WIDE])
    assert same.distances["numpy", "again", "float64"] == (0.0, 0.0)


def test_nothing_run_is_no_pass() -> None:
    assert not run_suite([NUMPY], ["bfloat16"]).passed


class TestBackends:
    @pytest.mark.parametrize("name", NAMES)
    def test_values_come_back_as_they_went(self, name: str) -> None:
        found, left_out = find_backends([name])
        assert found or left_out[name]
        values = np.asarray([[0.5, -2.0, 0.0], [1024.0, 3.0, -0.25]])
        for backend in found:
            with backend.active():
                for dtype in backend.dtypes:
                    array = backend.asarray(values, dtype)
                    back = backend.to_numpy(array)
                    assert back.dtype == np.float64
                    np.testing.assert_array_equal(back, values)
                    assert tuple(array.shape) == (2, 3)

    def test_cupy_without_a_gpu_says_why(self) -> None:
        from backends import BACKENDS

        (cupy,) = (backend for backend in BACKENDS if backend.name == "cupy")
        if why_not(cupy) is None:
            pytest.skip("there is a GPU")
        _, left_out = find_backends(["cupy"])
        assert "not installed" in left_out["cupy"] or "finds no CUDA device" in left_out["cupy"]

    def test_jax_has_float64_for_the_while_alone(self) -> None:
        jax = pytest.importorskip("jax")
        before = jax.config.jax_enable_x64
        (backend, *_) = backends_of("jax")
        try:
            jax.config.update("jax_enable_x64", False)
            with backend.active():
                assert str(backend.asarray(np.ones((2, 2)), "float64").dtype) == "float64"
            assert not jax.config.jax_enable_x64
        finally:
            jax.config.update("jax_enable_x64", before)

    def test_only_the_devices_asked_for(self) -> None:
        pytest.importorskip("array_api_strict")
        found, left_out = find_backends(["array_api_strict"], ["device1"])
        assert [backend.device for backend in found] == ["device1"]
        assert left_out["array_api_strict"] == "it is on cpu, not on device1"

    def test_what_is_not_there_is_said(self) -> None:
        with pytest.raises(RequirementError, match="nowhere_arrays is not installed"):
            backends_of("nowhere_arrays")
        with pytest.raises(RequirementError, match="math is no namespace"):
            backends_of("math")


class TestNamespaceNeverHeardOf:
    @pytest.mark.parametrize(
        "given", conformance_problems(["float64"], ["official", "article"]), ids=str
    )
    def test_array_api_strict_by_nothing_but_the_standard(self, given) -> None:
        strict = pytest.importorskip("array_api_strict")
        check_conformance(strict, given)

    def test_a_wrong_function_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        strict = pytest.importorskip("array_api_strict")
        right = strict.sqrt
        monkeypatch.setattr(strict, "sqrt", lambda x: right(x) * (1 + 1e-6))
        given = conformance_problems(["float64"], ["official"])[0]
        with pytest.raises(AssertionError, match=r"wide-float64-official: .*the variance is off"):
            check_conformance(strict, given)

    def test_ones_own_conversions(self) -> None:
        used = []

        def asarray(values: np.ndarray, dtype: str) -> np.ndarray:
            used.append(dtype)
            return np.asarray(values, dtype=dtype)

        def to_numpy(array: np.ndarray) -> np.ndarray:
            used.append("back")
            return np.asarray(array, dtype=np.float64)

        given = conformance_problems(["float16"], ["official"])[0]
        check_conformance(np, given, asarray=asarray, to_numpy=to_numpy)
        assert set(used) == {"float16", "back"}

    def test_bad_choices(self) -> None:
        with pytest.raises(ValueError, match=r"dtypes must be among float64, .* got 'int8'"):
            conformance_problems(dtypes=["int8"])
        with pytest.raises(ValueError, match=r"conventions must be among official, .* got 'mine'"):
            conformance_problems(conventions=["mine"])


# ---------------------------------------------------------------------------------------------
# Somebody's own code, written plainly.


def own(variance=1.0, covariance=1.0, eps=1e-4, correction=1, eye=np.eye):
    """The official formula as people write it, with what may be wrong about it."""

    def vicreg(x, y):
        n, d = x.shape
        invariance = ((x - y) ** 2).mean()
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        hinges = [
            (1 - ((z**2).sum(axis=0) / (n - correction) + eps) ** 0.5).clip(min=0).mean()
            for z in (x, y)
        ]
        squares = 0.0
        for z in (x, y):
            c = z.T @ z / (n - 1)
            off = c - c * eye(d, dtype=z.dtype)
            squares = squares + (off**2).sum() / d
        return 25 * invariance + variance * 25 * sum(hinges) / 2 + covariance * squares

    return vicreg


def in_torch(**wrong):
    """The same on tensors."""
    return own(**wrong, eye=pytest.importorskip("torch").eye)


def verdict(function, library: str, convention: str = "official", dtypes=("float64", "float32")):
    loss = LossFunction(function, backend_named(library))
    results = run_target([loss], dtypes, convention)
    return results, explanations(loss, convention, results)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_right_code_of_ones_own_passes(library: str) -> None:
    function = own() if library == "numpy" else in_torch()
    results, lines = verdict(function, library)
    assert results.passed, [one for one in results.measurements if not one.passed]
    assert lines == []
    by = "finite difference" if library == "numpy" else "autodiff gradient"
    assert all(by in one.errors for one in results.measurements)


def test_pytorch_metric_learnings_own_loss_passes() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    results, lines = verdict(losses.VICRegLoss(), "torch")
    assert results.passed
    assert lines == []


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variance": 2.0}, "the variance term is 2 times that of official"),
        ({"covariance": 0.5}, "the covariance term is 0.5 times that of official"),
        ({"covariance": 0.0}, "the covariance term of official is missing"),
        ({"variance": 1.001}, "the variance term is 1.001 times that of official"),
        ({"eps": 0.0}, "no factors of the three terms of official make up the value"),
        ({"correction": 0}, "no factors of the three terms of official make up the value"),
    ],
)
def test_which_term_is_off_and_by_what_factor(library: str, wrong: dict, said: str) -> None:
    function = own(**wrong) if library == "numpy" else in_torch(**wrong)
    results, lines = verdict(function, library)
    assert not results.passed
    assert said in lines
    if library == "torch" and "times" in said:
        assert any("term's gradient is" in line for line in lines)


def test_a_wrong_derivative_of_a_right_value() -> None:
    torch = pytest.importorskip("torch")
    right = in_torch()

    def vicreg(x, y):
        value = right(x, y)
        wrong = 25 * ((x - y) ** 2).mean()  # twice in the gradient, not in the value
        return value + wrong - wrong.detach()

    results, lines = verdict(vicreg, "torch", dtypes=("float64",))
    assert not results.passed
    assert all(one.errors["loss"] <= 1 for one in results.measurements)
    assert lines == ["the invariance term's gradient is 2 times that of official"]
    assert torch.is_tensor(vicreg(torch.ones(4, 2), torch.zeros(4, 2)))


@pytest.mark.parametrize("way", ["item", "detach", "in place", "raising"])
def test_a_loss_that_the_library_cannot_differentiate_fails(way: str) -> None:
    torch = pytest.importorskip("torch")
    right = in_torch()

    class Raising(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            raise RuntimeError("no derivative")

    def in_place(x, y):
        x -= 0.0
        return right(x, y)

    function = {
        "item": lambda x, y: right(x, y).item(),
        "detach": lambda x, y: right(x, y).detach(),
        "in place": in_place,
        "raising": lambda x, y: Raising.apply(right(x, y)),
    }[way]
    results, _ = verdict(function, "torch", dtypes=("float64",))
    assert not results.passed
    assert all("it has no gradient" in one.complaint for one in results.measurements)


def test_a_function_that_changes_its_arrays_fails() -> None:
    right = own()

    def vicreg(x, y):
        value = right(x, y)
        y *= 0.0
        return value

    results, _ = verdict(vicreg, "numpy", dtypes=("float64",))
    assert all("changes the arrays" in one.complaint for one in results.measurements)


def test_variances_that_are_updated_sample_by_sample_pass() -> None:
    """PyTorch's var is: with an offset it is wrong by far more than two passes are."""
    torch = pytest.importorskip("torch")

    def vicreg(x, y):
        n, d = x.shape
        hinges = [torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() for z in (x, y)]
        invariance = ((x - y) ** 2).mean()
        squares = 0.0
        for z in (x, y):
            zc = z - z.mean(dim=0)
            c = zc.T @ zc / (n - 1)
            squares = squares + (c[~torch.eye(d, dtype=torch.bool)] ** 2).sum() / d
        return 25 * invariance + 25 * sum(hinges) / 2 + squares

    loss = LossFunction(vicreg, backend_named("torch"))
    for seed in (0, 2, 4, 11, 54):
        results = run_target([loss], ["float64"], "official", seed)
        errors = [one.errors["loss"] for one in results.measurements]
        assert max(errors) < 0.1, seed


def test_a_difference_that_cancels_is_said_to() -> None:
    """Σ C² − Σ C_jj²: the same on paper, and not where one feature is far larger."""

    def vicreg(x, y):
        n, d = x.shape
        value = own(covariance=0.0)(x, y)
        for z in (x, y):
            zc = z - z.mean(axis=0)
            c = zc.T @ zc / (n - 1)
            value = value + ((c**2).sum() - (np.diag(c) ** 2).sum()) / d
        return value

    results, lines = verdict(vicreg, "numpy", dtypes=("float64",))
    failed = {one.case for one in results.measurements if not one.passed}
    assert "one ×1000" in failed
    assert failed <= {"one ×1000", "scales"}
    assert lines == [
        "each term is that of official, but the value is rounded by more than its bound: "
        "a difference that cancels?"
    ]


def test_the_nan_of_a_root_at_zero_fails_where_a_feature_is_dead() -> None:
    right = in_torch(eps=0.0)

    def vicreg(x, y):
        return right(x - x[:1], y - y[:1])  # a constant feature is exactly zero then

    results = run_target([LossFunction(vicreg, backend_named("torch"))], ["float64"], "jolibrain")
    for one in results.measurements:
        is_nan = np.isinf(one.errors["autodiff gradient"])
        assert is_nan == one.case.startswith("dead")


@pytest.mark.parametrize("relative", [1e-6, 1e-9])
@pytest.mark.parametrize("term", ["variance", "covariance"])
def test_a_small_factor_is_said_as_it_is(term: str, relative: float) -> None:
    results, lines = verdict(own(**{term: 1 + relative}), "numpy", dtypes=("float64",))
    assert not results.passed
    assert lines == [f"the {term} term is 1 + {relative:.3g} times that of official"]


def test_a_nan_in_one_case_is_said_beside_the_factors() -> None:
    right = own(variance=2.0)

    def vicreg(x, y):
        return right(x, y) if (np.ptp(x, axis=0) > 0).all() else float("nan")

    results, lines = verdict(vicreg, "numpy", dtypes=("float64",))
    assert not results.passed
    assert lines == [
        "the value is no finite number in 2 of the cases",
        "the variance term is 2 times that of official",
    ]


def test_only_the_library_that_fails_is_explained() -> None:
    torch = pytest.importorskip("torch")
    in_numpy, doubled = own(), in_torch(variance=2.0)

    def vicreg(x, y):
        return doubled(x, y) if torch.is_tensor(x) else in_numpy(x, y)

    losses = [LossFunction(vicreg, backend_named(name)) for name in ("numpy", "torch")]
    results = run_target(losses, ["float64"], "official")
    said = [explanations(loss, "official", results) for loss in losses]
    assert said[0] == []
    assert "the variance term is 2 times that of official" in said[1]


def test_a_finite_difference_finds_what_the_value_hides() -> None:
    """Right at the cases' own points, wrong beside them."""
    known = {problem(case, "float64", "official").views[0].tobytes() for case in CASES}
    right = own()

    def vicreg(x, y):
        return right(x, y) + (0.0 if x.tobytes() in known else 1e-3 * x[0, 0])

    results, _ = verdict(vicreg, "numpy", dtypes=("float64",))
    assert all(one.errors["loss"] <= 1 for one in results.measurements)
    assert not results.passed


class TestLossFunction:
    def test_it_is_loaded_by_name(self, monkeypatch, tmp_path: Path) -> None:
        (tmp_path / "own_losses.py").write_text("def f(a, b): return (a - b).sum()\nx = 3\n")
        monkeypatch.chdir(tmp_path)
        function = load_function("own_losses:f")
        assert LossFunction(function, NUMPY)(np.ones((2, 2)), np.zeros((2, 2))) == 4.0
        for path, said in (
            ("own_losses", "must be MODULE:FUNCTION"),
            ("own_losses:g", "has no 'g'"),
            ("own_losses:x", "is no function"),
            ("nowhere_losses:f", "there is no module 'nowhere_losses'"),
        ):
            with pytest.raises(FunctionError, match=said):
                load_function(path)
        assert "" not in sys.path[:1]

    def test_what_it_imports_when_called_is_found(self, monkeypatch, tmp_path: Path) -> None:
        (tmp_path / "late_losses.py").write_text("def f(a, b): import late_part; return 1.0\n")
        (tmp_path / "late_part.py").write_text("")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
        function = LossFunction(load_function("late_losses:f"), NUMPY)
        assert function(np.ones((2, 2)), np.ones((2, 2))) == 1.0

    def test_an_import_that_fails_is_said(self, monkeypatch, tmp_path: Path) -> None:
        (tmp_path / "broken_losses.py").write_text("import nowhere_at_all\n")
        (tmp_path / "torn_losses.py").write_text("1 / 0\n")
        (tmp_path / "exiting_losses.py").write_text("import sys; sys.exit(0)\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(FunctionError, match="ModuleNotFoundError: No module named 'nowhere"):
            load_function("broken_losses:f")
        with pytest.raises(FunctionError, match="ZeroDivisionError"):
            load_function("torn_losses:f")
        with pytest.raises(FunctionError, match="SystemExit"):
            load_function("exiting_losses:f")
        with pytest.raises(RequirementError, match="SystemExit"):
            backends_of("exiting_losses")

    @pytest.mark.parametrize(
        ("function", "said"),
        [
            (lambda a, b: (1.0, 2.0), "must return one real number; it returned tuple"),
            (lambda a, b: None, "must return one real number; it returned NoneType"),
            (lambda a, b: a, r"must return one real number; it returned .* shape \(2, 2\)"),
            (lambda a, b: True, "must return one real number; it returned bool"),
            (
                lambda a, b: 1 / 0,
                r"raised ZeroDivisionError: .* \(for two numpy arrays of float64",
            ),
            (lambda a: a, "raised TypeError"),
            (lambda a, b: sys.exit(0), "raised SystemExit"),
            (lambda a, b: 10**400, "must return a real number"),
        ],
    )
    def test_what_returns_no_number_is_refused_in_one_line(self, function, said: str) -> None:
        with pytest.raises(FunctionError, match=said) as raised:
            LossFunction(function, NUMPY)(np.ones((2, 2)), np.ones((2, 2)))
        assert "\n" not in str(raised.value)

    def test_the_arrays_it_is_given_are_its_own(self) -> None:
        def spoils(a, b):
            a *= 0
            return float(b.sum())

        view = np.ones((2, 2))
        assert LossFunction(spoils, NUMPY)(view, view) == 4.0
        assert (view == 1).all()
