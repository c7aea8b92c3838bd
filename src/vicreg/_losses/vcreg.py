"""The public functions of VCReg: the variance and covariance terms of one representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._checks import CheckedWeights, Weight, checked_library, checked_objective
from vicreg._conventions import VCREG_EPS
from vicreg._core.communicator import Communicator
from vicreg._core.objective import Objective
from vicreg._typing import Array, ArrayT, CovarianceGradient, Method, Penalty

__all__ = ["vcreg_loss", "vcreg_value_and_grad"]


def vcreg_loss(
    z: ArrayT,
    *,
    variance_weight: float | Array,
    covariance_weight: float | Array,
    gamma: float = 1.0,
    eps: float | None = VCREG_EPS,
    penalty: Penalty = "square",
    delta: float = 1.0,
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    method: Method = "auto",
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the variance-covariance regularization of one representation.

    With C the covariance of d features, the loss is ::

        α/d Σ_i max(0, γ − sqrt(C_ii + ε)) + β/(d(d − 1)) Σ_{i≠j} p(C_ij)

    Differentiable as `vicreg_loss` is.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        The representation of n samples, of two or more features.
    variance_weight, covariance_weight : float or array of shape ()
        α and β. They must be given: no published value fits all networks. An array is one of
        the library of `z`, and may be traced and differentiated by. A term of the number 0
        has no part in the result, and beside one of another weight is not computed.
    gamma : float, optional
        γ, the standard deviation below which the hinge acts.
    eps : float, optional
        ε, added to the variance under the root; None is the convention's own, 1e-5.
    penalty : {"square", "smooth_l1"}, optional
        p. "square" is C_ij²; "smooth_l1", against outliers, is C_ij² up to `delta` in magnitude
        and its tangent, 2δ|C_ij| − δ², beyond.
    delta : float, optional
        δ, where "smooth_l1" becomes linear. With "square" there is none to choose.
    feature_axis, sample_axis : int or sequence of int, optional
        As in `vicreg_loss`, except that a `sample_axis` of None is every axis that holds no
        features: of images ``(n, d, height, width)`` with ``feature_axis=1`` each place of each
        image is a sample. With ``sample_axis=0`` each place has statistics of its own.
    method : {"auto", "gram", "covariance"}, optional
        As in `vicreg_loss`. "smooth_l1" needs each entry of the covariance, in blocks of columns
        where all of them are more than the representation: for it there is no "gram".
    comm : Communicator, optional
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        On the device and in the dtype of `z`; float32 where that is float16 or bfloat16.

    Raises
    ------
    TypeError
        `z` is not an array, or not of a real floating-point dtype; a weight, `gamma`, `eps` or
        `delta` is not a number; a weight is left out; axes as in `vicreg_loss`.
    ValueError
        Fewer than two samples or features; a weight that is None or negative, `gamma` or `delta`
        not above 0, `eps` below 0; a `delta` other than 1 for "square"; the method "gram" for
        "smooth_l1"; an unknown penalty or method; axes as in `vicreg_loss`.

    Notes
    -----
    Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, "Variance-Covariance Regularization Improves
    Representation Learning", arXiv 2306.13292: its loss, and its smooth L1 of the covariances.
    The cost is two products of n · d · min(n, d), gradient included; of n · d² for "smooth_l1".

    Examples
    --------
    Two equal features of variance 1: the hinge is content, the two covariances of 1 are not.

    >>> import numpy as np
    >>> from vicreg import vcreg_loss
    >>> z = np.asarray([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    >>> print(f"{vcreg_loss(z, variance_weight=1.0, covariance_weight=0.5):.6f}")
    0.500000

    Ten times as large they cost 100² by the square, and as an outlier 2 · 100 − 1:

    >>> weights = {"variance_weight": 1.0, "covariance_weight": 1.0}
    >>> print(f"{vcreg_loss(10 * z, **weights):.1f}")
    10000.0
    >>> print(f"{vcreg_loss(10 * z, penalty='smooth_l1', **weights):.1f}")
    199.0

    Of images the channels are features; each place of each image is a sample, or a set of samples:

    >>> images = np.random.default_rng(0).standard_normal((8, 3, 4, 4))
    >>> print(f"{vcreg_loss(images, feature_axis=1, **weights):.3f}")
    0.014
    >>> print(f"{vcreg_loss(images, feature_axis=1, sample_axis=0, **weights):.3f}")
    0.277
    """
    given, axes = (variance_weight, covariance_weight), (feature_axis, sample_axis)
    library, objective, weights = _checked(
        z, given, gamma, eps, penalty, delta, axes, method, comm
    )
    outputs: tuple[ArrayT] = adapter_for(library).evaluate((z,), objective, weights)
    return outputs[0]


def vcreg_value_and_grad(
    z: ArrayT,
    *,
    variance_weight: float | Array,
    covariance_weight: float | Array,
    gamma: float = 1.0,
    eps: float | None = VCREG_EPS,
    penalty: Penalty = "square",
    delta: float = 1.0,
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    method: Method = "auto",
    comm: Communicator | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Return the loss and its exact gradient, in closed form, on every library.

    Parameters
    ----------
    z, variance_weight, covariance_weight, gamma, eps, penalty, delta, feature_axis, \
sample_axis, method, comm
        As in `vcreg_loss`.

    Returns
    -------
    loss : array, shape ()
        As `vcreg_loss` returns it.
    gradient : array
        Of the shape, dtype and device of `z`.

    Raises
    ------
    TypeError, ValueError
        As in `vcreg_loss`.

    Notes
    -----
    The derivative of the loss of Zhu et al., arXiv 2306.13292, with the 1/(n − 1) that the
    paper's pseudocode of the gradient leaves out of its covariance part.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vcreg_value_and_grad
    >>> rng = np.random.default_rng(0)
    >>> z = rng.standard_normal((16, 3)) @ rng.standard_normal((3, 3))
    >>> for step in range(200):
    ...     loss, gradient = vcreg_value_and_grad(z, variance_weight=1.0, covariance_weight=1.0)
    ...     z = z - 4 * gradient
    >>> bool(loss < 0.01)
    True
    """
    given, axes = (variance_weight, covariance_weight), (feature_axis, sample_axis)
    library, objective, weights = _checked(
        z, given, gamma, eps, penalty, delta, axes, method, comm
    )
    (loss,), (gradient,) = adapter_for(library).value_and_grad((z,), objective, weights)
    return loss, gradient


def _checked(z: ArrayT, *settings: Any) -> tuple[str, Objective, CheckedWeights]:
    objective, checked = checked_settings(*settings)
    return checked_library((z,), ("z",), objective, checked), objective, checked


def checked_settings(
    weights: tuple[Weight, Weight],
    gamma: float,
    eps: float | None,
    penalty: Penalty,
    delta: float,
    axes: tuple[Any, Any],
    method: Method = "auto",
    comm: Communicator | None = None,
    covariance_gradient: CovarianceGradient = "exact",
) -> tuple[Objective, CheckedWeights]:
    """Return the objective that these settings of VCReg describe, and the terms' weights."""
    if not isinstance(covariance_gradient, str) or covariance_gradient not in _SCALES:
        raise ValueError(
            f"covariance_gradient must be 'exact' or 'published'; got {covariance_gradient!r}"
        )
    return checked_objective(
        "vcreg",
        (None, *weights),
        gamma,
        eps,
        method,
        axes,
        comm,
        pooled=True,
        penalty=penalty,
        delta=delta,
        published_gradient=covariance_gradient == "published",
    )


_SCALES = ("exact", "published")
