"""Hard input, as data: batches of embeddings on which floating-point arithmetic does badly.

Each family draws a view ``(n, d)`` in float64, whose values the tests round to the dtype that they
are about; the other view is drawn likewise unless the family says how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["FAMILIES", "Family"]

Floats = np.ndarray
Rng = np.random.Generator
View = Callable[[Rng, int, int], Floats]
Other = Callable[[Rng, Floats], Floats]


@dataclass(frozen=True)
class Family:
    """A kind of hard input.

    Parameters
    ----------
    name : str
        Its name.
    why : str
        What is hard about it.
    view : callable
        Returns a view: ``view(rng, n, d)``.
    shape : tuple of int
        n and d.
    other : callable, optional
        Returns the second view: ``other(rng, first)``. By default it is drawn like the first.
    uncorrelated : int
        How many features are uncorrelated with each other and large beside the others.
    far_first : bool
        Whether the first sample is far from all others.
    equal : bool
        Whether long sums are of equal numbers, which are all rounded alike.
    draws : int
        How many draws show the error: one where many numbers decide, more where few do, any of
        which may by chance be right.
    """

    name: str
    why: str
    view: View
    shape: tuple[int, int]
    other: Other | None = None
    uncorrelated: int = 0
    far_first: bool = False
    equal: bool = False
    draws: int = 1

    def __str__(self) -> str:
        return self.name

    def draw(self, seed: int = 0) -> tuple[Floats, Floats]:
        """Return two views."""
        rng = np.random.default_rng(seed)
        first = self.view(rng, *self.shape)
        other = self.view(rng, *self.shape) if self.other is None else self.other(rng, first)
        return first, other


# What the families are made of.


def normal(rng: Rng, n: int, d: int) -> Floats:
    return rng.standard_normal((n, d))


def times(scale: float | Callable[[Rng, int], Floats], view: View = normal) -> View:
    """Return `view`, each feature times a number."""

    def scaled(rng: Rng, n: int, d: int) -> Floats:
        return view(rng, n, d) * (scale(rng, d) if callable(scale) else scale)

    return scaled


def plus(offset: float | Callable[[Rng, int], Floats], view: View = normal) -> View:
    """Return `view`, each feature plus a number."""

    def shifted(rng: Rng, n: int, d: int) -> Floats:
        return view(rng, n, d) + (offset(rng, d) if callable(offset) else offset)

    return shifted


def decades(low: float, high: float) -> Callable[[Rng, int], Floats]:
    return lambda rng, d: rng.permutation(np.logspace(low, high, d))


def samples_of_decades(rng: Rng, n: int, d: int) -> Floats:
    """Return normal samples, each times a number of 1e-6 to 1e6."""
    return decades(-6, 6)(rng, n)[:, None] * normal(rng, n, d)


def log_normal(rng: Rng, d: int) -> Floats:
    return rng.lognormal(sigma=2, size=d)


def uncorrelated(rng: Rng, n: int, d: int) -> Floats:
    """Return features of mean 0 and std 1 without correlations; zeros from the nth on."""
    basis, _ = np.linalg.qr(np.c_[np.ones(n), normal(rng, n, min(d, n - 1))])
    white = basis[:, 1:] * (n - 1) ** 0.5
    return np.c_[white, np.zeros((n, d - white.shape[1]))]


def runaway(count: int, std: float, of: View = normal) -> View:
    """Return normal features, of which `count` are drawn by `of` and have that std."""

    def view(rng: Rng, n: int, d: int) -> Floats:
        z = normal(rng, n, d)
        z[:, rng.permutation(d)[:count]] = std * of(rng, n, count)
        return z

    return view


def copies(rng: Rng, n: int, d: int) -> Floats:
    """Return one feature d times, with either sign."""
    return normal(rng, n, 1) * rng.choice([-1.0, 1.0], d)


def of_rank(rank: int, noise: float = 0.0) -> View:
    return lambda rng, n, d: (
        normal(rng, n, rank) @ normal(rng, rank, d) + noise * normal(rng, n, d)
    )


def moved(count: int, by: float) -> View:
    """Return normal samples, of which the first are that far from the others."""

    def view(rng: Rng, n: int, d: int) -> Floats:
        z = normal(rng, n, d)
        z[:count] += by
        return z

    return view


def with_sample(place: int, size: float) -> View:
    """Return normal samples, of which one is that many times as large."""

    def view(rng: Rng, n: int, d: int) -> Floats:
        z = normal(rng, n, d)
        z[place] *= size
        return z

    return view


def with_entry(size: float) -> View:
    def view(rng: Rng, n: int, d: int) -> Floats:
        z = normal(rng, n, d)
        z[rng.integers(n), rng.integers(d)] = size
        return z

    return view


def repeated(samples: int = 1, features: int = 1) -> View:
    """Return each sample, or each feature, that many times."""

    def view(rng: Rng, n: int, d: int) -> Floats:
        z = normal(rng, -(-n // samples), -(-d // features))
        return np.repeat(np.repeat(z, samples, axis=0), features, axis=1)[:n, :d]

    return view


def codes(rng: Rng, n: int, d: int) -> Floats:
    """Return features of the two values 1 and -1, each as often as the other."""
    return np.where(np.argsort(normal(rng, n, d), axis=0) < n // 2, 1.0, -1.0)


def two_points(rng: Rng, n: int, d: int) -> Floats:
    return np.where(np.arange(n) % 2, 1.0, -1.0)[:, None] * normal(rng, 1, d)


def clusters(rng: Rng, n: int, d: int) -> Floats:
    return 100 * normal(rng, 2, d)[rng.integers(2, size=n)] + 1e-2 * normal(rng, n, d)


def groups(rng: Rng, n: int, d: int) -> Floats:
    """Return groups of eight features that are almost the same, some of them large."""
    common = normal(rng, n, d // 8) * rng.choice([1.0, 100.0], d // 8)
    return common[:, np.arange(d) % (d // 8)] + 1e-3 * normal(rng, n, d)


def two_close(rng: Rng, n: int, d: int) -> Floats:
    """Return normal features, of which two are large and almost the same."""
    z = normal(rng, n, d)
    z[:, 0] *= 1e3
    z[:, 1] = z[:, 0] + 1e-2 * z[:, 1]
    return z


def walk(rng: Rng, n: int, d: int) -> Floats:
    return np.cumsum(normal(rng, n, d), axis=0)


def ladder(rng: Rng, d: int) -> Floats:
    return np.where(np.arange(d) < 12, 10.0 ** (np.arange(d) / 2), 1.0)


def one_hot(rng: Rng, n: int, d: int) -> Floats:
    return 100.0 * np.eye(n)[:, rng.integers(n, size=d)]


def rising(rng: Rng, n: int, d: int) -> Floats:
    return np.arange(n)[:, None] * rng.uniform(1, 2, d) + 1e-2 * normal(rng, n, d)


def powers(rng: Rng, n: int, d: int) -> Floats:
    return rng.uniform(-1, 1, (n, 1)) ** np.arange(1, d + 1)


def cauchy(rng: Rng, n: int, d: int) -> Floats:
    return rng.standard_cauchy((n, d))


def softmax(rng: Rng, n: int, d: int) -> Floats:
    z = np.exp(5 * normal(rng, n, d))
    return z / z.sum(axis=1, keepdims=True)


def of_unit_norm(rng: Rng, n: int, d: int) -> Floats:
    z = normal(rng, n, d)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def half_dead(rng: Rng, n: int, d: int) -> Floats:
    return np.where(np.arange(d) % 2, normal(rng, n, d), rng.standard_normal(d))


def at_the_kink(rng: Rng, n: int, d: int) -> Floats:
    """Return features whose variances and ε add up to 1, but for some millionths."""
    z = normal(rng, n, d)
    z -= z.mean(axis=0)
    wanted = 1 - 1e-4 + 1e-6 * rng.standard_normal(d)
    return z / z.std(axis=0, ddof=1) * wanted**0.5


def orthogonal_samples(rng: Rng, n: int, d: int) -> Floats:
    return np.linalg.qr(normal(rng, d, n))[0].T * d**0.5


def tight_frame(rng: Rng, n: int, d: int) -> Floats:
    """Return centred samples whose covariance has one eigenvalue, n - 1 times."""
    z = normal(rng, n, d)
    u, _, v = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    return u[:, :-1] @ v[:-1] * d**0.5


def near(rng: Rng, first: Floats) -> Floats:
    return first + 1e-6 * rng.standard_normal(first.shape)


WIDE, TALL = (48, 160), (512, 32)  # by the Gram route, by the definition
WIDER = (40, 288)
FOR_100, FOR_200 = (112, 144), (208, 256)

FAMILIES = (
    Family("normal", "nothing: the measure of the others", normal, WIDE),
    # Features far larger than the rest.
    Family("1 runaway feature", "its variance hides all else", runaway(1, 1e3), WIDE, draws=4),
    Family("1 runaway feature, std 1e6", "even more so", runaway(1, 1e6), WIDE, draws=4),
    Family("8 runaway features", "as many as are kept apart", runaway(8, 1e3), WIDE),
    Family("9 runaway features", "one more", runaway(9, 1e3), WIDE, draws=4),
    Family("32 runaway features", "correlated by chance", runaway(32, 1e4), WIDE),
    Family("100 runaway features", "more than samples", runaway(100, 1e4), WIDE),
    Family("200 runaway features", "as many as samples", runaway(200, 1e3), FOR_200),
    Family("runaway copies", "12 of one feature", runaway(12, 1e3, copies), WIDE, draws=4),
    Family("many runaway copies", "60 of one feature", runaway(60, 1e3, copies), WIDE),
    Family("a ladder of features", "12 stds, 1 to 3e5", times(ladder), WIDE, draws=4),
    Family("8 runaway features, tall", "by the definition", runaway(8, 1e3), TALL, draws=4),
    Family("two close runaway features", "1e-5 of their std apart", two_close, WIDE, draws=4),
    *(
        Family(
            f"{count} orthogonal runaway features",
            f"std {std:g}, no correlation: the covariances are rounding",
            runaway(count, std, uncorrelated),
            shape,
            uncorrelated=count,
            draws=draws,
        )
        for count, std, shape, draws in (
            (2, 1e6, WIDE, 32),  # one covariance decides, which is near 0 in some draws
            (4, 1e5, WIDE, 16),
            (8, 1e4, WIDE, 8),
            (9, 1e3, WIDE, 4),
            (20, 1e4, WIDE, 4),
            (30, 1e3, WIDER, 4),
            (33, 1e2, WIDE, 4),
            (40, 1e5, WIDE, 4),
            (47, 30.0, WIDE, 4),
            (100, 1e3, FOR_100, 2),
            (200, 1e4, FOR_200, 1),
        )
    ),
    *(
        Family(
            f"{count} orthogonal runaway features, tall",
            "by the definition",
            runaway(count, std, uncorrelated),
            TALL,
            uncorrelated=count,
            draws=4,
        )
        for count, std in ((9, 1e4), (20, 1e3))
    ),
    # Scales.
    Family("stds of 12 decades", "1e-6 to 1e6", times(decades(-6, 6)), WIDE, draws=4),
    Family("stds of 12 decades, tall", "by the definition", times(decades(-6, 6)), TALL, draws=4),
    Family("stds of 6 decades", "1e-3 to 1e3", times(decades(-3, 3)), WIDE),
    Family("log-normal stds", "σ = 2", times(log_normal), WIDE, draws=4),
    Family("log-normal stds, tall", "by the definition", times(log_normal), TALL, draws=4),
    Family(
        "samples of 12 decades",
        "one sample's size is 1e-6, another's 1e6",
        samples_of_decades,
        WIDE,
        draws=4,
    ),
    Family(
        "samples of 12 decades, tall",
        "by the definition",
        samples_of_decades,
        TALL,
        draws=4,
    ),
    Family("Cauchy", "no variance", cauchy, WIDE, draws=4),
    Family("Cauchy, tall", "by the definition", cauchy, TALL, draws=4),
    # Offsets.
    Family("an offset of 1e6", "few digits are left", plus(1e6), WIDE),
    Family("an offset of 1e6, tall", "by the definition", plus(1e6), TALL),
    Family("an offset of -1e6, std 0.1", "hardly any digit", plus(-1e6, times(0.1)), WIDE),
    Family("offsets of either sign", "1e6", plus(lambda r, d: 1e6 * r.standard_normal(d)), WIDE),
    Family("one offset feature", "1e6", plus(lambda r, d: 1e6 * (np.arange(d) == 3)), WIDE),
    Family(
        "an offset of 1e6 and 4 runaway features", "1e5", plus(1e6, runaway(4, 1e5)), WIDE, draws=4
    ),
    Family(
        "an offset of 1e4 and 8 runaway features", "1e3", plus(1e4, runaway(8, 1e3)), WIDE, draws=4
    ),
    # Collapse.
    Family("almost collapsed", "1 and 1e-3 of noise", plus(1.0, times(1e-3)), WIDE),
    Family("more than almost collapsed", "1 and 1e-6 of noise", plus(1.0, times(1e-6)), WIDE),
    Family("collapsed", "all samples equal", plus(lambda r, d: r.normal(size=d), times(0)), WIDE),
    Family("half dead", "every other feature is constant", half_dead, WIDE),
    Family("rank one", "all features are one", of_rank(1), WIDE),
    Family("rank one, large", "and their std is 1e3", times(1e3, of_rank(1)), WIDE),
    Family("rank one and noise", "of 1e-4", of_rank(1, 1e-4), WIDE),
    Family("rank two, tall", "by the definition", of_rank(2), TALL),
    # No correlations.
    Family("whitened", "the term is rounding", uncorrelated, TALL, draws=4),
    Family("whitened, wide", "of n - 1 dimensions", uncorrelated, WIDE, uncorrelated=47, draws=4),
    Family(
        "whitened, stds of 6 decades",
        "1e-3 to 1e3",
        lambda rng, n, d: uncorrelated(rng, n, d) * np.resize(np.logspace(-3, 3, n - 1), d),
        WIDE,
        uncorrelated=47,
        draws=4,
    ),
    Family("orthogonal samples", "K is diagonal", orthogonal_samples, WIDE),
    Family("a tight frame", "K is its own square", tight_frame, WIDE),
    # Single samples and entries.
    Family("a far first sample", "1e6", with_sample(0, 1e6), WIDE, far_first=True, equal=True),
    Family(
        "a far first sample, tall", "1e6", with_sample(0, 1e6), TALL, far_first=True, equal=True
    ),
    Family(
        "a first sample of 1e3",
        "of the size of the others' sum",
        with_sample(0, 1e3),
        WIDE,
        far_first=True,
    ),
    Family("a far last sample", "1e6", with_sample(-1, 1e6), WIDE, equal=True),
    Family(
        "three far first samples", "100 from the others", moved(3, 100.0), TALL, far_first=True
    ),
    Family("one large entry", "1e6", with_entry(1e6), WIDE, draws=4),
    Family("one large entry, tall", "by the definition", with_entry(1e6), TALL, draws=4),
    # What repeats.
    Family("repeated samples", "each 4 times", repeated(samples=4), WIDE),
    Family("repeated features", "each 4 times", repeated(features=4), WIDE),
    Family("two points", "each half of the samples", two_points, WIDE, equal=True),
    Family("two clusters", "far apart", clusters, WIDE),
    Family("groups of features", "almost the same", groups, WIDE),
    Family("groups of features, tall", "by the definition", groups, TALL, draws=2),
    Family("codes", "1 and -1", codes, WIDE, equal=True),
    Family("codes that are rounded", "±1.234567", times(1.234567, codes), WIDE, equal=True),
    Family("codes and a runaway", "the largest is the last", runaway(1, 1e3, codes), WIDE),
    # Shapes of embeddings.
    Family("one-hot", "100 in one sample", one_hot, WIDE),
    Family("rising", "each sum grows all the way", rising, WIDE),
    Family("a random walk", "of each feature, sample by sample", walk, WIDE, draws=2),
    Family("powers", "z, z², z³, ...", powers, WIDE),
    Family("sparse", "0 but for some", lambda r, n, d: np.maximum(normal(r, n, d) - 2, 0), WIDE),
    Family(
        "softmax", "some 30 large features, each in one sample", softmax, WIDE, uncorrelated=30
    ),
    Family("unit norm", "small stds", of_unit_norm, WIDE),
    Family("bytes", "0 to 255", lambda r, n, d: 1.0 * r.integers(0, 256, (n, d)), WIDE),
    Family("at the kink", "stds of 1, up to 1e-6", at_the_kink, WIDE),
    Family("at the kink, tall", "by the definition", at_the_kink, TALL),
    Family("few samples", "4, with 6 runaway features", runaway(6, 1e4), (4, 300)),
    # The ends of the dtype.
    Family("subnormal", "1e-40", times(1e-40), WIDE),
    Family("tiny", "1e-20: the squares are 0 or subnormal", times(1e-20), WIDE),
    Family("tiny, tall", "1e-8: so are the squares' squares", times(1e-8), TALL),
    Family("near overflow", "3e8: the term is 1e35", times(3e8), WIDE),
    Family("near overflow, tall", "by the definition", times(1e9), TALL),
    Family("near overflow, one feature", "its variance is 1e35", runaway(1, 3e17), WIDE, draws=4),
    Family("near overflow, 6 features", "1e8", runaway(6, 1e8), WIDE, draws=8),
    # Pairs of views.
    Family(
        "near views",
        "1e-6 apart",
        normal,
        WIDE,
        lambda rng, z: z + 1e-6 * rng.normal(size=z.shape),
    ),
    Family(
        "near views, 4 runaway features",
        "1e-2 apart, of std 1e4",
        runaway(4, 1e4),
        WIDE,
        lambda rng, z: z + 1e-2 * rng.normal(size=z.shape),
        draws=4,
    ),
    Family("equal views", "no distance", normal, WIDE, lambda rng, z: z),
    Family("opposite views", "1e3 and -1e3", times(1e3), WIDE, lambda rng, z: -z),
    Family("far views", "1e6 apart", normal, WIDE, lambda rng, z: z + 1e6),
)
