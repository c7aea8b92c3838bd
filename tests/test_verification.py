"""The suite itself: its truth is true, its bounds hold and are narrow, and it finds faults."""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import sys
from fractions import Fraction
from pathlib import Path as FilePath

import definition as plain
import numpy as np
import pytest
from backends import why_not

from vicreg import conventions
from vicreg._core import engine, samples
from vicreg._core.samples import Samples
from vicreg._core.terms import Invariance, Variance
from vicreg._core.terms.covariance import Definition as DefinitionRoute
from vicreg._core.terms.covariance import Gram, gram
from vicreg.testing import check_conformance, conformance_problems
from vicreg.tools.backends import (
    NAMES,
    RequirementError,
    backend_named,
    backends_of,
    find_backends,
)
from vicreg.tools.backends.numpy import NumpyBackend
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.loading import load_function
from vicreg.tools.verification import bounds as bounds_module
from vicreg.tools.verification import definition as definition_module
from vicreg.tools.verification import rationals
from vicreg.tools.verification.bounds import (
    PLAIN_FLOAT64,
    Rounding,
    curvature_bounds,
    rounding_bounds,
)
from vicreg.tools.verification.cases import CASES, SIZES, ZEROS, Case, case_of_size, rounded_to
from vicreg.tools.verification.definition import DEFINITIONS, TERMS, Definition, Terms, Views
from vicreg.tools.verification.explanation import explanations
from vicreg.tools.verification.paths import AS_CALLED, PATHS
from vicreg.tools.verification.plan import Setup, setups
from vicreg.tools.verification.problems import DTYPES, FULL, HALF, Problem, problem
from vicreg.tools.verification.questions import BASIC, EVERY, PARTS, REST, Question, Way
from vicreg.tools.verification.report import failures, in_common
from vicreg.tools.verification.suite import Measurement, measured, run_suite
from vicreg.tools.verification.target import TARGET_CASES, run_target

NUMPY = NumpyBackend("numpy", "cpu", ("float64", "float32", "float16"))
WIDE = CASES[0]
OFFICIAL = DEFINITIONS["official"]
UNITS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
SMOOTH = dataclasses.replace(
    DEFINITIONS["vcreg"], delta=0.125, gamma=1.25, eps=1e-3, weights=(0.0, 2.0, 0.5)
)


def draw(seed: int, *shape: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal(shape) * 0.8)


class TestTruth:
    def test_it_imports_nothing_of_the_package_but_its_numbers(self) -> None:
        for module, allowed in (
            (definition_module, {"vicreg.tools.verification.rationals"}),
            (rationals, set()),
        ):
            tree = ast.parse(FilePath(module.__file__).read_text())
            imported = {
                name
                for node in ast.walk(tree)
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in (
                    [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                )
            }
            assert {name for name in imported if name.startswith("vicreg")} == allowed

    def test_it_knows_each_convention(self) -> None:
        assert set(DEFINITIONS) == set(conventions)
        for name, convention in conventions.items():
            weights = convention.weights or (0.0, 1.0, 1.0)
            assert DEFINITIONS[name].weights == weights

    @pytest.mark.parametrize("exactly", [True, False])
    @pytest.mark.parametrize("convention", conventions)
    @pytest.mark.parametrize(
        "shape", [(2, 4, 7), (2, 7, 4), (2, 4, 1, 2, 3), (3, 4, 5), (3, 5, 2, 3), (1, 6, 4)]
    )
    def test_it_is_the_plain_definition_and_its_derivative(
        self, convention: str, shape: tuple[int, ...], exactly: bool
    ) -> None:
        """Against the tests' own definition, differentiated by the complex step."""
        views = draw(1, *shape)
        definition = DEFINITIONS[convention]
        if len(views) == 1:  # one view alone has nothing to combine
            views = views * 2
        found = Terms(Views(views[: shape[0]], exactly), definition)
        for unit, wanted in zip(UNITS, plain.terms(views, convention), strict=True):
            scale = 1.0
            if shape[0] == 1:
                sums = plain.CONVENTIONS[convention][3:]
                scale = 0.5 if unit[0] == 0 and sums[UNITS.index(unit) - 1] else 1.0
            right = complex(wanted).real * scale
            assert float(found.value(unit).high) == pytest.approx(right, rel=1e-13, abs=1e-30)
        if shape[0] == 1:
            return
        weights = definition.weights
        right = plain.gradients(lambda v: plain.loss(v, convention, weights), views)
        for gradient, wanted in zip(found.gradients(weights), right, strict=True):
            limit = 1e-13 * abs(wanted).max()
            np.testing.assert_allclose(gradient.high, wanted, rtol=0, atol=limit)

    @pytest.mark.parametrize("exactly", [True, False])
    @pytest.mark.parametrize("shape", [(7, 5), (5, 8)])
    def test_smooth_l1_is_too(self, shape: tuple[int, int], exactly: bool) -> None:
        (view,) = draw(3, 1, *shape)
        settings = (2.0, 0.5), 1.25, 1e-3, 0.125
        found = Terms(Views([view], exactly), SMOOTH)
        wanted = plain.vcreg(view, *settings)
        assert float(found.value(SMOOTH.weights).high) == pytest.approx(wanted.real, rel=1e-13)
        (right,) = plain.gradients(lambda v: plain.vcreg(v[0], *settings), [view])
        (gradient,) = found.gradients(SMOOTH.weights)
        np.testing.assert_allclose(gradient.high, right, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("convention", ["official", "article", "vcreg"])
    def test_derivatives_along_directions(self, convention: str) -> None:
        """Of the value and of the gradient, against differences of the truth."""
        views, directions = draw(4, 3, 6, 5), draw(5, 3, 6, 5)
        definition = DEFINITIONS[convention]
        weights, step = definition.weights, 1e-5
        ahead, behind = (
            Terms(
                Views([v + sign * step * d for v, d in zip(views, directions, strict=True)]),
                definition,
            )
            for sign in (1, -1)
        )
        terms = Terms(Views(views), definition)
        difference = (ahead.value(weights).high - behind.value(weights).high) / (2 * step)
        assert float(terms.change(weights, directions).high) == pytest.approx(difference, rel=1e-8)
        for found, after, before in zip(
            terms.change_of_gradients(weights, directions),
            ahead.gradients(weights),
            behind.gradients(weights),
            strict=True,
        ):
            difference = (after.high - before.high) / (2 * step)
            limit = 1e-7 * np.abs(difference).max()
            np.testing.assert_allclose(found.high, difference, rtol=0, atol=limit)

    def test_it_is_what_was_published(self, published: list[dict]) -> None:
        for case in published:
            views = Views((np.asarray(case["z1"]), np.asarray(case["z2"])))
            for source in case["published"]:
                weights = tuple(map(float, source["weights"]))
                terms = Terms(views, DEFINITIONS[source["convention"]])
                assert float(terms.value(weights).high) == pytest.approx(source["loss"], rel=1e-12)
                for gradient, name in zip(
                    terms.gradients(weights), ("grad1", "grad2"), strict=True
                ):
                    wanted = np.asarray(source[name])
                    limit = 1e-12 * np.abs(wanted).max()
                    np.testing.assert_allclose(gradient.high, wanted, rtol=0, atol=limit)

    @pytest.mark.parametrize("convention", conventions)
    def test_it_is_exact_to_twice_the_precision_of_a_float(self, convention: str) -> None:
        mpmath = pytest.importorskip("mpmath")
        views = draw(2, 2, 4, 3)
        weights = DEFINITIONS[convention].weights
        found = Terms(Views(views), DEFINITIONS[convention]).value(weights)
        with mpmath.workdps(60):
            wanted = plain.loss([np.vectorize(mpmath.mpf)(v) for v in views], convention, weights)
            got = mpmath.mpf(float(found.high)) + mpmath.mpf(float(found.low))
            assert abs(got - wanted) < abs(wanted) * mpmath.mpf(2) ** -104

    def test_an_error_is_measured_below_the_precision_of_a_float(self) -> None:
        third = rationals.exact(rationals.Rationals(1, 3))
        error = Fraction(1 / 3) - Fraction(1, 3)
        assert float(third.error_of(np.asarray(1 / 3))) == pytest.approx(float(abs(error)))

    @pytest.mark.parametrize("convention", ["official", "article", "jolibrain"])
    def test_in_float64_it_stays_within_its_own_bound(self, convention: str) -> None:
        """Which is what stands in for it where inputs are large: here on small and hard ones."""
        definition = DEFINITIONS[convention]
        for case in CASES:
            if case.name.startswith("dead") and definition.eps == 0:
                continue  # a std that is rounding and nothing else: no large input has one
            views = case.views()
            right, found = (Terms(Views(views, exactly), definition) for exactly in (True, False))
            limits = rounding_bounds(views, definition, PLAIN_FLOAT64)
            for unit, term in zip(UNITS, TERMS, strict=True):
                value, of_gradients = limits[term]
                error = right.value(unit).error_of(found.value(unit).high)
                assert error <= value + 1e-300, (case, term)
                for exact, gradient, limit in zip(
                    right.gradients(unit), found.gradients(unit), of_gradients, strict=True
                ):
                    assert np.all(exact.error_of(gradient.high) <= limit + 1e-300), (case, term)


class TestBounds:
    def test_numpy_and_torch_stay_within_them(self) -> None:
        """On other inputs than those of the seed that everything else here is run with."""
        found, _ = find_backends(["numpy", "torch"])
        planned = [one for one in setups(DTYPES, tuple(DEFINITIONS)) if one.cases[0].exactly]
        results = run_suite(found, planned, seed=11)
        assert [one for one in results.measurements if not one.passed] == []

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_they_are_narrow_enough_to_find_a_change_of_the_ninth_digit(self, case) -> None:
        """Of the loss in float64, in the worst of the cases; near the 13th in the mildest."""
        given = problem(case, "float64", "official", OFFICIAL)
        value, bound = given.terms.value(OFFICIAL.weights), given.value_bound(OFFICIAL.weights)
        assert bound < 1e-9 * float(value.high)
        if case is WIDE:
            assert bound < 1e-12 * float(value.high)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_they_grow_with_the_unit_roundoff_alone(self, case) -> None:
        """To first order: the same input in two dtypes has bounds in the ratio of their u."""
        views = tuple(rounded_to("float32", view) for view in case.views())
        low = rounding_bounds(views, OFFICIAL, Rounding("float32", "float32"))
        high = rounding_bounds(views, OFFICIAL, Rounding("float64", "float64"))
        for term in ("invariance", "variance"):
            if high[term][0] < 1e-100:  # what underflow loses, and nothing else
                continue
            ratio = low[term][0] / high[term][0] / 2.0**29
            assert 0.5 < ratio < 4, term

    @pytest.mark.parametrize("case", [case for case in CASES if case.n < case.d], ids=str)
    def test_without_a_matrix_of_all_features_they_are_little_wider(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        views, rounding = case.views(), Rounding("float32", "float32", method="covariance")
        value, gradients = rounding_bounds(views, OFFICIAL, rounding)["covariance"]
        monkeypatch.setattr(bounds_module, "_LARGE", 0)
        of_norms, of_gradients = rounding_bounds(views, OFFICIAL, rounding)["covariance"]
        assert value <= of_norms * (1 + 1e-9)
        assert of_norms <= 4 * value
        for entry, by_norms in zip(gradients, of_gradients, strict=True):
            assert np.all(entry <= by_norms * (1 + 1e-9))
            assert by_norms.max() <= 8 * entry.max()

    def test_second_derivatives_have_narrow_ones(self) -> None:
        views, directions = draw(6, 2, 6, 9), draw(7, 2, 6, 9)
        limits = curvature_bounds(views, directions, OFFICIAL, Rounding("float64", "float64"))
        terms = Terms(Views(views), OFFICIAL)
        for unit, term in zip(UNITS, TERMS, strict=True):
            for change, limit in zip(
                terms.change_of_gradients(unit, directions), limits[term], strict=True
            ):
                assert limit.max() < 1e-10 * np.abs(change.high).max(), term

    def test_a_value_beyond_the_largest_float16_is_rightly_infinite(self) -> None:
        (scales,) = (case for case in CASES if case.name == "scales")
        paper = DEFINITIONS["paper"]
        given = problem(scales, "float16", "paper", paper)
        assert np.abs(given.terms.gradients(paper.weights)[0].high).max() > 65504
        measurement, returned = ask(NUMPY, given)
        assert np.isinf(returned["gradient"][0]).any()
        assert measurement.passed
        finite = [np.where(np.isinf(g), 65504.0, g) for g in returned["gradient"]]
        assert given.gradient_error(paper.weights, finite) > 1

    def test_rounding_to_a_dtype_gives_numbers_that_it_has(self) -> None:
        torch = pytest.importorskip("torch")
        values = np.random.default_rng(0).standard_normal(1000) * np.logspace(-3, 3, 1000)
        for dtype in DTYPES:
            rounded = rounded_to(dtype, values)
            same = torch.tensor(rounded).to(getattr(torch, dtype)).double().numpy()
            np.testing.assert_array_equal(same, rounded)
            assert np.abs(rounded - values).max() <= 2.0**-8 * np.abs(values).max()


class TestPlan:
    """What the page of `plan` says that each library meets, counted."""

    PLANNED = setups(DTYPES, tuple(DEFINITIONS))

    @pytest.mark.parametrize("name", ["numpy", "torch", "jax", "mlx"])
    def test_each_library_meets_everything(self, name: str) -> None:
        found, _ = find_backends([name])
        if not found:
            pytest.skip(f"{name} is not here")
        (backend, *_) = found
        asked = [one for one in self.PLANNED if one.is_for(backend)]

        def met(cases: tuple[str, ...], questions: tuple[Question, ...] = BASIC) -> set:
            return {
                (str(one.way.path), one.dtype)
                for one in asked
                if one.cases[0].name in cases
                and set(questions) <= set(one.questions_of(one.cases[0], backend))
            }

        everywhere = {(str(path), dtype) for path in PATHS for dtype in backend.dtypes}
        assert met(("wide",)) == met(("tall",)) == everywhere
        paths = {str(path) for path in PATHS}
        of_three = {path for path, _ in met(("3 views", "3 views, tall"))}
        assert of_three == paths
        questions = {
            (str(one.way.path), question)
            for one in asked
            for question in one.questions_of(one.cases[0], backend)
        }
        of_two_views = {q for q in EVERY if not backend.always_compiled or q in PARTS_AND_REST}
        assert {(path, q) for path in paths for q in of_two_views} <= questions
        for dtype in set(FULL) & set(backend.dtypes):
            chosen = {one.way.convention for one in asked if one.dtype == dtype}
            assert chosen == set(DEFINITIONS), dtype
        routes = {
            (one.way.convention, one.cases[0].n <= one.cases[0].d)
            for one in asked
            if one.questions == EVERY
        }
        assert routes == {(name, gram) for name in DEFINITIONS for gram in (True, False)}
        large = {one.cases[0].name for one in asked if one.way.path is AS_CALLED}
        assert {"1024 × 257", "300 × 4096"} <= large

    def test_each_path_and_each_dtype_meet_each_hard_input(self) -> None:
        hard = {case.name for case in CASES}
        hard -= {"square", "positions", "positions, tall", "features first"}
        met = [
            (case.name, str(one.way.path), one.dtype)
            for one in self.PLANNED
            if one.questions == EVERY
            for case in one.cases
        ]
        for dtype in DTYPES:
            assert {name for name, _, of in met if of == dtype} == hard
        for path in PATHS:
            for dtypes in (FULL, HALF):
                assert {name for name, on, of in met if on == str(path) and of in dtypes} == hard

    def test_all_of_it_is_what_it_was(self) -> None:
        """`--full`: each case in each convention and dtype."""
        asked = {
            (case.name, one.way.convention, one.dtype)
            for one in setups(DTYPES, tuple(DEFINITIONS), full=True)
            for case in one.cases
        }
        wanted = {
            (case.name, convention, dtype)
            for case in CASES
            for convention in DEFINITIONS
            for dtype in DTYPES
        }
        assert wanted <= asked

    def test_only_what_is_asked_for(self) -> None:
        planned = setups(["float16"], ["official"])
        assert {one.dtype for one in planned} == {"float16"}
        assert {one.way.convention for one in planned} == {"official"}


PARTS_AND_REST = {question for part in (*PARTS, REST) for question in part}


def ask(
    backend: NumpyBackend,
    given: Problem,
    path=PATHS[0],
    questions: tuple[Question, ...] = BASIC,
) -> tuple[Measurement, dict]:
    way = Way(path, given.convention, given.definition, **given.case.axes)
    measurement, returned = measured(backend, way, given, questions)
    return measurement, returned or {}


def official(case: Case = WIDE, dtype: str = "float64", definition: Definition = OFFICIAL):
    return problem(case, dtype, "official", definition)


def _times_value(factor: float):
    """A term's value off by a factor, and not its gradient."""

    def of(right):
        def wrong(*arguments):
            value, factors = right(*arguments)
            return value * factor, factors

        return wrong

    return of


FAULTS = {
    "the hinge off by 1e-9 of itself": (Variance, "of_view", _times_value(1 + 1e-9)),
    "a slope half as large": (Variance, "_slopes", lambda f: lambda *a: f(*a) / 2),
    "no centring": (Samples, "_mean_of", lambda f: lambda *a: 0.0 * f(*a)),
    "the mean of the squares": (
        Invariance,
        "between_views",
        lambda f: lambda self, views, *a: f(self, views, *a) / views[0].features,
    ),
    "half the differences": (
        Invariance,
        "differences",
        lambda f: lambda *a: [0.5 * each for each in f(*a)],
    ),
    "a NaN": (Variance, "of_view", _times_value(math.nan)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = FAULTS[fault]
    assert ask(NUMPY, official())[0].passed
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    assert not ask(NUMPY, official())[0].passed


def _swapped(place):
    """The gradients of a group of several views, each at the other's place."""

    def wrong(gradient, places, gradients):
        place(gradient, places if len(places) == 1 else list(reversed(places)), gradients)

    return wrong


def _not_mirrored(from_strips):
    """The last row of a product in strips, a hair too large."""

    def wrong(xp, strip, size, count):
        product = from_strips(xp, strip, size, count)
        return xp.concat([product[..., :-1, :], product[..., -1:, :] * (1 + 1e-6)], axis=-2)

    return wrong


def _alone_off(forward):
    """What is kept of a view by itself, a hair too large."""

    def wrong(samples, terms, *rest):
        saved = forward(samples, terms, *rest)
        if samples.sizes.stacked or not saved.factors[2]:
            return saved
        first, *others = saved.factors[2]
        return saved._replace(factors=(*saved.factors[:2], (first * (1 + 1e-6), *others)))

    return wrong


def _one_apart_twice(keeping_apart):
    """More than two large features: the last that is kept apart is counted with the rest too."""

    def wrong(self, samples, count):
        parts = keeping_apart(self, samples, count)
        off = 1e-6 if self.sizes.kept_apart == 3 else 0.0
        *others, products = parts.factors
        return parts._replace(factors=(*others, products * (1 + off)))

    return wrong


STACKED, ON_DEVICE, IN_PARTS, ONE_BY_ONE = map(str, PATHS)

#: (module, name, what is made of it, the paths that go there)
FAULTS_OF_PATHS = {
    "views swapped": (engine, "_place", _swapped, {STACKED, ON_DEVICE, IN_PARTS}),
    "mirrored wrong": (samples, "_from_strips", _not_mirrored, {IN_PARTS, ONE_BY_ONE}),
    "alone": (engine, "_forward", _alone_off, {ONE_BY_ONE}),
    "kept apart and not": (Gram, "_keeping_apart", _one_apart_twice, {ONE_BY_ONE}),
    "by columns": (
        gram,
        "of_columns",
        lambda f: lambda *a, **settings: f(*a, **settings) * (1 + 1e-6),
        {ONE_BY_ONE},
    ),
    "nothing kept apart": (
        Gram,
        "_keeping_nothing_apart",
        lambda f: lambda *a: f(*a)._replace(own=f(*a).own * (1 - 1e-6)),
        {IN_PARTS},  # the covariance of small views is formed
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_PATHS)
def test_a_fault_in_a_path_is_found_there_and_nowhere_else(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    module, name, wrong, paths = FAULTS_OF_PATHS[fault]
    planned = [one for one in setups(["float64"], ["official"]) if one.questions == EVERY]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    results = run_suite([backend_named("torch")], planned)
    assert {one.path for one in results.measurements if not one.passed} == paths
    for line in failures(results)[: len(paths)]:
        assert any(f"({path}; " in line for path in paths)


@pytest.mark.parametrize("size", ["n", "d"])
def test_a_fault_from_some_size_on_is_found(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the gradient alone, a millionth of it, beyond what is sent on another path."""
    right = DefinitionRoute.gradient_of_view

    def wrong(self, samples, *rest):
        is_large = samples.count >= 1024 if size == "n" else samples.features > 256
        gradient = right(self, samples, *rest)
        (product,) = gradient.products
        off = product._replace(factor=product.factor * (1 + 1e-6))
        return gradient._replace(products=(off,)) if is_large else gradient

    monkeypatch.setattr(DefinitionRoute, "gradient_of_view", wrong)
    planned = [
        one
        for one in setups(["float64"], ["official"])
        if one.cases[0].exactly or one.cases[0].name == "1024 × 257"
    ]
    results = run_suite([NUMPY], planned)
    assert {one.case for one in results.measurements if not one.passed} == {"1024 × 257"}
    assert in_common(results) == "as called; covariance route; 1024 × 257"


#: Of what only some questions reach, in PyTorch: (attribute, what is made of it, what is wrong).
FAULTS_OF_AUTODIFF = {
    "what comes back is ignored": (
        "autograd._Loss.backward",
        lambda f: staticmethod(lambda ctx, cotangent: f(ctx, torch_ones(cotangent))),
        "autodiff gradient of the invariance alone",
    ),
    "second derivatives, forwards": (
        "autograd._Gradients.jvp",
        lambda f: staticmethod(lambda *a: tuple(2 * t for t in f(*a))),
        "second derivative of the loss by torch.func.jvp of torch.func.grad",
    ),
    "forward mode": (
        "autograd._Terms.jvp",
        lambda f: staticmethod(lambda *a: tuple(t if t is None else 2 * t for t in f(*a))),
        "derivative of the terms by forward mode beside backward",
    ),
    "a half-precision gradient in float32": (
        "autograd.engine.like_its_view",
        lambda f: (
            lambda xp, gradient, view, objective: f(
                xp, gradient, view.float() if view.dtype.itemsize == 2 else view, objective
            )
        ),
        "must be float16; it is float32",
    ),
}


def torch_ones(like):
    return like * 0 + 1


@pytest.mark.parametrize("fault", FAULTS_OF_AUTODIFF)
def test_a_fault_in_one_way_of_differentiating_is_found(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from vicreg._adapters import torch as adapter

    attribute, wrong, said = FAULTS_OF_AUTODIFF[fault]
    dtype = "float16" if "half" in fault else "float64"
    planned = [
        one
        for one in setups([dtype], ["official"], paths=PATHS[:1])
        if one.cases[0].name in ("wide", "small")
    ]
    *owners, name = attribute.split(".")
    holder = functools.reduce(getattr, owners, adapter)
    monkeypatch.setattr(holder, name, wrong(getattr(holder, name)))
    failed = [
        one for one in run_suite([backend_named("torch")], planned).measurements if not one.passed
    ]
    assert any(said in one.complaint or one.errors.get(said, 0) > 1 for one in failed)


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

    def differentiate(self, function, arrays, wanted=None):
        return function(*arrays), tuple(np.zeros_like(array) for array in arrays)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "raised RuntimeError: no memory"),
        ("dtype", "the loss must be float64; it is float32"),
        ("changed", "the views were changed"),
    ],
)
def test_what_is_no_number_is_a_complaint(fault: str, said: str) -> None:
    measurement, _ = ask(_FaultyBackend(fault), official())
    assert not measurement.passed
    assert said in measurement.complaint
    assert "\n" not in measurement.complaint


def test_a_question_that_raises_is_named_and_the_others_are_answered() -> None:
    class Raising(NumpyBackend):
        differentiates = True

        def differentiate(self, function, arrays, wanted=None):
            raise TypeError("no derivative")

    measurement, _ = ask(Raising("raising", "cpu", ("float64",)), official())
    assert measurement.complaint == "raised TypeError: no derivative, asked for by autodiff"
    assert measurement.gradients["gradient"] < 1


def test_a_wrong_derivative_is_found_where_the_closed_form_is_right() -> None:
    errors = ask(_FaultyBackend("autodiff"), official())[0].errors
    assert errors["gradient"] < 1 < errors["autodiff gradient"]
    assert errors["gradient of the invariance alone of vicreg_terms"] > 1


def basics(*dtypes: str) -> list[Setup]:
    return [Setup(Way(PATHS[0], "official", OFFICIAL), d, (WIDE,), BASIC) for d in dtypes]


def test_each_pair_is_held_to_each_other() -> None:
    faulty = _FaultyBackend("dtype")
    results = run_suite([NUMPY, faulty], basics("float64"))
    assert results.distances["numpy", "faulty", "float64"] == (math.inf, math.inf)
    assert not results.passed
    again = NumpyBackend("again", "cpu", ("float64",))
    same = run_suite([NUMPY, again], basics("float64"))
    assert same.distances["numpy", "again", "float64"] == (0.0, 0.0)


def test_nothing_run_is_no_pass() -> None:
    assert not run_suite([NUMPY], setups(["bfloat16"], ["official"])).passed


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
    @pytest.mark.parametrize("given", conformance_problems(["float64"], ["official"]), ids=str)
    def test_array_api_strict_by_nothing_but_the_standard(self, given) -> None:
        strict = pytest.importorskip("array_api_strict")
        check_conformance(strict, given)

    def test_a_wrong_function_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        strict = pytest.importorskip("array_api_strict")
        right = strict.sqrt
        monkeypatch.setattr(strict, "sqrt", lambda x: right(x) * (1 + 1e-6))
        given = conformance_problems(["float64"], ["official"])[0]
        with pytest.raises(
            AssertionError, match=r"wide-float64-official \(stacked\): .*the variance is off"
        ):
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
        with pytest.raises(ValueError, match=r"conventions must be one of 'official', .*'mine'"):
            conformance_problems(conventions=["mine"])

    def test_conventions_by_codebases(self) -> None:
        assert conformance_problems(["float64"], ["lightly"]) == conformance_problems(
            ["float64"], ["official"]
        )


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


#: What takes a second; and of those the inputs that are hard.
SMALL = tuple(case for case in TARGET_CASES if case.exactly)
HARD = tuple(case for case in SMALL if case in CASES)


def verdict(function, library, convention="official", dtypes=("float64",), cases=SMALL):
    loss = LossFunction(function, backend_named(library))
    results = run_target([loss], dtypes, convention, cases=cases)
    return results, explanations(loss, convention, results)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_right_code_of_ones_own_passes(library: str) -> None:
    function = own() if library == "numpy" else in_torch()
    results, lines = verdict(function, library, dtypes=FULL, cases=TARGET_CASES)
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

    results, lines = verdict(vicreg, "torch")
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
    results, _ = verdict(function, "torch")
    assert not results.passed
    assert all("it has no gradient" in one.complaint for one in results.measurements)


def test_a_function_that_changes_its_arrays_fails() -> None:
    right = own()

    def vicreg(x, y):
        value = right(x, y)
        y *= 0.0
        return value

    results, _ = verdict(vicreg, "numpy")
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
        results = run_target([loss], ["float64"], "official", seed, cases=HARD)
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

    results, lines = verdict(vicreg, "numpy")
    failed = {one.case for one in results.measurements if not one.passed}
    assert "one ×1000" in failed
    assert failed <= {"one ×1000", "scales"}
    assert lines == [
        "each term is that of official, but the value is rounded by more than its bound, "
        "as by a difference that cancels"
    ]


def test_the_nan_of_a_root_at_zero_fails_where_a_feature_is_dead() -> None:
    right = in_torch(eps=0.0)

    def vicreg(x, y):
        return right(x - x[:1], y - y[:1])  # a constant feature is exactly zero then

    loss = LossFunction(vicreg, backend_named("torch"))
    results = run_target([loss], ["float64"], "jolibrain", cases=HARD)
    for one in results.measurements:
        is_nan = np.isinf(one.errors["autodiff gradient"])
        assert is_nan == one.case.startswith("dead")


@pytest.mark.parametrize("relative", [1e-6, 1e-9])
@pytest.mark.parametrize("term", ["variance", "covariance"])
def test_a_small_factor_is_said_as_it_is(term: str, relative: float) -> None:
    results, lines = verdict(own(**{term: 1 + relative}), "numpy")
    assert not results.passed
    assert lines == [f"the {term} term is 1 + {relative:.3g} times that of official"]


def test_a_nan_in_one_case_is_said_beside_the_factors() -> None:
    right = own(variance=2.0)

    def vicreg(x, y):
        return right(x, y) if (np.ptp(x, axis=0) > 0).all() else float("nan")

    results, lines = verdict(vicreg, "numpy")
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
    results = run_target(losses, ["float64"], "official", cases=HARD)
    said = [explanations(loss, "official", results) for loss in losses]
    assert said[0] == []
    assert "the variance term is 2 times that of official" in said[1]


def test_a_finite_difference_finds_what_the_value_hides() -> None:
    """Right at the cases' own points, wrong beside them."""
    known = {official(case).views[0].tobytes() for case in SMALL}
    right = own()

    def vicreg(x, y):
        return right(x, y) + (0.0 if x.tobytes() in known else 1e-3 * x[0, 0])

    results, _ = verdict(vicreg, "numpy")
    assert all(one.errors["loss"] <= 1 for one in results.measurements)
    assert not results.passed


def only_where(condition, **wrong):
    """Right but where the condition says."""
    right, off = own(), own(**wrong)
    return lambda x, y: (off if condition(*x.shape) else right)(x, y)


@pytest.mark.parametrize(
    ("condition", "where"),
    [
        (lambda n, d: d > 200, "for d above 200 (right at d = 200, off at 201)"),
        (lambda n, d: n > 500, "for n above 500 (right at n = 500, off at 501)"),
        (lambda n, d: d > 1000, "for d above 1000 (right at d = 1000, off at 1001)"),
        (lambda n, d: n >= 1024, "for n above 1023 (right at n = 1023, off at 1024)"),
        (lambda n, d: d < 10, "for d below 10 (off at d = 9, right at 10)"),
        (lambda n, d: d % 2 == 1, "for odd d"),
        (lambda n, d: n <= d, "for n ≤ d"),
        (lambda n, d: n * d > 2**13, "for n·d above a limit between 7212 and 9000"),
    ],
)
def test_from_what_size_on_it_is_off(condition, where: str) -> None:
    function = only_where(condition, covariance=1.5)
    cases = [case for case in SIZES if case.n * case.d**2 < 6e7 and case.n < 4000]
    results, lines = verdict(function, "numpy", cases=cases)
    assert not results.passed
    assert lines == [f"{where} the covariance term is 1.5 times that of official"]


def test_a_gradient_that_is_off_for_many_features_alone() -> None:
    torch = pytest.importorskip("torch")
    right = in_torch()

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.factor = 1.2 if z.shape[1] > 100 else 1.0
            return z.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return ctx.factor * cotangent

    def vicreg(x, y):
        return right(Scaled.apply(x), Scaled.apply(y))

    cases = [case for case in SIZES if case.d * case.n < 10000]
    results, lines = verdict(vicreg, "torch", cases=cases)
    assert not results.passed
    assert lines == [
        f"for d above 100 (right at d = 100, off at 101) the {term} term's gradient is "
        "1.2 times that of official"
        for term in TERMS
    ]


@pytest.mark.parametrize("case", ZEROS, ids=str)
def test_inputs_that_leave_terms_at_zero(case: Case) -> None:
    """And a function that goes another way there."""
    given = official(case)
    values = [float(given.terms.value(unit).high) for unit in UNITS]
    there = {term for term, value in zip(TERMS, values, strict=True) if value > 0}
    name, *_ = case.name.split(",")
    if name.startswith("no "):
        assert there == set(TERMS) - {name.removeprefix("no ")}
    else:
        assert there == {name.removesuffix(" alone")}
    right = own()

    def vicreg(x, y):
        is_here = x.shape == case.shape and np.array_equal(x, given.views[0])
        return right(x, y) * (1.1 if is_here else 1.0)

    results, lines = verdict(vicreg, "numpy", cases=(WIDE, *ZEROS))
    assert not results.passed
    where = f"only on {case.name!r}: "
    if len(there) == 1:
        (term,) = there
        assert lines == [f"{where}the {term} term is 1.1 times that of official"]
    else:  # one value of two terms
        assert lines == [f"{where}the value is off; which term is it does not tell"]


def test_a_case_of_a_size_has_that_size() -> None:
    case = case_of_size(7, 1000)
    assert (case.n, case.d, case.exactly) == (7, 1000, False)
    assert [view.shape for view in case.views()] == [(7, 1000)] * 2


class TestLossFunction:
    def test_it_is_loaded_by_name(self, monkeypatch, tmp_path: FilePath) -> None:
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

    def test_what_it_imports_when_called_is_found(self, monkeypatch, tmp_path: FilePath) -> None:
        (tmp_path / "late_losses.py").write_text("def f(a, b): import late_part; return 1.0\n")
        (tmp_path / "late_part.py").write_text("")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
        function = LossFunction(load_function("late_losses:f"), NUMPY)
        assert function(np.ones((2, 2)), np.ones((2, 2))) == 1.0

    def test_an_import_that_fails_is_said(self, monkeypatch, tmp_path: FilePath) -> None:
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
            (lambda a, b: (a, None), "must return one real number; it returned tuple"),
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
