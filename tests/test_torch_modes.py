"""PyTorch's modes: without gradients, batches of cotangents, exported programs, DTensors."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from errors import rounding
from one_graph import in_one_graph

from vicreg import (
    diagnose,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.autograd.functional import hessian, jacobian  # noqa: E402
from torch.export import Dim, export  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from vicreg.torch import VCReg, VICRegLoss  # noqa: E402

SHAPES = [(4, 6), (6, 4)]
WEIGHTS = {"variance_weight": 1.0, "covariance_weight": 2.0}


def draw(shape: tuple[int, ...], views: int = 2, dtype: Any = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(views, *shape, dtype=dtype or torch.float64, generator=generator)
    return [view.clone().requires_grad_() for view in batch]


def close(got: Any, wanted: Any, size: int = 16) -> None:
    bound = 4 * rounding("float64", size, size)
    torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("shape", "views"),
    [
        pytest.param(shape, views, marks=() if views == 2 + place else pytest.mark.long)
        for place, shape in enumerate(SHAPES)
        for views in (2, 3)
    ],
    ids=str,
)
def test_a_compiled_step_logs_its_terms_without_a_gradient(
    shape: tuple[int, int], views: int
) -> None:
    given, criterion = draw(shape, views), VICRegLoss()
    given[1].requires_grad_(False)

    def step(*given: torch.Tensor) -> Any:
        loss = vicreg_loss(*given)
        with torch.no_grad():
            return loss, vicreg_terms(*given), criterion.terms(*given[:2])

    loss, terms, of_two = in_one_graph(step, backend="aot_eager")(*given)
    wanted, gradients = vicreg_value_and_grad(*given)
    close(loss, wanted)
    close(terms, vicreg_terms(*[view.detach() for view in given]))
    close(of_two, vicreg_terms(*[view.detach() for view in given[:2]]))
    close(torch.autograd.grad(loss, given[0])[0], gradients[0])


class _Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += "mm" in str(function)
        return function(*args, **(kwargs or {}))


class _Moved(TorchDispatchMode):
    """Counts the elements read and written of arrays as large as a view, or of blocks of them."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes, self.count = nbytes, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in function._schema.returns]
        is_slice = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_slice and "empty" not in str(function):  # which reads and writes nothing
            # What takes elements by their places reads those alone.
            given = () if "gather" in str(function) else (args, kwargs)
            self.count += sum(map(self._elements, tree_leaves((given, result))))
        return result

    def _elements(self, array: Any) -> int:
        if not isinstance(array, torch.Tensor) or array.ndim < 2 or array.shape[-2] == 1:
            return 0  # a row at most
        return array.numel() if array.untyped_storage().nbytes() >= self.nbytes else 0


def passes(function: Callable[..., Any], *views: torch.Tensor) -> float:
    """Return how often each view is read and written once."""
    with _Moved(views[0].nbytes) as moved:
        function(*views)
    return moved.count / (2 * len(views) * views[0].numel())


def test_a_gradient_of_dual_tensors_made_by_hand_is_refused() -> None:
    z1, z2 = draw((8, 5))
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z1.detach().requires_grad_(), torch.ones_like(z1))
        with pytest.raises(RuntimeError, match="Nested forward mode"):
            torch.autograd.grad(vicreg_loss(dual, z2), dual, create_graph=True)


@pytest.mark.parametrize("shape", [(256, 2048), (2048, 256)], ids=str)
def test_what_weights_of_samples_cost(shape: tuple[int, int]) -> None:
    """A mask costs one more pass over each view, or less than none where absent rows are left out.

    Other weights cost one for a value, and one more for its gradient: the centred samples and the
    gradient are multiplied by their roots. If what is absent is not left out, it is replaced in
    one more. A device cannot sum rows times weights without writing them.
    """

    def backward(*views: torch.Tensor, **weights: Any) -> None:
        torch.autograd.grad(vicreg_loss(*views, **weights), views)

    def smooth_l1(z: torch.Tensor, _: torch.Tensor, **weights: Any) -> None:
        vcreg_value_and_grad(z, penalty="smooth_l1", **WEIGHTS, **weights)

    def more(function: Callable[..., Any], *views: torch.Tensor) -> float:
        of_samples = weight.to(views[0].device)
        if views[0].ndim == 3:
            of_samples = torch.stack([of_samples, of_samples.flip(0)], 1)
        weighted = functools.partial(function, sample_weight=of_samples)
        return passes(weighted, *views) - passes(function, *views)

    def each(device: str) -> list[float]:
        views = [view.detach().to(device) for view in draw(shape, dtype=torch.float32)]
        leaves = [view.clone().requires_grad_() for view in views]
        of_positions = [view.reshape(shape[0], 2, -1) for view in views]
        return [
            more(vicreg_loss, *views),
            more(vicreg_value_and_grad, *views),
            more(backward, *leaves),
            2 * more(smooth_l1, *views),  # of one view alone
            more(vicreg_loss, *of_positions),
            more(vicreg_value_and_grad, *of_positions),
        ]

    weight = torch.arange(shape[0]) % 3 > 0
    *of_samples, value, gradient = each("cpu")
    assert max(of_samples) < 0
    assert (value, gradient) == (1, 1)
    assert each("meta") == [1, 1, 1, 1, 1, 1]
    weight = torch.arange(shape[0]) % 3 + 1
    assert each("cpu") == [1, 2, 2, 2, 2, 3]
    assert each("meta") == [3, 4, 4, 4, 3, 4]


def products(function: Callable[..., Any], *views: torch.Tensor) -> int:
    with _Products() as counted:
        function(*views)
    return counted.count


@pytest.mark.parametrize("shape", [(6, 90), (90, 6), (300, 4096)], ids=str)
def test_no_gradient_is_formed_where_none_is_recorded(shape: tuple[int, int]) -> None:
    views = draw(shape, dtype=torch.float32)
    constants = [view.detach() for view in views]
    alone = products(vicreg_loss, *constants)
    assert products(vicreg_loss, *views) > alone > 0
    with torch.no_grad():
        assert products(vicreg_loss, *views) == alone

    def formed() -> bool:
        """Whether autograd's Function that forms the gradient ran."""
        with torch.profiler.profile() as profile:
            vicreg_loss(*views)
        return any("_Loss" in event.key for event in profile.key_averages())

    assert formed()
    with torch.inference_mode():  # in which a dispatch mode sees nothing
        assert not formed()
        close(vicreg_loss(*views).double(), vicreg_loss(*constants).double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, contextlib.nullcontext])
def test_forward_mode_needs_no_recorded_gradient(shape: tuple[int, int], mode: Any) -> None:
    views, along = draw(shape), draw(shape, 4)[2:]
    terms = lambda *views: tuple(vicreg_terms(*views))  # noqa: E731
    wanted = [
        sum((g * a).sum() for g, a in zip(torch.autograd.grad(t, views), along, strict=True))
        for t in (vicreg_terms(*views)[i] for i in range(4))
    ]
    directions = [a.detach() for a in along]
    with mode():
        _, changes = torch.func.jvp(terms, tuple(v.detach() for v in views), tuple(directions))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*both) for both in zip(views, directions, strict=True)]
            of_loss = forward_ad.unpack_dual(vicreg_loss(*duals)).tangent
    close(torch.stack(changes), torch.stack(wanted).detach(), 64)
    close(of_loss.detach(), wanted[0].detach(), 64)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 300)], ids=str)
def test_the_closed_form_of_dual_tensors(shape: tuple[int, int]) -> None:
    """Its change is that of the loss, and of its gradients."""
    views, along = ([each.detach() for each in draw(shape, 4)][i : i + 2] for i in (0, 2))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*both) for both in zip(views, along, strict=True)]
        loss, gradients = vicreg_value_and_grad(*duals)
        got = [forward_ad.unpack_dual(each).tangent for each in (loss, *gradients)]
    differentiated = torch.func.grad_and_value(vicreg_loss, argnums=(0, 1))
    _, (changes, change) = torch.func.jvp(differentiated, tuple(views), tuple(along))
    for each, wanted in zip(got, (change, *changes), strict=True):
        close(each, wanted, 64)


@pytest.mark.parametrize("weight", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
def test_a_change_has_the_dtype_of_the_loss(weight: Any) -> None:
    """In forward mode PyTorch makes float64 of what a number multiplies."""
    views, along = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    loss = functools.partial(vicreg_loss, variance_weight=weight)
    value, change = torch.func.jvp(loss, tuple(views), tuple(along))
    assert value.dtype == change.dtype == torch.float32


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cotangents_in_batches(shape: tuple[int, int], views: int) -> None:
    given = tuple(draw(shape, views))

    def terms(*given: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(vicreg_terms(*given)))

    for create_graph in (False, True):
        rows = jacobian(terms, given, vectorize=True, create_graph=create_graph)
        close(rows, jacobian(terms, given, create_graph=create_graph))
    plain = hessian(lambda *given: vicreg_loss(*given, method="covariance"), given)
    close(hessian(vicreg_loss, given, vectorize=True), plain, 64)
    of_vcreg = hessian(lambda z: vcreg_loss(z, **WEIGHTS), given[0], vectorize=True)
    close(of_vcreg, hessian(lambda z: vcreg_loss(z, **WEIGHTS), given[0]), 64)

    several = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for value in (vicreg_loss(*given), terms(*given)[1] + terms(*given)[3]):
        wanted = torch.autograd.grad(value, given, retain_graph=True)
        got = torch.autograd.grad(value, given, several, is_grads_batched=True, create_graph=True)
        for batch, gradient in zip(got, wanted, strict=True):
            close(batch, several[:, None, None] * gradient)
        second = torch.autograd.grad(sum((batch[1] ** 2).sum() for batch in got), given)
        plainly = torch.autograd.grad(value, given, create_graph=True)
        right = torch.autograd.grad(sum(4 * (g**2).sum() for g in plainly), given)
        close(second, right, 64)


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return self.function(a, b)


EXPORTED = {
    "loss": vicreg_loss,
    "terms": lambda a, b: tuple(vicreg_terms(a, b)),
    "closed form": vicreg_value_and_grad,
    "smooth L1": lambda a, b: vcreg_loss(a, penalty="smooth_l1", **WEIGHTS),
}


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize(
    ("d", "sizes", "dim"),
    [
        (20, (7, 2, 20), Dim("n", min=2, max=20)),  # the Gram matrix throughout
        (5, (9, 6, 300), Dim("n", min=6)),  # the covariance throughout
        (20, (7, 9, 20), Dim.AUTO),
        (5, (9, 6, 300), Dim.AUTO),
    ],
    ids=str,
)
def test_a_program_for_any_number_of_samples(
    name: str, d: int, sizes: tuple[int, ...], dim: Any
) -> None:
    function = EXPORTED[name]
    shapes = ({0: dim}, {0: dim})
    program = export(
        _Module(function), tuple(draw((sizes[0], d))), dynamic_shapes=shapes, strict=False
    )
    for n in sizes:
        views = [view.detach() for view in draw((n, d))]
        close(program.module()(*views), function(*views), n)


def test_a_program_of_positions() -> None:
    views, shapes = tuple(draw((9, 3, 5))), ({1: Dim.AUTO}, {1: Dim.AUTO})
    program = export(_Module(vicreg_loss), views, dynamic_shapes=shapes, strict=False).module()
    for positions in (2, 7):
        others = draw((9, positions, 5))
        close(program(*others), vicreg_loss(*others), 9)


def test_a_program_of_weighted_samples() -> None:
    def loss(z1: torch.Tensor, z2: torch.Tensor) -> Any:
        return vicreg_loss(z1, z2, sample_weight=torch.arange(z1.shape[0]) % 3)

    views, shapes = tuple(draw((9, 5))), ({0: Dim.AUTO}, {0: Dim.AUTO})
    program = export(_Module(loss), views, dynamic_shapes=shapes, strict=False).module()
    for n in (6, 2000):
        close(program(*draw((n, 5))), loss(*draw((n, 5))), n)


def test_a_program_that_would_go_both_ways_is_refused() -> None:
    for least in (20, 2):  # of 20 samples the Gram matrix, of more the covariance
        dim = Dim("n", min=least, max=300)
        views, shapes = tuple(draw((least + 5, 20))), ({0: dim}, {0: dim})
        with pytest.raises(ValueError, match=r"method must be 'gram' or 'covariance'.*20 samples"):
            export(_Module(vicreg_loss), views, dynamic_shapes=shapes, strict=False)
    routes = [functools.partial(vicreg_loss, method=route) for route in ("gram", "covariance")]
    for function in (*routes, EXPORTED["smooth L1"]):
        program = export(_Module(function), views, dynamic_shapes=shapes, strict=False).module()
        for n in (5, 60, 300):
            close(program(*draw((n, 20))), function(*draw((n, 20))), n)


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A device mesh of this process alone."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("PyTorch was built without torch.distributed")
    store = dist.HashStore()
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        from torch.distributed.device_mesh import init_device_mesh

        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_dtensors_are_whole_or_refused(mesh: Any) -> None:
    """A replicated one gives what its values do; of a sharded one each process has a part."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    plain = [view.detach() for view in draw((6, 9))]
    wanted, gradients = vicreg_value_and_grad(*plain)
    views = [distribute_tensor(view, mesh, [Replicate()]).requires_grad_() for view in plain]
    loss = vicreg_loss(*views)
    close(loss.full_tensor(), wanted)
    for gradient, right in zip(torch.autograd.grad(loss, views), gradients, strict=True):
        close(gradient.full_tensor(), right)
    close(vicreg_value_and_grad(*views)[1][0].full_tensor(), gradients[0])
    layer = VCReg(**WEIGHTS)
    layer(views[0]).sum().backward()
    z = plain[0].clone().requires_grad_()
    layer(z).sum().backward()
    close(views[0].grad.full_tensor(), z.grad)

    for placement in (Shard(0), Shard(1)):
        sharded = [distribute_tensor(view, mesh, [placement]) for view in plain]
        for function in (vicreg_loss, vicreg_terms, vicreg_value_and_grad):
            with pytest.raises(ValueError, match=r"views\[0\] must be whole.*full_tensor\(\)"):
                function(*sharded)
        with pytest.raises(ValueError, match="z must be whole"):
            diagnose(sharded[0])
        with pytest.raises(ValueError, match="x must be whole"):
            VCReg(**WEIGHTS)(sharded[0].requires_grad_())


def test_tensors_without_values() -> None:
    """Stand-ins and what is traced: no value can be asked, and none is."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        fake = torch.empty(4, 6, requires_grad=True), torch.empty(4, 6)
        loss = vicreg_loss(*fake)
        loss.backward()
    assert loss.shape == ()
    assert fake[0].grad.shape == (4, 6)
    z = torch.randn(2, 12, 40, dtype=torch.float64)
    for function, method in itertools.product(
        (vicreg_loss, vicreg_value_and_grad), ("auto", "gram")
    ):
        chosen = functools.partial(function, method=method)
        traced = make_fx(lambda *views, of=chosen: of(*views))(*z)
        torch.testing.assert_close(traced(*z), chosen(*z))


def test_what_is_kept_for_the_terms_is_small() -> None:
    """No array as large as a view, nor a slice that keeps one alive."""
    views = [torch.randn(8, 2**14, requires_grad=True) for _ in range(2)]
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vicreg_terms(*views)
    own = {view.untyped_storage().data_ptr() for view in views}
    assert all(
        array.untyped_storage().data_ptr() in own
        or array.untyped_storage().nbytes() < views[0].nbytes
        for array in kept
    )
