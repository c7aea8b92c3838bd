"""Which published convention a function of two arrays computes, with which weights, γ and ε.

The function is called with chosen arrays that show one term at a time (`probes`, `measure`). How
the size of a term changes with n and d shows what it is divided by (`terms`). The result is read
as each convention (`reading`) and compared on random arrays (`model`, `study`). If no convention
gives the values, the inputs may be normalised or the loss bounded (`wrapped`); otherwise the
departures that random arrays show too are reported (`confirm`). All weights that are fitted, here
and in ``vicreg verify --target``, are fitted in one place (`fitting`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from vicreg.tools.identification.result import Identification

__all__ = ["Identification", "identify", "identify_loss"]


def identify(
    function: Callable[..., Any],
    backend: str = "numpy",
    *,
    output: str | int | None = None,
    shape: str | None = None,
) -> Identification:
    """Find out which published convention a function computes, and with which weights.

    Parameters
    ----------
    function : callable
        Takes two arrays of shape (n, d), and returns one number, or something that contains it.
        It is called about a hundred times, with several n and d of up to 8192 features, and only
        its values are used. It may raise for some n and d. Its views may also be parameters that
        are given by name only, or that are named ``ref_emb``.
    backend : str, optional
        The library of the arrays: "numpy", "torch", "jax", "mlx", "cupy", "dask",
        "array_api_strict", "ndonnx", "mparray", or the import path of any namespace of the array
        API standard. The arrays have the widest dtype of the library.
    output : str or int, optional
        Which part of what the function returns is the loss: a key of a dict, an index of a tuple
        or the name of an attribute, with dots if it is nested ("losses.total"). By default it is
        what a dict or an object calls ``loss`` or ``total_loss``, or the first number of a tuple.
    shape : str, optional
        The axes of the arrays, if they are not (n, d): n for the samples, d for the features, and
        a number for each other axis. The positions on it are more samples, or more features if a
        d follows the number. "n,d,1,1" for images; "n,d,2,4,4" for (B, C, T, H, W) where each of
        the 2 · 4 · 4 positions is a sample; "n,2d,d" for two groups of d/2 features.

    Returns
    -------
    Identification
        The convention, the weights, γ and ε; or the nearest convention and what departs from it.
        ``print`` shows it in a few lines.

    Raises
    ------
    TypeError
        `function` is not callable, or `backend`, `output` or `shape` has another type.
    ValueError
        The backend is unknown, or `shape` is not as above; the function raises for every shape
        that is tried, which the message lists; or it does not return a number.
    vicreg.tools.requirements.RequirementError
        The library is not installed.

    Notes
    -----
    Different weights of different conventions can be the same function: "official" with a
    variance weight of 50 is "algorithm1" with 25. The answer is the one for which
    most of the weights, γ and ε are as published. `Identification` lists all in
    ``equivalents``.

    A departure is reported only if random arrays show it too. A term that is neither published
    nor a known departure is not recognised; the other terms are reported all the same. If the
    function normalises its inputs or bounds the loss, it says so, and identifies what is inside.

    The published functions are those of `conventions`, with their sources.

    Weights are known to rounding, and are rounded to the shortest decimal within the error of the
    measurement (about 1e-12 in float64, 4e-6 in float32).

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import identify
    >>> def mine(z1, z2):
    ...     hinge = sum(np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1))).mean() for z in (z1, z2))
    ...     off_diagonal = ~np.eye(z1.shape[1], dtype=bool)
    ...     covariance = sum((np.cov(z.T)[off_diagonal] ** 2).sum() for z in (z1, z2))
    ...     return 25 * ((z1 - z2) ** 2).mean() + 12.5 * hinge + covariance / z1.shape[1]
    >>> answer = identify(mine)
    >>> answer.convention, answer.weights, answer.departures
    ('official', (25.0, 25.0, 1.0), ('variance: ε is missing (0, where official has 0.0001)',))
    >>> answer.equivalents["jolibrain"]
    (25.0, 25.0, 2.0)
    """
    return identify_loss(function, backend, output, shape)


def identify_loss(
    function: Callable[..., Any],
    backend: str,
    output: str | int | None,
    shape: str | None,
    on_call: Callable[[], None] = lambda: None,
) -> Identification:
    """Return what `identify` does, with `on_call` called before each call of the function."""
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string; got {type(backend).__name__}")
    # These import NumPy, which `import vicreg` must not.
    from vicreg.tools.requirements import RequirementError, require

    require("numpy")
    from vicreg.tools.backends import NAMES, backend_named
    from vicreg.tools.functions import LossFunction
    from vicreg.tools.identification.study import identified

    try:
        library = backend_named(backend)
    except RequirementError as error:
        if backend in NAMES or _is_installed(backend):
            raise
        known = ", ".join(repr(name) for name in NAMES)
        raise ValueError(f"backend must be one of {known}; got {backend!r}") from error
    loss = LossFunction(function, library, output, shape)
    loss.on_call = on_call
    return identified(loss)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
