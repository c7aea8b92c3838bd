"""The gradient of a batch that is larger than memory, one chunk after another."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

Tensor = torch.Tensor
Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Buffer:
    """A buffer of a module, and the value that it had."""

    module: torch.nn.Module
    name: str  # since a forward pass may put a new tensor in the place of the buffer
    tensor: Tensor
    value: Tensor

    def put_back(self) -> None:
        """Give the buffer that value."""
        with torch.no_grad():
            setattr(self.module, self.name, self.tensor.copy_(self.value))


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a view, with the buffers and the random state that they were embedded with."""

    view: Tensor
    start: int
    end: int
    buffers: list[_Buffer]
    random_state: Tensor
    devices: list[int]
    device_states: list[Tensor]

    @property
    def rows(self) -> Tensor:
        return self.view[self.start : self.end]

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """A context with those; the random state of now comes back after it."""
        for buffer in self.buffers:
            buffer.put_back()
        with torch.random.fork_rng(self.devices, device_type=_accelerator()):
            torch.set_rng_state(self.random_state)
            if self.devices:
                set_device_states(self.devices, self.device_states)
            yield


def cached_backward(
    encoder: Encoder | Sequence[Encoder],
    views: Sequence[Tensor],
    loss: Callable[..., Tensor],
    chunk_size: int,
) -> Tensor:
    """Embed a batch chunk by chunk, and leave the gradient of the whole batch's loss in ``.grad``.

    See `vicreg.torch.cached_backward`, which this is.
    """
    encoders = _checked_encoders(encoder, len(views))
    chunk_size = _checked_size(chunk_size)
    for place, view in enumerate(views):
        _check_view(view, place)
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "cached_backward must be called where gradients are recorded; it was under "
            "torch.no_grad()"
        )
    if any(len(view) > chunk_size for view in views):
        _warn_of_batch_statistics(encoders)
    chunks: list[list[_Chunk]] = []
    embeddings: list[Tensor] = []
    for one, view in zip(encoders, views, strict=True):
        of_view, embedded = _embedded(one, view, chunk_size)
        chunks.append(of_view)
        embeddings.append(embedded)
    value = loss(*embeddings)
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        raise TypeError(
            "loss must return a tensor of shape () that depends on the embeddings; got "
            f"{_described(value)}"
        )
    value.backward()  # type: ignore[no-untyped-call]
    with _buffers_kept(encoders):
        _propagate(encoders, chunks, [embedded.grad for embedded in embeddings])
    return value.detach()


def _embedded(encoder: Encoder, view: Tensor, chunk_size: int) -> tuple[list[_Chunk], Tensor]:
    """Return the chunks of `view`, and the embeddings of all: a leaf of a graph."""
    chunks, embeddings = [], []
    # The views may be on a CPU and be moved by the encoder, as DistributedDataParallel does.
    parameters = _module_of(encoder).parameters()
    devices = {tensor.device: tensor for tensor in (view, *parameters)}.values()
    with torch.no_grad():
        for start in range(0, max(len(view), 1), chunk_size):
            end = min(start + chunk_size, len(view))
            states = (torch.get_rng_state(), *get_device_states(*devices))
            chunks.append(_Chunk(view, start, end, _buffers_of(encoder), *states))
            rows = chunks[-1].rows
            embedded = encoder(rows)
            if not isinstance(embedded, Tensor) or embedded.shape[:1] != rows.shape[:1]:
                raise TypeError(
                    "encoder must return one tensor, with a row for each of its input; got "
                    f"{_described(embedded)} for an input of shape {tuple(rows.shape)}"
                )
            embeddings.append(embedded)
    # Of the weights that autocast has cast here, older releases of PyTorch would keep the copies
    # for the second run, without a graph.
    torch.clear_autocast_cache()
    return chunks, torch.cat(embeddings).detach().requires_grad_()


def _propagate(
    encoders: Sequence[Encoder],
    chunks: Sequence[Sequence[_Chunk]],
    gradients: Sequence[Tensor | None],
) -> None:
    """Embed each chunk once more, with a graph, and go back through it."""
    left: Counter[int] = Counter()
    for encoder, of_view, gradient in zip(encoders, chunks, gradients, strict=True):
        left[id(encoder)] += 0 if gradient is None else len(of_view)
    for encoder, of_view, gradient in zip(encoders, chunks, gradients, strict=True):
        if gradient is None:  # the view has no part in the loss
            continue
        for chunk in of_view:
            left[id(encoder)] -= 1
            with chunk.replayed(), _synchronised(encoder, left[id(encoder)] == 0):
                embedded = encoder(chunk.rows)
                if embedded.requires_grad:
                    torch.autograd.backward(embedded, gradient[chunk.start : chunk.end])


@contextlib.contextmanager
def _synchronised(encoder: Any, now: bool) -> Iterator[None]:
    """A context in which ranks share the gradients of their parameters only if it is time."""
    if hasattr(encoder, "set_requires_gradient_sync"):  # torch.distributed.fsdp.fully_shard
        encoder.set_requires_gradient_sync(now)
        try:
            yield
        finally:
            encoder.set_requires_gradient_sync(True)
    elif hasattr(encoder, "no_sync") and not now:  # DistributedDataParallel
        with encoder.no_sync():
            yield
    else:
        yield


@contextlib.contextmanager
def _buffers_kept(encoders: Sequence[Encoder]) -> Iterator[None]:
    """A context that leaves buffers as they are: what a forward pass updates, it updates once."""
    kept = [buffer for encoder in encoders for buffer in _buffers_of(encoder)]
    try:
        yield
    finally:
        for buffer in kept:
            buffer.put_back()


def _buffers_of(encoder: Encoder) -> list[_Buffer]:
    # All of them: batch norm changes its own without a trace in the tensor's version.
    return [
        _Buffer(module, name, buffer, buffer.clone())
        for module in _module_of(encoder).modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]


def _module_of(encoder: Encoder) -> torch.nn.Module:
    """Return the module that `encoder` is or is a method of; an empty one for all else."""
    of_method = getattr(encoder, "__self__", None)
    candidates = (encoder, of_method, torch.nn.Module())
    return next(one for one in candidates if isinstance(one, torch.nn.Module))


def _accelerator() -> str:
    accelerator = torch.accelerator.current_accelerator()
    return "cuda" if accelerator is None else accelerator.type


def _checked_encoders(encoder: Any, count: int) -> list[Encoder]:
    encoders = list(encoder) if isinstance(encoder, (list, tuple)) else [encoder] * count
    if count == 0 or len(encoders) != count:
        raise ValueError(
            "views must be one or more tensors, and encoder one callable or one for each of them; "
            f"got {count} views and {len(encoders)} encoders"
        )
    for one in encoders:
        if not callable(one):
            raise TypeError(f"encoder must be callable; got {type(one).__name__}")
    return encoders


def _checked_size(chunk_size: Any) -> int:
    try:
        size = 0 if isinstance(chunk_size, bool) else operator.index(chunk_size)
    except TypeError:
        raise TypeError(f"chunk_size must be an integer; got {chunk_size!r}") from None
    if size < 1:
        raise ValueError(f"chunk_size must be 1 or more rows; got {chunk_size!r}")
    return size


def _check_view(view: Any, place: int) -> None:
    if not isinstance(view, Tensor) or not view.ndim:
        raise TypeError(
            f"views[{place}] must be a tensor with the samples first; got {_described(view)}"
        )
    if view.requires_grad and not view.is_leaf:
        raise ValueError(
            f"views[{place}] must be an input, and not be computed from what requires a gradient, "
            "which each chunk would go back through: detach it, or compute it in the encoder"
        )


def _warn_of_batch_statistics(encoders: Sequence[Encoder]) -> None:
    for encoder in encoders:
        for name, module in _module_of(encoder).named_modules():
            kind = _kind_of_batch_statistics(module)
            if kind is not None:
                warnings.warn(
                    f"{name or 'the encoder'} ({kind}) takes the statistics of each chunk, not of "
                    "the whole batch: the gradient is not that of the whole batch's loss",
                    stacklevel=4,
                )
                return


def _kind_of_batch_statistics(module: torch.nn.Module) -> str | None:
    """Return what takes the statistics of a batch in `module` itself, None where nothing does."""
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        return type(module).__name__ if module.training or module.running_mean is None else None
    # A layer `vicreg.torch.VCReg`, or a hook that has one. The class is not known down here.
    layers = (module, *(getattr(hook, "layer", None) for hook in module._forward_hooks.values()))
    has_layer = any(getattr(one, "_regularizes_batches", False) for one in layers)
    return "VCReg" if has_layer and module.training else None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
