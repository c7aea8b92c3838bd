"""Train one small encoder on digits in NumPy, PyTorch, JAX and MLX: the curves are the same.

The encoder, its first weights, the images and the loss are the same. The arrays differ, and how a
library differentiates: NumPy does not, so `vicreg_value_and_grad` gives it the gradient of the
loss, and four lines do the rest of the backward pass. Needs NumPy and scikit-learn, and matplotlib
for the picture; PyTorch, JAX and MLX take part where they are installed:

    python examples/digits_each_library.py --plot digits.svg
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vicreg import vicreg_loss, vicreg_value_and_grad

STEPS, BATCH, HIDDEN, FEATURES, LEARNING_RATE = 200, 256, 128, 32, 0.01

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train, test = slice(0, 1280), slice(1280, None)


def view(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each image moved by a pixel or not, with noise."""
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    image, (row, column) = np.arange(len(images))[:, None, None], np.ogrid[:8, :8]
    down, right = rng.integers(0, 3, (2, len(images), 1, 1))
    moved = padded[image, down + row, right + column].reshape(-1, 64)
    return moved + 0.1 * rng.standard_normal(moved.shape, dtype=np.float32)


def encode(layers: list[Any], images: Any) -> Any:
    """Return the features of images, arrays of any library."""
    w1, b1, w2, b2 = layers
    hidden = images @ w1 + b1
    return (hidden * (hidden > 0)) @ w2 + b2


def loss_of(layers: list[Any], x1: Any, x2: Any) -> Any:
    return vicreg_loss(encode(layers, x1), encode(layers, x2))


def in_numpy() -> tuple:
    def step(layers: list[np.ndarray], x1: np.ndarray, x2: np.ndarray) -> tuple:
        w1, b1, w2, b2 = layers
        x = np.concatenate([x1, x2])
        hidden = np.maximum(x @ w1 + b1, 0)
        loss, gradients = vicreg_value_and_grad(*np.split(hidden @ w2 + b2, 2))
        dz = np.concatenate(gradients)
        dhidden = dz @ w2.T * (hidden > 0)
        return loss, [x.T @ dhidden, dhidden.sum(0), hidden.T @ dz, dz.sum(0)]

    return np.asarray, step


def in_torch() -> tuple:
    import torch

    def step(layers: list[torch.Tensor], x1: torch.Tensor, x2: torch.Tensor) -> tuple:
        layers = [layer.detach().requires_grad_() for layer in layers]
        loss = loss_of(layers, x1, x2)
        return loss.detach(), torch.autograd.grad(loss, layers)

    torch.set_num_threads(1)  # a small network is slower on more
    return torch.asarray, step


def in_jax() -> tuple:
    import jax

    return jax.numpy.asarray, jax.jit(jax.value_and_grad(loss_of))


def in_mlx() -> tuple:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    return mx.array, mx.value_and_grad(loss_of)


def trained(asarray: Any, step: Any) -> tuple[list[float], np.ndarray]:
    """Return the loss of each step, and the features of all images at the end."""
    rng = np.random.default_rng(0)
    layers = []
    for rows, columns in ((64, HIDDEN), (HIDDEN, FEATURES)):
        weight = rng.standard_normal((rows, columns)) * (2 / rows) ** 0.5
        layers += [asarray(weight.astype(np.float32)), asarray(np.zeros(columns, np.float32))]
    velocity, losses = [0.0] * len(layers), []
    for _ in range(STEPS):
        batch = images[rng.choice(train.stop, BATCH, replace=False)]
        x1, x2 = (asarray(view(batch, rng)) for _ in range(2))
        loss, gradients = step(layers, x1, x2)
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        layers = [w - LEARNING_RATE * v for w, v in zip(layers, velocity, strict=True)]
        losses.append(float(loss))
    layers = [np.asarray(layer) for layer in layers]
    return losses, encode(layers, images)


def draw(curves: dict[str, list[float]], apart: float, file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    for index, (name, losses) in enumerate(curves.items()):
        # Thick under thin, so that equal curves are all seen.
        axes.plot(losses, label=name, linestyle="-", linewidth=2 * (len(curves) - index))
    axes.set_title(f"One curve in {len(curves)} libraries, to a relative {apart:.0e}")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as digits.svg")
    file = parser.parse_args().plot
    curves = {}
    for name, module, library in (
        ("NumPy", "numpy", in_numpy),
        ("PyTorch", "torch", in_torch),
        ("JAX", "jax", in_jax),
        ("MLX", "mlx", in_mlx),
    ):
        if find_spec(module) is None:
            print(f"{name} is not installed")
            continue
        curves[name], features = trained(*library())
        probe = LogisticRegression(max_iter=3000).fit(features[train], labels[train])
        accuracy = probe.score(features[test], labels[test])
        print(
            f"{name:8} loss {curves[name][0]:7.4f} at first, {curves[name][-1]:.6f} at last, "
            f"linear probe {accuracy:.2%}"
        )
    losses = np.array(list(curves.values()))
    apart = (np.ptp(losses, axis=0) / losses.min(axis=0)).max()
    print(f"largest difference of two losses of a step, relative: {apart:.1e}")
    assert apart < 1e-5  # the curves are the same
    if file:
        draw(curves, apart, file)


if __name__ == "__main__":
    main()
