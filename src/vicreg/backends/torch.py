"""PyTorch, on the CPU and every accelerator it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vicreg.backends.base import ALL_DTYPES, Array, Backend, Floats, first

__all__ = ["TorchBackend", "backends"]


class TorchBackend(Backend):
    """PyTorch on one device."""

    differentiates = True
    compiles = True

    def asarray(self, values: Floats, dtype: str) -> Array:
        # Converted on the CPU: some devices have no float64 to convert from.
        return torch.tensor(values, dtype=getattr(torch, dtype)).to(self.device)

    def to_numpy(self, array: Array) -> Floats:
        values: Floats = array.detach().cpu().double().numpy()
        return values

    def differentiate(
        self, function: Callable[..., Any], arrays: Sequence[Array]
    ) -> tuple[Any, tuple[Array, ...]]:
        leaves = [array.detach().requires_grad_() for array in arrays]
        output = function(*leaves)
        gradients = torch.autograd.grad(first(output), leaves, materialize_grads=True)
        return output, gradients

    def synchronise(self, output: Any) -> None:
        if self._kind != "cpu":
            self._library.synchronize(*self._number)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # Of fixed sizes: with other sizes seen before it would compile for any.
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
        return compiled

    def compiled_gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        loss = self.compiled(function)  # which has its gradient; autograd is outside of it
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
        """The part of PyTorch that knows the device."""
        return getattr(torch, self._kind)

    @property
    def _number(self) -> tuple[int, ...]:
        """The number of the device among its kind, where it has one."""
        number = self.device.partition(":")[2]
        return (int(number),) if number else ()


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
    return ALL_DTYPES[1:] if device == "mps" else ALL_DTYPES
