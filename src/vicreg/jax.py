"""VCReg inside a JAX network. The losses and the monitor of `vicreg` are here too."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vicreg import _losses
from vicreg._adapters.jax import regularized
from vicreg._checks import checked_library, with_sample_weight
from vicreg._conventions import VCREG_EPS
from vicreg._core.communicator import Communicator
from vicreg._losses import *  # noqa: F403
from vicreg._losses.vcreg import checked_settings
from vicreg._monitor import CollapseMonitor
from vicreg._typing import CovarianceGradient, Penalty

__all__ = ["CollapseMonitor", "vcreg"]
__all__ += _losses.__all__


def __dir__() -> list[str]:
    return __all__


def vcreg(
    x: jax.Array,
    *,
    variance_weight: float | jax.Array,
    covariance_weight: float | jax.Array,
    gamma: float = 1.0,
    eps: float | None = VCREG_EPS,
    penalty: Penalty = "square",
    delta: float = 1.0,
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    sample_weight: jax.Array | None = None,
    comm: Communicator | None = None,
    covariance_gradient: CovarianceGradient = "exact",
    scale: float | jax.Array = 1.0,
) -> jax.Array:
    """Return an activation as it is, and regularize it in the backward pass.

    Call it on an activation between two layers. The backward pass adds the gradient of
    `vicreg.vcreg_loss` with respect to `x`, so that you need not add anything to your loss; that
    loss itself is not computed. Leave the call out where the model is only evaluated.

    The function cannot see a factor on your loss. If you multiply it, by a loss scale or by 1/k
    for the mean of k batches, pass the same factor as `scale`.

    Parameters
    ----------
    x : array, shape (n, d) or (n, ..., d)
        The representation of n samples, with two features or more.
    variance_weight, covariance_weight : float or array of shape ()
        α and β. They must be given, as no published value fits all networks. They may be traced;
        a derivative with respect to them takes the added gradient as a constant.
    gamma, eps, penalty, delta, feature_axis, sample_axis, sample_weight : optional
        As in `vicreg.vcreg_loss`.
    comm : Communicator, optional
        As in `vicreg.vcreg_loss`. The added gradient is right where the gradients of the devices
        are averaged. If you average the losses of the devices before you differentiate, pass 1
        over the number of devices as `scale`.
    covariance_gradient : {"exact", "published"}, optional
        As in `vicreg.torch.VCReg`.
    scale : float or array of shape (), optional
        What the added gradient is multiplied by. It may be traced.

    Returns
    -------
    array, of the shape of `x`
        The values of `x`.

    Raises
    ------
    TypeError
        As in `vicreg.vcreg_loss`; and if `x` is no array of JAX.
    ValueError
        As in `vicreg.vcreg_loss`; and if `scale` has more than one element.

    Notes
    -----
    The source is Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, "Variance-Covariance Regularization
    Improves Representation Learning", arXiv 2306.13292.

    It works under ``jit``, ``grad`` and ``vmap``, where each element of the map is a batch of its
    own. Second derivatives are those of your loss with `vicreg.vcreg_loss` added to it. Forward
    mode, such as ``jax.jvp``, does not work through the function, and JAX raises an error.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from vicreg import vcreg_loss
    >>> from vicreg.jax import vcreg
    >>> weights = {"variance_weight": 1.0, "covariance_weight": 0.1}
    >>> z = jax.random.normal(jax.random.key(0), (16, 3)) / 2
    >>> added = jax.grad(lambda z: vcreg(z, **weights).sum())(z) - 1
    >>> bool(jnp.allclose(added, jax.grad(vcreg_loss)(z, **weights), atol=1e-6))
    True
    """
    given, axes = (variance_weight, covariance_weight), (feature_axis, sample_axis)
    objective, weights = checked_settings(
        given, gamma, eps, penalty, delta, axes, "auto", comm, covariance_gradient
    )
    library = checked_library((x,), ("x",), objective, weights)
    if library != "jax":
        raise TypeError(f"x must be an array of JAX; got one of {library}")
    if jnp.ndim(scale) != 0:
        raise ValueError(f"scale must be one number; got shape {jnp.shape(scale)}")
    arrays, objective = with_sample_weight((x,), "x", sample_weight, objective)
    # Not in half precision, which loss scales overflow.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cotangents = tuple(
        jnp.asarray(scale, dtype=dtype) * jnp.asarray(weight, dtype=dtype) if counts else None
        for weight, counts in zip(weights, objective.in_loss, strict=True)
    )
    result: jax.Array = regularized(arrays, cotangents, objective)
    return result
