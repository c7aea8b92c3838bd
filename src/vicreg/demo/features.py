"""What is measured on representations and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "correlations",
    "effective_rank",
    "mean_std",
    "probe_accuracy",
    "singular_values",
]

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


def mean_std(z: Floats) -> float:
    """Return the standard deviation of a feature, averaged over the features.

    Parameters
    ----------
    z : array, shape (n, d)
        A row a sample.

    Returns
    -------
    float
        In the units of `z`.
    """
    return float(np.mean(np.std(z.astype(np.float64), axis=0, ddof=1)))


def singular_values(z: Floats) -> Floats:
    """Return the singular values of the centred embeddings, the largest first.

    Parameters
    ----------
    z : array, shape (n, d)
        A row a sample.

    Returns
    -------
    array of float64, shape (min(n, d),)
    """
    wide = z.astype(np.float64)
    values: Floats = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)
    return values


def effective_rank(z: Floats) -> float:
    """Return the exponential of the entropy of the normalised singular values.

    Parameters
    ----------
    z : array, shape (n, d)
        Centred here, so that the rank is at most min(n - 1, d).

    Returns
    -------
    float
        From 1 to min(n - 1, d); 0 where all rows are equal within the rounding of the dtype.

    Notes
    -----
    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    values = singular_values(z)
    # What rounding leaves of a constant batch is spread over all directions: a rank of noise.
    rounding = max(z.shape) * np.finfo(z.dtype).eps * np.linalg.norm(z.astype(np.float64), 2)
    values = values[values > rounding]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def correlations(z: Floats) -> Floats:
    """Return the correlation matrix of the features.

    Parameters
    ----------
    z : array, shape (n, d)
        A row a sample.

    Returns
    -------
    array of float64, shape (d, d)
        In [-1, 1]; NaN in the rows and columns of constant features, which have no correlation.
    """
    wide = z.astype(np.float64)
    deviations = np.where(_constant(z), np.nan, wide - wide.mean(axis=0))
    unit = deviations / np.where(_constant(z), 1.0, np.linalg.norm(deviations, axis=0))
    matrix: Floats = np.clip(unit.T @ unit, -1.0, 1.0)
    return matrix


def probe_accuracy(
    train: Floats, train_labels: Labels, test: Floats, test_labels: Labels
) -> float:
    """Return the accuracy of a linear classifier of frozen features on held-out samples.

    Parameters
    ----------
    train : array, shape (n, d)
        The features the classifier is fitted to; all are standardised by their statistics.
    train_labels : array of int, shape (n,)
        The classes of `train`.
    test : array, shape (m, d)
        The features of the held-out samples.
    test_labels : array of int, shape (m,)
        The classes of `test`.

    Returns
    -------
    float
        In [0, 1].
    """
    from sklearn.linear_model import RidgeClassifier

    wide = train.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    scale = np.where(_constant(train), np.inf, std)
    probe = RidgeClassifier(alpha=1.0).fit((wide - mean) / scale, train_labels)
    return float(probe.score((test.astype(np.float64) - mean) / scale, test_labels))


def _constant(z: Floats) -> npt.NDArray[np.bool_]:
    """Which features do not vary beyond the rounding of the dtype; shape (d,)."""
    wide = z.astype(np.float64)
    rounding = max(z.shape) * np.finfo(z.dtype).eps * np.abs(wide).max(axis=0)
    constant: npt.NDArray[np.bool_] = np.ptp(wide, axis=0) <= rounding
    return constant
