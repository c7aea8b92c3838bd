"""PyTorch, on the CPU and on every accelerator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from vicreg.tools.backends.base import (
    Array,
    Backend,
    Floats,
    ForwardWay,
    GradientWay,
    SecondWay,
    chosen,
    first,
    placed,
)
from vicreg.tools.dtypes import DTYPES

__all__ = ["TorchBackend", "backends"]


class TorchBackend(Backend):
    """PyTorch on one device."""

    differentiates = True
    compiles = True

    def asarray(self, values: Floats, dtype: str) -> Array:
        # Convert on the CPU: some devices have no float64.
        return torch.tensor(values, dtype=getattr(torch, dtype)).to(self.device)

    def to_numpy(self, array: Array) -> Floats:
        values: Floats = array.detach().cpu().double().numpy()
        return values

    def differentiate(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Array],
        wanted: Sequence[bool] | None = None,
    ) -> tuple[Any, tuple[Array | None, ...]]:
        places = chosen(arrays, wanted)
        given = [array.detach() for array in arrays]
        for place in places:
            given[place].requires_grad_()
        output = function(*given)
        leaves = [given[place] for place in places]
        gradients = torch.autograd.grad(first(output), leaves, materialize_grads=True)
        return output, placed(gradients, places, len(arrays))

    @property
    def gradient_ways(self) -> Mapping[str, GradientWay]:
        return {
            "backward a second time": _backward_again,
            "a batch of backward passes": _in_a_batch,
            "torch.func": _by_func,
            "torch.vmap of torch.func": _by_vmap,
        }

    @property
    def forward_ways(self) -> Mapping[str, ForwardWay]:
        return {
            "forward mode": _forward,
            "forward mode beside backward": _forward_beside_backward,
            "torch.func.jvp": _forward_by_func,
        }

    @property
    def second_ways(self) -> Mapping[str, SecondWay]:
        return {
            "backward through backward": _backward_twice,
            "torch.func.jvp of torch.func.grad": _forward_over_backward,
        }

    def vcreg_layer(self, **settings: Any) -> Callable[[Array], Array]:
        from vicreg.torch import VCReg

        return VCReg(**settings)

    def on_one_thread(self) -> AbstractContextManager[Any]:
        return _threads(1)

    def synchronise(self, output: Any) -> None:
        if self._kind != "cpu":
            self._library.synchronize(*self._number)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # Otherwise PyTorch compiles for any size once it has seen several.
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
        return compiled

    def compiled_gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        loss = self.compiled(function)  # its backward pass is compiled with it
        return lambda *arrays: self.differentiate(loss, arrays)

    def forget_compiled(self) -> None:
        torch.compiler.reset()

    def watch_memory(self) -> Callable[[], int] | None:
        if self._kind not in ("cuda", "xpu"):
            return None
        library, device = self._library, self.device
        library.synchronize(device)
        library.reset_peak_memory_stats(device)
        held = library.memory_allocated(device)
        return lambda: int(library.max_memory_allocated(device) - held)

    @property
    def threads(self) -> int | None:
        return torch.get_num_threads() if self._kind == "cpu" else None

    @property
    def device_name(self) -> str | None:
        if self._kind not in ("cuda", "xpu"):
            return None
        name: str = self._library.get_device_name(self.device)
        return name

    @property
    def _kind(self) -> str:
        return self.device.partition(":")[0]

    @property
    def _library(self) -> Any:
        """The module of PyTorch for this kind of device."""
        return getattr(torch, self._kind)

    @property
    def _number(self) -> tuple[int, ...]:
        """The index of the device, if it has one."""
        number = self.device.partition(":")[2]
        return (int(number),) if number else ()


def _leaves(arrays: Sequence[Array]) -> list[Array]:
    return [array.detach().requires_grad_() for array in arrays]


def _backward_again(function: Callable[..., Array], arrays: Sequence[Array]) -> tuple[Array, ...]:
    leaves = _leaves(arrays)
    output = function(*leaves)
    torch.autograd.grad(output, leaves, retain_graph=True, materialize_grads=True)
    return torch.autograd.grad(output, leaves, materialize_grads=True)


def _in_a_batch(function: Callable[..., Array], arrays: Sequence[Array]) -> tuple[Array, ...]:
    leaves = _leaves(arrays)
    output = function(*leaves)
    twice = torch.ones_like(output).expand(2)
    batches = torch.autograd.grad(
        output, leaves, twice, is_grads_batched=True, materialize_grads=True
    )
    return tuple(batch[1] for batch in batches)


def _by_func(function: Callable[..., Array], arrays: Sequence[Array]) -> tuple[Array, ...]:
    every = tuple(range(len(arrays)))
    gradients: tuple[Array, ...] = torch.func.grad(function, every)(*arrays)
    return gradients


def _by_vmap(function: Callable[..., Array], arrays: Sequence[Array]) -> tuple[Array, ...]:
    gradient = torch.func.grad(function, tuple(range(len(arrays))))
    batches = torch.vmap(gradient)(*(torch.stack([array, array]) for array in arrays))
    return tuple(batch[1] for batch in batches)


def _forward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> Array:
    forward: Any = torch.autograd.forward_ad
    with forward.dual_level():
        duals = [forward.make_dual(*pair) for pair in zip(arrays, directions, strict=True)]
        return forward.unpack_dual(function(*duals)).tangent


def _forward_beside_backward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> Array:
    return _forward(function, _leaves(arrays), directions)


def _forward_by_func(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> Array:
    return torch.func.jvp(function, tuple(arrays), tuple(directions))[1]


def _backward_twice(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, ...]:
    leaves = _leaves(arrays)
    gradients = torch.autograd.grad(
        function(*leaves), leaves, create_graph=True, materialize_grads=True
    )
    pairs = zip(gradients, directions, strict=True)
    along = [torch.sum(gradient * direction) for gradient, direction in pairs]
    return torch.autograd.grad(sum(along[1:], along[0]), leaves, materialize_grads=True)


def _forward_over_backward(
    function: Callable[..., Array], arrays: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, ...]:
    gradient = torch.func.grad(function, tuple(range(len(arrays))))
    changes: tuple[Array, ...] = torch.func.jvp(gradient, tuple(arrays), tuple(directions))[1]
    return changes


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def backends(name: str) -> list[Backend]:
    """Return PyTorch on each device, the CPU first."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if torch.xpu.is_available():
        devices += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return [TorchBackend(name, device, _dtypes(device)) for device in devices]


def _dtypes(device: str) -> tuple[str, ...]:
    return DTYPES[1:] if device == "mps" else DTYPES
