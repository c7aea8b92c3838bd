"""Train one Keras 3 model on its PyTorch and on its JAX backend: the curves are the same.

`vicreg_loss` takes the arrays of either backend, so that a Keras loss is one line. The script
runs itself once for each backend, and compares. Needs Keras, PyTorch, JAX and scikit-learn, and
matplotlib for the picture:

    python examples/keras_digits.py --plot keras.svg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from vicreg import vicreg_loss

EPOCHS, BATCH, IMAGES = 20, 256, 1792  # whole batches


def loss_of(_: Any, embeddings: Any) -> Any:
    """Return the loss of embeddings of shape (n, 2, d): two views of each image."""
    return vicreg_loss(embeddings[:, 0], embeddings[:, 1])


def trained() -> list[float]:
    """Return the loss of each epoch, on the backend that KERAS_BACKEND names."""
    import keras

    rng = np.random.default_rng(0)
    images = load_digits().data[:IMAGES, None].astype(np.float32) / 16
    views = images + 0.2 * rng.standard_normal((IMAGES, 2, 64), dtype=np.float32)
    model = keras.Sequential(
        [keras.Input((2, 64)), keras.layers.Dense(128, "relu"), keras.layers.Dense(64)]
    )
    # The same first weights on both.
    model.set_weights([0.1 * rng.standard_normal(w.shape) for w in model.get_weights()])
    model.compile(keras.optimizers.Adam(1e-3), loss_of)
    fitted = model.fit(views, views, BATCH, EPOCHS, shuffle=False, verbose=0)
    return fitted.history["loss"]


def draw(curves: dict[str, list[float]], apart: float, file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    for (backend, losses), width in zip(curves.items(), (7, 2), strict=True):
        axes.plot(range(1, EPOCHS + 1), losses, label=backend, linewidth=width)
    axes.set_title(f"The losses on two backends differ by {apart:.0e} at most")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as loss.svg")
    file = parser.parse_args().plot
    if "KERAS_DIGITS" in os.environ:
        print(json.dumps(trained()))
        return
    curves = {}
    for backend in ("torch", "jax"):
        environment = os.environ | {"KERAS_BACKEND": backend, "KERAS_DIGITS": "1"}
        command = [sys.executable, __file__]
        output = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        curves[backend] = json.loads(output)
        first, last = curves[backend][0], curves[backend][-1]
        print(f"{backend:6} loss {first:.6f} at first, {last:.6f} at last")
    apart = max(abs(a - b) / a for a, b in zip(*curves.values(), strict=True))
    print(f"largest difference of two losses, relative: {apart:.1e}")
    if file:
        draw(curves, apart, file)


if __name__ == "__main__":
    main()
