"""Train four encoders at once with Equinox: one for each weight of the covariance term.

A weight may be traced, so that ``eqx.filter_vmap`` maps over it and over the encoders, and one
compiled program trains them all. The larger the weight, the more directions the features fill.
Needs JAX, Equinox, Optax and scikit-learn, and matplotlib for the picture:

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

from vicreg import diagnose, vicreg_loss

STEPS, BATCH, WEIGHTS = 200, 256, (0.0, 0.1, 1.0, 10.0)
optimizer = optax.adam(1e-3)


def loss_of(encoder: eqx.nn.MLP, weight: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
    return vicreg_loss(jax.vmap(encoder)(x1), jax.vmap(encoder)(x2), covariance_weight=weight)


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), eqx.if_array(0), 0, None, None))
def step(encoder: eqx.nn.MLP, state: tuple, weight: jax.Array, x1: jax.Array, x2: jax.Array):
    gradients = eqx.filter_grad(loss_of)(encoder, weight, x1, x2)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(encoder, updates), state


@eqx.filter_vmap(out_axes=eqx.if_array(0))
def made(_: jax.Array) -> tuple:
    encoder = eqx.nn.MLP(64, 64, width_size=128, depth=1, key=jax.random.key(0))
    return encoder, optimizer.init(eqx.filter(encoder, eqx.is_array))


def draw(ranks: list[float], file: str) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    axes.plot(range(len(WEIGHTS)), ranks, "o-")
    axes.set_title(f"The covariance term takes the rank from {ranks[0]:.0f} to {ranks[-1]:.0f}")
    axes.set(xticks=range(len(WEIGHTS)), xticklabels=WEIGHTS, ylim=(0, 64))
    axes.set(xlabel="weight of the covariance term", ylabel="effective rank, of 64 features")
    plt.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as loss.svg")
    file = parser.parse_args().plot
    images = load_digits().data.astype(np.float32) / 16
    weights = jnp.asarray(WEIGHTS)
    encoders, state = made(weights)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        batch = images[rng.choice(len(images), BATCH, replace=False)]
        noise = 0.2 * rng.standard_normal((2, *batch.shape), dtype=np.float32)
        encoders, state = step(encoders, state, weights, *(batch + noise))
    ranks = []
    for i, weight in enumerate(WEIGHTS):
        encoder = jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, encoders)
        ranks.append(float(diagnose(jax.vmap(encoder)(images)).effective_rank))
        print(f"covariance weight {weight:4}: effective rank {ranks[-1]:.1f} of 64")
    if file:
        draw(ranks, file)


if __name__ == "__main__":
    main()
