"""The collapse diagnostics, against their definitions and what theory says of known batches."""

from __future__ import annotations

import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from array_api_extra.testing import lazy_xp_function
from backends import Backend
from errors import UNIT_ROUNDOFF, largest_error, rounding

import vicreg
from vicreg import (
    Diagnosis,
    conventions,
    covariance_loss,
    diagnose,
    invariance_loss,
    variance_loss,
)
from vicreg._core import collapse
from vicreg._core.layout import Axes
from vicreg._core.library import Library
from vicreg._verdicts import LEVELS

# On Dask with computing forbidden. On JAX what is measured is compiled whoever calls it; under
# jax.jit each test would compile it anew.
lazy_xp_function(diagnose, allow_dask_compute=False, jax_jit=False)

# JAX compiles each shape in each dtype once: the tests share these.
TALL, WIDE, SQUARE = (40, 7), (7, 40), (12, 12)
# Halves are computed in float32; JAX's own half is bfloat16.
NARROW = (
    pytest.param("float32"),
    pytest.param("float16", marks=pytest.mark.long_on("jax")),
    pytest.param("bfloat16"),
)
#: These have no singular values.
WITHOUT_LINALG = ("ndonnx", "mparray")
# What NumPy warns of where a term overflows in float32, as it does for the losses.
OVERFLOWS = pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def found(xp: Backend, values: Any, dtype: str | None = None, **settings: Any) -> Diagnosis:
    if xp.name in WITHOUT_LINALG:
        pytest.skip(f"{xp} has no singular values")
    return diagnose(xp.asarray(values, dtype), **settings)


def low(xp: Backend) -> str:
    if "float32" not in xp.dtypes:
        pytest.skip(f"{xp} has no float32")
    return "float32"


def value(xp: Backend, array: Any) -> float:
    return float(xp.numpy(array))


def orthogonal(n: int, d: int) -> np.ndarray:
    """Centred orthonormal columns."""
    basis, _ = np.linalg.qr(np.c_[np.ones(n), normal(n, d)])
    return basis[:, 1:]


def of_logarithms(xp: Backend, bound: float) -> float:
    """Return `bound`, or what MLX's exp is wrong by, which in float64 too is float32's."""
    return max(bound, 16 * UNIT_ROUNDOFF["float32"]) if xp.name == "mlx" else bound


def rank_of(values: np.ndarray) -> float:
    """The effective rank by its definition."""
    shares = values / values.sum()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def check_definitions(xp: Backend, diagnosis: Diagnosis, z: np.ndarray, dtype: str) -> None:
    """Assert that every measure is its definition in float64, `z` as it was rounded."""
    z = xp.numpy(xp.asarray(z, dtype)).astype(np.float64)
    z = z - z[0]  # no measure depends on an offset, beside which a mean would be rounded
    n, d = z.shape
    limit = min(n - 1, d)
    values = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)[:limit]
    std = z.std(axis=0, ddof=1)
    # A deviation from the first sample, taken to the mean, is rounded four times as its size is.
    # Singular values are wrong by that of the largest.
    bound = 4 * rounding("float64" if dtype == "float64" else "float32", n, d)
    assert (diagnosis.n, diagnosis.d, diagnosis.rank_limit) == (n, d, limit)
    assert largest_error(xp.numpy(diagnosis.std), std) <= bound
    assert value(xp, diagnosis.mean_std) == pytest.approx(std.mean(), rel=bound)
    assert value(xp, diagnosis.min_std) == pytest.approx(std.min(), abs=bound * std.max())
    assert value(xp, diagnosis.dead_features) == np.count_nonzero(np.ptp(z, axis=0) == 0)
    assert largest_error(xp.numpy(diagnosis.singular_values), values) <= bound
    # The entropy's derivative by a share p is 1 + ln p: its sum is at most 1 + ln(limit).
    assert value(xp, diagnosis.effective_rank) == pytest.approx(
        rank_of(values), rel=of_logarithms(xp, bound * limit * (1 + math.log(limit)))
    )
    ratio = np.sum(values**2) ** 2 / np.sum(values**4)
    assert value(xp, diagnosis.participation_ratio) == pytest.approx(ratio, rel=8 * bound)
    off = ~np.eye(d, dtype=bool)
    wanted = np.mean(np.abs(np.atleast_2d(np.corrcoef(z, rowvar=False)))[off]) if d > 1 else 0
    assert value(xp, diagnosis.mean_abs_correlation) == pytest.approx(wanted, abs=bound)


def offered(xp: Backend, dtype: str) -> str:
    """Return `dtype`, "widest" being what each library has; skip where there is none such."""
    if dtype == "widest":
        return xp.dtypes[0]
    if dtype not in xp.dtypes:
        pytest.skip(f"{xp} has no {dtype}")
    return dtype


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        pytest.param("widest", TALL, marks=pytest.mark.representative),
        pytest.param("widest", WIDE, marks=pytest.mark.representative),
        *(("widest", shape) for shape in (SQUARE, (2, 5), (5, 1), (2, 1))),
        *(
            pytest.param(*dtype.values, shape, marks=dtype.marks)
            for dtype in NARROW
            for shape in (TALL, WIDE)
        ),
        *(
            pytest.param(*dtype.values, shape, marks=pytest.mark.long)
            for dtype in NARROW
            for shape in (SQUARE, (2, 5), (5, 1), (2, 1))
        ),
    ],
    ids=str,
)
def test_every_measure_is_its_definition(xp: Backend, dtype: str, shape: tuple[int, int]) -> None:
    dtype = offered(xp, dtype)
    n, d = shape
    z = 0.5 + normal(n, d) @ (np.eye(d) + 0.1 * normal(d, d, seed=1))
    check_definitions(xp, found(xp, z, dtype), z, dtype)


def of_few_units(kind: str, dtype: str, n: int, d: int) -> np.ndarray:
    """A batch whose features vary by few units in the last place of their values."""
    unit = 2 * UNIT_ROUNDOFF[dtype]
    if kind == "one sample by one unit":
        return 1.25 + unit * np.eye(n)[:, np.arange(d) % n]
    return 1.2 + float(kind.partition(" ")[0]) * unit * normal(n, d)


@pytest.mark.parametrize("kind", ["one sample by one unit", "1.0 unit of std", "1.6 units of std"])
@pytest.mark.parametrize("shape", [TALL, WIDE], ids=str)
@pytest.mark.parametrize(
    "dtype", [pytest.param("widest", marks=pytest.mark.representative), *NARROW]
)
def test_what_varies_by_few_units_in_the_last_place_varies(
    xp: Backend, dtype: str, shape: tuple[int, int], kind: str
) -> None:
    """As float32 does at 1e7 with a std of 1, and bfloat16 at 10 with one of 0.1."""
    dtype = offered(xp, dtype)
    z = of_few_units(kind, dtype, *shape)
    check_definitions(xp, found(xp, z, dtype), z, dtype)


@pytest.mark.parametrize("block", [1, pytest.param(4, marks=pytest.mark.representative), 5, 256])
def test_the_correlations_in_blocks_of_any_size(xp: Backend, block: int) -> None:
    if xp.name in WITHOUT_LINALG:
        pytest.skip(f"{xp} has no diagnosis")
    z = normal(12, 10) + 0.5 * normal(12, 1, seed=1)
    wanted = np.abs(np.corrcoef(z, rowvar=False))[~np.eye(10, dtype=bool)].mean()
    array = xp.asarray(z)
    namespace = Library(xp.xp if xp.name == "mlx" else array_namespace(array))

    def mean_abs_correlation(z: Any) -> Any:
        # The correlations need no decomposition.
        measures = collapse.measure(namespace, z, Axes((-1,)), lambda batch: batch[0, :], block)
        return measures.mean_abs_correlation

    if xp.name == "jax":
        import jax

        # Of the rest nothing is asked, and so nothing compiled.
        mean_abs_correlation = jax.jit(mean_abs_correlation)
    bound = rounding(xp.dtypes[0], 12, 10)
    assert value(xp, mean_abs_correlation(array)) == pytest.approx(wanted, rel=bound)


def test_the_correlations_of_more_features_than_a_block() -> None:
    z = normal(6, 600) + 0.5 * normal(6, 1, seed=1)
    wanted = np.abs(np.corrcoef(z, rowvar=False))[~np.eye(600, dtype=bool)].mean()
    assert diagnose(z).mean_abs_correlation == pytest.approx(
        wanted, rel=rounding("float64", 6, 600)
    )


def test_the_terms_are_those_of_the_public_functions(xp: Backend) -> None:
    z, other = (xp.asarray(a) for a in (normal(*WIDE), normal(*WIDE, seed=1)))
    if xp.name in WITHOUT_LINALG:
        pytest.skip(f"{xp} has no singular values")
    for name in ("official", "paper", "article"):
        diagnosis = diagnose(z, other=other, convention=name)
        assert diagnosis.convention == name
        for got, right in (
            (diagnosis.variance, variance_loss(z, convention=name)),
            (diagnosis.covariance, covariance_loss(z, convention=name)),
            (diagnosis.invariance, invariance_loss(z, other, convention=name)),
        ):
            # One compiler may fuse what another call does not.
            assert value(xp, got) == pytest.approx(
                value(xp, right), rel=rounding(xp.dtypes[0], *WIDE)
            )
    assert diagnose(z).invariance is None


@pytest.mark.parametrize("name", conventions)
def test_every_convention_has_its_terms(name: str) -> None:
    z = normal(8, 5)
    assert diagnose(z, convention=name).variance == variance_loss(z, convention=name)


class TestKnownBatches:
    @pytest.mark.parametrize("shape", [TALL, (8, 7), WIDE], ids=str)
    def test_whitened_features_fill_every_direction(
        self, xp: Backend, shape: tuple[int, int]
    ) -> None:
        n, d = shape
        limit = min(n - 1, d)
        diagnosis = found(xp, orthogonal(n, limit) @ np.eye(limit, d) + 5)
        bound = 5 * math.sqrt(n) * rounding(xp.dtypes[0], n, d)
        assert value(xp, diagnosis.effective_rank) == pytest.approx(limit, rel=bound)
        assert value(xp, diagnosis.participation_ratio) == pytest.approx(limit, rel=bound)
        assert value(xp, diagnosis.mean_abs_correlation) <= bound
        assert value(xp, diagnosis.dead_features) == d - limit

    def test_one_direction(self, xp: Backend) -> None:
        diagnosis = found(xp, 1 + normal(40, 1) * np.arange(1.0, 8))
        assert value(xp, diagnosis.effective_rank) == 1
        assert value(xp, diagnosis.participation_ratio) == 1
        bound = rounding(xp.dtypes[0], *TALL)
        assert 1 - bound <= value(xp, diagnosis.mean_abs_correlation) <= 1
        # What rounding leaves of the others is zero.
        assert np.count_nonzero(xp.numpy(diagnosis.singular_values)) == 1

    def test_two_singular_values(self, xp: Backend) -> None:
        diagnosis = found(xp, orthogonal(40, 2) * [1, 3] @ np.eye(2, 7) + 5)
        bound = 5 * math.sqrt(40) * rounding(xp.dtypes[0], *TALL)
        rank = 4 / 3**0.75  # of the shares 1/4 and 3/4
        assert value(xp, diagnosis.effective_rank) == pytest.approx(
            rank, rel=of_logarithms(xp, bound)
        )
        assert value(xp, diagnosis.participation_ratio) == pytest.approx(100 / 82, rel=bound)
        got = xp.numpy(diagnosis.singular_values)
        np.testing.assert_allclose(got[:2], [3, 1], rtol=4 * bound)
        assert not got[2:].any()

    @pytest.mark.parametrize("dtype", NARROW)
    def test_low_rank_in_low_precision(self, xp: Backend, dtype: str) -> None:
        """The noise of rounding the batch fills every direction, and does not count."""
        if dtype not in xp.dtypes:
            pytest.skip(f"{xp} has no {dtype}")
        n, d = TALL if xp.name == "jax" else (200, 100)
        diagnosis = found(xp, normal(n, 1) * (1 + normal(1, d, seed=1) ** 2), dtype)
        assert value(xp, diagnosis.effective_rank) == 1

    @pytest.mark.long_on("jax")
    @pytest.mark.parametrize("scale", [1e-3, 1e3], ids=str)
    def test_low_rank_in_any_units(self, xp: Backend, scale: float) -> None:
        """What rounding leaves is judged by the units of the values."""
        if "bfloat16" not in xp.dtypes:
            pytest.skip(f"{xp} has no bfloat16")
        z = scale * normal(40, 1) * (1 + normal(1, 7, seed=1) ** 2)
        assert value(xp, found(xp, z, "bfloat16").effective_rank) == 1

    def test_a_sample_of_zeros_says_nothing_of_rounding(self) -> None:
        """Zero is exact, and the others vary by more than they were rounded by."""
        unit = 2 * UNIT_ROUNDOFF["float16"]
        z = 1.9 + 0.5 * unit * normal(*TALL)
        z[3] = 0
        diagnosis = diagnose((z / 64).astype(np.float16))
        assert np.count_nonzero(diagnosis.singular_values) == 7

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_directions_beside_a_feature_of_large_values(self, dtype: str) -> None:
        """The rounding of one feature says nothing of the others."""
        torch = pytest.importorskip("torch")
        z = normal(64, 20)
        unit = 2 * UNIT_ROUNDOFF[dtype]
        z[:, 0] = (1.2 + 2 * unit * z[:, 0]) * 32 / unit  # a std of 64, in steps of 32
        xp = Backend("torch")
        diagnosis = diagnose(torch.asarray(z).to(getattr(torch, dtype)))
        check_definitions(xp, diagnosis, z, dtype)

    def test_a_common_offset_is_no_direction(self, xp: Backend) -> None:
        """RankMe as it is used, not centred, calls this batch of full rank collapsed."""
        z = normal(*TALL)
        near, far = found(xp, z), found(xp, z + 1000)
        bound = 1000 * rounding(xp.dtypes[0], *TALL)
        assert value(xp, far.effective_rank) == pytest.approx(
            value(xp, near.effective_rank), rel=bound
        )


class TestCollapse:
    @pytest.mark.representative
    @pytest.mark.parametrize("constant", [0.1, -1e-20], ids=str)
    @pytest.mark.parametrize("shape", [TALL, WIDE], ids=str)
    def test_a_constant_batch(self, xp: Backend, constant: float, shape: tuple[int, int]) -> None:
        for dtype in set(xp.dtypes) & {"float32", "float64"}:
            diagnosis = found(xp, np.full(shape, constant), dtype)
            assert value(xp, diagnosis.dead_features) == shape[1]
            for measure in ("effective_rank", "participation_ratio", "mean_abs_correlation"):
                assert value(xp, getattr(diagnosis, measure)) == 0
            assert not xp.numpy(diagnosis.std).any()
            assert not xp.numpy(diagnosis.singular_values).any()
            assert value(xp, diagnosis.variance) == pytest.approx(0.99)
            assert value(xp, diagnosis.covariance) == 0

    def test_a_constant_batch_of_different_constants(self, xp: Backend) -> None:
        constants = [0.0, 0.1, 1e4 / 3, -1e-20, 1e30, -1.0, 7.0]
        diagnosis = found(xp, np.ones((40, 1)) * constants)
        assert value(xp, diagnosis.dead_features) == 7
        assert value(xp, diagnosis.effective_rank) == 0
        assert value(xp, diagnosis.variance) == pytest.approx(0.99)
        assert value(xp, diagnosis.covariance) == 0

    def test_one_unit_in_the_last_place_is_no_constant(self, xp: Backend) -> None:
        dtype = xp.dtypes[-1]
        z = np.full(TALL, 1.25)
        z[3, 1] += 2 * UNIT_ROUNDOFF[dtype]
        diagnosis = found(xp, z, dtype)
        assert value(xp, diagnosis.dead_features) == 6
        np.testing.assert_array_equal(np.flatnonzero(xp.numpy(diagnosis.std)), [1])
        assert value(xp, diagnosis.effective_rank) == 1
        assert value(xp, diagnosis.mean_abs_correlation) == 0  # no two features vary

    def test_what_varies_at_all_has_a_rank(self, xp: Backend) -> None:
        """One sample among many, a few units in the last place away: less than their noise."""
        z = np.ones((400, 1))
        z[5] += 16 * UNIT_ROUNDOFF[xp.dtypes[0]]
        diagnosis = found(xp, z)
        assert value(xp, diagnosis.dead_features) == 0
        assert value(xp, diagnosis.effective_rank) == 1

    @pytest.mark.long_on("jax")
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_is_not_mistaken_for_collapse(self, xp: Backend, dtype: str) -> None:
        """A bound that grows with n reaches 1 in half precision: all that is positive is dead."""
        if dtype not in xp.dtypes:
            pytest.skip(f"{xp} has no {dtype}")
        z = np.maximum(normal(2048, 3), 0)
        diagnosis = found(xp, z, dtype)
        assert value(xp, diagnosis.dead_features) == 0
        assert value(xp, diagnosis.effective_rank) == pytest.approx(3, rel=0.01)

    def test_dead_features_have_no_correlations(self, xp: Backend) -> None:
        z = normal(*TALL)
        z[:, 5:] = [1e30, 0.0]
        alone, beside = found(xp, z[:, :5]), found(xp, z)
        bound = rounding(xp.dtypes[0], *TALL)
        assert value(xp, beside.dead_features) == 2
        for measure in ("mean_abs_correlation", "effective_rank", "participation_ratio"):
            assert value(xp, getattr(beside, measure)) == pytest.approx(
                value(xp, getattr(alone, measure)), rel=4 * bound
            )
        np.testing.assert_array_equal(np.flatnonzero(xp.numpy(beside.std) == 0), [5, 6])


class TestScale:
    @OVERFLOWS
    @pytest.mark.parametrize("scale", [1e30, 1e-30], ids=str)
    def test_no_measure_overflows_or_vanishes(self, xp: Backend, scale: float) -> None:
        dtype = low(xp)
        z = normal(*TALL)
        plain, scaled = found(xp, z, dtype), found(xp, z * scale, dtype)
        bound = 4 * rounding(dtype, *TALL)
        for measure in ("mean_abs_correlation", "effective_rank", "participation_ratio"):
            assert value(xp, getattr(scaled, measure)) == pytest.approx(
                value(xp, getattr(plain, measure)), rel=bound
            )
        for measure in ("std", "singular_values"):
            got = xp.numpy(getattr(scaled, measure)).astype(np.float64) / scale
            assert largest_error(got, xp.numpy(getattr(plain, measure))) <= bound
        assert value(xp, scaled.dead_features) == 0

    def test_a_small_feature_beside_a_large_one(self, xp: Backend) -> None:
        dtype = low(xp)
        z, scales = normal(*TALL), [1, 1e-30, 1e-15, 1, 1e-5, 1, 1e-10]
        z[:, 2] += z[:, 0]
        plain, scaled = found(xp, z, dtype), found(xp, z * scales, dtype)
        bound = 4 * rounding(dtype, *TALL)
        assert value(xp, scaled.mean_abs_correlation) == pytest.approx(
            value(xp, plain.mean_abs_correlation), rel=bound
        )
        got = xp.numpy(scaled.std).astype(np.float64) / scales
        assert largest_error(got, xp.numpy(plain.std)) <= bound

    @pytest.mark.parametrize("seed", range(20))
    def test_every_measure_stays_in_its_range(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n, d, rank = int(rng.integers(2, 12)), int(rng.integers(1, 12)), int(rng.integers(1, 4))
        z = rng.standard_normal((n, rank)) @ rng.integers(-1, 2, (rank, d))
        z = (z * 10.0 ** rng.integers(-3, 4) + 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        diagnosis = diagnose(z)
        assert 0 <= diagnosis.mean_abs_correlation <= 1
        least = 1 if diagnosis.dead_features < d else 0
        for measure in (diagnosis.effective_rank, diagnosis.participation_ratio):
            assert least <= measure <= diagnosis.rank_limit
        values = diagnosis.singular_values
        assert values.shape == (diagnosis.rank_limit,)
        assert (np.diff(values) <= 0).all()


@pytest.mark.representative
@pytest.mark.parametrize(
    ("bad", "place"), [(math.nan, (0, 1)), (math.inf, (3, 1)), (-math.inf, (0, 1))], ids=str
)
@OVERFLOWS
def test_what_is_not_finite_gives_nan_and_no_error(
    xp: Backend, bad: float, place: tuple[int, int]
) -> None:
    z = normal(*TALL)
    z[place] = bad
    diagnosis = found(xp, z)
    for measure in (
        "mean_std",
        "min_std",
        "mean_abs_correlation",
        "effective_rank",
        "participation_ratio",
        "variance",
        "covariance",
    ):
        assert np.isnan(value(xp, getattr(diagnosis, measure))), measure
    assert np.isnan(xp.numpy(diagnosis.singular_values)).all()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(xp.numpy(diagnosis.std))), [1])


class TestLibraries:
    @pytest.mark.representative
    def test_arrays_of_the_callers_library_in_the_computing_dtype(self, xp: Backend) -> None:
        for dtype in xp.dtypes:
            z = xp.asarray(normal(*TALL), dtype)
            diagnosis = found(xp, normal(*TALL), dtype, other=z)
            wide = xp.asarray([0.0], "float64" if dtype == "float64" else "float32")
            for name, array in vars(diagnosis).items():
                if name in ("n", "d", "rank_limit", "convention"):
                    continue
                assert type(array) is type(z) or xp.name == "numpy", name
                assert isinstance(array, type(z)), name
                assert array.ndim == (1 if name in ("std", "singular_values") else 0)
                if name in ("dead_features", "unit_norm"):
                    assert {"dead_features": "int", "unit_norm": "bool"}[name] in str(array.dtype)
                else:
                    assert array.dtype == wide.dtype, name
                if hasattr(z, "device") and xp.name != "jax":
                    assert array.device == z.device, name

    @pytest.mark.representative
    def test_a_library_without_singular_values_says_so(self, xp: Backend) -> None:
        if xp.name not in WITHOUT_LINALG:
            pytest.skip(f"{xp} has them")
        with pytest.raises(NotImplementedError, match=rf"linalg extension .* {xp.name} does not"):
            diagnose(xp.asarray(normal(4, 3)))

    def test_features_on_the_first_axis(self, xp: Backend) -> None:
        z = normal(*TALL)
        wanted, got = found(xp, z), found(xp, z.T, feature_axis=0)
        assert (got.n, got.d) == TALL
        bound = rounding(xp.dtypes[0], *TALL)
        assert value(xp, got.effective_rank) == pytest.approx(
            value(xp, wanted.effective_rank), rel=bound
        )
        assert largest_error(xp.numpy(got.std), xp.numpy(wanted.std)) <= bound

    @pytest.mark.parametrize("chunks", [(4, 5), (3, -1), (-1, 3), (9, 9)], ids=str)
    @pytest.mark.parametrize("shape", [(20, 9), (9, 20)], ids=str)
    def test_dask_in_any_chunks(self, shape: tuple[int, int], chunks: tuple[int, int]) -> None:
        array = pytest.importorskip("dask.array")
        z = normal(*shape)
        got = vicreg.diagnose(array.from_array(z, chunks=chunks))
        wanted = vicreg.diagnose(z)
        assert float(got.effective_rank) == pytest.approx(float(wanted.effective_rank), rel=1e-12)
        assert float(got.mean_abs_correlation) == pytest.approx(
            float(wanted.mean_abs_correlation), rel=1e-12
        )

    def test_jax_returns_it_from_compiled_and_mapped_functions(self) -> None:
        jax = pytest.importorskip("jax")
        z = np.stack([normal(*TALL, seed) for seed in range(3)])
        compiled = jax.jit(vicreg.diagnose)(jax.numpy.asarray(z[0]))
        assert isinstance(compiled, Diagnosis)
        assert (compiled.n, compiled.d, compiled.rank_limit) == (*TALL, 7)
        assert compiled.invariance is None
        mapped = jax.vmap(vicreg.diagnose)(jax.numpy.asarray(z))
        for place in range(3):
            rank = vicreg.diagnose(z[place]).effective_rank
            assert float(mapped.effective_rank[place]) == pytest.approx(float(rank), rel=1e-12)
        assert float(compiled.effective_rank) == pytest.approx(
            float(mapped.effective_rank[0]), rel=1e-12
        )

    def test_printing_what_is_not_computed_yet(self) -> None:
        jax = pytest.importorskip("jax")
        shown: list[str] = []

        def function(z: Any) -> Any:
            diagnosis = vicreg.diagnose(z)
            shown.extend((str(diagnosis), repr(diagnosis)))
            return diagnosis.effective_rank

        jax.make_jaxpr(function)(jax.numpy.ones((6, 4)))  # traced and not compiled
        assert shown[0] == "6 samples of 4 features; the values are not there to be shown"
        assert shown[1].startswith("Diagnosis(n=6, d=4, rank_limit=4,")

    def test_nothing_is_differentiated(self) -> None:
        torch = pytest.importorskip("torch")
        z = torch.asarray(normal(6, 4)).requires_grad_()
        diagnosis = vicreg.diagnose(z, other=2 * z)
        assert not any(
            getattr(array, "requires_grad", False) for array in vars(diagnosis).values()
        )
        jax = pytest.importorskip("jax")
        array = jax.numpy.asarray(normal(*TALL))
        gradient = jax.grad(lambda z: vicreg.diagnose(z).variance)(array)
        assert not np.any(gradient)

    def test_autocast_does_not_reach_it(self) -> None:
        torch = pytest.importorskip("torch")
        z = torch.asarray(normal(6, 4), dtype=torch.float32)
        wanted = vicreg.diagnose(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = vicreg.diagnose(z)
        assert got.mean_abs_correlation == wanted.mean_abs_correlation
        assert got.covariance == wanted.covariance


class TestMemory:
    def test_no_d_by_d_matrix_is_formed(self) -> None:
        n, d = 8, 12_000
        z = normal(n, d).astype(np.float32)
        tracemalloc.start()
        try:
            vicreg.diagnose(z)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * d * d / 8

    def test_nor_in_the_graph_of_a_compiler(self) -> None:
        jax = pytest.importorskip("jax")
        shape = jax.ShapeDtypeStruct((8, 3000), "float32")
        graph = str(jax.make_jaxpr(lambda z: vicreg.diagnose(z))(shape))
        assert "f32[8,3000]" in graph
        assert "[3000,3000]" not in graph


class TestReport:
    def test_a_good_batch(self) -> None:
        z = normal(512, 16)
        lines = str(diagnose(z, other=z + 2)).splitlines()
        assert re.fullmatch(
            r"Healthy: every feature varies, and they fill 15\.\d of 16 dimensions", lines[0]
        )
        assert lines[1] == "512 samples of 16 features"
        report = {line[2:21].strip(): line[21:].strip() for line in lines[2:]}
        assert report["dead features"].split() == ["0", "of", "16", "good"]
        assert re.fullmatch(r"15\.\d of 16 +good", report["effective rank"])
        assert report["mean |correlation|"].split("  ")[-1].startswith("good: chance alone gives")
        assert report["invariance term"].split()[0] == "4"
        assert max(map(len, lines)) <= 80

    def test_the_numbers_are_aligned(self) -> None:
        lines = str(diagnose(normal(64, 64))).splitlines()
        assert lines[1] == "64 samples of 64 features, which span at most 63 dimensions"
        starts = {re.match(r"  \S.*?  +(?=\S)", line).end() for line in lines[2:]}
        assert len(starts) == 1
        assert re.search(r"effective rank +\d\d\.\d of 63 ", "\n".join(lines))

    @pytest.mark.parametrize(
        ("z", "parts"),
        [
            (np.full((9, 4), 0.1), ("every sample is the same", "4 of 4", "nothing varies")),
            (normal(99, 5) @ normal(5, 64), ("collapsed to few dimensions", "moderate: chance")),
            (normal(99, 1) @ normal(1, 64), ("1.0 of 64", "high: chance alone gives 0.08")),
            (0.01 * normal(99, 8), ("collapsed: short of the hinge at 1 by 0.9",)),
            (0.37 * normal(99, 8), ("low: short of the hinge at 1 by 0.6",)),
            (9 * normal(99, 8), ("good: beyond the hinge of the loss, at 1",)),
            (normal(99, 8) * (np.arange(8) > 1), ("2 of 8", "bad: constant")),
            (normal(2, 8), ("1 dimension\n", "too few samples to tell")),
            (normal(9, 1), ("of 1 feature\n", "no two features vary", "1.0 of 1  good")),
            (normal(9, 4) * [1, 1, 1, np.nan], ("not every value is finite", "nan of 4")),
        ],
        ids=["constant", "few", "one", "0.01", "0.37", "9", "dead", "n=2", "d=1", "nan"],
    )
    def test_what_is_bad_is_said(self, z: np.ndarray, parts: tuple[str, ...]) -> None:
        report = str(diagnose(z))
        for part in parts:
            assert part in report
        assert "compares two views: give the other one" in report
        assert max(map(len, report.splitlines())) <= 80

    def test_chance_is_what_independent_features_have(self) -> None:
        """The mean |r| that the report quotes, against many batches of each size."""
        for n in (5, 20, 200):
            quoted = float(re.search(r"gives (\S+)", str(diagnose(normal(n, 3))))[1])
            measured = diagnose(normal(n, 400, seed=n)).mean_abs_correlation
            # Two digits are quoted, and the mean is of 80,000 pairs of 400 features.
            assert measured == pytest.approx(quoted, rel=0.1)

    def test_repr_is_one_line(self) -> None:
        shown = repr(diagnose(normal(9, 4)))
        assert shown.startswith("Diagnosis(n=9, d=4, rank_limit=4, convention='official', std=<4 ")
        assert shown.endswith("invariance=None)")
        assert "\n" not in shown


def scaled(n: int, d: int, exponent: float) -> np.ndarray:
    """A batch whose standard deviations fall as a power of the feature's place."""
    return 8 * normal(n, d) * np.arange(1, d + 1.0) ** exponent


def on_sphere(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


#: A batch, how its verdict begins, and its level.
VERDICTS = {
    "healthy": (normal(256, 64), "Healthy: every feature varies, and they fill 61.", "healthy"),
    "constant": (np.ones((9, 4)), "Collapsed: every sample is the same", "collapsed"),
    "two constant samples": (np.ones((2, 4)), "Collapsed: every sample is", "collapsed"),
    "few directions": (
        normal(99, 4) @ normal(4, 64, seed=1),
        "Collapsed: the batch fills 4.0 of 64 dimensions",
        "collapsed",
    ),
    "one direction": (
        normal(99, 1) @ np.ones((1, 3)),
        "Collapsed: the batch fills 1.0",
        "collapsed",
    ),
    "no spread": (0.01 * normal(99, 64), "Collapsed: features have a std of 0.0", "collapsed"),
    "dead": (normal(99, 64) * (np.arange(64) > 20), "21 of 64 features are dead", "dead"),
    "one dead": (normal(99, 64) * (np.arange(64) > 0), "1 of 64 features is dead", "dead"),
    "correlated": (
        normal(256, 64) + 2 * normal(256, 1, seed=1),
        "Strongly correlated: two features have a |correlation| of 0.7",
        "correlated",
    ),
    "low rank": (
        normal(256, 12) @ normal(12, 64, seed=1),
        "Low effective rank for this batch: 11.",
        "low-rank",
    ),
    "little spread": (
        0.37 * normal(256, 64),
        "Low variance: features have a std of 0.368 on average, where the loss asks for 1",
        "low-variance",
    ),
    "few samples": (normal(4, 64), "Too few samples to tell: 4", "too-few-samples"),
    "few samples with dead features": (
        normal(4, 64) * (np.arange(64) > 9),
        "Too few samples to tell: 4",
        "too-few-samples",
    ),
    "five samples": (normal(5, 64), "Healthy", "healthy"),
    "a falling spectrum": (scaled(256, 64, -0.5), "Healthy", "healthy"),
    "nan": (np.full((9, 4), np.nan), "Not finite", "not-finite"),
    "unit norm": (on_sphere(normal(256, 64)), "Healthy", "healthy"),
    "unit norm, one side": (
        on_sphere(normal(256, 64) + 3),
        "Low variance: features have a std of 0.039 on average, where unit norm allows 0.125",
        "low-variance",
    ),
    "unit norm, one point": (
        on_sphere(normal(256, 64) + 30),
        "Collapsed: features have a std of 0.004",
        "collapsed",
    ),
}


class TestVerdict:
    @pytest.mark.parametrize("name", VERDICTS)
    def test_of_known_batches(self, name: str) -> None:
        z, verdict, level = VERDICTS[name]
        diagnosis = diagnose(z)
        assert diagnosis.verdict.startswith(verdict)
        assert diagnosis.level == level
        assert diagnosis.collapsed is (level == "collapsed")
        assert str(diagnosis).splitlines()[0] == diagnosis.verdict

    def test_each_level_is_reached(self) -> None:
        assert {level for _, _, level in VERDICTS.values()} == set(LEVELS)

    @pytest.mark.parametrize("name", VERDICTS)
    def test_no_word_contradicts_it(self, name: str) -> None:
        z, _, level = VERDICTS[name]
        judge = diagnose(z)._judge
        bad = {
            "collapsed": judge.on_rank,
            "low-rank": judge.on_rank,
            "dead": judge.on_dead_features,
            "correlated": judge.on_correlation,
            "low-variance": judge.on_std,
        }
        assert not bad.get(level, "").startswith("good")
        if level == "healthy":
            for word in (judge.on_rank, judge.on_std, judge.on_dead_features):
                assert word.startswith("good")
        if level in ("collapsed", "correlated"):
            assert not judge.on_participation.startswith("good")

    @pytest.mark.parametrize("convention", conventions)
    def test_the_spread_is_judged_as_the_hinge_does(self, convention: str) -> None:
        """On the variance a std of 0.8 falls short by 0.36, on the std itself by 0.2."""
        diagnosis = diagnose(0.8 * orthogonal(64, 8) * math.sqrt(63), convention=convention)
        level = "low-variance" if convention == "article" else "healthy"
        assert diagnosis.level == level

    def test_it_is_the_same_in_every_library(self, xp: Backend) -> None:
        z = normal(*TALL)
        assert found(xp, 2 * z).level == "healthy"
        assert found(xp, 0.37 * z).verdict.startswith("Low variance")
        assert found(xp, on_sphere(z)).level == "healthy"
        assert found(xp, 1 + z[:, :1] * np.arange(1.0, 8)).collapsed


class TestUnitNorm:
    def test_rows_of_norm_one_to_rounding(self, xp: Backend) -> None:
        z = on_sphere(normal(*TALL))
        for dtype in xp.dtypes:
            assert value(xp, found(xp, z, dtype).unit_norm) == 1
        z[3] *= 1.1
        assert value(xp, found(xp, z).unit_norm) == 0

    def test_rows_of_many_features_that_are_added_one_by_one(self) -> None:
        """As NumPy adds along the first axis: what rounding adds up to grows with their number."""
        z = on_sphere(normal(32, 4096)).astype(np.float32)
        assert diagnose(np.ascontiguousarray(z.T), feature_axis=0).unit_norm

    @pytest.mark.parametrize("factor", [1e-30, 0.99, 1.01, 1e30])
    def test_of_another_norm(self, factor: float) -> None:
        z = (factor * on_sphere(normal(*TALL))).astype(np.float32)
        with np.errstate(over="ignore"):  # of the covariance
            assert not diagnose(z).unit_norm

    def test_one_feature_of_another_norm(self) -> None:
        z = np.sign(normal(40, 1))
        assert diagnose(z).unit_norm
        assert not diagnose(2 * z).unit_norm

    def test_no_mean_std_is_above_the_most(self) -> None:
        """Of a sample and its opposite on each axis each std is as large as it can be."""
        judge = diagnose(np.concatenate([np.eye(6), -np.eye(6)]))._judge
        assert judge.mean_std == pytest.approx(judge.most_at_unit_norm, rel=1e-15)
        assert judge.on_std == "good: unit norm allows 0.426 at most"

    def test_the_report_says_so(self) -> None:
        report = str(diagnose(on_sphere(normal(256, 64))))
        assert "256 samples of 64 features, each of norm 1\n" in report
        assert "good: unit norm allows 0.125 at most" in report
        assert "above 0 at unit norm: no std reaches 1" in report


def test_terms_that_overflow_are_said() -> None:
    z = 1e30 * normal(40, 6).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        report = str(diagnose(z, other=-z))
    assert report.startswith("Healthy")
    assert report.count("no finite number") == 2


class TestByTheGramMatrix:
    @pytest.mark.parametrize("shape", [(300, 40), (40, 300)], ids=str)
    @pytest.mark.parametrize("smallest", [1e-2, 1e-5, 1e-9])
    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_float32_loses_nothing(
        self, shape: tuple[int, int], smallest: float, library: str
    ) -> None:
        """Against a decomposition in float64, down to what the float32 values are rounded by."""
        pytest.importorskip(library)
        xp = Backend(library)
        limit = min(shape) - (shape[0] <= shape[1])
        values = np.logspace(0, math.log10(smallest), limit)
        right = np.linalg.qr(normal(shape[1], limit, seed=1))[0]
        z = ((orthogonal(shape[0], limit) * values) @ right.T).astype(np.float32)
        exact = np.linalg.svd((z - z.mean(axis=0, dtype=np.float64)), compute_uv=False)[:limit]
        diagnosis = found(xp, z, "float32")
        got = xp.numpy(diagnosis.singular_values)
        # What was computed in float64 is rounded once, from rows that were rounded as they were
        # centred and scaled.
        bound = 4 * UNIT_ROUNDOFF["float32"] * exact[0]
        counted = got > 0
        np.testing.assert_allclose(got[counted], exact[counted], rtol=0, atol=bound)
        assert (exact[~counted] < 16 * bound).all()
        assert value(xp, diagnosis.effective_rank) == pytest.approx(rank_of(exact), rel=1e-3)

    def test_the_ranks_need_no_singular_value_that_is_lost(self) -> None:
        """√u σ₁ in each of 2047 directions adds some 4e-4 to a rank of 1, and nothing to σ⁴."""
        lost = math.sqrt(2.0**-53)
        values = np.array([1.0] + [lost] * 2047)
        assert rank_of(values) == pytest.approx(1, abs=5e-4)
        assert np.sum(values**2) ** 2 / np.sum(values**4) == pytest.approx(1, abs=1e-12)


class TestBadInput:
    @pytest.mark.parametrize(
        ("z", "error", "parts"),
        [
            (np.ones(4), ValueError, ("z must have at least two axes", "(4,)")),
            (
                np.ones((4, 3, 5)),
                ValueError,
                ("axes of samples and of features alone", "(4, 3, 5)"),
            ),
            (np.ones((1, 5)), ValueError, ("z must have at least 2 samples", "got 1")),
            (np.ones((5, 0)), ValueError, ("z must not be empty",)),
            (np.ones((5, 2), int), TypeError, ("z must have a real floating-point dtype", "int")),
            ([[1.0, 2.0], [3.0, 4.0]], TypeError, ("z must be an array", "list")),
        ],
        ids=str,
    )
    def test_z(self, z: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
        with pytest.raises(error) as caught:
            diagnose(z)
        for part in parts:
            assert part in str(caught.value)

    @pytest.mark.parametrize(
        ("other", "error", "part"),
        [
            (np.ones((4, 5)), ValueError, "other must have the shape of z"),
            (np.ones((4, 6), np.float32), TypeError, "other must have the dtype of z"),
            ([1.0], TypeError, "other must be an array"),
        ],
        ids=str,
    )
    def test_other(self, other: Any, error: type[Exception], part: str) -> None:
        with pytest.raises(error, match=part):
            diagnose(normal(4, 6), other=other)

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match="convention"):
            diagnose(normal(4, 6), convention="unofficial")
        with pytest.raises(ValueError, match="feature_axis"):
            diagnose(normal(4, 6), feature_axis=2)


MEASURES = (
    "n",
    "rank_limit",
    "mean_std",
    "min_std",
    "dead_features",
    "mean_abs_correlation",
    "effective_rank",
    "participation_ratio",
    "unit_norm",
    "variance",
    "covariance",
)


def check_same(xp: Backend, got: Diagnosis, wanted: Diagnosis, dtype: str | None = None) -> None:
    """Assert that a diagnosis with weights is the one without them, of the samples that count."""
    n, d = wanted.n, wanted.d
    # Both are wrong by the bound of `check_definitions`, and a weight's root is one rounding more.
    bound = 10 * rounding(dtype or xp.dtypes[0], n, d)
    factors = {"effective_rank": d * (1 + math.log(d)), "participation_ratio": 8}
    for name in MEASURES:
        right = getattr(wanted, name)
        right = right if isinstance(right, int) else value(xp, right)
        rel = bound * factors.get(name, 1)
        if name == "effective_rank":
            rel = of_logarithms(xp, rel)
        got_one = value(xp, getattr(got, name))
        assert got_one == pytest.approx(right, rel=rel, abs=bound), name
    assert largest_error(xp.numpy(got.std), xp.numpy(wanted.std)) <= bound
    values, right = xp.numpy(got.singular_values), xp.numpy(wanted.singular_values)
    shared = min(values.size, right.size)
    assert largest_error(values[:shared], right[:shared]) <= bound
    assert not values[shared:].any()
    assert not right[shared:].any()
    if wanted.invariance is not None:
        assert value(xp, got.invariance) == pytest.approx(value(xp, wanted.invariance), rel=bound)
    assert got.level == wanted.level
    assert str(got).splitlines()[:2] == str(wanted).splitlines()[:2]


ALL_OF_THREE = ("numpy", "torch", pytest.param("jax", marks=pytest.mark.long))


class TestSampleWeight:
    #: Which of 40 samples are valid; the first is not.
    MASK = np.arange(40) % 3 != 0

    def weighted(self, xp: Backend, z: Any, weight: Any, **settings: Any) -> Diagnosis:
        if xp.name in WITHOUT_LINALG:
            pytest.skip(f"{xp} has no singular values")
        return diagnose(xp.asarray(z), sample_weight=xp.asarray(weight), **settings)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300], ids=str)
    def test_a_mask_is_the_valid_samples_alone(self, xp: Backend, bad: float) -> None:
        if bad == 1e300 and "float64" not in xp.dtypes:
            bad = 1e30
        z, other = normal(*TALL), normal(*TALL, seed=1)
        wanted = found(xp, z[self.MASK], other=xp.asarray(other[self.MASK]))
        z[~self.MASK] = other[~self.MASK] = bad
        if xp.name == "numpy":
            got = diagnose(z, sample_weight=self.MASK, other=other)
        else:
            got = self.weighted(xp, z, self.MASK, other=xp.asarray(other))
        check_same(xp, got, wanted)

    @pytest.mark.parametrize("library", ALL_OF_THREE)
    def test_fewer_valid_samples_than_features(self, library: str) -> None:
        xp = available(library)
        z, mask = normal(*TALL), np.arange(40) % 8 == 3
        check_same(xp, self.weighted(xp, z, mask), found(xp, z[mask]))

    @pytest.mark.long_on("jax")
    def test_an_integer_weight_is_a_repeated_sample(self, xp: Backend) -> None:
        weight = np.arange(40) % 4
        z = 3 + normal(*TALL) @ (np.eye(7) + 0.3 * normal(7, 7, seed=1))
        z[:, 2] = 0.1
        check_same(xp, self.weighted(xp, z, weight), found(xp, np.repeat(z, weight, axis=0)))

    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_weights_of_any_dtype(self, library: str, dtype: str) -> None:
        xp = available(library)
        z, mask = normal(*TALL), self.MASK.astype(dtype)
        weight = mask if library == "numpy" else xp.xp.asarray(mask)
        got = diagnose(xp.asarray(z), sample_weight=weight)
        check_same(xp, got, found(xp, z[self.MASK]))

    def test_samples_span_no_more_than_their_number_allows(self) -> None:
        """Where a weight is far larger than the others, more rounding is left than usual."""
        weight = np.array([1, 1, 1e12, 1, 0])
        diagnosis = diagnose(normal(5, 7), sample_weight=weight)
        assert np.count_nonzero(diagnosis.singular_values) == 3

    def test_the_rounding_of_samples_that_count_in_part(self) -> None:
        """It is no direction, whether they have weights of 1 or of 0.01."""
        unit = 2 * UNIT_ROUNDOFF["float16"]
        z = (1.2 + unit * normal(400, 1) * np.linspace(0.5, 1, 7)).astype(np.float16)
        for weight in (1.0, 0.01):
            assert diagnose(z, sample_weight=np.full(400, weight)).effective_rank == 1

    def test_what_is_more_than_rounding_is_more_whatever_the_weights_are(self) -> None:
        """It varies by 0.2 squared units in the last place, of which rounding explains 1/12."""
        unit = 2 * UNIT_ROUNDOFF["float16"]
        one_direction = 1.5 + 0.1 * normal(400, 1) * np.linspace(0.5, 1, 7)
        z = (one_direction + 0.34 * unit * normal(400, 7, seed=1)).astype(np.float16)
        assert ((z > 1) & (z < 2)).all()
        for weight in (1.0, 0.01):
            diagnosis = diagnose(z, sample_weight=np.full(400, weight))
            assert np.count_nonzero(diagnosis.singular_values) == 7

    def test_weights_that_are_not_finite_give_nan_where_nobody_looks_at_them(self) -> None:
        array = pytest.importorskip("dask.array")
        weight = np.ones(40)
        weight[3] = math.nan
        diagnosis = vicreg.diagnose(
            array.from_array(normal(*TALL)), sample_weight=array.from_array(weight)
        )
        assert np.isnan(np.asarray(diagnosis.singular_values)).all()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_in_lower_precision(self, dtype: str) -> None:
        """Directions that rounding alone fills are as those of the valid samples."""
        torch = pytest.importorskip("torch")
        xp = Backend("torch")
        z = torch.asarray(normal(200, 1) * (1 + normal(1, 100, seed=1) ** 2))
        z = z.to(getattr(torch, dtype))
        weight = torch.arange(200) % 3
        got = diagnose(z, sample_weight=weight)
        wanted = diagnose(z.repeat_interleave(weight, dim=0))
        assert got.effective_rank == wanted.effective_rank == 1
        check_same(xp, got, wanted, "float32")

    @pytest.mark.parametrize("library", ALL_OF_THREE)
    def test_weights_of_one_along_any_axes(self, library: str) -> None:
        """Weights that are all the same, and less than 1, change the number and the divisor."""
        xp = available(library)
        z = normal(5, 8 * 7).reshape(5, 7, 8)
        mask = np.arange(8) < 6
        rows = np.moveaxis(z, 1, -1)[:, mask].reshape(-1, 7)
        axes = {"feature_axis": 1, "sample_axis": (2, 0)}
        check_same(xp, self.weighted(xp, z, mask, **axes), found(xp, rows))
        halves = self.weighted(xp, z, 0.5 * mask, **axes)
        assert value(xp, halves.n) == 15
        assert value(xp, halves.rank_limit) == 7
        whole = self.weighted(xp, z, mask, **axes)
        ratio = value(xp, halves.mean_std) / value(xp, whole.mean_std)
        assert ratio == pytest.approx(math.sqrt(0.5 * 29 / 14), rel=rounding(xp.dtypes[0], 40, 7))
        for name in ("effective_rank", "participation_ratio", "mean_abs_correlation"):
            assert value(xp, getattr(halves, name)) == pytest.approx(
                value(xp, getattr(whole, name)), rel=10 * rounding(xp.dtypes[0], 40, 7)
            )

    @pytest.mark.parametrize("valid", [0, 1])
    def test_too_few_valid_samples(self, xp: Backend, valid: int) -> None:
        """Nothing is known of them, and no warning says so: the verdict does."""
        z, mask = normal(*TALL), np.arange(40) >= 40 - valid
        z[~mask] = math.nan
        diagnosis = self.weighted(xp, z, mask, other=xp.asarray(z))
        assert diagnosis.level == "too-few-samples"
        assert diagnosis.verdict == f"Too few samples to tell: {valid}"
        assert value(xp, diagnosis.n) == valid
        for name, array in vars(diagnosis).items():
            if name in MEASURES[1:-3] or name in ("std", "singular_values"):
                assert not np.any(xp.numpy(array)), name
        assert np.isfinite(list(diagnosis.scalars().values())).all()
        assert "too few samples to tell" in str(diagnosis)

    def test_a_single_sample_that_occurs_twice_has_collapsed(self) -> None:
        diagnosis = diagnose(normal(*TALL), sample_weight=2 * (np.arange(40) == 7))
        assert diagnosis.n == 2
        assert diagnosis.verdict == "Collapsed: every sample is the same"

    def test_a_sample_of_almost_no_weight_far_from_the_others(self) -> None:
        """It is subtracted from none of them, be it the first."""
        z, weight = normal(*TALL).astype("float32"), np.ones(40, "float32")
        z[0] = 1e10
        weight[0] = 2.0**-120  # what it adds to any sum is nothing
        got, wanted = diagnose(z, sample_weight=weight), diagnose(z[1:].astype("float64"))
        bound = rounding("float32", *TALL)
        assert largest_error(got.std, wanted.std) <= bound
        assert largest_error(got.effective_rank, wanted.effective_rank) <= bound

    @pytest.mark.parametrize("place", [2, 0])
    def test_what_is_not_finite_among_the_valid_samples(self, place: int) -> None:
        z = normal(*TALL)
        z[place, 3] = math.nan
        weight = np.ones(40)
        diagnosis = diagnose(z, sample_weight=weight)
        assert diagnosis.level == "not-finite"
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(diagnosis.std)), [3])
        weight[place] = 0
        assert diagnose(z, sample_weight=weight).level == "healthy"

    def test_jax_traces_it_without_a_value_of_a_weight(self) -> None:
        jax = pytest.importorskip("jax")

        def function(z: Any, weight: Any) -> Diagnosis:
            diagnosis = vicreg.diagnose(z, sample_weight=weight)
            assert str(diagnosis).startswith("Weighted samples of 7 features; the values")
            assert repr(diagnosis).startswith("Diagnosis(n=<")
            return diagnosis

        z, mask = jax.numpy.ones(TALL), jax.numpy.asarray(self.MASK)
        _, shapes = jax.make_jaxpr(function, return_shape=True)(z, mask)  # and not compiled
        assert isinstance(shapes, Diagnosis)
        assert (shapes.n.shape, shapes.d, shapes.singular_values.shape) == ((), 7, (7,))

    @pytest.mark.long
    def test_jax_compiles_it_once_for_all_masks(self) -> None:
        jax = pytest.importorskip("jax")
        traced: list[None] = []

        @jax.jit
        def compiled(z: Any, weight: Any) -> Diagnosis:
            traced.append(None)
            return vicreg.diagnose(z, sample_weight=weight)

        z = jax.numpy.asarray(normal(*TALL))
        for mask in (self.MASK, ~self.MASK):
            got = compiled(z, jax.numpy.asarray(mask))
            assert isinstance(got, Diagnosis)
            wanted = vicreg.diagnose(np.asarray(z)[mask])
            assert float(got.n) == wanted.n
            assert float(got.effective_rank) == pytest.approx(wanted.effective_rank, rel=1e-12)
            assert got.level == wanted.level
        assert len(traced) == 1

    @pytest.mark.long
    def test_jax_maps_it(self) -> None:
        jax = pytest.importorskip("jax")
        z, masks = jax.numpy.asarray(normal(*TALL)), jax.numpy.asarray([self.MASK, ~self.MASK])
        mapped = jax.vmap(lambda mask: vicreg.diagnose(z, sample_weight=mask))(masks)
        np.testing.assert_array_equal(mapped.n, [self.MASK.sum(), (~self.MASK).sum()])

    @pytest.mark.parametrize(
        "chunks",
        [(10, -1), *(pytest.param(c, marks=pytest.mark.long) for c in ((4, 5), (-1, 3)))],
        ids=str,
    )
    def test_dask_in_any_chunks(self, chunks: tuple[int, int]) -> None:
        array = pytest.importorskip("dask.array")
        z = normal(20, 9)
        mask = self.MASK[:20]
        weight = array.from_array(mask, chunks=6)
        got = vicreg.diagnose(array.from_array(z, chunks=chunks), sample_weight=weight)
        check_same(Backend("dask"), got, vicreg.diagnose(array.from_array(z[mask])))

    @pytest.mark.representative
    def test_bad_weights(self, xp: Backend) -> None:
        if xp.name in WITHOUT_LINALG:
            pytest.skip(f"{xp} has no diagnosis")
        with pytest.raises(ValueError, match=r"^sample_weight must have a shape .* of z without"):
            self.weighted(xp, normal(4, 6), np.ones(6))
        with pytest.raises(TypeError, match=r"^sample_weight must be an array"):
            diagnose(xp.asarray(normal(4, 6)), sample_weight=[1.0] * 4)


def available(library: str) -> Backend:
    pytest.importorskip(library)
    return Backend(library)
