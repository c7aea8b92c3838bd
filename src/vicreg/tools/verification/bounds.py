"""How far rounding alone can take a result from the truth: derived, not fitted.

Notation: u is the unit roundoff of the dtype that is computed in, zc the centred view, C = s zcᵀzc
its covariance with s = 1/m, O = C with a zero diagonal, and P = s |zc|ᵀ|zc|, the sums of absolute
products. N = n + d + 16 is the size of the problem: in whatever order it is taken, a sum of k
terms is wrong by at most k u Σ|terms| (Higham, Accuracy and Stability of Numerical Algorithms,
section 4.2); a product of matrices sums n or d terms, and 16 is for what is done once to a number
on its way. W is the number of entries that one value is the sum of. Absolute values are meant
entry by entry. To first order in u:

centring      ē = u N a + 4u (|zc| + D) is the error of an entry of zc. a is the size of what the
              mean is taken of. The core first subtracts the first sample: a is the mean of
              D = |z − z₀|. Plainly z − mean(z) is formed: a is the mean of |z|, and D is 0.
covariance    ΔC = u N P + s (|zc|ᵀ ẽ + its transpose) + m⁻¹ n δδᵀ: the part of ē that is the same
              in every row, δ = u N a, falls out of the first order, since the columns of zc sum
              to 0. ẽ = 4u (|zc| + D) is the rest.
variance      the diagonal of ΔC. Somebody's own code may update mean and variance sample by
              sample, as PyTorch's var does: another u N √(Σ zc² Σ z²) / m (Chan, Golub, LeVeque,
              "Algorithms for computing the sample variance", The American Statistician, 1983).
std           Δ√(v + ε) from both ends of v ± Δv, and 4u of itself.
hinge         Δ of the std and 2u (γ + std); nothing where the std is above γ by more than that.
              u W γ where they are summed.
Σ O²          2 Σ |O| ΔC + Σ ΔC² + u (W + N) Σ O².
zc O          |zc| ΔC + ē |O| + u N |zc| |O|.
smooth L1     T = C within ±δ is in the place of O. ΔT is ΔC, and 4u δ where C is beyond δ by more
              than that. Of Σ T (2C − T) the roundings are those of |T| (2|C| + |T|).
zc ∘ w        w is −1/(m std) where the hinge acts. ē |w| + |zc| Δw + 4u |zc w|, with
              Δw = |w| (Δstd / std + 4u); all of |zc w| where the hinge may or may not act.
invariance    of two views u (W + N) of itself: nothing in it cancels but z − z', which is exact to
              u. Of its gradient u N. Of k views the core takes the deviations v from the mean,
              from the first view: with D = |z − z_1| and A its mean over the views, their error is
              ṽ = (k + 4) u (D + A); 2 |v| ṽ + ṽ² in the sum of their squares, ṽ in the gradient.

The Gram route forms K = s zc zcᵀ and takes Σ K² − Σ C_jj² and K zc − zc ∘ diag C, whose
differences cancel: their terms are added for all but the eight largest features (n − 1 of them,
where that is less), which it keeps apart. ``method="auto"`` takes that route for n ≤ d.

Where C is large it is not formed. Σ |O| ΔC ≤ ‖O‖ ‖ΔC‖ (Cauchy-Schwarz) and |O| ≤ P; so nothing but
n × n matrices is wanted: with X = u N |zc| / 2 + ẽ, ΔC = s (|zc|ᵀX + its transpose) + m⁻¹ n δδᵀ,

    ‖|zc|ᵀX‖² = Σ (|zc||zc|ᵀ) ∘ (X Xᵀ),   |zc| |zc|ᵀX = (|zc||zc|ᵀ) X,   ‖O‖² = Σ K² − Σ C_jj²,

and what the diagonals have in it is taken off.

A truth that is itself computed in float64, plainly and by the d × d matrix, is wrong by the bound
of that; it is added to that of what is judged.

along a direction   the derivative of a value is Σ g ∘ v with g the gradient, v the direction. Its
              error is Σ (Δg + u (W + N) |g|) ∘ |v|, |g| standing for the sum of the terms' |g|.
second derivative   along v. It is made of Z = |zc| + D + a and V, the same of the direction: a sum
              of products of three of them, or of two and a function of the std. Three centrings,
              two products of matrices and what is done once are wrong by at most 8 N u of the sum
              F of absolute values,

                  4 s (V Q + Z R),   Q = s ZᵀZ,   R = s (VᵀZ + ZᵀV)             for zc O
                  V / (m std) + Z diag R / (2 m std³)                           for zc ∘ w

              with the diagonals of Q and R taken twice, which the Gram route adds and subtracts.
              Of 1/std the error is another ρ = 3 N u Q_jj / (2 std²) + 4u, of 1/std³ three times
              that. The invariance is a square: 2 N u of |v| and its mean over the views, in its
              own scale. A library that differentiates the closed form centres F once more on its
              way back, which adds its mean over the samples, and subtracts from the first sample
              the sum over all of them, which is 0 but for 2 N u of the sum of F.
              The hinge is taken to act or not: the inputs leave no doubt.

Half precision is computed in float32, and each gradient is rounded once more, by u of the half
precision. A target's own code has its bound in its own dtype, centred plainly; what cannot be
known is its route, so both count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vicreg._core.sizes import DEFAULT_SIZES
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

#: Roundings of a number that is not summed: centring, scales, weights, roots.
_ROUNDINGS_OF_ONE = 16
#: With more features than this, and than samples, C is large.
_LARGE = 256


@dataclass(frozen=True)
class Rounding:
    """The arithmetic that a result comes from.

    Parameters
    ----------
    computed_in : str
        The dtype of the computation.
    returned_in : str
        The dtype of the gradients.
    plain : bool
        Whether z − mean(z) is formed plainly, or after the first sample is subtracted.
    method : {"auto", "gram", "covariance"}
        By which route.
    kept_apart : int
        How many of the largest features the Gram route keeps apart.
    """

    computed_in: str
    returned_in: str
    plain: bool = False
    method: str = "auto"
    kept_apart: int = DEFAULT_SIZES.kept_apart

    @property
    def u(self) -> float:
        """The unit roundoff of the computation."""
        return UNIT_ROUNDOFF[self.computed_in]

    def by_gram(self, n: int, d: int) -> bool:
        """Whether the Gram route may be taken."""
        return self.method == "gram" or (self.method == "auto" and n <= d)


#: The arithmetic of a truth that is computed in float64, by the definition as it stands.
PLAIN_FLOAT64 = Rounding("float64", "float64", plain=True, method="covariance")

#: The bound of a value, and of each entry of its gradient by each view.
Bound = tuple[float, list[Floats]]


def rounding_bounds(
    views: Sequence[Floats], definition: Definition, rounding: Rounding
) -> dict[str, Bound]:
    """Return how far each term and its gradients may be from the truth.

    Parameters
    ----------
    views : sequence of array of float64, shape (n, d) or (n, ..., d)
        The views, exactly as they were given to what is judged.
    definition : Definition
        The formula.
    rounding : Rounding
        The arithmetic.

    Returns
    -------
    dict
        Of each term, unweighted. Of a weighted sum of terms it is the same sum of these.
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
    """One view of one sample set, and the errors of its centring and its covariance."""

    def __init__(self, z: Floats, rounding: Rounding, summed: int) -> None:
        self.z = z
        self.summed = summed  # how many sample sets of each view are
        self.n, self.d = z.shape
        self.u = u = rounding.u
        self.size = size = self.n + self.d + _ROUNDINGS_OF_ONE
        from_first = z - z[:1]
        zc = self.zc = from_first - from_first.mean(axis=0)
        moved = np.zeros_like(z) if rounding.plain else np.abs(from_first)
        meant = np.abs(z if rounding.plain else from_first).mean(axis=0)
        self.of_mean = u * size * meant
        self.of_entries = 4 * u * (np.abs(zc) + moved)
        self.of_zc = self.of_mean + self.of_entries
        self.absolute = np.abs(zc)
        #: X: half of what is summed to an entry of ΔC, but for δ.
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
    # The mean over the pairs is this times the sum of the squared deviations.
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
        spread, of_spread = (
            _root_and_error(variance, of_variance, one.u)
            if definition.std
            else (variance, of_variance)
        )
        of_hinge = of_spread + 2 * one.u * (gamma + spread)
        near = (spread < gamma + of_hinge).astype(np.float64)
        whole = one.summed * len(sets) * one.d
        value += share * float(np.sum(near * (of_hinge + one.u * (whole + one.size) * gamma)))
        slope, of_slope = _slope_and_error(spread, of_spread, definition, m, one.u)
        undecided = np.abs(spread - gamma) <= of_hinge
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
    spread: Floats, of_spread: Floats, definition: Definition, m: int, u: float
) -> tuple[Floats, Floats]:
    """Return |w| and Δw: of 1/(m std), or of the constant 2/m."""
    if not definition.std:
        constant = np.full_like(spread, 2.0 / m)
        return constant, 4 * u * constant
    # Without a spread there is no slope; zc is 0 there, and its error the whole of the gradient.
    dead = spread <= of_spread
    smallest = np.where(dead, np.maximum(spread, of_spread), spread)
    slope = 1.0 / (m * np.where(smallest > 0, smallest, np.inf))
    return slope, slope * (np.where(dead, 1.0, of_spread / np.where(dead, 1.0, spread)) + 4 * u)


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
            of_kernel, of_kernel_product = _by_gram(one, m, whole, rounding.kept_apart)
            of_squares, of_product = of_squares + of_kernel, of_product + of_kernel_product
        value += scale * of_squares
        gradients.append(scale * 4 / m * of_product)
    return value, gradients


def _by_covariance(
    one: _SampleSet, m: int, whole: int, delta: float | None
) -> tuple[float, Floats]:
    """Return the error of Σ O², and of zc O; or of the same with the smooth L1."""
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
    """Return no less than `_by_covariance` does, without a d × d matrix."""
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
    """Return what the differences add: of Σ K² − Σ C_jj², and of K zc − zc ∘ diag C."""
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
    """Return how far the derivative of each term's gradients along directions may be off.

    Parameters
    ----------
    views, directions : sequences of array of float64, shape (n, d)
        The views, and a direction each.
    definition, rounding : Definition, Rounding
        As in `rounding_bounds`.

    Returns
    -------
    dict
        Of each term, unweighted: a bound a view.
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
        bounds["variance"].append(of_variance * acts * _sent_back(error))
        m = n - definition.n_covariance
        error = 8 * nu * 4 / m**2 * (v @ q + z @ r)
        bounds["covariance"].append(of_covariance * _sent_back(error))
    return bounds


def _size_of(one: _SampleSet) -> Floats:
    """Return Z: what an entry of zc is a sum of."""
    from_first = np.abs(one.z - one.z[:1])
    size: Floats = one.absolute + from_first + from_first.mean(axis=0)
    return size


def _with_diagonal(matrix: Floats) -> Floats:
    """Return the matrix with twice its diagonal."""
    doubled: Floats = matrix + np.diag(np.diag(matrix))
    return doubled


def _sent_back(error: Floats) -> Floats:
    """Return the error of what is centred again, and subtracted from the first sample."""
    sent: Floats = error + error.mean(axis=0)
    # `error` is 8 N u F at least.
    sent[0] += 2 / 8 * sent.sum(axis=0)
    return sent
