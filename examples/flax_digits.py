"""Train on digits with Flax NNX and Optax, and watch the three terms.

`vicreg_terms` returns the loss and its terms, unweighted, in one call: the loss is
differentiated, the terms come along for the log. Needs JAX, Flax, Optax and scikit-learn, and
matplotlib for the picture:

    python examples/flax_digits.py --plot flax.svg
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from vicreg import VICRegTerms, diagnose, vicreg_terms

STEPS, BATCH = 200, 256


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.projector = nnx.Linear(128, 64, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.projector(nnx.relu(self.hidden(images)))


def loss_of(encoder: Encoder, x1: jax.Array, x2: jax.Array) -> tuple[jax.Array, VICRegTerms]:
    terms = vicreg_terms(encoder(x1), encoder(x2))
    return terms.loss, terms


@nnx.jit
def step(encoder: Encoder, optimizer: nnx.Optimizer, x1: jax.Array, x2: jax.Array) -> VICRegTerms:
    (_, terms), gradients = nnx.value_and_grad(loss_of, has_aux=True)(encoder, x1, x2)
    optimizer.update(encoder, gradients)
    return terms


def draw(history: list[VICRegTerms], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    for name in ("invariance", "variance", "covariance"):
        axes.plot([float(getattr(terms, name)) for terms in history], label=name)
    first, last = (float(history[i].variance) for i in (0, -1))
    axes.set_title(f"The variance term goes from {first:.2f} to {last:.2f}")
    axes.set(xlabel="step", ylabel="term, unweighted", yscale="log")
    axes.legend()
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as loss.svg")
    file = parser.parse_args().plot
    images = load_digits().data.astype(np.float32) / 16
    encoder = Encoder(nnx.Rngs(0))
    optimizer = nnx.Optimizer(encoder, optax.adam(1e-3), wrt=nnx.Param)
    rng, history = np.random.default_rng(0), []
    print(f"effective rank before: {float(diagnose(encoder(images)).effective_rank):.1f} of 64")
    for _ in range(STEPS):
        batch = images[rng.choice(len(images), BATCH, replace=False)]
        noise = 0.2 * rng.standard_normal((2, *batch.shape), dtype=np.float32)
        history.append(step(encoder, optimizer, *(batch + noise)))
    print(f"effective rank after:  {float(diagnose(encoder(images)).effective_rank):.1f} of 64")
    for name in VICRegTerms._fields:
        first, last = (float(getattr(history[i], name)) for i in (0, -1))
        print(f"{name:10} {first:8.4f} at first, {last:8.4f} at last")
    if file:
        draw(history, file)


if __name__ == "__main__":
    main()
