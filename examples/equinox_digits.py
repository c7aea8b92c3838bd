"""Put VCReg between the layers of an Equinox model: its features spread over more dimensions.

`vicreg.jax.vcreg` returns its input, and adds its regularization to the gradient that comes back;
so the model calls it on a batch of activations, and the loss stays as it is. A classifier of
digits is trained with it and without, from the same weights and with the same batches. Needs
Equinox, optax and scikit-learn, and matplotlib for the picture:

    python examples/equinox_digits.py --plot equinox.svg
"""

from __future__ import annotations

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from vicreg import diagnose
from vicreg.jax import vcreg

STEPS, BATCH, FEATURES, WEIGHT = 300, 256, 64, 0.3

images, labels = load_digits(return_X_y=True)
images = jnp.asarray(images / 16, dtype=jnp.float32)
train, test = slice(0, 1280), slice(1280, None)


class Classifier(eqx.Module):
    """Two hidden layers, and a linear classifier of what they return."""

    hidden: list[eqx.nn.Linear]
    last: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        first, second, third = jax.random.split(key, 3)
        self.hidden = [
            eqx.nn.Linear(64, 128, key=first),
            eqx.nn.Linear(128, FEATURES, key=second),
        ]
        self.last = eqx.nn.Linear(FEATURES, 10, key=third)

    def features(self, x: jax.Array, regularized: bool = False) -> jax.Array:
        for layer in self.hidden:
            x = jax.nn.relu(jax.vmap(layer)(x))
            if regularized:  # after vmap, since it needs the whole batch
                x = vcreg(x, variance_weight=WEIGHT, covariance_weight=WEIGHT)
        return x

    def __call__(self, x: jax.Array, regularized: bool = False) -> jax.Array:
        return jax.vmap(self.last)(self.features(x, regularized))


def trained(regularized: bool) -> Classifier:
    """Train a classifier on batches that do not depend on `regularized`."""
    optimizer = optax.adam(1e-3)

    @eqx.filter_jit
    def step(model: Classifier, state: optax.OptState, x: jax.Array, y: jax.Array) -> tuple:
        def loss_of(model: Classifier) -> jax.Array:
            logits = model(x, regularized)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = optimizer.update(eqx.filter_grad(loss_of)(model), state)
        return eqx.apply_updates(model, updates), state

    model = Classifier(jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        batch = rng.choice(train.stop, BATCH, replace=False)
        model, state = step(model, state, images[batch], labels[batch])
    return model


def draw(spectra: dict[str, np.ndarray], ranks: list[float], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    for name, stds in spectra.items():
        axes.plot(range(1, FEATURES + 1), stds / stds[0], label=name)
    axes.set_title("The features fill {:.0f} dimensions, {:.0f} with VCReg".format(*ranks))
    axes.set(xlabel="principal component", yscale="log", ylim=(1e-3, 1.2))
    axes.set(ylabel="std, relative to the first's")
    axes.legend(loc="upper right")
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as equinox.svg")
    file = parser.parse_args().plot
    spectra, ranks = {}, []
    for name, regularized in (("without", False), ("with VCReg", True)):
        model = trained(regularized)
        accuracy = float((model(images[test]).argmax(1) == labels[test]).mean())
        features = model.features(images[test])
        ranks.append(float(diagnose(features).effective_rank))
        spectra[name] = np.linalg.svd(features - features.mean(0), compute_uv=False)
        print(
            f"{name:10}: effective rank {ranks[-1]:4.1f} of {FEATURES}, "
            f"accuracy {accuracy:.1%} of held-out digits"
        )
    assert ranks[1] > ranks[0]
    if file:
        draw(spectra, ranks, file)


if __name__ == "__main__":
    main()
