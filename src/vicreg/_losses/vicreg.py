"""The public functions: checks, then the adapter of the arrays' library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, overload

from vicreg._adapters.dispatch import adapter_for, floats_of
from vicreg._checks import CheckedWeights, checked_library, checked_objective
from vicreg._conventions import Convention, ConventionName
from vicreg._core.communicator import Communicator
from vicreg._core.objective import Objective
from vicreg._typing import Array, ArrayT, Method

__all__ = [
    "VICRegTerms",
    "covariance_loss",
    "invariance_loss",
    "variance_loss",
    "vicreg_loss",
    "vicreg_terms",
    "vicreg_value_and_grad",
]


class VICRegTerms(NamedTuple, Generic[ArrayT]):
    """The loss and its three terms, unweighted: 0-d arrays of the views' library.

    Parameters
    ----------
    loss : array, shape ()
        The sum of the terms, each times its weight: to differentiate, and to log.
    invariance, variance, covariance : array, shape ()
        The terms, 0 where the convention has none.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicreg_terms
    >>> terms = vicreg_terms(np.ones((8, 3)), np.zeros((8, 3)))
    >>> {name: round(value, 2) for name, value in terms.scalars("train/").items()}
    {'train/loss': 49.75, 'train/invariance': 1.0, 'train/variance': 0.99, 'train/covariance': 0.0}
    """

    loss: ArrayT
    invariance: ArrayT
    variance: ArrayT
    covariance: ArrayT

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Return the four as Python's floats, by their names: for loggers.

        This waits until the device has computed them, so call it in the steps that are logged and
        not in each. Inside a function that is being compiled there are no values yet: return the
        terms from it. Nothing is differentiated through it.

        Parameters
        ----------
        prefix : str, optional
            What each name begins with, such as "train/".

        Returns
        -------
        dict of str to float
            ``writer.add_scalar(name, value, step)`` for each item, ``wandb.log(scalars)``, or
            Lightning's ``self.log_dict(scalars)``.
        """
        return floats_of({f"{prefix}{name}": term for name, term in self._asdict().items()})


def vicreg_loss(
    *views: ArrayT,
    convention: ConventionName | Convention = "official",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the variance-invariance-covariance loss of two or more views.

    Differentiable by the automatic differentiation of PyTorch, JAX and MLX, to any order; for
    libraries without one see `vicreg_value_and_grad`. Two limits are PyTorch's: its forward mode
    inside its forward mode differentiates no custom function, and ``backward`` through a function
    under ``torch.compile`` is of first order.

    Parameters
    ----------
    *views : array, shape (n, d) or (n, ..., d)
        The embeddings of two or more views of the same n samples: arrays of one library, shape,
        dtype and device.
    convention : str or Convention, optional
        Which published function to compute: a name in `vicreg.conventions`, or a codebase's, as
        "lightly" or "facebookresearch/eb_jepa".
    invariance_weight, variance_weight, covariance_weight : float or array of shape (), optional
        λ, μ and ν. None is the convention's own. An array is one of the views' library; it may
        be traced, and differentiated by, and its value is not checked. A term whose weight is
        the number 0 has no part in the result, and beside one of another weight is not computed.
    gamma : float, optional
        The standard deviation (in "article" the variance) below which the hinge acts.
    eps : float, optional
        Added to the variance under the root. None is the convention's own; where the hinge is
        on the variance there is no root, and none may be given.
    method : {"auto", "gram", "covariance"}, optional
        Whether the covariance term goes by the n × n Gram matrix or by the d × d covariance,
        the plain definition: the same number except for rounding. "auto" takes the smaller. In
        NumPy, JAX and Dask, and in PyTorch on a CPU where nothing is compiled or mapped, either is
        right for any features. Elsewhere up to 32 features may be far larger than the rest and
        uncorrelated: choose "covariance" for more.
    feature_axis, sample_axis : int or sequence of int, optional
        The axes of the features and of the samples; several are taken together, in the order
        given. An axis that is neither holds positions: each has statistics of its own, which are
        averaged. A `sample_axis` of None is the first axis that holds no features.
    comm : Communicator, optional
        The processes that the batch is spread over, each of which gives its own rows: one of
        `vicreg.distributed`. The loss is that of the whole batch, on each of them. None is the
        batch of this process.

    Returns
    -------
    array, shape ()
        On the device and in the dtype of the views; float32 where that is float16 or bfloat16.

    Raises
    ------
    TypeError
        A view is not an array, not of a real floating-point dtype, or not of the same library
        or dtype as the first; a weight is no number and no array of shape () of that library;
        `gamma` or `eps` is not a number; `feature_axis` or `sample_axis` not of integers.
    ValueError
        Fewer than two views or two samples; shapes or devices that differ; an unknown
        convention; a negative weight, `gamma` not above 0, `eps` below 0; no axis, one that a
        view does not have, or one twice, in `feature_axis` and `sample_axis` together.

    Notes
    -----
    Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning", ICLR 2022, equations 1 to 6, with each codebase's own choices:
    see `vicreg.conventions`. The cost is two products of n · d · min(n, d) a view, gradient
    included.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicreg_loss
    >>> rng = np.random.default_rng(0)
    >>> z1, z2 = rng.standard_normal((2, 256, 32))
    >>> print(f"{vicreg_loss(z1, z2):.3f}")
    49.236

    Videos ``(samples, channels, time, height, width)``: with the channels as features and
    everything else as samples, as EB-JEPA has them; and with one set of statistics a time step.

    >>> z1, z2 = rng.standard_normal((2, 8, 16, 3, 4, 4))
    >>> print(f"{vicreg_loss(z1, z2, feature_axis=1, sample_axis=(0, 2, 3, 4)):.3f}")
    50.088
    >>> print(f"{vicreg_loss(z1, z2, feature_axis=(1, 3, 4), sample_axis=0):.3f}")
    123.570
    """
    given = (invariance_weight, variance_weight, covariance_weight)
    axes = (feature_axis, sample_axis)
    library, objective, weights = _checked_views(
        views, convention, given, gamma, eps, method, axes, comm
    )
    outputs: tuple[ArrayT] = adapter_for(library).evaluate(views, objective, weights)
    return outputs[0]


def vicreg_terms(
    *views: ArrayT,
    convention: ConventionName | Convention = "official",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
) -> VICRegTerms[ArrayT]:
    """Return the loss and its three terms, unweighted; each is differentiable.

    Parameters
    ----------
    *views, convention, invariance_weight, variance_weight, covariance_weight, gamma, eps, \
method, feature_axis, sample_axis, comm
        As in `vicreg_loss`.

    Returns
    -------
    VICRegTerms
        ``(loss, invariance, variance, covariance)``, arrays of shape (). The loss is the sum of
        the terms, each times its weight.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    Bardes, Ponce, LeCun 2022: equations 1 and 2 (variance), 3 and 4 (covariance), 5
    (invariance) and 6 (the loss).

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicreg_terms
    >>> rng = np.random.default_rng(0)
    >>> z1, z2 = rng.standard_normal((2, 256, 32))
    >>> terms = vicreg_terms(z1, z2)
    >>> print(", ".join(f"{name} {term:.4f}" for name, term in terms._asdict().items()))
    loss 49.2358, invariance 1.9388, variance 0.0204, covariance 0.2545
    """
    given = (invariance_weight, variance_weight, covariance_weight)
    axes = (feature_axis, sample_axis)
    library, objective, weights = _checked_views(
        views, convention, given, gamma, eps, method, axes, comm, each_term=True
    )
    return VICRegTerms(*adapter_for(library).evaluate(views, objective, weights))


@overload
def vicreg_value_and_grad(
    *views: ArrayT,
    convention: ConventionName | Convention = "official",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
    terms: Literal[False] = False,
) -> tuple[ArrayT, tuple[ArrayT, ...]]: ...
@overload
def vicreg_value_and_grad(
    *views: ArrayT,
    convention: ConventionName | Convention = "official",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
    terms: Literal[True],
) -> tuple[VICRegTerms[ArrayT], tuple[ArrayT, ...]]: ...
@overload
def vicreg_value_and_grad(
    *views: ArrayT,
    convention: ConventionName | Convention = "official",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
    terms: bool,
) -> tuple[ArrayT | VICRegTerms[ArrayT], tuple[ArrayT, ...]]: ...
def vicreg_value_and_grad(
    *views: ArrayT,
    convention: ConventionName | Convention = "official",
    invariance_weight: float | Array | None = None,
    variance_weight: float | Array | None = None,
    covariance_weight: float | Array | None = None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
    terms: bool = False,
) -> tuple[ArrayT | VICRegTerms[ArrayT], tuple[ArrayT, ...]]:
    """Return the loss and its exact gradient by each view, in closed form, on every library.

    Parameters
    ----------
    *views, convention, invariance_weight, variance_weight, covariance_weight, gamma, eps, \
method, feature_axis, sample_axis, comm
        As in `vicreg_loss`.
    terms : bool, optional
        Whether each term is wanted beside the loss. It comes from the same pass; only a term
        whose weight is 0 is one more to compute.

    Returns
    -------
    loss : array, shape (), or VICRegTerms
        As `vicreg_loss` returns it; with `terms`, as `vicreg_terms` does.
    gradients : tuple of arrays
        One a view, of its shape, dtype and device.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    The derivative of the loss of Bardes, Ponce, LeCun 2022, equation 6, formed from what the
    value was computed from. Where the hinge has its kink, and where a dead feature meets
    ``eps=0``, the gradient is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicreg_value_and_grad
    >>> rng = np.random.default_rng(0)
    >>> z1, z2 = rng.standard_normal((2, 8, 3))
    >>> for step in range(200):
    ...     loss, (grad1, grad2) = vicreg_value_and_grad(z1, z2)
    ...     z1, z2 = z1 - 0.05 * grad1, z2 - 0.05 * grad2
    >>> bool(loss < 0.01)
    True

    With the terms, to log them:

    >>> terms, gradients = vicreg_value_and_grad(np.ones((8, 3)), np.zeros((8, 3)), terms=True)
    >>> {name: round(value, 2) for name, value in terms.scalars().items()}
    {'loss': 49.75, 'invariance': 1.0, 'variance': 0.99, 'covariance': 0.0}
    """
    if not isinstance(terms, bool):
        raise TypeError(f"terms must be True or False; got {type(terms).__name__}")
    given = (invariance_weight, variance_weight, covariance_weight)
    axes = (feature_axis, sample_axis)
    library, objective, weights = _checked_views(
        views, convention, given, gamma, eps, method, axes, comm, each_term=terms
    )
    outputs, gradients = adapter_for(library).value_and_grad(views, objective, weights)
    return VICRegTerms(*outputs) if terms else outputs[0], gradients


def invariance_loss(
    z1: ArrayT,
    z2: ArrayT,
    *,
    convention: ConventionName | Convention = "official",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the invariance term of two views, unweighted.

    Parameters
    ----------
    z1, z2 : array, shape (n, d) or (n, ..., d)
        The embeddings of two views of the same samples.
    convention, feature_axis, sample_axis, comm
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`; and for a convention without an invariance term.

    Notes
    -----
    Bardes, Ponce, LeCun 2022, equation 5; "official" divides by d as well.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import invariance_loss
    >>> z = np.zeros((4, 3))
    >>> print(invariance_loss(z, z + 2), invariance_loss(z, z + 2, convention="paper"))
    4.0 12.0
    """
    axes, weights = (feature_axis, sample_axis), (1.0, 0.0, 0.0)
    return _single_term({"z1": z1, "z2": z2}, weights, convention, axes, comm)


def variance_loss(
    z: ArrayT,
    *,
    convention: ConventionName | Convention = "official",
    gamma: float = 1.0,
    eps: float | None = None,
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the variance term of one view, unweighted.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        The embeddings of n samples.
    convention, gamma, eps, feature_axis, sample_axis, comm
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The hinge, averaged over features: the mean and the sum over views are of this.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    Bardes, Ponce, LeCun 2022, equations 1 and 2.

    Examples
    --------
    A collapsed feature costs the whole of gamma, except for ε:

    >>> import numpy as np
    >>> from vicreg import variance_loss
    >>> print(f"{variance_loss(np.ones((4, 3))):.2f}")
    0.99
    """
    axes, weights = (feature_axis, sample_axis), (0.0, 1.0, 0.0)
    return _single_term({"z": z}, weights, convention, axes, comm, gamma=gamma, eps=eps)


def covariance_loss(
    z: ArrayT,
    *,
    convention: ConventionName | Convention = "official",
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the covariance term of one view, unweighted.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        The embeddings of n samples.
    convention, method, feature_axis, sample_axis, comm
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The sum of the squared off-diagonal covariances over the convention's divisor: the mean
        and the sum over views are of this.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    Bardes, Ponce, LeCun 2022, equations 3 and 4.

    Examples
    --------
    Two equal features of variance 1: each of the two off-diagonal covariances is 1, and d is 2.

    >>> import numpy as np
    >>> from vicreg import covariance_loss
    >>> z = np.asarray([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    >>> print(f"{covariance_loss(z):.6f}")
    1.000000
    """
    axes, weights = (feature_axis, sample_axis), (0.0, 0.0, 1.0)
    return _single_term({"z": z}, weights, convention, axes, comm, method=method)


def _checked_views(
    views: tuple[ArrayT, ...], *settings: Any, each_term: bool = False
) -> tuple[str, Objective, CheckedWeights]:
    if len(views) < 2:
        is_list = len(views) == 1 and isinstance(views[0], (list, tuple))
        hint = ": pass the views one by one" if is_list else ""
        raise ValueError(f"views must be two or more arrays; got {len(views)}{hint}")
    objective, checked = checked_objective(*settings, each_term=each_term)
    names = tuple(f"views[{i}]" for i in range(len(views)))
    return checked_library(views, names, objective, checked), objective, checked


def _single_term(
    views: dict[str, ArrayT],
    weights: CheckedWeights,
    convention: ConventionName | Convention,
    axes: tuple[Any, Any],
    comm: Communicator | None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
) -> ArrayT:
    objective, checked = checked_objective(convention, weights, gamma, eps, method, axes, comm)
    arrays = tuple(views.values())
    library = checked_library(arrays, tuple(views), objective)
    outputs: tuple[ArrayT] = adapter_for(library).evaluate(arrays, objective, checked)
    return outputs[0]
