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
zc ∘ w        w is −1/(m std) where the hinge acts. ē |w| + |zc| Δw + 4u |zc w|, with
              Δw = |w| (Δstd / std + 4u); all of |zc w| where the hinge may or may not act.
invariance    u (W + N) of itself: nothing in it cancels but z − z', which is exact to u. Of its
              gradient u N.

The Gram route forms K = s zc zcᵀ and takes Σ K² − Σ C_jj² and K zc − zc ∘ diag C, whose
differences cancel: their terms are added for all but the eight largest features (n − 1 of them,
where that is less), which it keeps apart. ``method="auto"`` takes that route for n ≤ d.

Half precision is computed in float32, and each gradient is rounded once more, by u of the half
precision. A target's own code has its bound in its own dtype, centred plainly; what cannot be
known is its route, so both count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vicreg.core.sizes import DEFAULT_SIZES
from vicreg.verification.definition import TERMS, Definition

__all__ = ["UNDERFLOW", "UNIT_ROUNDOFF", "Rounding", "rounding_bounds"]

Floats = npt.NDArray[np.float64]

UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
#: What is lost where numbers are too small: what may be flushed to zero, but for float16 the
#: distance of its smallest numbers, since it is only ever rounded to.
UNDERFLOW = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "float16": 2.0**-24,
    "bfloat16": 2.0**-126,
}
#: Roundings of a number that is not summed: centring, scales, weights, roots.
_ROUNDINGS_OF_ONE = 16


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
    """

    computed_in: str
    returned_in: str
    plain: bool = False

    @property
    def u(self) -> float:
        """The unit roundoff of the computation."""
        return UNIT_ROUNDOFF[self.computed_in]


# A bound of a value, and of its gradient by each view.
_Bound = tuple[float, list[Floats]]


def rounding_bounds(
    views: Sequence[Floats], definition: Definition, rounding: Rounding, gamma: float = 1.0
) -> dict[str, tuple[float, tuple[Floats, ...]]]:
    """Return how far the loss, each term and their gradients may be from the truth.

    Parameters
    ----------
    views : sequence of array of float64, shape (n, d) or (n, ..., d)
        The views, exactly as they were given to what is judged.
    definition : Definition
        The formula.
    rounding : Rounding
        The arithmetic.
    gamma : float
        γ.

    Returns
    -------
    dict
        "loss" and each term, unweighted: the bound of the value, and of each view's gradient.
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
                "variance": _variance(sets, definition, gamma),
                "covariance": _covariance(sets, definition),
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
    weighted = list(zip(definition.weights, (bounds[term] for term in TERMS), strict=True))
    loss = sum(weight * value for weight, (value, _) in weighted)
    gradients = [
        np.sum([weight * of_view[view] for weight, (_, of_view) in weighted], axis=0)
        for view in range(len(views))
    ]
    bounds["loss"] = (loss, gradients)
    return {
        name: _returned(value, gradients, rounding) for name, (value, gradients) in bounds.items()
    }


def _returned(
    value: float, gradients: list[Floats], rounding: Rounding
) -> tuple[float, tuple[Floats, ...]]:
    """Add what underflow loses."""
    of_value = value + 4 * UNDERFLOW[rounding.computed_in]
    below = 4 * UNDERFLOW[rounding.returned_in]
    return of_value, tuple(gradient + below for gradient in gradients)


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
        updated = np.sqrt((zc**2).sum(axis=0) * (z**2).sum(axis=0))
        self.of_update = u * size * updated * float(rounding.plain)

    def covariance(self, m: int) -> tuple[Floats, Floats]:
        """Return C and ΔC."""
        absolute = np.abs(self.zc)
        of_entries = absolute.T @ self.of_entries
        error = self.u * self.size * (absolute.T @ absolute) + of_entries + of_entries.T
        error += self.n * np.outer(self.of_mean, self.of_mean)
        return self.zc.T @ self.zc / m, error / m


def _invariance(sets: Sequence[_SampleSet], definition: Definition) -> _Bound:
    first, second = (one.z for one in sets)
    if definition.invariance is None:
        return 0.0, [np.zeros_like(first), np.zeros_like(second)]
    one = sets[0]
    divisor = first.size if definition.invariance == "mean" else first.shape[0]
    difference = np.abs(first - second)
    whole = one.summed * first.size
    of_gradient = one.u * one.size * 2 * difference / divisor
    value = one.u * (whole + one.size) * float((difference**2).sum()) / divisor
    return value, [of_gradient, of_gradient]


def _variance(sets: Sequence[_SampleSet], definition: Definition, gamma: float) -> _Bound:
    value, gradients = 0.0, []
    share = (2.0 if definition.sum_variance else 1.0) / (len(sets) * sets[0].d)
    for one in sets:
        m = one.n - definition.n_variance
        c, error = one.covariance(m)
        variance = np.diag(c) + definition.eps
        of_variance = np.diag(error) + one.of_update / m + 2 * one.u * definition.eps
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
        absolute = np.abs(one.zc)
        gradients.append(
            share * ((one.of_zc + 4 * one.u * absolute) * slope + absolute * of_slope)
        )
    return value, gradients


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


def _covariance(sets: Sequence[_SampleSet], definition: Definition) -> _Bound:
    d = sets[0].d
    scale = (2.0 if definition.sum_covariance else 1.0) / (len(sets) * definition.divide(d))
    value, gradients = 0.0, []
    for one in sets:
        m = one.n - definition.n_covariance
        whole = one.summed * len(sets) * max(one.n, d) ** 2
        of_squares, of_product = _by_covariance(one, m, whole)
        if one.n <= d:
            of_kernel, of_kernel_product = _by_gram(one, m, whole)
            of_squares, of_product = of_squares + of_kernel, of_product + of_kernel_product
        value += scale * of_squares
        gradients.append(scale * 4 / m * of_product)
    return value, gradients


def _by_covariance(one: _SampleSet, m: int, whole: int) -> tuple[float, Floats]:
    """Return the error of Σ O², and of zc O."""
    c, of_c = one.covariance(m)
    off = 1.0 - np.eye(one.d)
    o, of_o = np.abs(c) * off, of_c * off
    un, absolute = one.u * one.size, np.abs(one.zc)
    value = float((2 * o * of_o + of_o**2 + (one.u * whole + un) * o**2).sum())
    return value, absolute @ of_o + one.of_zc @ o + un * absolute @ o


def _by_gram(one: _SampleSet, m: int, whole: int) -> tuple[float, Floats]:
    """Return what the differences add: of Σ K² − Σ C_jj², and of K zc − zc ∘ diag C."""
    c, of_c = one.covariance(m)
    diagonal, of_diagonal = np.diag(c), np.diag(of_c)
    rest = np.ones(one.d)
    rest[np.argsort(diagonal)[-min(DEFAULT_SIZES.kept_apart, one.n - 1) :]] = 0.0
    b, of_b, absolute = one.zc * rest, one.of_zc * rest, np.abs(one.zc)
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
