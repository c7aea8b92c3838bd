"""What is measured on representations and embeddings, beside what `vicreg.diagnose` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vicreg.diagnostics import diagnose

__all__ = ["correlations", "probe_accuracy"]

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


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
    constant = _constant(z)
    deviations = np.where(constant, np.nan, wide - wide.mean(axis=0))
    unit = deviations / np.where(constant, 1.0, np.linalg.norm(deviations, axis=0))
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
    constant: npt.NDArray[np.bool_] = diagnose(z).std == 0
    return constant
