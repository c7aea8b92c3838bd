"""VICReg of a batch on eight devices in JAX, in the two ways there are: here eight of the CPU.

Needs JAX. One way is inside ``shard_map``, with a communicator; the other is under ``jit``, with
arrays that are sharded over a mesh and no communicator. It prints the loss, and how far the
gradients are from those of one device:

    python examples/jax_eight_devices.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vicreg import vicreg_loss
from vicreg.distributed import JaxCommunicator

DEVICES, ROWS, FEATURES = 8, 64, 256


def report(how: str, found: tuple, wanted: tuple) -> None:
    (loss, gradients), (_, of_one) = found, wanted
    pairs = zip(gradients, of_one, strict=True)
    largest = max(float(jnp.max(jnp.abs(jnp.asarray(a) - jnp.asarray(b)))) for a, b in pairs)
    print(f"{how}: loss of {ROWS} samples on {DEVICES} devices: {loss:.6f}")
    print(f"{how}: largest difference from the gradient of one device: {largest:.1e}")


def main() -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    by_rows = PartitionSpec("batch")

    noise = jax.random.normal(jax.random.key(0), (2, ROWS, FEATURES), dtype=jnp.float64)
    views = tuple(noise + 0.1 * (jnp.arange(ROWS)[:, None] // (ROWS // DEVICES)))
    sharded = jax.device_put(views, NamedSharding(mesh, by_rows))

    @jax.shard_map(mesh=mesh, in_specs=by_rows, out_specs=PartitionSpec())
    def loss_of_all(z1: jax.Array, z2: jax.Array) -> jax.Array:
        return vicreg_loss(z1, z2, comm=JaxCommunicator("batch"))

    def differentiated(loss: object) -> object:
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

    of_one = jax.device_get(differentiated(vicreg_loss)(*views))
    report("shard_map", jax.device_get(differentiated(loss_of_all)(*sharded)), of_one)
    report("jit", jax.device_get(differentiated(vicreg_loss)(*sharded)), of_one)


if __name__ == "__main__":
    main()
