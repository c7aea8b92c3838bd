"""PyTorch as the core calls it, and what its tensors may be besides plain ones."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import array_api_compat.torch
import torch
from torch.autograd import forward_ad

from vicreg._core import collapse, sample_weights
from vicreg._core.layout import Axes
from vicreg._core.library import Library, Product
from vicreg._core.objective import Objective
from vicreg._core.sizes import Sizes
from vicreg._core.terms import OPERATIONS

Tensor = torch.Tensor
Arrays = tuple[Tensor, ...]


def _take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int) -> Tensor:
    return torch.gather(x, axis, indices.expand(*x.shape[:-1], indices.shape[-1]))


def _astype(x: Tensor, dtype: torch.dtype, /) -> Tensor:
    return x.to(dtype)


def _matrix_transpose(x: Tensor, /) -> Tensor:
    return x.mT


# These functions are PyTorch's own, which take the standard's arguments and do as it says here:
# those of array-api-compat see to promotion first, which costs more than they do.
_DIRECT = ("any", "logical_and", "logical_not", "matmul", "maximum", "minimum", "sum", "where")
_FUNCTIONS = (
    vars(array_api_compat.torch)
    | {name: getattr(torch, name) for name in _DIRECT}
    | {"astype": _astype, "matrix_transpose": _matrix_transpose}
    | {"take_along_axis": _take_along_axis}
)


class _Torch(Library):
    sums_pairwise = True
    strip_length = 128
    # The products of 512 samples or features: of more, a call costs little beside its work.
    stacked_products = 2**18

    def without_gradient(self, array: Tensor) -> Tensor:
        return array.detach()

    @staticmethod
    def take_sample(array: Tensor, place: Tensor) -> Tensor:
        return torch.gather(array, -2, place.expand(*array.shape[:-2], 1, array.shape[-1]))

    @staticmethod
    def top_k_indices(values: Tensor, k: int) -> Tensor:
        return torch.topk(values, k, dim=-1, sorted=False)[1]

    def mean_over_samples(self, array: Tensor, run: int) -> Tensor:
        return torch.mean(array, dim=-2, keepdim=True)


class _Eager(_Torch):
    """PyTorch where nothing is recorded: calls that do several things at once, in place."""

    fills_masked = True
    blocks_of_samples = True

    def can_ask(self, array: Tensor) -> bool:
        return array.device.type == "cpu" and _has_values(array)

    @staticmethod
    def put_samples(array: Tensor, places: Tensor, n: int) -> Tensor:
        return array.new_zeros((n, array.shape[-1])).index_copy_(0, places, array)

    def minus_products(self, array: Tensor, column: Tensor, row: Tensor) -> Tensor:
        return array.addcmul_(column, row, value=-1)

    def nonnegative(self, array: Tensor) -> Tensor:
        return torch.clamp_min(array, 0.0)

    @staticmethod
    def put_along_axis(array: Tensor, indices: Tensor, values: Tensor | float) -> None:
        array.scatter_(-1, indices.expand(*array.shape[:-1], indices.shape[-1]), values)

    def stack_of_differences(self, arrays: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        out = arrays[0].new_empty((len(arrays), *arrays[0].shape))
        for place, (array, row) in enumerate(zip(arrays, rows, strict=True)):
            torch.sub(array, row, out=out[place])
        return out

    def with_zero_diagonal(self, array: Tensor, start: int = 0) -> Tensor:
        array.diagonal(-start, -2, -1).zero_()
        return array

    def scaled_product(self, left: Tensor, right: Tensor, scale: Any) -> Tensor:
        if not isinstance(scale, float):
            return cast(Tensor, super().scaled_product(left, right, scale))
        sets, left, right = left.shape[:-2], _stacked(left), _stacked(right)
        nothing = left.new_empty(())  # not read
        product: Tensor = _PRODUCTS[left.ndim](nothing, left, right, beta=0, alpha=scale)
        return product if len(sets) < 2 else product.view(*sets, *product.shape[-2:])

    def scaled_rows_and_products(
        self, array: Tensor, row: Tensor | None, products: Sequence[Product], part: int
    ) -> Tensor | None:
        if not products:
            return super().scaled_rows_and_products(array, row, products, part)
        # A product of `array` from the left needs whole rows of it, the others whole columns.
        axis = -2 if any(product.left is array for product in products) else -1
        is_large = self.blocks_of_samples and array.ndim < 4 and array.numel() >= 4 * part
        is_long = array.shape[axis] > array.shape[-3 - axis]
        if row is not None and is_large and is_long:
            by_numbers = [_by_a_number(each) for each in products]
            return self._in_parts(array, row, by_numbers, axis, part)
        total = None if row is None else _stacked(array * row[..., None, :])
        for product in products:
            if total is None:
                total = _stacked(self.scaled_product(product.left, product.right, product.factor))
                continue
            left, right, factor, *_ = _by_a_number(product)
            operands = _stacked(left), _stacked(right)
            _PRODUCTS[total.ndim](total, *operands, alpha=factor, out=total)
        return total if total is None or array.ndim < 4 else total.view(array.shape)

    def _in_parts(
        self, array: Tensor, row: Tensor, products: Sequence[Product], axis: int, part: int
    ) -> Tensor:
        """Do the same in the memory of `array`, a `part` of it at a time."""
        length, times_plus = array.shape[axis], _PRODUCTS[array.ndim]
        size = max(part * length // array.numel(), 1)
        row = row[..., None, :]
        for start in range(0, length, size):
            count = min(size, length - start)
            total: Any = None
            for left, right, factor, *_ in products:
                if axis == -2:
                    left = left.narrow(axis, start, count)
                else:
                    right = right.narrow(axis, start, count)
                if total is None:
                    total = self.scaled_product(left, right, factor)
                else:
                    times_plus(total, left, right, alpha=factor, out=total)
            own = array.narrow(axis, start, count)
            torch.addcmul(total, own, row if axis == -2 else row.narrow(-1, start, count), out=own)
        return array


#: Of matrices, and of stacks of them: ``beta * array + alpha * left @ right``.
_PRODUCTS: dict[int, Any] = {2: torch.addmm, 3: torch.baddbmm}


def _by_a_number(product: Product) -> Product:
    """Return `product` with a number for its factor, which a call of PyTorch takes."""
    if isinstance(product.factor, float):
        return product
    left, right = product.operands()
    return product._replace(left=left, right=right, factor=1.0)


def _stacked(matrices: Tensor) -> Tensor:
    """Return matrices, ``(..., a, b)``, as one or as one stack of them, which `_PRODUCTS` take."""
    return matrices if matrices.ndim < 4 else matrices.flatten(0, -3)


class _OnDevice(_Eager):
    """PyTorch where each call takes longer to begin than small arrays to be worked on."""

    strip_length = 0
    blocks_of_samples = False

    def can_ask(self, array: Tensor) -> bool:
        return False

    # One call, which reads once and writes almost nothing; on CPUs it takes ten times as long.
    def sum_squares_over_samples(self, array: Tensor, run: int) -> Tensor:
        return _squared(torch.linalg.vector_norm(array, dim=-2))

    def total_of_squares(self, array: Tensor, run: int) -> Tensor:
        return _squared(torch.linalg.vector_norm(array))

    def weighted_total_of_squares(self, array: Tensor, weights: Tensor, run: int) -> Tensor:
        norms = torch.linalg.vector_norm(array, dim=-1, keepdim=True)
        return torch.sum(_squared(norms).mul_(weights))

    def squares_of_each_set(self, array: Tensor, run: int) -> Tensor:
        return _squared(torch.linalg.vector_norm(array, dim=(-2, -1)))


def _has_values(array: Tensor) -> bool:
    """Whether `array` has values of its own: it is no stand-in, and nothing is being traced."""
    modes = torch._C._TorchDispatchModeKey
    return (
        type(array) in (Tensor, torch.nn.Parameter)
        and torch._C._get_dispatch_mode(modes.FAKE) is None
        and torch._C._get_dispatch_mode(modes.PROXY) is None
        and torch._C._get_tracing_state() is None
    )


def _squared(norm: Tensor) -> Tensor:
    return norm.square_()


class _Recorded(_Torch):
    """For what PyTorch itself differentiates or batches."""

    updates_in_place = False


class _Compiled(_Recorded):
    """For what PyTorch's compiler traces."""

    def has_operations(self, array: Tensor) -> bool:
        # On a GPU they would wait for the values that they ask for.
        return array.device.type == "cpu"

    def operation(self, name: str, arrays: Arrays, sizes: Sizes) -> Arrays:
        returned = torch.ops.vicreg.operation(name, list(arrays), sizes.text)
        return tuple(returned)


eager = _Eager(array_api_compat.torch, _FUNCTIONS)
_on_device = _OnDevice(array_api_compat.torch, _FUNCTIONS)
recorded = _Recorded(array_api_compat.torch, _FUNCTIONS)
_compiled = _Compiled(array_api_compat.torch, _FUNCTIONS)


# An operation that the compiler does not look into: `Library.operation` of what it calls. It is
# not `torch.cond`, which PyTorch refuses inside `torch.utils.checkpoint`.


_sizes = functools.cache(Sizes.of_text)


def _run_by(xp: Library) -> Callable[[str, list[Tensor], str], list[Tensor]]:
    def run(name: str, arrays: list[Tensor], sizes: str) -> list[Tensor]:
        with no_autocast(arrays[0]):
            return list(OPERATIONS[name](xp, tuple(arrays), _sizes(sizes)))

    return run


_operations: Any = torch.library.Library("vicreg", "FRAGMENT")  # type: ignore[no-untyped-call]
_operations.define("operation(str name, Tensor[] arrays, str sizes) -> Tensor[]")
_operations.impl("operation", _run_by(eager), "CPU")
# What is returned of tensors without values has the shapes of the results.
torch.library.register_fake("vicreg::operation", _run_by(recorded), lib=_operations)


def library(objective: Objective, cotangents: Sequence[Tensor | None] = ()) -> Library:
    """Return PyTorch for what runs now, where no derivative of it is recorded."""
    if _is_compiled():
        return _compiled
    if _is_recorded(cotangents):
        return recorded
    return _on_device if objective.sizes.on_device else eager


def _is_compiled() -> bool:
    """Whether what PyTorch compiles now is neither exported nor transformed.

    Its compiler of 2.7 says that it exports.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch._C._are_functorch_transforms_active()
    )


def _is_recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Whether PyTorch compiles or transforms what is done with `tensors`."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return are_batched(tensors)


def for_device(tensor: Tensor, objective: Objective) -> Objective:
    """Return `objective` as it is worked on where `tensor` is."""
    if tensor.device.type == "cpu":
        return objective
    return replace(objective, sizes=_for_device(objective.sizes))


@functools.cache
def _for_device(sizes: Sizes) -> Sizes:
    return replace(sizes, on_device=True, stacked=sys.maxsize)


def are_batched(cotangents: Sequence[Tensor | None]) -> bool:
    """Whether there are batches of an older kind than `torch.vmap`'s.

    `torch.autograd.grad` makes them with `is_grads_batched`, `jacobian` with `vectorize`.
    """
    is_batch = torch._C._functorch.is_legacy_batchedtensor
    return any(isinstance(cotangent, Tensor) and is_batch(cotangent) for cotangent in cotangents)


def is_forward() -> bool:
    """Whether forward mode may be under way, or a map: no tensor says what is wanted of it."""
    transformed: bool = torch._C._are_functorch_transforms_active()
    return transformed or forward_ad._current_level >= 0


def is_exporting() -> bool:
    """Whether `torch.export` is under way: the compiler of PyTorch 2.7 says so of itself too."""
    return bool(torch.compiler._is_exporting_flag if _HAS_FLAG else torch.compiler.is_exporting())


# Private, and all that tells the two apart there.
_HAS_FLAG = hasattr(torch.compiler, "_is_exporting_flag")


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which no dtype is chosen but the core's own."""
    kind = tensor.device.type
    # PyTorch 2.7's compiler cannot trace `is_autocast_available`.
    compiling = torch.compiler.is_compiling()
    available = kind != "meta" if compiling else torch.amp.is_autocast_available(kind)
    if not available or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def is_distributed(array: Tensor) -> bool:
    """Whether `array` is a ``DTensor``, which stands for the tensors of several processes."""
    return type(array).__name__ == "DTensor"  # importing the type takes half a second


def local(array: Tensor) -> Tensor:
    """Return what this process has of `array`: the whole, since no other ``DTensor`` gets here."""
    if not is_distributed(array):
        return array
    own: Tensor = cast(Any, array).to_local()
    return own


def replicated(array: Tensor, like: Tensor) -> Tensor:
    """Return `array`, which each process of `like` has the same of, as a ``DTensor`` too."""
    if not is_distributed(like):
        return array
    whole = cast(Any, like)
    made: Tensor = whole.from_local(array, whole.device_mesh, whole.placements, run_check=False)
    return made


def without_gradient(array: Tensor) -> Tensor:
    """Return `array` as a constant of differentiation, of this process alone."""
    return local(array.detach())


def floats(arrays: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors of shape (), in one transfer from their device."""
    values: list[float] = torch.stack([without_gradient(array) for array in arrays]).tolist()
    return values


def rows(array: Tensor, axes: Axes) -> Tensor:
    """Return `array` as ``(n, d)``, as `without_gradient` does."""
    as_rows: Tensor = axes.in_order(eager, without_gradient(array))
    return as_rows


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative by `tensor` is asked for: backwards, forwards, or under a transform."""
    if torch.compiler.is_compiling():
        return tensor.requires_grad
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        # A batch has no tangent of its own, and what it is of may have one.
        if not functorch.is_batchedtensor(tensor) and _has_derivative(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return _has_derivative(tensor)


def _has_derivative(tensor: Tensor) -> bool:
    unpack_dual: Any = forward_ad.unpack_dual
    return tensor.requires_grad or unpack_dual(tensor).tangent is not None


def wrong_count(weight: Tensor, like: Tensor) -> float | None:
    """Return a value that is negative or not finite, None where none is known to be."""
    xp = recorded if _is_recorded((weight,)) else eager
    return sample_weights.first_wrong(xp, weight, like)


def measure(array: Tensor, axes: Axes, weight: Tensor | None = None) -> collapse.Measures:
    """Return how far the batch `array` has collapsed, whose samples count as `weight` says."""
    svdvals = functools.partial(collapse.svdvals_in_float64, eager)
    with no_autocast(array):
        # Apple's GPUs have no float64.
        decompose = torch.linalg.svdvals if array.device.type == "mps" else svdvals
        return collapse.measure(eager, array, axes, decompose, weight=weight)


def register(record: type, constants: tuple[str, ...]) -> None:
    """Do nothing: functions return what they like here."""
