"""VCReg's loss: its definition on every library, pooled positions, and the smooth L1 in blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from typing import Any

import definition
import numpy as np
import pytest
from backends import Backend
from errors import UNIT_ROUNDOFF, largest_error, rounding

import vicreg
from vicreg import vcreg_loss, vcreg_value_and_grad
from vicreg._core.sizes import Sizes
from vicreg._core.terms import SmoothL1
from vicreg.tools.verification.paths import Path

WEIGHTS = (5.0, 0.7)
GIVEN = dict(zip(("variance_weight", "covariance_weight"), WEIGHTS, strict=True))
SMOOTH_L1 = {"penalty": "smooth_l1", "delta": 0.3}  # entries of C are on both sides of it
PENALTIES = {
    "square, Gram": {"method": "gram"},
    "square, covariance": {"method": "covariance"},
    "smooth L1": SMOOTH_L1,
}
# The first by either route; JAX compiles each anew, and is given these alone by default.
SHAPES = [(4, 21), (5, 3, 4), (12, 4), (2, 2), (3, 2, 2, 13)]
ON_JAX = SHAPES[:2]
REPRESENTATIVE = [((4, 21), "square, Gram"), ((5, 3, 4), "smooth L1")]
CASES = [
    pytest.param(
        shape,
        penalty,
        marks=[
            *([] if shape in ON_JAX else [pytest.mark.long_on("jax")]),
            *([pytest.mark.representative] if (shape, penalty) in REPRESENTATIVE else []),
        ],
        id=f"{shape}-{penalty}",
    )
    for shape in SHAPES
    for penalty in PENALTIES
]


def representation(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Features of mean and scale all about 1: the hinge is at work on some and not on others."""
    rng = np.random.default_rng([seed, *shape])
    return 1 + rng.uniform(0.5, 1.5, shape[-1]) * rng.standard_normal(shape)


def samples(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-1]))


def is_the_definition(
    xp: Backend, z: np.ndarray, settings: dict, pooled: bool = True, path: Any = vicreg
) -> None:
    """Assert that value and gradient are those of the definition, within rounding."""

    def function(views: list[np.ndarray]) -> complex:
        return definition.vcreg(views[0], WEIGHTS, delta=settings.get("delta"), pooled=pooled)

    bound = rounding(xp.dtypes[0], samples(z.shape), z.shape[-1])
    given = GIVEN | settings | ({} if pooled else {"sample_axis": 0})
    loss, gradient = path.vcreg_value_and_grad(xp.asarray(z), **given)
    assert largest_error(xp.numpy(loss), function([z])) <= bound
    (wanted,) = definition.gradients(function, [z])
    assert largest_error(xp.numpy(gradient), wanted) <= bound
    loss = path.vcreg_loss(xp.asarray(z), **given)
    assert largest_error(xp.numpy(loss), function([z])) <= bound


@pytest.mark.parametrize(("shape", "penalty"), CASES)
def test_loss_and_gradient(xp: Backend, shape: tuple[int, ...], penalty: str) -> None:
    """Every position of every sample is a sample, where nothing else is asked for."""
    is_the_definition(xp, representation(shape), PENALTIES[penalty])


@pytest.mark.parametrize(("shape", "penalty"), [case for case in CASES if len(case.values[0]) > 2])
def test_separate_positions(xp: Backend, shape: tuple[int, ...], penalty: str) -> None:
    is_the_definition(xp, representation(shape), PENALTIES[penalty], pooled=False)


@pytest.mark.parametrize("shape", [(3, 5), (3, 12), (3, 14), (2, 3, 11)], ids=str)
def test_smooth_l1_in_blocks_of_columns(
    xp: Backend, in_small_blocks: Path, shape: tuple[int, ...]
) -> None:
    """Blocks that d is and is not a multiple of; the input is left as it was."""
    assert SmoothL1(1.0, 1.0, in_small_blocks.sizes).in_blocks(samples(shape), shape[-1])
    z = representation(shape)
    is_the_definition(xp, z, SMOOTH_L1, path=in_small_blocks)
    if len(shape) > 2:
        is_the_definition(xp, z, SMOOTH_L1, pooled=False, path=in_small_blocks)
    given = xp.asarray(z)
    in_small_blocks.vcreg_value_and_grad(given, **GIVEN, **SMOOTH_L1)
    np.testing.assert_array_equal(xp.numpy(given), z.astype(xp.dtypes[0]))


@pytest.mark.parametrize(
    ("n", "d", "in_blocks"),
    [(5, 8, False), (5, 9, True), (9, 9, False)],  # one block; two; C no larger than the view
)
def test_blocks_are_for_a_covariance_of_more_columns_that_is_larger_than_the_view(
    n: int, d: int, in_blocks: bool
) -> None:
    assert SmoothL1(1.0, 1.0, Sizes(columns=8)).in_blocks(n, d) is in_blocks


def test_smooth_l1_in_blocks_of_small_values(in_small_blocks: Path) -> None:
    """The covariance alone: its squares are far below the products that order the blocks."""
    z, weights = 1e-3 * representation((3, 12)), np.array([1.0, 2.0, 1.0])
    loss, _ = in_small_blocks.vcreg_value_and_grad(
        z, variance_weight=0.0, covariance_weight=0.7, sample_weight=weights, **SMOOTH_L1
    )
    wanted = definition.vcreg(
        np.repeat(z, weights.astype(int), axis=0), (0.0, 0.7), delta=SMOOTH_L1["delta"]
    )
    assert largest_error(loss, wanted) <= rounding("float64", 4, 12)


@pytest.mark.parametrize("sample_axis", [None, 0])
@pytest.mark.parametrize(
    ("axis", "ndim"),
    [
        pytest.param(1, 4, marks=pytest.mark.representative),
        pytest.param(-3, 4, marks=pytest.mark.long_on("jax")),
        (0, 2),
        pytest.param(0, 3, marks=pytest.mark.long_on("jax")),
    ],
)
def test_feature_axis(xp: Backend, axis: int, ndim: int, sample_axis: int | None) -> None:
    """Images ``(n, d, height, width)`` give what ``(n, height, width, d)`` do."""
    z = representation((*(5, 2, 3)[: ndim - 1], 6))
    moved = np.ascontiguousarray(np.moveaxis(z, -1, axis))
    wanted, right = vcreg_value_and_grad(z, sample_axis=sample_axis, **GIVEN)
    if sample_axis is not None:
        sample_axis = int(axis == 0)  # the first that holds no features
    settings = GIVEN | {"feature_axis": axis, "sample_axis": sample_axis}
    loss, gradient = vcreg_value_and_grad(xp.asarray(moved), **settings)
    bound = rounding(xp.dtypes[0], samples(z.shape), 6)
    assert largest_error(xp.numpy(loss), wanted) <= bound
    assert largest_error(xp.numpy(gradient), np.moveaxis(right, -1, axis)) <= bound


def test_of_two_axes_positions_are_the_same_either_way() -> None:
    z = representation((6, 5))
    assert vcreg_loss(z, **GIVEN) == vcreg_loss(z, sample_axis=0, **GIVEN)


def test_one_sample_of_several_positions_is_enough_where_they_are_pooled(xp: Backend) -> None:
    is_the_definition(xp, representation((1, 2, 3, 4)), {})


def test_gamma_and_eps(xp: Backend) -> None:
    z = representation((6, 4))
    settings = {"variance_weight": 2.0, "covariance_weight": 0.0, "gamma": 2.0, "eps": 0.5}
    wanted = definition.vcreg(z, (2.0, 0.0), gamma=2.0, eps=0.5)
    got = vcreg_loss(xp.asarray(z), **settings)
    assert largest_error(xp.numpy(got), wanted) <= rounding(xp.dtypes[0], 6, 4)


@pytest.mark.parametrize("settings", [{}, {"penalty": "smooth_l1"}], ids=["square", "smooth_l1"])
@pytest.mark.parametrize("weights", [(2.0, 0.0), (0.0, 2.0), (0.0, 0.0)])
def test_a_weight_of_zero_leaves_the_other(
    xp: Backend, weights: tuple[float, float], settings: dict
) -> None:
    z = representation((5, 8))
    delta = 1.0 if settings else None
    given = dict(zip(GIVEN, weights, strict=True)) | settings
    loss, gradient = vcreg_value_and_grad(xp.asarray(z), **given)
    bound = rounding(xp.dtypes[0], 5, 8)
    assert largest_error(xp.numpy(loss), definition.vcreg(z, weights, delta=delta)) <= bound
    (wanted,) = definition.gradients(
        lambda views: definition.vcreg(views[0], weights, delta=delta), [z]
    )
    assert largest_error(xp.numpy(gradient), wanted) <= bound


@pytest.mark.parametrize("settings", [{}, {"penalty": "smooth_l1"}], ids=["square", "smooth_l1"])
def test_the_result_is_of_the_callers_library_dtype_and_device(
    xp: Backend, settings: dict
) -> None:
    """In half precision too: computed in float32, and each gradient rounded once."""
    settings = GIVEN | settings
    for dtype in xp.dtypes:
        z = xp.asarray(representation((3, 2, 8)), dtype)
        loss, gradient = vcreg_value_and_grad(z, **settings)
        float32 = xp.asarray(0.0, "float32").dtype
        for result in (loss, vcreg_loss(z, **settings)):
            assert type(result) is type(z)
            assert result.shape == ()
            assert result.dtype == (float32 if dtype in ("float16", "bfloat16") else z.dtype)
            assert getattr(result, "device", None) == getattr(z, "device", None)
        assert type(gradient) is type(z)
        assert (gradient.shape, gradient.dtype) == (z.shape, z.dtype)
        assert getattr(gradient, "device", None) == getattr(z, "device", None)
        exact = xp.numpy(z).astype(np.float64)
        wanted, right = vcreg_value_and_grad(exact, **settings)
        of_loss = "float32" if dtype in ("float16", "bfloat16") else dtype
        assert largest_error(xp.numpy(loss), wanted) <= rounding(of_loss, 6, 8)
        assert largest_error(xp.numpy(gradient), right) <= rounding(dtype, 6, 8)


SIZES = [(28, 18), (12, 18)]  # of both paths: C whole, and in blocks


@pytest.fixture(params=SIZES, ids=["whole", "in blocks"])
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


SMOOTH_L1_ALONE = {"penalty": "smooth_l1", "variance_weight": 0.0, "covariance_weight": 1.0}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e14])
def test_smooth_l1_is_as_accurate_in_float32_as_rounding_allows(
    xp: Backend, in_small_blocks: Path, shape: tuple[int, int], scale: float
) -> None:
    """From squares alone to where a square would overflow, which its tangent does not.

    An entry of C carries the rounding of P, its sum of absolute products; the penalty T (2C − T)
    twice |T| times it, and zc T, of which an entry beyond delta has none, that of |zc| P.
    """
    if "float32" not in xp.dtypes:
        pytest.skip("the library has no float32")
    n, d = shape
    z = scale * np.random.default_rng(1).standard_normal(shape) * np.logspace(-1, 1, d)
    z = z.astype(np.float32).astype(np.float64)
    wanted, right = vcreg_value_and_grad(z, **SMOOTH_L1_ALONE)
    low = xp.asarray(z, "float32")
    loss, gradient = in_small_blocks.vcreg_value_and_grad(low, **SMOOTH_L1_ALONE)

    zc = z - z.mean(axis=0)
    off = 1 - np.eye(d)
    c, p = (zc.T @ zc) / (n - 1) * off, (np.abs(zc).T @ np.abs(zc)) / (n - 1) * off
    t = np.clip(c, -1, 1)
    of_value = np.sum(2 * np.abs(t) * p) / np.sum(t * (2 * c - t))
    of_gradient = np.max(np.abs(zc) @ np.minimum(p, 2)) / np.max(np.abs(zc @ t))
    bound = rounding("float32", n, d)
    assert largest_error(xp.numpy(loss), wanted) <= of_value * bound
    assert largest_error(xp.numpy(gradient), right) <= of_gradient * bound


def test_a_limit_beyond_the_largest_number_leaves_the_square(
    xp: Backend, in_small_blocks: Path, shape: tuple[int, int]
) -> None:
    dtype = "float32" if "float32" in xp.dtypes else "float64"
    z = xp.asarray(representation(shape), dtype)
    square = {**SMOOTH_L1_ALONE, "penalty": "square"}
    for delta in (1e6, 1e300):
        wanted, right = vcreg_value_and_grad(z, **square)
        loss, gradient = in_small_blocks.vcreg_value_and_grad(z, delta=delta, **SMOOTH_L1_ALONE)
        bound = 2 * rounding(dtype, *shape)  # each side's own
        assert largest_error(xp.numpy(loss), xp.numpy(wanted)) <= bound
        assert largest_error(xp.numpy(gradient), xp.numpy(right)) <= bound


@pytest.mark.parametrize("c", [1.0, -1.0, 1.0 + 2**-20, 1.0 - 2**-20, 40.0])
def test_the_square_goes_over_into_its_tangent(xp: Backend, c: float) -> None:
    """Two features of covariance `c`, all of it exact; its derivative at delta is that of both."""
    z = np.asarray([[1.0, c], [-1.0, -c], [0.0, 0.0]])
    bound = rounding(xp.dtypes[0], 3, 2)
    loss, gradient = vcreg_value_and_grad(xp.asarray(z), **SMOOTH_L1_ALONE)
    penalty = c * c if abs(c) <= 1 else 2 * abs(c) - 1
    assert largest_error(xp.numpy(loss), penalty) <= bound
    slope = 2 * c if abs(c) <= 1 else 2 * np.sign(c)
    assert largest_error(xp.numpy(gradient), slope * z[:, ::-1] / 2) <= bound


def test_nan_in_nan_out(xp: Backend, in_small_blocks: Path, shape: tuple[int, int]) -> None:
    z = representation(shape)
    z[1, -1] = np.nan
    loss, gradient = in_small_blocks.vcreg_value_and_grad(xp.asarray(z), **SMOOTH_L1_ALONE)
    assert np.isnan(xp.numpy(loss))
    assert np.all(np.isnan(xp.numpy(gradient)))
    assert np.isnan(xp.numpy(in_small_blocks.vcreg_loss(xp.asarray(z), **SMOOTH_L1_ALONE)))


EDGES = {
    "a constant batch": lambda z: np.full_like(z, 0.7),
    "a zero batch": np.zeros_like,
    "scale 1e8": lambda z: 1e8 * z,
    "scale 1e-20": lambda z: 1e-20 * z,
    "a dead feature": lambda z: z * (np.arange(z.shape[1]) != 3),
}


@pytest.mark.parametrize("name", EDGES)
def test_edge_input_gives_finite_numbers(
    xp: Backend, in_small_blocks: Path, shape: tuple[int, int], name: str
) -> None:
    dtype = "float32" if "float32" in xp.dtypes else "float64"
    z = EDGES[name](representation(shape))
    for eps in (1e-5, 0.0):
        settings = GIVEN | {"penalty": "smooth_l1", "eps": eps}
        loss, gradient = in_small_blocks.vcreg_value_and_grad(xp.asarray(z, dtype), **settings)
        assert np.isfinite(xp.numpy(loss))
        assert np.all(np.isfinite(xp.numpy(gradient)))
        if name == "a constant batch":
            hinge = WEIGHTS[0] * (1 - eps**0.5)
            assert float(xp.numpy(loss)) == pytest.approx(hinge, rel=9 * UNIT_ROUNDOFF[dtype])
            assert not np.any(xp.numpy(gradient))


PEAK = """
import ctypes, gc, sys
import numpy as np
from vicreg import vcreg_loss, vcreg_value_and_grad
from vicreg.tools.benchmark.memory import _watch_process

library, n, d = sys.argv[1], *map(int, sys.argv[2:])
settings = {"penalty": "smooth_l1", "variance_weight": 1.0, "covariance_weight": 1.0}
z = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)

def closed_form(z):
    return vcreg_value_and_grad(z, **settings)

def gradient(z):
    z = z.detach().requires_grad_()
    vcreg_loss(z, **settings).backward()
    return z.grad

functions = [closed_form]
if library != "numpy":
    import torch
    z = torch.from_numpy(z)
    functions = [closed_form, gradient]
if library == "compiled":
    functions = [torch.compile(closed_form, fullgraph=True)]
for function in functions:
    # The call before loads, or compiles; what it leaves free is given back.
    function(z if library == "compiled" else z[:8, :8])
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    rise = _watch_process()
    kept = function(z)
    print(rise())
    del kept
"""


@pytest.mark.parametrize(
    ("library", "n", "d", "most"),
    [
        ("numpy", 256, 8192, 200 * 2**20),
        ("torch", 256, 8192, 200 * 2**20),
        # Smaller, since it is compiled a block after another, which takes most of a minute.
        # C alone is 64 MiB.
        pytest.param("compiled", 64, 4096, 4 * 4096**2 // 2, marks=pytest.mark.long),
    ],
    ids=["numpy", "torch", "torch.compile"],
)
def test_smooth_l1_in_a_part_of_the_memory_of_c(library: str, n: int, d: int, most: int) -> None:
    """C of 256 × 8192 in float32 is 256 MiB. JAX's and MLX's are in their own tests."""
    if library != "numpy":
        pytest.importorskip("torch")
    command = [sys.executable, "-c", PEAK, library, str(n), str(d)]
    # So that glibc gives back what is freed, where it is of the size of a block.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(int(line) <= most for line in ran.stdout.split()), ran.stdout


def test_pooled_images_take_twice_their_own_memory() -> None:
    """The centred ones and the gradient; what else there is has no axis of samples."""
    z = representation((16, 28, 28, 32))
    vcreg_value_and_grad(z[:1], **GIVEN)  # loads what a first call loads
    tracemalloc.start()
    loss, gradient = vcreg_value_and_grad(z, **GIVEN)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loss > 0
    assert gradient.shape == z.shape
    assert peak <= 2.1 * z.nbytes
