"""Measurements on representations and embeddings that `vicreg.diagnose` does not make."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["correlations", "probe_accuracy"]

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


def correlations(z: Floats, dead: npt.NDArray[np.bool_]) -> Floats:
    """Return the correlation matrix of the features.

    Parameters
    ----------
    z : array, shape (n, d)
        One sample per row.
    dead : array of bool, shape (d,)
        Which features are constant.

    Returns
    -------
    array of float64, shape (d, d)
        In [-1, 1]; NaN in the rows and columns of constant features, which have no correlation.
    """
    wide = z.astype(np.float64)
    deviations = np.where(dead, np.nan, wide - wide.mean(axis=0))
    unit = deviations / np.where(dead, 1.0, np.linalg.norm(deviations, axis=0))
    matrix: Floats = np.clip(unit.T @ unit, -1.0, 1.0)
    return matrix


def probe_accuracy(
    train: Floats, train_labels: Labels, test: Floats, test_labels: Labels
) -> float:
    """Return the accuracy of a linear classifier of frozen features on held-out samples.

    Parameters
    ----------
    train : array, shape (n, d)
        The features to fit the classifier to; both sets are standardised by their statistics.
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
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # In float64, so that features that are constant except for rounding stay tiny.
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0))
    probe.fit(train.astype(np.float64), train_labels)
    return float(probe.score(test.astype(np.float64), test_labels))
