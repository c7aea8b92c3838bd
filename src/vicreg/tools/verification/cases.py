"""The inputs: hard ones, large ones, and ones for which some terms are zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "CASES",
    "LARGE",
    "MORE",
    "SIZES",
    "VCREG",
    "ZEROS",
    "Case",
    "case_of_size",
    "rounded_to",
]

Floats = npt.NDArray[np.float64]
Shape = tuple[int, ...]
Axis = int | tuple[int, ...]
Make = Callable[[np.random.Generator, Floats], Floats]

_WIDE, _TALL, _SQUARE = (16, 40), (32, 16), (24, 24)
#: The truth is exact up to this many elements and features; beyond, integers are too slow.
_EXACT_ELEMENTS, _EXACT_FEATURES = 1024, 64


def _as_drawn(_: np.random.Generator, z: Floats) -> Floats:
    return z


@dataclass(frozen=True)
class Case:
    """The views of one input.

    Parameters
    ----------
    name : str
        What is special about them.
    shape : tuple of int
        ``(n, ..., d)``, as the formulas have it.
    transform : callable
        Returns the stacked views, from random ones that correlate with each other.
    count : int
        The number of views.
    given : tuple of int, optional
        The shape in which a library is given them, if another: n and d as products of several
        lengths.
    feature_axis, sample_axis : int or tuple of int
        Where the features, the last of these axes, and the samples, the first, are then moved
        to. A `sample_axis` of None is where the samples are by default.
    """

    name: str
    shape: Shape
    transform: Make = field(default=_as_drawn, repr=False)
    count: int = 2
    given: Shape | None = None
    feature_axis: Axis = -1
    sample_axis: Axis | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def axes(self) -> dict[str, Any]:
        """Where the features and the samples are, as functions are told."""
        return {"feature_axis": self.feature_axis, "sample_axis": self.sample_axis}

    @property
    def exactly(self) -> bool:
        """Whether the truth is exact."""
        return int(np.prod(self.shape)) <= _EXACT_ELEMENTS and self.d <= _EXACT_FEATURES

    @property
    def is_of_size(self) -> bool:
        """Whether nothing but its size is special."""
        return self.name == f"{self.n} × {self.d}"

    @property
    def n(self) -> int:
        """The number of samples in each sample set."""
        return self.shape[0]

    @property
    def d(self) -> int:
        """The number of features."""
        return self.shape[-1]

    def views(self, seed: int = 0) -> tuple[Floats, ...]:
        """Return the views in float64, ``(n, ..., d)``."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        common = 0.8 * rng.standard_normal(self.shape)
        views = common + 0.3 * rng.standard_normal((self.count, *self.shape))
        views = self.transform(rng, views)
        # Both full dtypes have these numbers: they share one truth, which takes long.
        return tuple(views if self.exactly else rounded_to("float32", views))

    def directions(self, seed: int = 0) -> tuple[Floats, ...]:
        """Return one direction per view, of numbers that both full dtypes have."""
        rng = np.random.default_rng([seed, *self.name.encode(), 1])
        return tuple(rounded_to("float32", rng.standard_normal((self.count, *self.shape))))

    def as_given(self, view: Floats) -> Floats:
        """Return a view in the shape in which a library gets it."""
        return np.moveaxis(view.reshape(self.given or self.shape), *self._moves)

    def as_stated(self, gradient: Floats) -> Floats:
        """Return a gradient of a library in the shape of the formulas, ``(n, ..., d)``."""
        return np.moveaxis(gradient, *self._moves[::-1]).reshape(self.shape)

    @property
    def _moves(self) -> tuple[list[int], list[int]]:
        """From which axes to which the samples and the features are moved."""
        samples = [] if self.sample_axis is None else _listed(self.sample_axis)
        features = _listed(self.feature_axis)
        return [*range(len(samples)), *range(-len(features), 0)], samples + features


def _listed(axis: Axis) -> list[int]:
    return [axis] if isinstance(axis, int) else list(axis)


def _dead(_: np.random.Generator, z: Floats) -> Floats:
    z[..., 3] = 0.7
    return z


def _one_large(_: np.random.Generator, z: Floats) -> Floats:
    # Near the end: code that takes the first features would miss it.
    z[..., -4] *= 1000.0
    return z


def _many_large(_: np.random.Generator, z: Floats) -> Floats:
    z[..., 1:34:3] *= 1000.0
    return z


def _offset(_: np.random.Generator, z: Floats) -> Floats:
    return z + 1e4


def _scales(rng: np.random.Generator, z: Floats) -> Floats:
    scale: Floats = rng.permutation(np.logspace(-3, 3, z.shape[-1]))
    return z * scale


def _collapsed(_: np.random.Generator, z: Floats) -> Floats:
    return 1.0 + 1e-3 * z


def _whitened(rng: np.random.Generator, z: Floats) -> Floats:
    """Return columns of a Hadamard matrix: mean 0, population variance 1, covariance 0."""
    _, n, d = z.shape
    hadamard = np.ones((1, 1))
    while len(hadamard) < n:
        hadamard = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    return np.stack([hadamard[:, 1 + rng.permutation(n - 1)[:d]] for _ in range(len(z))])


def _same(_: np.random.Generator, z: Floats) -> Floats:
    """Make the views equal: the invariance is 0."""
    return np.stack([z[0]] * len(z))


def _wide_stds(_: np.random.Generator, z: Floats) -> Floats:
    """Make the stds larger than γ: the variance term is 0."""
    return 4 * z


def _apart(_: np.random.Generator, z: Floats) -> Floats:
    """Make the second view the first one, with other means of the features."""
    return np.stack([z[0], z[0] + np.arange(1, z.shape[-1] + 1) / 16])


def _one_after_another(*makes: Make) -> Make:
    def make(rng: np.random.Generator, z: Floats) -> Floats:
        for one in makes:
            z = one(rng, z)
        return z

    return make


def _narrow(_: np.random.Generator, z: Floats) -> Floats:
    """Make the stds of whitened features 1/2, so that the hinge acts."""
    return z / 2


#: wide: more features than samples, the Gram route. tall: more samples, the covariance route.
#: square: the two meet. positions: each is a sample set of its own, on two axes among two of
#: samples and two of features, neither in order; on the last of three axes, after the features.
#: features first: on the first axis of two. dead: a constant feature. one ×1000: a
#: feature whose std is 1000 times the rest's; many ×1000: eleven of them, more than the Gram route
#: keeps apart. offset: 10000 added to everything. scales: stds from 0.001 to 1000. collapsed: stds
#: of about 0.001. whitened: uncorrelated features of variance 1, the covariance term 0, the hinge
#: at its kink.
CASES = (
    Case("wide", _WIDE),
    Case("tall", _TALL),
    Case("square", _SQUARE),
    Case(
        "positions",
        (6, 2, 3, 8),
        given=(3, 2, 2, 3, 4, 2),
        feature_axis=(3, 0),
        sample_axis=(4, 1),
    ),
    Case("positions, tall", (12, 3, 5), feature_axis=1),
    Case("features first", (9, 14), feature_axis=0),
    Case("dead", _WIDE, _dead),
    Case("dead, tall", _TALL, _dead),
    Case("one ×1000", _WIDE, _one_large),
    Case("many ×1000", _WIDE, _many_large),
    Case("offset", _WIDE, _offset),
    Case("offset, tall", _TALL, _offset),
    Case("scales", _WIDE, _scales),
    Case("collapsed", _WIDE, _collapsed),
    Case("whitened", _TALL, _whitened),
)

#: Three views; and small inputs for second derivatives.
MORE = (
    Case("3 views", (9, 14), count=3),
    Case("3 views, tall", (14, 9), count=3),
    Case("small", (6, 10)),
    Case("small, tall", (10, 6)),
)

#: One view, for VCReg; images, of which each place is a sample, and positions that are separate.
VCREG = (
    Case("1 view", (8, 20), count=1),
    Case("1 view, tall", (20, 8), count=1),
    Case("images", (12, 20), count=1, given=(3, 2, 2, 20), feature_axis=1),
    Case("images, tall", (24, 6), count=1, given=(4, 3, 2, 6), feature_axis=1),
    Case("separate", (8, 2, 10), count=1, sample_axis=0),
    Case("separate, tall", (10, 2, 6), count=1, feature_axis=1, sample_axis=0),
)

#: Inputs above the thresholds of size, but for JAX's strips and PyTorch's views one by one.
LARGE = (
    Case("1024 × 257", (1024, 257)),
    Case("300 × 4096", (300, 4096)),
    Case("2050 × 260", (2050, 260), count=1, given=(41, 10, 5, 260)),
    Case("300 × 1100", (300, 1100), count=1),
    Case("64 × 600", (64, 600), count=1),
)


#: All terms except the named ones are 0, to show code that treats such terms differently.
ZEROS = (
    Case("invariance alone", _TALL, _one_after_another(_whitened, _wide_stds, _apart)),
    Case("variance alone", _TALL, _one_after_another(_whitened, _narrow, _same)),
    Case("covariance alone", _TALL, _one_after_another(_wide_stds, _same)),
    Case("covariance alone, wide", _WIDE, _one_after_another(_wide_stds, _same)),
    Case("no covariance", _TALL, _one_after_another(_whitened, _narrow, _apart)),
    Case("no variance", _TALL, _wide_stds),
    Case("no variance, wide", _WIDE, _wide_stds),
    Case("no invariance", _TALL, _same),
    Case("no invariance, wide", _WIDE, _same),
)

_LENGTHS = (2, 3, 5, 8, 15, 33, 64, 101, 128, 151, 200, 257, 300, 401, 512, 601, 768, 1001, 1024)


def case_of_size(n: int, d: int) -> Case:
    """Return a case of random views with `n` samples and `d` features."""
    return Case(f"{n} × {d}", (n, d))


#: Odd and even sizes, for code that changes from some size on: more and more features, more and
#: more samples, and both.
SIZES = (
    *(case_of_size(12, d) for d in (*_LENGTHS, 1500, 2049)),
    *(case_of_size(n, 6) for n in (*_LENGTHS, 1500, 2049, 4096, 10001)),
    *(case_of_size(*shape) for shape in ((257, 300), (1024, 257), (300, 1100))),
)


def rounded_to(dtype: str, values: Floats) -> Floats:
    """Return `values` rounded to `dtype`, as float64.

    So all libraries, and the truth, get the same numbers.
    """
    if dtype == "float64":
        return values
    if dtype == "bfloat16":
        # The upper half of the bits of a float32, rounded to nearest.
        bits = values.astype(np.float32).view(np.uint32)
        upper = (bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        return upper.view(np.float32).astype(np.float64)
    return values.astype(dtype).astype(np.float64)
