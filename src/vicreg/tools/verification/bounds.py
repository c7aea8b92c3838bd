"""How far a result may be from the truth by rounding alone: bounds that are derived, not fitted.

Notation: u is the unit roundoff of the dtype that is computed in, zc the centred view, C = s zcᵀzc
its covariance with s = 1/m, O = C with a zero diagonal, and P = s |zc|ᵀ|zc|, the sums of absolute
products. N = n + d + 16 is the size of the problem: the error of a sum of k terms, in any order,
is at most k u Σ|terms| (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2); a
product of matrices sums n or d terms, and 16 is for the other operations on a number. W is the
number of entries that are summed to one value. Absolute values are entry by entry. To first order
in u:

centring      ē = u N a + 4u (|zc| + D) is the error of an entry of zc, a being the mean absolute
              value of the numbers that are averaged. The core first subtracts z₀, the first
              sample, or the median of three in each feature: a is the mean of D = |z − z₀|,
              the larger of the two. Plain code forms z − mean(z): a is the mean of |z|, and D
              is 0.
covariance    ΔC = u N P + s (|zc|ᵀ ẽ + its transpose) + m⁻¹ n δδᵀ: δ = u N a, the part of ē that
              is equal in all rows, has no effect in first order, since the columns of zc sum to 0.
              ẽ = 4u (|zc| + D) is the rest.
variance      the diagonal of ΔC. A user's function may update mean and variance sample by sample,
              as PyTorch's var does: this adds u N √(Σ zc² Σ z²) / m (Chan, Golub, LeVeque,
              "Algorithms for computing the sample variance", The American Statistician, 1983).
std           Δ√(v + ε) at both ends of v ± Δv, plus 4u of the std.
hinge         Δstd + 2u (γ + std); 0 if the std is above γ by more than that. Their sum adds u W γ.
Σ O²          2 Σ |O| ΔC + Σ ΔC² + u (W + N) Σ O².
zc O          |zc| ΔC + ē |O| + u N |zc| |O|.
smooth L1     O is replaced by T, C clipped to ±δ. ΔT is ΔC, or 4u δ where |C| exceeds δ by more
              than that. Σ T (2C − T) has the roundings of |T| (2|C| + |T|).
zc ∘ w        w is −1/(m std) where the hinge acts. ē |w| + |zc| Δw + 4u |zc w|, with
              Δw = |w| (Δstd / std + 4u); all of |zc w| if it is unclear whether the hinge acts.
invariance    for two views u (W + N) times the value: only z − z' cancels, and it is exact to u.
              The gradient has u N. For k views the core computes the deviations v from the mean
              of the views after subtracting the first view: with D = |z − z_1| and A its mean over
              the views, their error is ṽ = (k + 4) u (D + A). It adds 2 |v| ṽ + ṽ² to the sum of
              the squares, and ṽ to the gradient.

The Gram route forms K = s zc zcᵀ, and computes Σ K² − Σ C_jj² and K zc − zc ∘ diag C. These
differences cancel, so the error of both terms is added, except for the eight largest features (or
n − 1, if that is less), which are kept apart. ``method="auto"`` may take this route for n ≤ d.

A large C is not formed. Σ |O| ΔC ≤ ‖O‖ ‖ΔC‖ (Cauchy-Schwarz) and |O| ≤ P, so that n × n matrices
are enough: with X = u N |zc| / 2 + ẽ, ΔC = s (|zc|ᵀX + its transpose) + m⁻¹ n δδᵀ,

    ‖|zc|ᵀX‖² = Σ (|zc||zc|ᵀ) ∘ (X Xᵀ),   |zc| |zc|ᵀX = (|zc||zc|ᵀ) X,   ‖O‖² = Σ K² − Σ C_jj²,

less the contributions of the diagonals.

If the truth is computed in float64, by plain code with the d × d matrix, its own bound is added.

along a direction   the derivative of a value is Σ g ∘ v with g the gradient, v the direction. Its
              error is Σ (Δg + u (W + N) |g|) ∘ |v|, |g| standing for the sum of the terms' |g|.
second derivative   along v. It is a sum of products of three factors from Z = |zc| + D + a and V,
              the same for the direction, or of two factors and a function of the std. The error of
              three centrings, two matrix products and the other operations is at most 8 N u of
              the sum F of absolute values,

                  4 s (V Q + Z R),   Q = s ZᵀZ,   R = s (VᵀZ + ZᵀV)             for zc O
                  V / (m std) + Z diag R / (2 m std³)                           for zc ∘ w

              with the diagonals of Q and R counted twice, as the Gram route adds and subtracts
              them. 1/std adds the relative error ρ = 3 N u Q_jj / (2 std²) + 4u, and 1/std³ three
              times that. The invariance is quadratic: 2 N u of |v| plus its mean over the views,
              times its scale. A library that differentiates the closed form centres F once more in
              its backward pass, which adds the mean of F over the samples; and it subtracts from
              z₀ the sum over all samples, which is at most 2 N u of the sum of F.
              It is assumed to be clear whether the hinge acts.

Half precision is computed in float32, and each gradient is then rounded to half precision, with
its u. The bound of a user's function is that of plain code in its dtype. Since its route is
unknown, the bounds of both routes are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vicreg._core.sizes import DEFAULT_SIZES, Sizes
from vicreg.tools.dtypes import UNIT_ROUNDOFF
from vicreg.tools.verification.definition import TERMS, Definition

__all__ = [
    "PLAIN_FLOAT64",
    "Bound",
    "Rounding",
    "curvature_bounds",
    "rounding_bounds",
]

Floats = npt.NDArray[np.float64]

#: The number of roundings outside of sums: centring, scales, weights, roots.
_ROUNDINGS_OF_ONE = 16
#: C is large with more features than this, and more than samples.
_LARGE = 256


@dataclass(frozen=True)
class Rounding:
    """How a result is computed.

    Parameters
    ----------
    computed_in : str
        The dtype of the computation.
    returned_in : str
        The dtype of the gradients.
    plain : bool
        Whether z − mean(z) is formed directly, and not after a sample is subtracted.
    method : {"auto", "gram", "covariance"}
        The route of the covariance term.
    sizes : Sizes
        How many of the largest features the Gram route keeps apart, and up to how many samples
        the first is subtracted.
    """

    computed_in: str
    returned_in: str
    plain: bool = False
    method: str = "auto"
    sizes: Sizes = DEFAULT_SIZES

    @property
    def u(self) -> float:
        """The unit roundoff of the computation."""
        return UNIT_ROUNDOFF[self.computed_in]

    def by_gram(self, n: int, d: int) -> bool:
        """Whether the Gram route is possible."""
        return self.method == "gram" or (self.method == "auto" and n <= d)


#: How the truth is computed in float64: by the definition.
PLAIN_FLOAT64 = Rounding("float64", "float64", plain=True, method="covariance")

#: The bound of a value, and of each entry of its gradient with respect to each view.
Bound = tuple[float, list[Floats]]


def rounding_bounds(
    views: Sequence[Floats], definition: Definition, rounding: Rounding
) -> dict[str, Bound]:
    """Return how far each term and its gradients may be from the truth.

    Parameters
    ----------
    views : sequence of array of float64, shape (n, d) or (n, ..., d)
        The views, exactly as the function under test gets them.
    definition : Definition
        The formula.
    rounding : Rounding
        How the result is computed.

    Returns
    -------
    dict
        The bound of each term, unweighted. That of a weighted sum is the weighted sum of these.
    """
    n, *_, d = shape = views[0].shape
    flat = [view.reshape(n, -1, d) for view in views]
    count = flat[0].shape[1]
    of_sets = []
    for position in range(count):
        sets = [_SampleSet(view[:, position, :], rounding, summed=count) for view in flat]
        of_sets.append(
            {
                "invariance": _invariance(sets, definition),
                "variance": _variance(sets, definition),
                "covariance": _covariance(sets, definition, rounding),
            }
        )
    bounds = {}
    for term in TERMS:
        value = sum(of_set[term][0] for of_set in of_sets) / count
        gradients = [
            np.stack([of_set[term][1][view] for of_set in of_sets], axis=1).reshape(shape) / count
            for view in range(len(views))
        ]
        bounds[term] = (value, gradients)
    return bounds


class _SampleSet:
    """One view of one sample set, with the errors of its centring and covariance."""

    def __init__(self, z: Floats, rounding: Rounding, summed: int) -> None:
        self.z = z
        self.summed = summed  # the number of sample sets, over which values are summed
        self.n, self.d = z.shape
        self.u = u = rounding.u
        self.size = size = self.n + self.d + _ROUNDINGS_OF_ONE
        from_first = z - z[:1]
        zc = self.zc = from_first - from_first.mean(axis=0)
        self.takes_middle = self.n > rounding.sizes.first_subtracted
        #: D, the distance to what the core subtracts before the mean is taken.
        self.distance = np.abs(from_first)
        if self.takes_middle:
            from_middle = np.abs(z - np.median(z[[0, len(z) // 2, -1]], axis=0))
            self.distance = np.maximum(self.distance, from_middle)
        moved = np.zeros_like(z) if rounding.plain else self.distance
        meant = (np.abs(z) if rounding.plain else moved).mean(axis=0)
        self.of_mean = u * size * meant
        self.of_entries = 4 * u * (np.abs(zc) + moved)
        self.of_zc = self.of_mean + self.of_entries
        self.absolute = np.abs(zc)
        #: X, which gives ΔC except for the part of δ.
        self.half = u * size * self.absolute / 2 + self.of_entries
        updated = np.sqrt((zc**2).sum(axis=0) * (z**2).sum(axis=0))
        self.of_update = u * size * updated * float(rounding.plain)

    def variances(self, m: int) -> tuple[Floats, Floats]:
        """Return the diagonals of C and ΔC."""
        error = 2 * (self.absolute * self.half).sum(axis=0) + self.n * self.of_mean**2
        return (self.zc**2).sum(axis=0) / m, error / m

    def covariance(self, m: int) -> tuple[Floats, Floats]:
        """Return C and ΔC."""
        error = self.absolute.T @ self.half
        error = error + error.T
        error += self.n * np.outer(self.of_mean, self.of_mean)
        error /= m
        return self.zc.T @ self.zc / m, error


def _invariance(sets: Sequence[_SampleSet], definition: Definition) -> Bound:
    views, k = np.stack([one.z for one in sets]), len(sets)
    if definition.invariance is None or k == 1:
        return 0.0, [np.zeros_like(view) for view in views]
    one = sets[0]
    divisor = views[0].size if definition.invariance == "mean" else one.n
    whole = one.u * (one.summed * views.size + one.size)
    if k == 2:
        difference = np.abs(views[0] - views[1])
        of_gradient = one.u * one.size * 2 * difference / divisor
        return whole * float((difference**2).sum()) / divisor, [of_gradient, of_gradient]
    # The mean over the pairs is the sum of the squared deviations times this.
    scale = 2 / ((k - 1) * divisor)
    from_first = np.abs(views - views[0])
    deviations = np.abs(views - views[0] - (views - views[0]).mean(axis=0))
    errors = (k + 4) * one.u * (from_first + from_first.mean(axis=0))
    value = float((2 * deviations * errors + errors**2 + whole * deviations**2).sum())
    gradients = 2 * scale * (errors + one.u * one.size * deviations)
    return scale * value, list(gradients)


def _variance(sets: Sequence[_SampleSet], definition: Definition) -> Bound:
    value, gradients = 0.0, []
    gamma = definition.gamma
    share = _over_views(definition.sum_variance, sets) / sets[0].d
    for one in sets:
        m = one.n - definition.n_variance
        variance, of_variance = one.variances(m)
        variance = variance + definition.eps
        of_variance = of_variance + one.of_update / m + 2 * one.u * definition.eps
        argument, of_argument = (
            _root_and_error(variance, of_variance, one.u)
            if definition.std
            else (variance, of_variance)
        )
        of_hinge = of_argument + 2 * one.u * (gamma + argument)
        near = (argument < gamma + of_hinge).astype(np.float64)
        whole = one.summed * len(sets) * one.d
        value += share * float(np.sum(near * (of_hinge + one.u * (whole + one.size) * gamma)))
        slope, of_slope = _slope_and_error(argument, of_argument, definition, m, one.u)
        undecided = np.abs(argument - gamma) <= of_hinge
        of_slope = near * np.where(undecided, np.maximum(slope, of_slope), of_slope)
        slope = near * slope
        gradients.append(
            share * ((one.of_zc + 4 * one.u * one.absolute) * slope + one.absolute * of_slope)
        )
    return value, gradients


def _over_views(is_sum: bool, sets: Sequence[_SampleSet]) -> float:
    return (2.0 if is_sum and len(sets) > 1 else 1.0) / len(sets)


def _root_and_error(variance: Floats, of_variance: Floats, u: float) -> tuple[Floats, Floats]:
    root = np.sqrt(variance)
    above = np.sqrt(variance + of_variance) - root
    below = root - np.sqrt(np.maximum(variance - of_variance, 0.0))
    return root, np.maximum(above, below) + 4 * u * root


def _slope_and_error(
    argument: Floats, of_argument: Floats, definition: Definition, m: int, u: float
) -> tuple[Floats, Floats]:
    """Return |w| and Δw, for w = 1/(m std) or for the constant 2/m."""
    if not definition.std:
        constant = np.full_like(argument, 2.0 / m)
        return constant, 4 * u * constant
    # With a std of 0 the slope is unknown; zc is 0 there, and all of the gradient is its error.
    dead = argument <= of_argument
    smallest = np.where(dead, np.maximum(argument, of_argument), argument)
    slope = 1.0 / (m * np.where(smallest > 0, smallest, np.inf))
    relative = np.where(dead, 1.0, of_argument / np.where(dead, 1.0, argument))
    return slope, slope * (relative + 4 * u)


def _covariance(sets: Sequence[_SampleSet], definition: Definition, rounding: Rounding) -> Bound:
    d = sets[0].d
    scale = _over_views(definition.sum_covariance, sets) / definition.divide(d)
    value, gradients = 0.0, []
    for one in sets:
        m = one.n - definition.n_covariance
        whole = one.summed * len(sets) * max(one.n, d) ** 2
        if definition.delta is None and d > max(one.n, _LARGE):
            of_squares, of_product = _by_norms(one, m, whole)
        else:
            of_squares, of_product = _by_covariance(one, m, whole, definition.delta)
        if definition.delta is None and rounding.by_gram(one.n, d):
            of_kernel, of_kernel_product = _by_gram(one, m, whole, rounding.sizes.kept_apart)
            of_squares, of_product = of_squares + of_kernel, of_product + of_kernel_product
        value += scale * of_squares
        gradients.append(scale * 4 / m * of_product)
    return value, gradients


def _by_covariance(
    one: _SampleSet, m: int, whole: int, delta: float | None
) -> tuple[float, Floats]:
    """Return the errors of Σ O² and of zc O, or of the same for the smooth L1."""
    c, of_c = one.covariance(m)
    for matrix in (c, of_c):
        np.fill_diagonal(matrix, 0.0)
    o, of_o = np.abs(c), of_c
    t, of_t, squares = o, of_o, o**2
    if delta is not None:
        t = np.minimum(o, delta)
        of_t = np.where(o > delta + of_o, 4 * one.u * delta, of_o)
        squares = t * (2 * o + t)
    un = one.u * one.size
    value = float((2 * t * of_o + of_o**2 + (one.u * whole + un) * squares).sum())
    return value, one.absolute @ of_t + (one.of_zc + un * one.absolute) @ t


def _by_norms(one: _SampleSet, m: int, whole: int) -> tuple[float, Floats]:
    """Return upper bounds of the errors in `_by_covariance`, without a d × d matrix."""
    un, absolute, half, of_mean = one.u * one.size, one.absolute, one.half, one.of_mean
    gram = absolute @ absolute.T
    own = (absolute * half).sum(axis=0)  # the diagonal of |zc|ᵀX
    of_half = (gram * (half @ half.T)).sum() - (own**2).sum()
    of_c = (2 * float(np.sqrt(max(of_half, 0.0))) + one.n * float((of_mean**2).sum())) / m
    energies = (one.zc**2).sum(axis=0)
    squares = float(((one.zc @ one.zc.T) ** 2).sum() - (energies**2).sum()) / m**2
    value = 2 * np.sqrt(squares) * of_c + of_c**2 + (one.u * whole + un) * squares
    of_sums = one.of_zc + un * absolute
    product = gram @ half + (absolute @ half.T + of_sums @ absolute.T) @ absolute
    product -= 2 * own * absolute + energies * of_sums
    product += one.n * np.outer(absolute @ of_mean, of_mean)
    return value, product / m


def _by_gram(one: _SampleSet, m: int, whole: int, kept_apart: int) -> tuple[float, Floats]:
    """Return the errors that the differences add, in Σ K² − Σ C_jj² and K zc − zc ∘ diag C."""
    diagonal, of_diagonal = one.variances(m)
    rest = np.ones(one.d)
    rest[np.argsort(diagonal)[-min(kept_apart, one.n - 1) :]] = 0.0
    b, of_b, absolute = one.zc * rest, one.of_zc * rest, one.absolute
    un = one.u * one.size
    kernel = np.abs(b @ b.T) / m
    moved = of_b @ np.abs(b).T
    of_kernel = (un * np.abs(b) @ np.abs(b).T + moved + moved.T) / m
    summed = one.u * whole + un
    squares = float((2 * kernel * of_kernel + of_kernel**2 + summed * kernel**2).sum())
    squares += float((rest * (2 * diagonal * of_diagonal + summed * diagonal**2)).sum())
    product = of_kernel @ absolute + kernel @ one.of_zc + un * kernel @ absolute
    product += rest * (
        absolute * of_diagonal + one.of_zc * diagonal + 2 * un * absolute * diagonal
    )
    return squares, product


def curvature_bounds(
    views: Sequence[Floats],
    directions: Sequence[Floats],
    definition: Definition,
    rounding: Rounding,
) -> dict[str, list[Floats]]:
    """Return bounds of the error in the derivative of each term's gradients along directions.

    Parameters
    ----------
    views, directions : sequences of array of float64, shape (n, d)
        The views, and one direction per view.
    definition, rounding : Definition, Rounding
        As in `rounding_bounds`.

    Returns
    -------
    dict
        The bounds of each term, unweighted, one per view.
    """
    k = len(views)
    sets = [_SampleSet(view, rounding, summed=1) for view in views]
    along = [_SampleSet(direction, rounding, summed=1) for direction in directions]
    n, d, u = sets[0].n, sets[0].d, rounding.u
    nu = u * sets[0].size
    of_variance = _over_views(definition.sum_variance, sets) / d
    of_covariance = _over_views(definition.sum_covariance, sets) / definition.divide(d)
    bounds: dict[str, list[Floats]] = {term: [] for term in TERMS}
    absolute = np.abs(np.stack(directions))
    divisor = n * d if definition.invariance == "mean" else n
    for place, (one, moving) in enumerate(zip(sets, along, strict=True)):
        z, v = _size_of(one), _size_of(moving)
        q, r = (_with_diagonal(matrix) for matrix in (z.T @ z, v.T @ z + z.T @ v))
        changes = absolute[place] + absolute.mean(axis=0)
        is_there = definition.invariance is not None and k > 1
        pairs = 2 * k / (max(k - 1, 1) * divisor)
        bounds["invariance"].append(2 * nu * pairs * changes * float(is_there))
        m = n - definition.n_variance
        variance = (one.zc**2).sum(axis=0) / m + definition.eps
        if definition.std:
            std = np.sqrt(variance)
            of_std = 3 * nu * np.diag(q) / m / (2 * variance) + 4 * u
            straight, bent = v / (m * std), z * np.diag(r) / (2 * m**2 * std**3)
            error = straight * (8 * nu + of_std) + bent * (8 * nu + 3 * of_std)
            acts = std < definition.gamma
        else:
            error, acts = 8 * nu * 2 / m * v, variance < definition.gamma
        bounds["variance"].append(of_variance * acts * _sent_back(error, one))
        m = n - definition.n_covariance
        error = 8 * nu * 4 / m**2 * (v @ q + z @ r)
        bounds["covariance"].append(of_covariance * _sent_back(error, one))
    return bounds


def _size_of(one: _SampleSet) -> Floats:
    """Return Z, the sum of the absolute values behind each entry of zc."""
    size: Floats = one.absolute + one.distance + one.distance.mean(axis=0)
    return size


def _with_diagonal(matrix: Floats) -> Floats:
    """Return the matrix with twice its diagonal."""
    doubled: Floats = matrix + np.diag(np.diag(matrix))
    return doubled


def _sent_back(error: Floats, one: _SampleSet) -> Floats:
    """Return `error` after the centring in a backward pass."""
    sent: Floats = error + error.mean(axis=0)
    # `error` is 8 N u F at least.
    sent[: 3 if one.takes_middle else 1] += 2 / 8 * sent.sum(axis=0)
    return sent
