"""A JAX function beyond the losses; and the losses and the monitor, as in `vicreg`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vicreg import _losses
from vicreg._adapters.jax import regularized
from vicreg._checks import checked_library
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
    comm: Communicator | None = None,
    covariance_gradient: CovarianceGradient = "exact",
    scale: float | jax.Array = 1.0,
) -> jax.Array:
    """Return `x`, with the gradient of the variance-covariance regularization added to its own.

    To be called on an activation between two layers. In reverse mode the gradient of
    `vicreg.vcreg_loss` by `x` is added to the one that comes back, without the loss ever being
    formed; leave the call out where the model is only evaluated.

    What it adds knows of no factor on the user's loss: where that is multiplied, by a dynamic
    loss scale or 1/k for the mean of k batches, give the same factor as `scale`.

    Parameters
    ----------
    x : array, shape (n, d) or (n, ..., d)
        The representation of n samples.
    variance_weight, covariance_weight : float or array of shape ()
        α and β; they must be given, since no published value fits all networks. They may be
        traced; the gradient that is added is a constant to a derivative by them.
    gamma, eps, penalty, delta, feature_axis, sample_axis : optional
        As in `vicreg.vcreg_loss`.
    comm : Communicator, optional
        As in `vicreg.vcreg_loss`. The gradient is then as if that loss were added to the loss of
        each device, and the devices' gradients are averaged. Where instead the devices' losses
        are averaged before they are differentiated, give 1 over their number as `scale`.
    covariance_gradient : {"exact", "published"}, optional
        As in `vicreg.torch.VCReg`.
    scale : float or array of shape (), optional
        What the gradient is multiplied by; it may be traced.

    Returns
    -------
    array
        `x`.

    Raises
    ------
    TypeError, ValueError
        As `vicreg.vcreg_loss` does; an `x` of another library; a `scale` of several elements.

    Notes
    -----
    Zhu, Evtimova, Chen, Shwartz-Ziv, LeCun, arXiv 2306.13292. It works under ``jit``, ``grad``
    and ``vmap``, where each element of the map is a batch of its own. A gradient that it is part
    of differentiates once more, forwards and backwards, to what the loss with `vicreg.vcreg_loss`
    added would give. JAX refuses forward mode through the function itself, which has no tangent
    to say what it adds.

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
    # Not in half precision, which loss scales overflow.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cotangents = tuple(
        jnp.asarray(scale, dtype=dtype) * jnp.asarray(weight, dtype=dtype) if counts else None
        for weight, counts in zip(weights, objective.in_loss, strict=True)
    )
    result: jax.Array = regularized(x, cotangents, objective)
    return result
