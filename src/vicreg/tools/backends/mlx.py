"""MLX, on the CPU and on the GPU where it has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from vicreg.tools.backends.base import (
    Array,
    Backend,
    Floats,
    ForwardWay,
    SecondWay,
    chosen,
    first,
    placed,
)
from vicreg.tools.dtypes import DTYPES

__all__ = ["MlxBackend", "backends"]


class MlxBackend(Backend):
    """MLX on one device; it has float64 on the CPU alone."""

    differentiates = True
    compiles = True

    @property
    def multiplies_slowly(self) -> bool:  # type: ignore[override]  # of each device
        return self.device == "cpu"

    def active(self) -> AbstractContextManager[Any]:
        return _default_device(mx.cpu if self.device == "cpu" else mx.gpu)

    def asarray(self, values: Floats, dtype: str) -> Array:
        if dtype == "float64":
            return mx.array(np.array(values), dtype=mx.float64)
        return mx.array(np.array(values, dtype=np.float32)).astype(getattr(mx, dtype))

    def to_numpy(self, array: Array) -> Floats:
        wide = array if array.dtype == mx.float64 else array.astype(mx.float32)
        return np.array(wide).astype(np.float64)

    def differentiate(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Array],
        wanted: Sequence[bool] | None = None,
    ) -> tuple[Any, tuple[Array | None, ...]]:
        places = chosen(arrays, wanted)
        # MLX differentiates the first element of a tuple.
        output, gradients = mx.value_and_grad(
            lambda *views: _as_tuple(function(*views)), argnums=list(places)
        )(*arrays)
        in_places = placed(_as_tuple(gradients), places, len(arrays))
        return (output if len(output) > 1 else first(output)), in_places

    @property
    def forward_ways(self) -> Mapping[str, ForwardWay]:
        return {"mx.jvp": _forward}

    @property
    def second_ways(self) -> Mapping[str, SecondWay]:
        return {"mx.grad of mx.grad": _backward_twice, "mx.jvp of mx.grad": _forward_over_backward}

    def synchronise(self, output: Any) -> None:
        mx.eval(output)  # MLX is lazy

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = mx.compile(function)
        return compiled

    def watch_memory(self) -> Callable[[], int] | None:
        if self.device == "cpu":
            return None
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        return lambda: int(mx.get_peak_memory() - held)


def _as_tuple(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


def _gradient(function: Callable[..., Array], arrays: Sequence[Array]) -> Callable[..., Any]:
    gradient: Callable[..., Any] = mx.grad(function, argnums=list(range(len(arrays))))
    return lambda *views: _as_tuple(gradient(*views))


def _forward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> Array:
    _, (change,) = mx.jvp(function, list(arrays), list(directions))
    return change


def _backward_twice(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, ...]:
    def along(*views: Array) -> Array:
        pairs = zip(_gradient(function, arrays)(*views), directions, strict=True)
        return sum(mx.sum(gradient * direction) for gradient, direction in pairs)

    return tuple(_gradient(along, arrays)(*arrays))


def _forward_over_backward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, ...]:
    gradient = _gradient(function, arrays)
    _, changes = mx.jvp(lambda *views: list(gradient(*views)), list(arrays), list(directions))
    return tuple(changes)


@contextmanager
def _default_device(device: Any) -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(device)
    try:
        yield
    finally:
        mx.set_default_device(before)


def backends(name: str) -> list[Backend]:
    """Return MLX on the CPU and, where there is one, on the GPU."""
    devices: list[Backend] = [MlxBackend(name, "cpu", DTYPES)]
    if mx.metal.is_available() or mx.cuda.is_available():
        devices.append(MlxBackend(name, "gpu", DTYPES[1:]))
    return devices
