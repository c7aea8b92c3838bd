"""What the function is probed with, and the function as the measurements see it.

The columns of a Hadamard matrix, ±1, have a mean of exactly zero and exactly no covariance, in
every dtype and in whatever order a library adds; times a power of two they still do. So each
term can be had alone: the hinge from uncorrelated features, the covariance from equal ones (no
variance changes), the invariance from one view with its sign turned (no statistic of a view
changes).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from vicreg.tools.backends import Floats
from vicreg.tools.functions import FunctionError, LossFunction

__all__ = [
    "NoValueError",
    "Probed",
    "Shape",
    "Values",
    "WithoutSign",
    "ordinary_pairs",
    "shapes_for",
    "uncorrelated",
]

_DOUBLE, _SINGLE, _HALF = 2.0**-53, 2.0**-24, 2.0**-8
# Sizes for functions that take only some: 5 and 8 features on 16 and 32 samples come first.
_FEATURES = (5, 8, 4, 2, 3, 6, 7, 10, 12, 16, 32, 64, 128, 256, 512)
_SAMPLES = (16, 32, 64, 128, 256, 1024)
# And those that are tried where none of these works: each with each, while an array is no larger.
_WIDE = (20, 24, 48, 50, 96, 100, 192, 200, 384, 768, 1000, 1024, 1536, 2048, 3072, 4096, 8192)
_MORE = (2048, 4096, 1000, 500, 384, 200, 192, 100, 96, 50, 48, 24, 20, 12, 10, 8, 4)
_BATCHES = (256, 128, 64, 512, 32, 16, 1024, *_MORE)
_LARGEST = 2**21
_MANY = 2**14
_NUMBERS = np.random.default_rng(0).standard_normal(1009)


class NoValueError(Exception):
    """The function returned nan or inf, or differs from call to call."""


class Shape(NamedTuple):
    """Samples and features."""

    n: int
    d: int

    @property
    def rows(self) -> int:
        """How many samples the columns of ±1 have; the others are 0."""
        return int(2 ** (self.n.bit_length() - 1))

    @property
    def live(self) -> int:
        """How many features there are without covariance; the others are 0."""
        return min(self.d, self.rows - 1)

    @property
    def unit(self) -> float:
        """The sample variance of a column of ±1."""
        return self.rows / (self.n - 1)


class Values(Protocol):
    """What the measurements need of a function of two NumPy arrays."""

    shapes: list[Shape]
    roundoff: float

    @property
    def resolution(self) -> float:
        """The roundoff of what the features that are not 0 make of a mean over all."""

    @property
    def slack(self) -> float:
        """The relative error that a measured ratio may have: some thousand roundings."""

    @property
    def noise(self) -> float:
        """What a value of 0 may come out as: of arrays that matter, a sum's rounding."""

    def __call__(self, z1: Floats, z2: Floats | None = None) -> float:
        """Return the value for two views; one given is both."""


class Probed:
    """The function as one of NumPy arrays, with what is known of its precision.

    Parameters
    ----------
    function : LossFunction
        What is probed.

    Raises
    ------
    NoValueError
        It gives no number for ordinary arrays, or two for the same.
    FunctionError
        It raises for arrays of every shape that is tried, or returns no number.
    """

    def __init__(self, function: LossFunction) -> None:
        self._function = function
        self._dtype: str | None = None
        self._known: dict[bytes, float] = {}
        self.shapes = shapes_for(self)
        self._check_determinism()
        self.roundoff = self._roundoff()

    @property
    def seen(self) -> tuple[float, ...]:
        """Every value it has given."""
        return tuple(self._known.values())

    @property
    def resolution(self) -> float:
        """The roundoff of what the features that are not 0 make of a mean over all."""
        return self.roundoff * max(shape.d / shape.live for shape in self.shapes)

    @property
    def slack(self) -> float:
        """The relative error that a measured ratio may have: some thousand roundings."""
        return min(2.0**13 * self.resolution, 0.05)

    @cached_property
    def noise(self) -> float:
        """What a value of 0 may come out as: 1 - cos of equal arrays is such a rounding error."""
        values = [abs(self(*pair)) for pair in ordinary_pairs(self.shapes[0])]
        return 2.0**8 * self.roundoff * float(np.median(values))

    def __call__(self, z1: Floats, z2: Floats | None = None) -> float:
        """Return the value for two views; one given is both."""
        z2 = z1 if z2 is None else z2
        key = hashlib.sha256(repr(z1.shape).encode() + z1.tobytes() + z2.tobytes()).digest()
        if key not in self._known:  # a call may take a second, and some probes serve twice
            self._known[key] = self._value(z1, z2)
        return self._known[key]

    def _value(self, z1: Floats, z2: Floats) -> float:
        value = self._function(z1, z2, self._dtype)
        if not math.isfinite(value):
            what = f"arrays between {np.min(z1):.3g} and {np.max(z1):.3g}"
            raise NoValueError(f"it returns {value} for {what}")
        return value

    def takes(self, shape: Shape) -> bool:
        """Return whether it returns a number for arrays of that shape, in one dtype or another.

        Raises
        ------
        FunctionError
            It returns what is no number.
        """
        # A module with parameters of its own takes their dtype alone.
        single = "float32" if "float32" in self._function.backend.dtypes[1:] else None
        z = _any_numbers(shape)
        for dtype in dict.fromkeys((self._dtype, single)):
            try:
                self._function(z, z, dtype)
            except FunctionError as error:
                if error.__cause__ is None:  # it did not raise
                    raise
            else:
                self._dtype = dtype
                return True
        return False

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
        """Return the unit roundoff of what it computes in, whatever it is given and returns.

        A change of the input that is well above the roundoff shows in proportion; one below it
        is lost, or comes out as a rounding. A bounded loss may be at its bound for some arrays.
        """
        pairs = ordinary_pairs(self.shapes[0])
        for roundoff, step in ((_DOUBLE, 2.0**-36), (_SINGLE, 2.0**-14)):
            for pair in pairs:
                if any(self._follows(step, pair, seed) for seed in range(4)):
                    return roundoff
        same = all(self(2 * z1, z2) == self(z1, z2) for z1, z2 in pairs)
        return _DOUBLE if same else _HALF

    def _follows(self, step: float, pair: tuple[Floats, Floats], seed: int) -> bool:
        """Return whether changes of that relative size show in proportion."""
        z1, z2 = pair
        # Over many values changes of their own cancel: then each feature has one.
        size = z1.shape if z1.size <= _MANY else z1.shape[1:]
        pattern = np.random.default_rng(seed).standard_normal(size)
        before = self(z1, z2)
        changes = [abs(self(z1 * (1 + k * step * pattern), z2) - before) for k in (1, 2, 3)]
        third = changes[-1] / 3
        return third > 0 and all(
            abs(change - k * third) <= third / 4 for k, change in enumerate(changes, 1)
        )


class WithoutSign:
    """What is left of a function where the second view's sign is averaged out.

    The statistics of a view do not know its sign. A cosine changes with it, and is gone.
    """

    def __init__(self, function: Values) -> None:
        self._function = function
        self.shapes = function.shapes
        self.roundoff, self.resolution = function.roundoff, function.resolution
        self.slack, self.noise = function.slack, function.noise

    def __call__(self, z1: Floats, z2: Floats | None = None) -> float:
        """Return the value for two views; one given is both."""
        z2 = z1 if z2 is None else z2
        return (self._function(z1, z2) + self._function(z1, -z2)) / 2


def shapes_for(probed: Probed) -> list[Shape]:
    """Return up to three shapes that the function takes: the second has other n, the third d."""
    base = _base(probed)
    if base is None:
        raise _none_of_them(probed)
    counts = dict.fromkeys([*(n for n in _SAMPLES if n > base.d), *_BATCHES])
    found = [base]
    for others in (
        [Shape(n, base.d) for n in counts if n != base.n],
        [Shape(base.n, d) for d in (*_FEATURES, *_WIDE) if d != base.d],
    ):
        found += itertools.islice(filter(probed.takes, _not_too_large(others)), 1)
    return found


def _base(probed: Probed) -> Shape | None:
    # More samples than features first: there are no more uncorrelated columns than samples.
    first = [
        Shape(n, d)
        for d in _FEATURES
        for n in dict.fromkeys((max(16, 2 ** math.ceil(math.log2(d + 1))), 32, 64, 128, 256))
        if n > d
    ]
    every = _not_too_large(Shape(n, d) for d in (*_FEATURES, *_WIDE) for n in _BATCHES)
    small_first = sorted(every, key=math.prod)
    taken = next(filter(probed.takes, dict.fromkeys([*first, *small_first])), None)
    if taken is None or taken.n > taken.d:
        return taken
    # More of the features can be without covariance in more samples.
    better = _not_too_large(Shape(n, taken.d) for n in _BATCHES)
    return next(filter(probed.takes, better))


def _not_too_large(shapes: Iterable[Shape]) -> Iterator[Shape]:
    return (shape for shape in shapes if math.prod(shape) <= _LARGEST)


def _none_of_them(probed: Probed) -> FunctionError:
    """Return what it says of the ordinary shape, and every shape that was tried."""
    n, d = (", ".join(map(str, sorted(sizes))) for sizes in (_BATCHES, (*_FEATURES, *_WIDE)))
    tried = f"n samples of d features for n of {n}, d of {d}, n·d up to {_LARGEST}"
    said, cause = "", None
    try:
        probed(uncorrelated(Shape(16, 5)))
    except FunctionError as error:
        said, cause = f"{error}; ", error.__cause__
    found = FunctionError(f"{said}it takes no shape of those tried: {tried}")
    found.__cause__ = cause
    return found


def uncorrelated(shape: Shape) -> Floats:
    """Return columns of ±1 with mean zero and no covariance, and zeros for what there is more.

    There are ±1 in the most samples that are a power of two, and in one feature fewer at most.
    """
    row, column = np.arange(shape.rows)[:, None], np.arange(1, shape.live + 1)
    z = np.zeros(shape)
    z[: shape.rows, : shape.live] = 1.0 - 2.0 * (np.bitwise_count(row & column) % 2)
    return z


def _any_numbers(shape: Shape) -> Floats:
    """Return numbers to see what a function takes: cheap where it takes nothing of hundreds."""
    return np.resize(_NUMBERS, shape)


def ordinary_pairs(shape: Shape, gamma: float = 1.0) -> list[tuple[Floats, Floats]]:
    """Return pairs with every term at work: small, mixed and large against `gamma`."""
    rng = np.random.default_rng(shape.n * 1000 + shape.d)
    pairs = []
    for low, high, offset in ((0.3, 3.0, 0.4), (0.05, 0.6, 0.1), (1.5, 4.0, 2.0)):
        spread = gamma * np.exp(rng.uniform(np.log(low), np.log(high), shape.d))
        z1 = _mixed(rng, shape) * spread + offset * rng.standard_normal(shape.d)
        z2 = z1 + 0.5 * spread * rng.standard_normal(shape)
        pairs.append((z1, z2))
    return pairs


def _mixed(rng: np.random.Generator, shape: Shape) -> Floats:
    """Return features that correlate: each with all others, or of many with its neighbour."""
    d = shape.d
    if d > _FEATURES[-1]:
        z = rng.standard_normal(shape)
        return z + 0.4 * np.roll(z, 1, axis=1)
    mixing = np.eye(d) + 0.4 * rng.standard_normal((d, d)) / d**0.5
    mixed: Floats = rng.standard_normal(shape) @ mixing
    return mixed
