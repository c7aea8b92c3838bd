"""All ranks of JAX in one process: devices of the host along an axis, by ``jax.shard_map``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vicreg.distributed import JaxCommunicator
from vicreg.tools.backends import backend_named
from vicreg.tools.functions import LossFunction
from vicreg.tools.verification.distributed.batches import STEP, Batch
from vicreg.tools.verification.distributed.job import Answer, Job, Question

__all__ = ["AXIS", "Ranks"]

#: The name of the axis that the ranks are on.
AXIS = "ranks"

_PartitionSpec: Any = jax.sharding.PartitionSpec  # it has no types
_OVER_RANKS, _REPLICATED = _PartitionSpec(AXIS), _PartitionSpec()
Parameters = tuple[jax.Array, jax.Array]


class Ranks:
    """The devices of this process, which the environment has made as many as ranks.

    Parameters
    ----------
    job : Job
        The job.
    file : path
        Not needed here.
    """

    def __init__(self, job: Job, file: Path) -> None:
        self._backend, self._output = backend_named("jax"), job.output
        self._mesh = Mesh(np.array(jax.devices("cpu")), (AXIS,))
        self._compiled: dict[Any, Any] = {}

    def join(self) -> None:
        """Do nothing: the devices are together already."""

    def package_loss(self, question: Question) -> Callable[..., Any]:
        """Return the loss of this package over all ranks."""
        return question.package_loss(JaxCommunicator(AXIS))

    def answers(self, loss: Callable[..., Any], question: Question) -> dict[int, Answer]:
        """Return the answer of each rank."""
        key = (question.convention, question.method)
        if key not in self._compiled:
            self._compiled[key] = self._functions(LossFunction(loss, self._backend, self._output))
        values, gradients = self._compiled[key]
        batch, size = question.batch, self._mesh.size
        part = slice(None) if question.alone is None else batch.part(question.alone)
        parameters = self._arrays(question.dtype, batch.weight, batch.bias)
        (inputs,) = self._arrays(question.dtype, batch.inputs[:, part].swapaxes(0, 1))
        shifts = jnp.zeros_like(inputs)
        (of_parameters, of_shifts), found = gradients(parameters, inputs, shifts)
        rows = np.split(np.asarray(of_shifts, np.float64).swapaxes(0, 1), size, axis=1)
        answers: dict[int, Answer] = {
            rank: {
                "value": float(found[rank]),
                "value_dtype": str(found.dtype),
                # The mean over the ranks is differentiated; a backward pass has their sum.
                "rows": size * rows[rank],
                "weight": np.asarray(of_parameters[0], np.float64),
                "bias": np.asarray(of_parameters[1], np.float64),
            }
            for rank in range(size)
        }
        if question.moving:
            moves = self._moves(values, batch)
            for rank in range(size):
                answers[rank]["moves"] = moves[rank]
        return answers

    def _functions(self, function: LossFunction) -> tuple[Any, Any]:
        """Return the value on each rank, and the gradient of their mean beside it, compiled."""

        def on_rank(parameters: Parameters, inputs: jax.Array, shifts: jax.Array) -> jax.Array:
            weight, bias = parameters
            embeddings = inputs @ weight.T + bias + shifts
            value = jnp.asarray(function.on_arrays(embeddings[:, 0], embeddings[:, 1]))
            return value.reshape(1)

        values = jax.shard_map(
            on_rank,
            mesh=self._mesh,
            in_specs=(_REPLICATED, _OVER_RANKS, _OVER_RANKS),
            out_specs=_OVER_RANKS,
        )

        def mean(*arguments: Any) -> tuple[jax.Array, jax.Array]:
            found = values(*arguments)
            return jnp.mean(found), found

        return jax.jit(values), jax.jit(jax.grad(mean, argnums=(0, 2), has_aux=True))

    def _moves(self, values: Any, batch: Batch) -> np.ndarray[Any, Any]:
        """Return how each rank's value changes with each rank's rows, by central differences."""
        parameters = self._arrays("float64", batch.weight, batch.bias)
        (inputs,) = self._arrays("float64", batch.inputs.swapaxes(0, 1))
        moves = []
        for moved in range(self._mesh.size):
            step = np.zeros(batch.inputs.shape)
            part = batch.part(moved)
            step[:, part] = STEP * batch.direction[:, part]
            (shift,) = self._arrays("float64", step.swapaxes(0, 1))
            ahead, behind = (values(parameters, inputs, one) for one in (shift, -shift))
            moves.append((np.asarray(ahead) - np.asarray(behind)) / (2 * STEP))
        return np.stack(moves, axis=1)

    def _arrays(self, dtype: str, *values: Any) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(value, dtype) for value in values)
