"""The arrays that a function is probed with, and the function as the measurements see it.

The columns of a Hadamard matrix, ±1, have a mean and covariances of exactly zero, in every dtype
and in whichever order a library adds. Multiplied by a power of two they still do. With them each
term can be measured alone: the hinge on uncorrelated features, the covariance term on equal
features (which changes no variance), the invariance term on one view with its sign changed (which
changes no statistic of a view).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vicreg.tools.axes import Axes
from vicreg.tools.backends import Floats
from vicreg.tools.dtypes import UNIT_ROUNDOFF
from vicreg.tools.functions import FunctionError, LossFunction, error_line

__all__ = [
    "BATCHES",
    "EVERY_D",
    "Model",
    "NoValueError",
    "Pair",
    "Probed",
    "Shape",
    "WithoutSign",
    "ordinary_pairs",
    "shapes_to_try",
    "takes_nothing",
    "uncorrelated",
    "valued",
]

Pair = tuple[Floats, Floats]
#: A loss of two NumPy arrays.
Model = Callable[[Floats, Floats], float]

# Sizes for functions that take only some: 5 and 8 features on 16 and 32 samples come first.
_FEATURES = (5, 8, 4, 2, 3, 6, 7, 10, 12, 16, 32, 64, 128, 256, 512)
_SAMPLES = (16, 32, 64, 128, 256, 1024)
# Sizes for functions that take none of these: each with each, up to _LARGEST elements.
_WIDE = (20, 24, 48, 50, 96, 100, 192, 200, 384, 768, 1000, 1024, 1536, 2048, 3072, 4096, 8192)
_MORE = (2048, 4096, 1000, 500, 384, 200, 192, 100, 96, 50, 48, 24, 20, 12, 10, 8, 4)
BATCHES = (256, 128, 64, 512, 32, 16, 1024, *_MORE)
_LARGEST = 2**21
EVERY_D = (*_FEATURES, *_WIDE)
_MANY = 2**14


class NoValueError(Exception):
    """The function has no values to work with: nan, inf, random or too coarse ones."""


class Shape(NamedTuple):
    """The number of samples and of features."""

    n: int
    d: int

    @property
    def rows(self) -> int:
        """How many samples of `uncorrelated` are ±1; the others are 0."""
        return int(2 ** (self.n.bit_length() - 1))

    @property
    def live(self) -> int:
        """How many features of `uncorrelated` are ±1; the others are 0."""
        return min(self.d, self.rows - 1)

    @property
    def unit(self) -> float:
        """The sample variance of a column of ±1."""
        return self.rows / (self.n - 1)


class Probed:
    """A function of two NumPy arrays, with the shapes and the precision that it takes.

    Raises NoValueError if it returns no finite number for ordinary arrays, or two numbers for the
    same arrays; FunctionError if it takes no shape that is tried, or does not return a number.
    """

    def __init__(self, function: LossFunction) -> None:
        self._function = function
        self._dtype: str | None = None
        self._known: dict[bytes, float] = {}
        self.shapes = self._shapes()
        self._check_determinism()
        self.roundoff = self._roundoff()

    @property
    def seen(self) -> tuple[float, ...]:
        """Every value that the function has returned."""
        return tuple(self._known.values())

    @property
    def numbers(self) -> int:
        """Of how many numbers in its output the first is taken."""
        return self._function.numbers

    @property
    def resolution(self) -> float:
        """The unit roundoff of a mean over all features, relative to what live features add."""
        return self.roundoff * max(shape.d / shape.live for shape in self.shapes)

    @property
    def slack(self) -> float:
        """The largest relative error of a measured ratio: some thousand roundings."""
        return min(2.0**13 * self.resolution, 0.05)

    @property
    def error(self) -> float:
        """The largest relative error of a weight."""
        return max(64 * self.roundoff, 1e-12) * self.resolution / self.roundoff

    @cached_property
    def noise(self) -> float:
        """The largest rounding of a value that should be 0, such as 1 - cos of equal arrays."""
        values = [abs(self(*pair)) for pair in ordinary_pairs(self.shapes[0])]
        return 2.0**8 * self.roundoff * float(np.median(values))

    def __call__(self, z1: Floats, z2: Floats | None = None) -> float:
        """Return the value for two views; one array alone is both."""
        z2 = z1 if z2 is None else z2
        key = hashlib.sha256(repr(z1.shape).encode() + z1.tobytes() + z2.tobytes()).digest()
        if key not in self._known:  # a call may take a second, and some probes are used twice
            self._known[key] = self._value(z1, z2)
        return self._known[key]

    def _value(self, z1: Floats, z2: Floats) -> float:
        value = self._function(z1, z2, self._dtype)
        if not math.isfinite(value):
            what = f"arrays between {np.min(z1):.3g} and {np.max(z1):.3g}"
            raise NoValueError(f"it returns {value} for {what}")
        return value

    def _takes(self, shape: Shape) -> bool:
        """Return whether it takes arrays of that shape, in one dtype or another."""
        # A module with parameters takes arrays of their dtype only.
        single = "float32" if "float32" in self._function.backend.dtypes[1:] else None
        for dtype in dict.fromkeys((self._dtype, single)):
            if self._function.takes(*shape, dtype):
                self._dtype = dtype
                return True
        return False

    def _shapes(self) -> list[Shape]:
        """Return up to three shapes that it takes: one, one with another n, one with another d."""
        base = self._base()
        counts = dict.fromkeys([*(n for n in _SAMPLES if n > base.d), *BATCHES])
        shapes = [base]
        for others in (
            [Shape(n, base.d) for n in counts if n != base.n],
            [Shape(base.n, d) for d in EVERY_D if d != base.d],
        ):
            shapes += itertools.islice(filter(self._takes, _not_too_large(others)), 1)
        return shapes

    def _base(self) -> Shape:
        base = next(filter(self._takes, shapes_to_try()), None)
        if base is None:
            raise takes_nothing(self._function)
        if base.n > base.d:
            return base
        # With more samples, more features can be uncorrelated.
        return next(filter(self._takes, _not_too_large(Shape(n, base.d) for n in BATCHES)))

    def _check_determinism(self) -> None:
        z1, z2 = ordinary_pairs(self.shapes[0])[0]
        first, *others = (self._value(z1, z2) for _ in range(3))
        # Sums in an order that changes from run to run differ by roundings.
        for other in others:
            if abs(first - other) > 1e-6 * abs(first):
                raise NoValueError(
                    f"it is not deterministic: {first:.9g} and {other:.9g} for the same arrays"
                )

    def _roundoff(self) -> float:
        """Return the unit roundoff that it computes in, which need not be that of its arrays.

        A change of the input that is well above the roundoff changes the value in proportion; a
        smaller one does not. A bounded loss may be at its bound for some of the arrays.
        """
        pairs = ordinary_pairs(self.shapes[0])
        for dtype, step in (("float64", 2.0**-36), ("float32", 2.0**-14)):
            for pair in pairs:
                if any(self._follows(step, pair, seed) for seed in range(4)):
                    return UNIT_ROUNDOFF[dtype]
        same = all(self(2 * z1, z2) == self(z1, z2) for z1, z2 in pairs)
        return UNIT_ROUNDOFF["float64" if same else "bfloat16"]

    def _follows(self, step: float, pair: Pair, seed: int) -> bool:
        """Return whether changes of that relative size change the value in proportion."""
        z1, z2 = pair
        # Many independent changes would cancel: then each feature has one.
        size = z1.shape if z1.size <= _MANY else z1.shape[1:]
        pattern = np.random.default_rng(seed).standard_normal(size)
        before = self(z1, z2)
        changes = [abs(self(z1 * (1 + k * step * pattern), z2) - before) for k in (1, 2, 3)]
        third = changes[-1] / 3
        return third > 0 and all(
            abs(change - k * third) <= third / 4 for k, change in enumerate(changes, 1)
        )


class WithoutSign(Probed):
    """A function averaged over the sign of the second view.

    The statistics of a view do not depend on its sign. A cosine does, and its average is 0.
    """

    def __init__(self, function: Probed) -> None:
        # The same function with the same values and the same noise, which is cached.
        self.__dict__ |= function.__dict__ | {"noise": function.noise}

    def __call__(self, z1: Floats, z2: Floats | None = None) -> float:
        """Return the value for two views; one array alone is both."""
        z2 = z1 if z2 is None else z2
        return (super().__call__(z1, z2) + super().__call__(z1, -z2)) / 2


def valued(f: Probed, pairs: Iterable[Pair]) -> tuple[list[Pair], Floats]:
    """Return those pairs for which the function has a value, and the values."""
    taken, values = [], []
    for pair in pairs:
        try:
            values.append(f(*pair))
        except (FunctionError, NoValueError):
            continue
        taken.append(pair)
    return taken, np.asarray(values)


def _not_too_large(shapes: Iterable[Shape]) -> Iterator[Shape]:
    return (shape for shape in shapes if math.prod(shape) <= _LARGEST)


def shapes_to_try() -> dict[Shape, None]:
    """Return the shapes to try, in this order: small ones of more samples than features first.

    Only so many columns are uncorrelated.
    """
    first = [
        Shape(n, d)
        for d in _FEATURES
        for n in dict.fromkeys((max(16, 2 ** math.ceil(math.log2(d + 1))), 32, 64, 128, 256))
        if n > d
    ]
    every = _not_too_large(Shape(n, d) for d in EVERY_D for n in BATCHES)
    return dict.fromkeys([*first, *sorted(every, key=math.prod)])


def takes_nothing(function: LossFunction) -> FunctionError:
    """Return its error for an ordinary shape, with every shape that was tried.

    Where it raises the same TypeError for another shape too, its arguments are at fault.
    """
    n, d = (", ".join(map(str, sorted(sizes))) for sizes in (BATCHES, EVERY_D))
    tried = f"n samples of d features for n of {n}, d of {d}, n·d up to {_LARGEST}"
    error, other = (_error(function, shape) for shape in (Shape(16, 5), Shape(64, 8)))
    causes = [each.__cause__ for each in (error, other) if each and each.__cause__]
    if error and isinstance(causes[0], TypeError) and len(set(map(error_line, causes))) == 1:
        return error
    said = f"{error}; " if error else ""
    if error and function.axes == Axes():
        said += "if its arrays have other axes, shape (--shape) says which; "
    complete = FunctionError(f"{said}it takes no shape of those tried: {tried}")
    complete.__cause__ = error and error.__cause__
    return complete


def _error(function: LossFunction, shape: Shape) -> FunctionError | None:
    try:
        function(z := uncorrelated(shape), z)
    except FunctionError as error:
        return error
    return None


def uncorrelated(shape: Shape) -> Floats:
    """Return columns of ±1 with mean 0 and covariance 0, the rest of the array being 0.

    The rows of ±1 are the largest power of two in n, and there is one such column fewer at most.
    """
    row, column = np.arange(shape.rows)[:, None], np.arange(1, shape.live + 1)
    z = np.zeros(shape)
    z[: shape.rows, : shape.live] = 1.0 - 2.0 * (np.bitwise_count(row & column) % 2)
    return z


def ordinary_pairs(shape: Shape, gamma: float = 1.0) -> list[Pair]:
    """Return random pairs for which every term acts, of stds below, around and above `gamma`."""
    rng = np.random.default_rng(shape.n * 1000 + shape.d)
    pairs = []
    for low, high, offset in ((0.3, 3.0, 0.4), (0.05, 0.6, 0.1), (1.5, 4.0, 2.0)):
        std = gamma * np.exp(rng.uniform(np.log(low), np.log(high), shape.d))
        z1 = _correlated(rng, shape) * std + offset * rng.standard_normal(shape.d)
        z2 = z1 + 0.5 * std * rng.standard_normal(shape)
        pairs.append((z1, z2))
    return pairs


def _correlated(rng: np.random.Generator, shape: Shape) -> Floats:
    """Return random features that correlate: all with all, or with a neighbour if d is large."""
    d = shape.d
    if d > _FEATURES[-1]:
        z = rng.standard_normal(shape)
        return z + 0.4 * np.roll(z, 1, axis=1)
    mixing = np.eye(d) + 0.4 * rng.standard_normal((d, d)) / d**0.5
    mixed: Floats = rng.standard_normal(shape) @ mixing
    return mixed
