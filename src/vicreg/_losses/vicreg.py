"""The public functions: checks, then the adapter of the arrays' library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, overload

from vicreg._adapters.dispatch import adapter_for, floats_of
from vicreg._checks import (
    CheckedWeights,
    check_pairs_of,
    checked_library,
    checked_objective,
    with_sample_weight,
)
from vicreg._conventions import Convention, ConventionName
from vicreg._core.communicator import Communicator
from vicreg._core.objective import Objective
from vicreg._typing import Array, ArrayT, Method, PairsOfViews

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
    """The loss and its three terms: a named tuple of four arrays of shape ().

    They are arrays of the library of the views, and each can be differentiated.

    Parameters
    ----------
    loss : array, shape ()
        The sum of the terms, each times its weight.
    invariance, variance, covariance : array, shape ()
        The terms without their weights; 0 where the convention has none.

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
        """Return the loss and the terms as Python floats by name, for a logger.

        It waits until the device has computed them, so call it only in the steps that you log.
        Inside a function that is being compiled there are no values yet: return the terms from
        the function, and call this on the result. The floats have no gradient.

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
    sample_weight: Array | None = None,
    pairs: PairsOfViews | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the variance-invariance-covariance loss of two or more views.

    PyTorch, JAX and MLX differentiate it automatically, to any order. For libraries that cannot,
    such as NumPy, there is `vicreg_value_and_grad`. PyTorch sets limits. Its forward mode cannot
    be nested. A gradient has a tangent under ``torch.func`` alone, not with dual tensors made by
    hand. Under ``torch.compile`` there are first derivatives only.

    Parameters
    ----------
    *views : array, shape (n, d) or (n, ..., d)
        The embeddings of two or more views of the same n samples, with d features each. They
        must have the same library, shape, dtype and device.
    convention : str or Convention, optional
        Which published function to compute: a name in `vicreg.conventions`, or that of a
        codebase, such as "lightly" or "facebookresearch/eb_jepa".
    invariance_weight, variance_weight, covariance_weight : float or array of shape (), optional
        λ, μ and ν. None is the convention's own. An array must be of the library of the views. It
        may be traced, and the loss has a gradient with respect to it; its value is not checked. A
        term whose weight is the number 0 is left out, and not computed, unless all three weights
        are 0.
    gamma : float, optional
        γ, the standard deviation below which a feature is penalised; in "article" the variance.
    eps : float, optional
        ε, which is added to the variance under the square root. None is the convention's own.
        A convention whose hinge is on the variance takes no root, and none may be given.
    method : {"auto", "gram", "covariance"}, optional
        How the covariance term is computed: from the n × n Gram matrix, or from the d × d
        covariance, which is the plain definition. Both give the same number, except for rounding.
        "auto" takes the smaller matrix, or, of small views (n · d² ≤ 2¹⁸ over all positions),
        the covariance. In NumPy, JAX and Dask, and in PyTorch on a CPU without ``torch.compile``
        and ``torch.vmap``, both are accurate for any features. Elsewhere the Gram matrix is
        accurate while at most 32 features are far larger than the rest and uncorrelated with each
        other; if you have more, choose "covariance".
    feature_axis, sample_axis : int or sequence of int, optional
        The axes of the features and of the samples: one axis, or several that are flattened in
        the order given. If there are other axes, each position on them has statistics of its own,
        and the terms are averaged over the positions. A `sample_axis` of None is the first axis
        that holds no features.
    sample_weight : array, optional
        How often each sample occurs: a mask of the valid ones, or weights of 0 or more. It
        broadcasts to the shape of a view without its feature axes. A sample of weight 2 counts as
        two; one of weight 0 is left out, even if it is NaN, and its gradient is 0. A position
        whose weights sum to no more than what the convention subtracts from n, 1 in most, is left
        out of the averages of the variance and the covariance; if all are, these terms are 0. The
        loss cannot be differentiated with respect to the weights of samples: in PyTorch, JAX and
        MLX that is an error. Weights that are negative, NaN or infinite, or whose sum is too large
        for the dtype, give NaN where nobody can see them before.
    pairs : sequence of pairs of int, optional
        Between which views the invariance is: indices of `views`, as ``[(0, 1), (0, 2)]``. It is
        the mean over these pairs. (1, 0) is the pair (0, 1). The variance and the covariance are
        of all views, whatever the pairs. None is all pairs.
    comm : Communicator, optional
        The processes or devices that the batch is spread over: a communicator of
        `vicreg.distributed`. Each passes its own rows, and each gets the loss of the whole batch.
        None is the batch of this process alone.

    Returns
    -------
    array, shape ()
        The loss, on the device of the views and in their dtype; in float32 for views in float16
        or bfloat16.

    Raises
    ------
    TypeError
        A view is not an array, has no real floating-point dtype, or differs from the first in
        library or dtype; a weight is neither a number nor an array of shape () of that library;
        `gamma` or `eps` is not a number; `feature_axis` or `sample_axis` is not made of integers;
        `sample_weight` is not an array of real numbers of that library; `pairs` is not a sequence
        of pairs of integers; `comm` is not a communicator.
    ValueError
        There are fewer than two views or two samples; shapes or devices differ; the convention
        or the method is unknown; a weight or `eps` is below 0, or `gamma` is not above 0;
        `feature_axis` and `sample_axis` together name no axis, one that a view does not have, or
        one axis twice; `sample_weight` has another shape or device, requires a gradient, or,
        where its values can be read without waiting for a device, is below 0 or not finite in
        the dtype of the computation;
        `pairs` is empty, names a view that there is not, a view with itself, or a pair twice, or
        the convention has no invariance.

    Notes
    -----
    The source is Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning", ICLR 2022 (arXiv 2105.04906), equations 1 to 6. Codebases depart
    from it in the ways that `vicreg.conventions` lists.

    The value with its gradient takes two matrix products of n · d · min(n, d) multiply-adds a
    view. The invariance over all pairs takes time linear in the number of views, and over `pairs`
    time and memory linear in the number of pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import vicreg_loss
    >>> rng = np.random.default_rng(0)
    >>> z1, z2 = rng.standard_normal((2, 256, 32))
    >>> print(f"{vicreg_loss(z1, z2):.3f}")
    49.236

    Videos have the axes ``(samples, channels, time, height, width)``. First the channels are the
    features and everything else is samples, as in EB-JEPA; then each time step has statistics of
    its own:

    >>> z1, z2 = rng.standard_normal((2, 8, 16, 3, 4, 4))
    >>> print(f"{vicreg_loss(z1, z2, feature_axis=1, sample_axis=(0, 2, 3, 4)):.3f}")
    50.088
    >>> print(f"{vicreg_loss(z1, z2, feature_axis=(1, 3, 4), sample_axis=0):.3f}")
    123.570

    Of three of the videos only the first frame is valid, so what stands in the others does not
    count:

    >>> valid = np.ones((8, 3))
    >>> valid[:3, 1:] = 0
    >>> z1[:3, :, 1:] = np.nan
    >>> print(f"{vicreg_loss(z1, z2, feature_axis=(1, 3, 4), sample_weight=valid):.3f}")
    161.334

    A teacher's view is compared with each of two students', and these not with each other:

    >>> teacher, first, second = rng.standard_normal((3, 256, 32))
    >>> print(f"{vicreg_loss(teacher, first, second, pairs=[(0, 1), (0, 2)]):.3f}")
    51.208
    """
    given = (invariance_weight, variance_weight, covariance_weight)
    axes = (feature_axis, sample_axis)
    library, arrays, objective, weights = _checked_views(
        views, sample_weight, pairs, convention, given, gamma, eps, method, axes, comm
    )
    outputs: tuple[ArrayT] = adapter_for(library).evaluate(arrays, objective, weights)
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
    sample_weight: Array | None = None,
    pairs: PairsOfViews | None = None,
    comm: Communicator | None = None,
) -> VICRegTerms[ArrayT]:
    """Return the loss and its three terms, without their weights.

    Each of the four can be differentiated, as `vicreg_loss` can.

    Parameters
    ----------
    *views : array, shape (n, d) or (n, ..., d)
        Two or more, as in `vicreg_loss`.
    convention, invariance_weight, variance_weight, covariance_weight, gamma, eps, method, \
feature_axis, sample_axis, sample_weight, pairs, comm : optional
        As in `vicreg_loss`.

    Returns
    -------
    VICRegTerms
        ``(loss, invariance, variance, covariance)``, arrays of shape (). The loss is the sum of
        the terms, each times its weight, and what `vicreg_loss` returns.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    Bardes, Ponce, LeCun 2022 (arXiv 2105.04906): equations 1 and 2 are the variance, 3 and 4 the
    covariance, 5 the invariance and 6 the loss.

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
    library, arrays, objective, weights = _checked_views(
        *(views, sample_weight, pairs, convention, given, gamma, eps, method, axes, comm),
        each_term=True,
    )
    return VICRegTerms(*adapter_for(library).evaluate(arrays, objective, weights))


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
    sample_weight: Array | None = None,
    pairs: PairsOfViews | None = None,
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
    sample_weight: Array | None = None,
    pairs: PairsOfViews | None = None,
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
    sample_weight: Array | None = None,
    pairs: PairsOfViews | None = None,
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
    sample_weight: Array | None = None,
    pairs: PairsOfViews | None = None,
    comm: Communicator | None = None,
    terms: bool = False,
) -> tuple[ArrayT | VICRegTerms[ArrayT], tuple[ArrayT, ...]]:
    """Return the loss and its exact gradient with respect to each view.

    The gradient is computed in closed form, without automatic differentiation, so that every
    library has it.

    Parameters
    ----------
    *views : array, shape (n, d) or (n, ..., d)
        Two or more, as in `vicreg_loss`.
    convention, invariance_weight, variance_weight, covariance_weight, gamma, eps, method, \
feature_axis, sample_axis, sample_weight, pairs, comm : optional
        As in `vicreg_loss`.
    terms : bool, optional
        Whether to return the terms too. They come from the same computation; only a term whose
        weight is 0 has to be computed for it.

    Returns
    -------
    loss : array, shape (), or VICRegTerms
        What `vicreg_loss` returns, or with `terms` what `vicreg_terms` does.
    gradients : tuple of arrays, each of the shape of its view
        One for each view, in its dtype and on its device.

    Raises
    ------
    TypeError
        As in `vicreg_loss`; and where `terms` is neither True nor False.
    ValueError
        As in `vicreg_loss`.

    Notes
    -----
    This is the derivative of the loss of Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), equation
    6. The gradient of the variance term is 0 with respect to a feature that is exactly at the
    hinge, and with respect to one that is constant while `eps` is 0.

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
    library, arrays, objective, weights = _checked_views(
        *(views, sample_weight, pairs, convention, given, gamma, eps, method, axes, comm),
        each_term=terms,
    )
    outputs, gradients = adapter_for(library).value_and_grad(arrays, objective, weights)
    return VICRegTerms(*outputs) if terms else outputs[0], gradients


def invariance_loss(
    z1: ArrayT,
    z2: ArrayT,
    *,
    convention: ConventionName | Convention = "official",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    sample_weight: Array | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the invariance term of two views, without its weight.

    It says how far apart the two views of each sample are.

    Parameters
    ----------
    z1, z2 : array, shape (n, d) or (n, ..., d)
        The embeddings of two views of the same samples.
    convention, feature_axis, sample_axis, sample_weight, comm : optional
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The squared difference of the views, averaged as `convention` says.

    Raises
    ------
    TypeError
        As in `vicreg_loss`.
    ValueError
        As in `vicreg_loss`; and for a convention that has no invariance term.

    Notes
    -----
    Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), equation 5. The convention "paper" is this
    equation; "official", the default, averages over the d features too.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import invariance_loss
    >>> z = np.zeros((4, 3))
    >>> print(invariance_loss(z, z + 2), invariance_loss(z, z + 2, convention="paper"))
    4.0 12.0
    """
    axes, weights = (feature_axis, sample_axis), (1.0, 0.0, 0.0)
    return _single_term({"z1": z1, "z2": z2}, sample_weight, weights, convention, axes, comm)


def variance_loss(
    z: ArrayT,
    *,
    convention: ConventionName | Convention = "official",
    gamma: float = 1.0,
    eps: float | None = None,
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    sample_weight: Array | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the variance term of one view, without its weight.

    It says how far the standard deviations of the features are below `gamma`.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        The embeddings of n samples.
    convention, gamma, eps, feature_axis, sample_axis, sample_weight, comm : optional
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The hinge, averaged over features. `vicreg_loss` takes the mean or the sum of this over
        the views.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), equations 1 and 2.

    Examples
    --------
    A constant feature costs γ − √ε, here 1 − 0.01:

    >>> import numpy as np
    >>> from vicreg import variance_loss
    >>> print(f"{variance_loss(np.ones((4, 3))):.2f}")
    0.99
    """
    axes, weights = (feature_axis, sample_axis), (0.0, 1.0, 0.0)
    return _single_term(
        {"z": z}, sample_weight, weights, convention, axes, comm, gamma=gamma, eps=eps
    )


def covariance_loss(
    z: ArrayT,
    *,
    convention: ConventionName | Convention = "official",
    method: Method = "auto",
    feature_axis: int | Sequence[int] = -1,
    sample_axis: int | Sequence[int] | None = None,
    sample_weight: Array | None = None,
    comm: Communicator | None = None,
) -> ArrayT:
    """Return the covariance term of one view, without its weight.

    It says how strongly the features correlate.

    Parameters
    ----------
    z : array, shape (n, d) or (n, ..., d)
        The embeddings of n samples.
    convention, method, feature_axis, sample_axis, sample_weight, comm : optional
        As in `vicreg_loss`.

    Returns
    -------
    array, shape ()
        The sum of the squared covariances of two different features, over the convention's
        divisor. `vicreg_loss` takes the mean or the sum of this over the views.

    Raises
    ------
    TypeError, ValueError
        As in `vicreg_loss`.

    Notes
    -----
    Bardes, Ponce, LeCun 2022 (arXiv 2105.04906), equations 3 and 4.

    Examples
    --------
    Of two equal features of variance 1 the two off-diagonal covariances are 1, and d is 2:

    >>> import numpy as np
    >>> from vicreg import covariance_loss
    >>> z = np.asarray([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    >>> print(f"{covariance_loss(z):.6f}")
    1.000000
    """
    axes, weights = (feature_axis, sample_axis), (0.0, 0.0, 1.0)
    return _single_term({"z": z}, sample_weight, weights, convention, axes, comm, method=method)


def _checked_views(
    views: tuple[ArrayT, ...],
    sample_weight: Array | None,
    pairs: PairsOfViews | None,
    *settings: Any,
    each_term: bool = False,
) -> tuple[str, tuple[ArrayT, ...], Objective, CheckedWeights]:
    """Return the library, the arrays that the adapter takes, the objective and the weights."""
    if len(views) < 2:
        is_list = len(views) == 1 and isinstance(views[0], (list, tuple))
        hint = ": pass the views one by one" if is_list else ""
        raise ValueError(f"views must be two or more arrays; got {len(views)}{hint}")
    objective, checked = checked_objective(*settings, each_term=each_term, pairs=pairs)
    check_pairs_of(len(views), objective.pairs)
    names = tuple(f"views[{i}]" for i in range(len(views)))
    library = checked_library(views, names, objective, checked)
    arrays, objective = with_sample_weight(views, names[0], sample_weight, objective)
    return library, arrays, objective, checked


def _single_term(
    views: dict[str, ArrayT],
    sample_weight: Array | None,
    weights: CheckedWeights,
    convention: ConventionName | Convention,
    axes: tuple[Any, Any],
    comm: Communicator | None,
    gamma: float = 1.0,
    eps: float | None = None,
    method: Method = "auto",
) -> ArrayT:
    objective, checked = checked_objective(convention, weights, gamma, eps, method, axes, comm)
    names = tuple(views)
    library = checked_library(tuple(views.values()), names, objective)
    own = tuple(views.values())
    arrays, objective = with_sample_weight(own, names[0], sample_weight, objective)
    outputs: tuple[ArrayT] = adapter_for(library).evaluate(arrays, objective, checked)
    return outputs[0]
