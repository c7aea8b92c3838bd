"""Real images, their split, and random augmentations of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["SIDE", "Digits", "augmented", "batches", "load_digits"]

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

#: The width and height of an image in pixels.
SIDE = 8

_HELD_OUT = 0.25
_ROTATION = np.deg2rad(10.0)
_SCALE = 0.1
_SHIFT = 0.7
_CONTRAST = 0.2
_BRIGHTNESS = 0.05
_NOISE = 0.05
_LARGEST_ERASED = 2


class Digits(NamedTuple):
    """Handwritten digits in two parts; images are float32 of shape (n, 8, 8) in [0, 1]."""

    train_images: Floats
    train_labels: Labels
    test_images: Floats
    test_labels: Labels


def load_digits(seed: int) -> Digits:
    """Return scikit-learn's 1797 handwritten digits, a random quarter of them held out.

    Parameters
    ----------
    seed : int
        Chooses which images are held out.

    Returns
    -------
    Digits
    """
    from sklearn import datasets

    data = datasets.load_digits()
    images = (data.images / 16.0).astype(np.float32)
    labels = data.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = int(_HELD_OUT * len(images))
    test, train = order[:held_out], order[held_out:]
    return Digits(images[train], labels[train], images[test], labels[test])


def batches(
    images: Floats, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Yield batches of two augmented views, in random order, without an incomplete last batch.

    Parameters
    ----------
    images : array, shape (n, 8, 8)
        In [0, 1].
    batch_size : int
        At most n.
    rng : numpy.random.Generator
        The source of the order and of the augmentations.

    Yields
    ------
    two arrays, shape (batch_size, 8, 8)
        Two independent augmentations of the same images.
    """
    order = rng.permutation(len(images))
    for start in range(0, len(images) - batch_size + 1, batch_size):
        batch = images[order[start : start + batch_size]]
        yield augmented(batch, rng), augmented(batch, rng)


def augmented(images: Floats, rng: np.random.Generator) -> Floats:
    """Return randomly augmented images: rotated, scaled, shifted, relit, noisy, partly erased.

    Parameters
    ----------
    images : array, shape (n, 8, 8)
        In [0, 1].
    rng : numpy.random.Generator
        The source of randomness; how much is drawn does not depend on the images.

    Returns
    -------
    array, shape (n, 8, 8)
        In [0, 1], with the dtype of `images`.
    """
    moved = _moved(images, rng)
    n = len(images)
    contrast = rng.uniform(1 - _CONTRAST, 1 + _CONTRAST, (n, 1, 1))
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS, (n, 1, 1))
    noise = _NOISE * rng.standard_normal(images.shape)
    relit = np.clip(contrast * moved + brightness + noise, 0.0, 1.0)
    relit[_erased(n, rng)] = 0.0
    return relit.astype(images.dtype)


def _moved(images: Floats, rng: np.random.Generator) -> Floats:
    n = len(images)
    angle = rng.uniform(-_ROTATION, _ROTATION, (n, 1, 1))
    scale = rng.uniform(1 - _SCALE, 1 + _SCALE, (n, 1, 1))
    shift_y, shift_x = rng.uniform(-_SHIFT, _SHIFT, (2, n, 1, 1))
    centre = (SIDE - 1) / 2
    y, x = np.meshgrid(np.arange(SIDE) - centre, np.arange(SIDE) - centre, indexing="ij")
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    # The source of each pixel of the result, by the inverse map, so that no pixel is empty.
    source_y = cosine * y - sine * x + centre - shift_y
    source_x = sine * y + cosine * x + centre - shift_x
    return _interpolated(images, source_y, source_x)


def _interpolated(images: Floats, y: Floats, x: Floats) -> Floats:
    """Return bilinear values of `images` at (y, x), with zeros outside."""
    border = 1
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    # All values outside are 0, so that clipping the position changes nothing.
    y, x = (np.clip(c + border, 0, SIDE + 2 * border - 1 - 1e-6) for c in (y, x))
    top, left = y.astype(np.intp), x.astype(np.intp)
    down, right = y - top, x - left
    image = np.arange(len(images))[:, None, None]
    upper = (1 - right) * padded[image, top, left] + right * padded[image, top, left + 1]
    lower = (1 - right) * padded[image, top + 1, left] + right * padded[image, top + 1, left + 1]
    return (1 - down) * upper + down * lower


def _erased(n: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return a mask with one rectangle per image, with sides of 0 to 2 pixels."""
    height, width = rng.integers(0, _LARGEST_ERASED + 1, (2, n, 1, 1))
    top, left = rng.integers(0, SIDE - _LARGEST_ERASED + 1, (2, n, 1, 1))
    y, x = np.arange(SIDE)[:, None], np.arange(SIDE)
    in_rows, in_columns = (top <= y) & (y < top + height), (left <= x) & (x < left + width)
    inside: npt.NDArray[np.bool_] = in_rows & in_columns
    return inside
