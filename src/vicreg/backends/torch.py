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
