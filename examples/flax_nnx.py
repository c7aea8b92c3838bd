"""Train an encoder of digits with Flax's nnx and optax: the loss and its terms in one jitted step.

`vicreg_terms` goes into `nnx.value_and_grad` as any function does; its terms come back with the
loss, to be logged. A linear classifier then measures the encoder's features. Needs Flax, optax and
scikit-learn, and matplotlib for the picture:

    python examples/flax_nnx.py --plot flax.svg
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vicreg import VICRegTerms, vicreg_terms

EPOCHS, BATCH, FEATURES = 50, 256, 64
WEIGHTS = {"invariance": 25, "variance": 25, "covariance": 1}  # VICReg's own

images, labels = load_digits(return_X_y=True)
images = jnp.asarray(images / 16, dtype=jnp.float32)
train, test = slice(0, 1280), slice(1280, None)


class Encoder(nnx.Module):
    """A network with one hidden layer, and a projector that the loss looks at."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 256, rngs=rngs)
        self.norm = nnx.BatchNorm(256, rngs=rngs)
        self.projector = nnx.Linear(256, FEATURES, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.hidden(images)))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.projector(self.features(images))


def view(key: jax.Array, images: jax.Array) -> jax.Array:
    """Return the images with three of ten pixels hidden."""
    return images * jax.random.bernoulli(key, 0.7, images.shape)


@nnx.jit
def step(
    encoder: Encoder, optimizer: nnx.Optimizer, key: jax.Array, images: jax.Array
) -> VICRegTerms[jax.Array]:
    def loss_of(encoder: Encoder) -> tuple[jax.Array, VICRegTerms[jax.Array]]:
        z1, z2 = (encoder(view(one, images)) for one in jax.random.split(key))
        terms = vicreg_terms(z1, z2, **{f"{name}_weight": w for name, w in WEIGHTS.items()})
        return terms.loss, terms

    (_, terms), gradients = nnx.value_and_grad(loss_of, has_aux=True)(encoder)
    optimizer.update(encoder, gradients)
    return terms


def probe(encoder: Encoder) -> float:
    """Return the accuracy of a linear classifier of the features on held-out digits."""
    encoder.eval()
    features = np.asarray(encoder.features(images))
    classifier = LogisticRegression(max_iter=2000).fit(features[train], labels[train])
    return classifier.score(features[test], labels[test])


def draw(history: list[dict[str, float]], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.2, 3.6))
    epochs = range(1, EPOCHS + 1)
    for name, weight in WEIGHTS.items():
        values = [weight * terms[name] for terms in history]
        axes.plot(epochs, values)
        axes.text(EPOCHS + 1, values[-1], f"{weight} × {name}", va="center")
    axes.set_title("Invariance and variance fall, covariance rises")
    axes.set(xlabel="epoch", ylabel="what the term adds to the loss")
    axes.set(xlim=(0, 76), ylim=0, xticks=range(0, EPOCHS + 1, 10))
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as flax.svg")
    file = parser.parse_args().plot
    encoder = Encoder(nnx.Rngs(0))
    optimizer = nnx.Optimizer(encoder, optax.adam(1e-3), wrt=nnx.Param)
    encoder.train()
    key, history = jax.random.key(0), []
    for _ in range(EPOCHS):
        key, order_key = jax.random.split(key)
        for batch in jax.random.permutation(order_key, train.stop).reshape(-1, BATCH):
            key, step_key = jax.random.split(key)
            terms = step(encoder, optimizer, step_key, images[batch])
        history.append(terms.scalars())  # for a logger: those of the last step of the epoch
    first, last = history[0], history[-1]
    for name in first:
        print(f"{name:10} {first[name]:6.2f} after the first epoch, {last[name]:6.2f} at the end")
    print(f"linear probe of the features: {probe(encoder):.1%} of held-out digits")
    assert last["invariance"] < first["invariance"]
    assert last["variance"] < first["variance"]
    assert last["covariance"] > first["covariance"]
    if file:
        draw(history, file)


if __name__ == "__main__":
    main()
