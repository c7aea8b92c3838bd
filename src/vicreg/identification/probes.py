"""What the function is probed with, and the function as the measurements see it.

The columns of a Hadamard matrix, ±1, have a mean of exactly zero and exactly no covariance, in
every dtype and in whatever order a library adds; times a power of two they still do. So each
term can be had alone: the hinge from uncorrelated features, the covariance from equal ones (no
variance changes), the invariance from one view with its sign turned (no statistic of a view
changes).
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from vicreg.backends import Floats
from vicreg.functions import FunctionError, LossFunction

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


class NoValueError(Exception):
    """The function returned nan or inf, or differs from call to call."""


class Shape(NamedTuple):
    """Samples and features."""

    n: int
    d: int

    @property
    def unit(self) -> float:
        """The sample variance of a column of ±1."""
        return self.n / (self.n - 1)


class Values(Protocol):
    """What the measurements need of a function of two NumPy arrays."""

    shapes: list[Shape]
    roundoff: float

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
        self.shapes = self._find_shapes()
        self._check_determinism()
        self.roundoff = self._roundoff()

    @property
    def seen(self) -> tuple[float, ...]:
        """Every value it has given."""
        return tuple(self._known.values())

    @property
    def slack(self) -> float:
        """The relative error that a measured ratio may have: some thousand roundings."""
        return min(2.0**13 * self.roundoff, 0.05)

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

    def _find_shapes(self) -> list[Shape]:
        try:
            return shapes_for(self)
        except FunctionError:
            # A module with parameters of its own takes their dtype alone.
            if "float32" not in self._function.backend.dtypes[1:]:
                raise
            self._dtype = "float32"
            try:
                return shapes_for(self)
            except FunctionError:
                pass
            raise

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
        pattern = np.random.default_rng(seed).standard_normal(z1.shape)
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
        self.roundoff, self.slack, self.noise = (
            function.roundoff,
            function.slack,
            function.noise,
        )

    def __call__(self, z1: Floats, z2: Floats | None = None) -> float:
        """Return the value for two views; one given is both."""
        z2 = z1 if z2 is None else z2
        return (self._function(z1, z2) + self._function(z1, -z2)) / 2


def shapes_for(probed: Probed) -> list[Shape]:
    """Return up to three shapes that the function takes: the second has other n, the third d."""
    base = _first_that_works(probed, _base_shapes())
    if base is None:  # what it says of the ordinary shape is what there is to say
        probed(uncorrelated(Shape(16, 5)))
        raise FunctionError("the function takes no shape that was tried")
    others = (
        [Shape(n, base.d) for n in _SAMPLES if n not in (base.n,) and n >= base.d + 1],
        [Shape(base.n, d) for d in _FEATURES if d != base.d and d < base.n],
    )
    found = [_first_that_works(probed, candidates) for candidates in others]
    return [base, *(shape for shape in found if shape is not None)]


def _base_shapes() -> list[Shape]:
    # Square or wider than long is no use: there are no more uncorrelated columns than samples.
    return [
        Shape(n, d)
        for d in _FEATURES
        for n in dict.fromkeys((max(16, 2 ** math.ceil(math.log2(d + 1))), 32, 64, 128, 256))
        if n > d
    ]


def _first_that_works(probed: Probed, shapes: list[Shape]) -> Shape | None:
    for shape in shapes:
        try:
            probed(uncorrelated(shape))
        except FunctionError:
            continue
        except NoValueError:
            pass
        return shape
    return None


def uncorrelated(shape: Shape) -> Floats:
    """Return d columns of ±1 with mean zero and no covariance; n is a power of two above d."""
    signs = np.ones((1, 1))
    while len(signs) < shape.n:
        signs = np.block([[signs, signs], [signs, -signs]])
    return np.ascontiguousarray(signs[:, 1 : shape.d + 1])


def ordinary_pairs(shape: Shape, gamma: float = 1.0) -> list[tuple[Floats, Floats]]:
    """Return pairs with every term at work: small, mixed and large against `gamma`."""
    rng = np.random.default_rng(shape.n * 1000 + shape.d)
    pairs = []
    for low, high, offset in ((0.3, 3.0, 0.4), (0.05, 0.6, 0.1), (1.5, 4.0, 2.0)):
        spread = gamma * np.exp(rng.uniform(np.log(low), np.log(high), shape.d))
        mixing = np.eye(shape.d) + 0.4 * rng.standard_normal((shape.d, shape.d)) / shape.d**0.5
        z1 = rng.standard_normal(shape) @ mixing * spread + offset * rng.standard_normal(shape.d)
        z2 = z1 + 0.5 * spread * rng.standard_normal(shape)
        pairs.append((z1, z2))
    return pairs
