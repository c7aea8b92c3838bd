"""Which published convention a function of two arrays computes, with which weights, γ and ε.

A function is probed with chosen arrays, each term alone (`probes`, `measure`); how a term's size
goes with n and d tells what it is divided by (`laws`); what was found is read as each convention
(`reading`) and compared, through the public functions, on random arrays (`model`, `study`). Of a
function that is none of them it is seen whether its inputs are normalised or its values bounded
(`wrapped`), and else which of the departures random arrays have too (`confirm`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vicreg.tools.identification.result import Identification

__all__ = ["Identification", "identify"]


def identify(function: Callable[..., Any], backend: str = "numpy") -> Identification:
    """Return which published convention a function of two arrays is, or what departs.

    Parameters
    ----------
    function : callable
        Called with two arrays of shape (n, d), of several n and d, and to return one number.
        Values are all that is used of it, about a hundred: no gradient. It may take some n and d
        alone and raise for others: up to 8192 features are tried, beside fewer samples or more.
        The views may also be the first argument and one named ``ref_emb``.
    backend : str, optional
        The library of the arrays: "numpy", "torch", "jax", "mlx", "cupy", "dask",
        "array_api_strict", "ndonnx", "mparray", or the import path of any namespace of the array
        API standard. The dtype is the widest that it has.

    Returns
    -------
    Identification
        ``str`` of it is the answer in a few lines.

    Raises
    ------
    TypeError
        `function` cannot be called, or `backend` is no string.
    ValueError
        An unknown backend; or the function raises for every shape that is tried, which the error
        names, or returns no number (``vicreg.tools.functions.FunctionError``).
    vicreg.tools.requirements.RequirementError
        The library is not installed.

    Notes
    -----
    Different weights of different conventions are the same function: "official" with a variance
    weight of 50 is "algorithm1" with 25. Of all that are, the answer is the one whose published
    weights, γ and ε are met, or else the fewest of them missed; `Identification.equivalents`
    has them all.

    What departs is said where random arrays have it too; a term that is neither a published one
    nor one of those is not recognised, and the others are still named. Inputs that are
    normalised and a loss that is bounded are said to be, with the convention that there is within.

    Weights are found to rounding, and are rounded to the short decimal that is within the error
    of the measurement (about 1e-12 of a float64, 4e-6 of a float32).

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import identify
    >>> def mine(z1, z2):
    ...     hinge = sum(np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1))).mean() for z in (z1, z2))
    ...     off_diagonal = ~np.eye(z1.shape[1], dtype=bool)
    ...     covariance = sum((np.cov(z.T)[off_diagonal] ** 2).sum() for z in (z1, z2))
    ...     return 25 * ((z1 - z2) ** 2).mean() + 12.5 * hinge + covariance / z1.shape[1]
    >>> found = identify(mine)
    >>> found.convention, found.weights, found.departures
    ('official', (25.0, 25.0, 1.0), ('variance: ε is missing (0, where official has 0.0001)',))
    >>> found.equivalents["jolibrain"]
    (25.0, 25.0, 2.0)
    """
    if not callable(function):
        raise TypeError(f"function must be callable; got {type(function).__name__}")
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string; got {type(backend).__name__}")
    # The backends import NumPy, which `import vicreg` does not.
    from importlib.util import find_spec

    from vicreg.tools.requirements import RequirementError, require

    require("numpy")
    from vicreg.tools.backends import NAMES, backend_named
    from vicreg.tools.functions import LossFunction
    from vicreg.tools.identification.study import identified

    try:
        library = backend_named(backend)
    except RequirementError as error:
        if backend in NAMES or _is_there(backend, find_spec):
            raise
        known = ", ".join(repr(name) for name in NAMES)
        raise ValueError(f"backend must be one of {known}; got {backend!r}") from error
    return identified(LossFunction(function, library))


def _is_there(package: str, find_spec: Callable[[str], Any]) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
