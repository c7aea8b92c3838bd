"""A batch larger than memory in JAX: the loss of all of it, with the activations of one chunk.

The statistics of the loss are those of the whole batch, but the encoder runs a chunk at a time.
First each chunk is embedded, with nothing kept for a derivative. Then the closed form gives the
gradient by every embedding. Last, each chunk is embedded again and its share is taken back to the
parameters. That is one forward pass more than plain differentiation takes.

    python examples/jax_cached_backward.py --samples 1024 --chunk-size 64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vicreg import vicreg_loss, vicreg_value_and_grad

Array = jax.Array
Parameters = Any  # any tree of arrays
Encoder = Callable[[Parameters, Array, Array], Array]  # of parameters, inputs and a key

PIXELS, WIDTH, FEATURES = 256, 512, 256


def cached_value_and_grad(
    encoder: Encoder, parameters: Parameters, views: Array, keys: Array
) -> tuple[Array, Parameters]:
    """Return the loss of the whole batch, and its gradient by the parameters.

    `views` are ``(views, chunks, samples of a chunk, ...)``, and `keys` one for each chunk of
    each view, ``(views, chunks)``: what is random is the same both times.
    """
    chunks = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (views, keys))
    embedded = jax.lax.map(lambda chunk: encoder(parameters, *chunk), chunks)
    batch = embedded.reshape(views.shape[0], -1, embedded.shape[-1])
    loss, gradients = vicreg_value_and_grad(*batch)

    def add(total: Parameters, chunk_and_gradient: Any) -> tuple[Parameters, None]:
        chunk, gradient = chunk_and_gradient
        _, pullback = jax.vjp(lambda parameters: encoder(parameters, *chunk), parameters)
        return jax.tree.map(jnp.add, total, *pullback(gradient)), None

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    total, _ = jax.lax.scan(add, zeros, (chunks, jnp.stack(gradients).reshape(embedded.shape)))
    return loss, total


def plain_loss(encoder: Encoder, parameters: Parameters, views: Array, keys: Array) -> Array:
    """Return the loss of the whole batch, to be differentiated with all activations kept."""
    of_chunks = jax.vmap(jax.vmap(encoder, (None, 0, 0)), (None, 0, 0))
    embedded = of_chunks(parameters, views, keys)
    return vicreg_loss(*embedded.reshape(views.shape[0], -1, embedded.shape[-1]))


def accumulated_loss(encoder: Encoder, parameters: Parameters, views: Array, keys: Array) -> Array:
    """Return the mean of the chunks' losses, each with statistics of its own: another loss."""
    each = jax.vmap(
        lambda chunk, keys: plain_loss(encoder, parameters, chunk[:, None], keys[:, None]), 1
    )
    return each(views, keys).mean()


def encoder(parameters: Parameters, images: Array, key: Array) -> Array:
    """A network of two layers with dropout."""
    first, second = parameters
    hidden = jax.nn.gelu(images @ first)
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)
    return jnp.where(kept, hidden / 0.9, 0) @ second


def example(samples: int, chunk_size: int) -> tuple[Parameters, Array, Array]:
    """Return parameters, two noisy views of random images in chunks, and the keys."""
    for_first, for_second, for_images, for_noise, for_dropout = jax.random.split(
        jax.random.key(0), 5
    )
    parameters = (
        jax.random.normal(for_first, (PIXELS, WIDTH)) / PIXELS**0.5,
        jax.random.normal(for_second, (WIDTH, FEATURES)) / WIDTH**0.5,
    )
    images = jax.random.normal(for_images, (samples, PIXELS))
    views = images + jax.random.normal(for_noise, (2, samples, PIXELS)) / 4
    views = views.reshape(2, -1, chunk_size, PIXELS)
    return parameters, views, jax.random.split(for_dropout, views.shape[:2])


def difference(got: Parameters, wanted: Parameters) -> float:
    """Return the largest difference, relative to the largest value of the array it is in."""
    errors = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), got, wanted)
    return max(map(float, jax.tree.leaves(errors)))


def main(arguments: list[str] | None = None) -> None:
    """Print the loss, how far each way's gradient is from the plain one, and its memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--chunk-size", type=int, default=64)
    options = parser.parse_args(arguments)
    if options.chunk_size < 2 or options.samples % options.chunk_size:
        parser.error("--samples must be a multiple of --chunk-size, which must be 2 or more")

    data = example(options.samples, options.chunk_size)
    ways = {
        "plain": lambda *data: jax.value_and_grad(plain_loss, argnums=1)(encoder, *data),
        "cached": lambda *data: cached_value_and_grad(encoder, *data),
        "accumulated": lambda *data: jax.value_and_grad(accumulated_loss, argnums=1)(
            encoder, *data
        ),
    }
    wanted = None
    for name, way in ways.items():
        compiled = jax.jit(way).lower(*data).compile()
        loss, gradient = compiled(*data)
        wanted = gradient if wanted is None else wanted
        print(
            f"{name:12} loss {loss:.6f}, "
            f"largest difference from the plain gradient {difference(gradient, wanted):.1e}, "
            f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.1f} MiB"
        )


if __name__ == "__main__":
    main()
