"""Train one Keras model with VICReg on two backends, PyTorch and JAX: the curves are the same.

The model overrides `compute_loss`, and `fit` does the rest. The code is the same for both
backends, as `vicreg_loss` takes the arrays of either. Keras chooses its backend when it is
imported, so that the script runs itself once for each. Needs Keras 3, PyTorch, JAX and
scikit-learn, and matplotlib for the picture:

    python examples/keras_digits.py --plot keras.svg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vicreg import vicreg_loss

EPOCHS, STEPS, BATCH, HIDDEN, FEATURES = 40, 5, 256, 128, 32

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train, test = slice(0, 1280), slice(1280, None)


def two_views(rng: np.random.Generator) -> Iterator[tuple[np.ndarray]]:
    """Yield batches ``(BATCH, 2, 64)``: two views of each image, moved and with noise."""
    row, column = np.ogrid[:8, :8]
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    while True:
        chosen = rng.choice(train.stop, BATCH, replace=False)[:, None, None, None]
        down, right = rng.integers(0, 3, (2, BATCH, 2, 1, 1))
        moved = padded[chosen, down + row, right + column].reshape(BATCH, 2, 64)
        yield (moved + 0.1 * rng.standard_normal(moved.shape, dtype=np.float32),)


def train_and_print() -> None:
    """Train with the backend of the environment; print the losses and the probe's accuracy."""
    import keras

    class Encoder(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return vicreg_loss(y_pred[:, 0], y_pred[:, 1])

    model = Encoder(
        [
            keras.Input((None, 64)),  # any number of views
            keras.layers.Dense(HIDDEN, activation="relu"),
            keras.layers.Dense(FEATURES),
        ]
    )
    rng = np.random.default_rng(0)  # each backend would draw other weights
    model.set_weights(
        [
            0.1 * rng.standard_normal(weight.shape) if weight.ndim == 2 else weight
            for weight in model.get_weights()
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    batches = two_views(rng)
    history = model.fit(batches, epochs=EPOCHS, steps_per_epoch=STEPS, shuffle=False, verbose=0)
    features = model.predict(images[:, None], verbose=0)[:, 0]
    probe = LogisticRegression(max_iter=3000).fit(features[train], labels[train])
    accuracy = probe.score(features[test], labels[test])
    print(json.dumps({"losses": history.history["loss"], "accuracy": accuracy}))


def trained(backend: str) -> dict:
    """Run this script with a backend of Keras; return what it printed."""
    command = [sys.executable, __file__, "--train"]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    output = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(output.stdout)


def draw(curves: dict[str, list[float]], apart: float, file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.4))
    for (name, losses), width in zip(curves.items(), (6, 2), strict=True):
        axes.plot(range(1, EPOCHS + 1), losses, label=name, linewidth=width)  # both are seen
    axes.set_title(f"The two backends' losses differ by {100 * apart:.1g} % at most")
    axes.set(xlabel="epoch", ylabel="mean loss of an epoch")
    axes.legend(title="backend")
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as keras.svg")
    parser.add_argument("--train", action="store_true", help="only with Keras's own backend")
    options = parser.parse_args()
    if options.train:
        train_and_print()
        return
    curves = {}
    for backend in ("torch", "jax"):
        result = trained(backend)
        curves[backend] = result["losses"]
        print(
            f"{backend:5} loss {curves[backend][0]:.4f} in the first epoch, "
            f"{curves[backend][-1]:.6f} in the last, linear probe {result['accuracy']:.2%}"
        )
    first, second = map(np.asarray, curves.values())
    apart = np.max(np.abs(first / second - 1))
    assert apart < 1e-3, apart
    print(f"at every epoch the two losses are within {apart:.0e} of each other, relative")
    if options.plot:
        draw(curves, apart, options.plot)


if __name__ == "__main__":
    main()
