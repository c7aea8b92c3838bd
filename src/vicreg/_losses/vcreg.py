"""The public functions of VCReg: the variance and covariance terms of one representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vicreg._adapters.dispatch import adapter_for
from vicreg._checks import (
    CheckedWeights,
    Weight,
    checked_library,
    checked_objective,
    with_sample_weight,
)
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
    sample_weight: Array | None = None,
    method: Method = "auto",
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the variance-covariance regularization (VCReg) of one representation.

    With C the covariance of d features, the loss is ::

        α/d Σ_i max(0, γ − sqrt(C_ii + ε)) + β/(d(d − 1)) Σ_{i≠j} p(C_ij)

    It can be differentiated as `vicreg_loss` can.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        The representation of n samples, with two features or more.
    variance_weight, covariance_weight : float or array of shape ()
        α and β. They must be given, as no published value fits all networks. An array must be of
        the library of `z`. It may be traced, and the loss has a gradient with respect to it. A
        term whose weight is the number 0 is left out, and not computed, unless both weights are 0.
    gamma : float, optional
        γ, the standard deviation below which a feature is penalised.
    eps : float, optional
        ε, which is added to the variance under the square root. None is the paper's, 1e-5.
    penalty : {"square", "smooth_l1"}, optional
        p. "square" is C_ij². "smooth_l1" is the same up to `delta` in magnitude, and beyond it
        the tangent, 2δ|C_ij| − δ², so that outliers count less.
    delta : float, optional
        δ, where "smooth_l1" becomes linear. For "square" it must be left as it is.
    feature_axis, sample_axis : int or sequence of int, optional
        As in `vicreg_loss`, except that a `sample_axis` of None is every axis that holds no
        features. For images ``(n, d, height, width)`` with ``feature_axis=1``, each place of each
        image is then a sample; with ``sample_axis=0`` each place has statistics of its own.
    sample_weight : array, optional
        As in `vicreg_loss`: a mask of the valid samples, or how often each occurs.
    method : {"auto", "gram", "covariance"}, optional
        As in `vicreg_loss`. There is no "gram" for "smooth_l1", which needs every entry of the
        covariance. If that has more entries than `z`, it is computed a block at a time.
    comm : Communicator, optional
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The loss, on the device of `z` and in its dtype; in float32 for float16 or bfloat16.

    Raises
    ------
    TypeError
        `z` is not an array, or has no real floating-point dtype; a weight, `gamma`, `eps` or
        `delta` is not a number; a weight is left out; axes and `sample_weight` as in
        `vicreg_loss`.
    ValueError
        There are fewer than two samples or features; a weight is None or negative, `gamma` or
        `delta` is not above 0, `eps` is below 0; `delta` is not 1 for "square"; the method is
        "gram" for "smooth_l1"; the penalty or the method is unknown; axes and `sample_weight` as
        in `vicreg_loss`.

    Notes
    -----
    The source is Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, "Variance-Covariance Regularization
    Improves Representation Learning", arXiv 2306.13292: its loss, and its smooth L1 penalty.

    The value with its gradient takes two matrix products of n · d · min(n, d) multiply-adds, and
    of n · d² for "smooth_l1".

    Examples
    --------
    Two equal features of variance 1 cost nothing at the hinge, but their two covariances are 1:

    >>> import numpy as np
    >>> from vicreg import vcreg_loss
    >>> z = np.asarray([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    >>> print(f"{vcreg_loss(z, variance_weight=1.0, covariance_weight=0.5):.6f}")
    0.500000

    Ten times as large, their covariances of 100 cost 100² each, or as outliers 2 · 100 − 1:

    >>> weights = {"variance_weight": 1.0, "covariance_weight": 1.0}
    >>> print(f"{vcreg_loss(10 * z, **weights):.1f}")
    10000.0
    >>> print(f"{vcreg_loss(10 * z, penalty='smooth_l1', **weights):.1f}")
    199.0

    The channels of images are features. Each place of each image is one more sample; or each
    place has statistics of its own:

    >>> images = np.random.default_rng(0).standard_normal((8, 3, 4, 4))
    >>> print(f"{vcreg_loss(images, feature_axis=1, **weights):.3f}")
    0.014
    >>> print(f"{vcreg_loss(images, feature_axis=1, sample_axis=0, **weights):.3f}")
    0.277
    """
    given, axes = (variance_weight, covariance_weight), (feature_axis, sample_axis)
    library, arrays, objective, weights = _checked(
        z, sample_weight, given, gamma, eps, penalty, delta, axes, method, comm
    )
    outputs: tuple[ArrayT] = adapter_for(library).evaluate(arrays, objective, weights)
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
    sample_weight: Array | None = None,
    method: Method = "auto",
    comm: Communicator | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Return the loss of VCReg and its exact gradient.

    The gradient is computed in closed form, without automatic differentiation, so that every
    library has it.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        As in `vcreg_loss`.
    variance_weight, covariance_weight : float or array of shape ()
        As in `vcreg_loss`.
    gamma, eps, penalty, delta, feature_axis, sample_axis, sample_weight, method, comm : optional
        As in `vcreg_loss`.

    Returns
    -------
    loss : array, shape ()
        What `vcreg_loss` returns.
    gradient : array, of the shape of `z`
        In the dtype of `z`, and on its device.

    Raises
    ------
    TypeError, ValueError
        As in `vcreg_loss`.

    Notes
    -----
    This is the derivative of the loss of Zhu et al. (arXiv 2306.13292). The paper's pseudocode
    for the gradient leaves out the factor 1/(n − 1) of its covariance part; here it is in.

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
    library, arrays, objective, weights = _checked(
        z, sample_weight, given, gamma, eps, penalty, delta, axes, method, comm
    )
    (loss,), (gradient,) = adapter_for(library).value_and_grad(arrays, objective, weights)
    return loss, gradient


def _checked(
    z: ArrayT, sample_weight: Array | None, *settings: Any
) -> tuple[str, tuple[ArrayT, ...], Objective, CheckedWeights]:
    objective, checked = checked_settings(*settings)
    library = checked_library((z,), ("z",), objective, checked)
    arrays, objective = with_sample_weight((z,), "z", sample_weight, objective)
    return library, arrays, objective, checked


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
