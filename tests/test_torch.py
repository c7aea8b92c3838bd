"""PyTorch: every way of differentiating and compiling gives the closed form."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from errors import UNIT_ROUNDOFF, largest_error, rounding
from one_graph import COMPILES_OPERATIONS, in_one_graph

from vicreg import (
    covariance_loss,
    diagnose,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
    vicregl_loss,
)

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from vicreg._adapters.torch.library import eager  # noqa: E402
from vicreg._conventions import codebases, conventions  # noqa: E402
from vicreg._core.sizes import DEFAULT_SIZES  # noqa: E402
from vicreg._core.terms import OPERATIONS  # noqa: E402
from vicreg.tools.verification.paths import Path  # noqa: E402
from vicreg.torch import VCReg, VICRegLoss  # noqa: E402

SETTINGS = [
    {"convention": convention, "method": method, "covariance_weight": 3.0}
    for convention in ("official", "article")
    for method in ("gram", "covariance")
]


def views(
    n: int = 5, d: int = 11, dtype: torch.dtype = torch.float64, number: int = 2
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n * d)
    return [
        (0.8 * torch.randn(n, d, generator=generator, dtype=dtype)).requires_grad_()
        for _ in range(number)
    ]


def close(got: object, wanted: object) -> None:
    bound = rounding("float64", 5, 11)
    torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


@pytest.fixture(params=SETTINGS, ids=lambda s: f"{s['convention']}-{s['method']}")
def loss(request: pytest.FixtureRequest):
    return lambda *views: vicreg_loss(*views, **request.param)


@pytest.fixture
def exact(loss):
    """The gradients in closed form, of detached views."""
    return lambda *views: torch.autograd.grad(loss(*views), views)


def test_backward_is_the_closed_form() -> None:
    a, b = views()
    for settings in SETTINGS:
        value, gradients = vicreg_value_and_grad(a, b, **settings)
        assert not value.requires_grad
        close(torch.autograd.grad(vicreg_loss(a, b, **settings), (a, b)), gradients)


def test_gradcheck_first_and_second_order_forwards_and_backwards(loss) -> None:
    a, b = views()
    assert gradcheck(
        loss,
        (a, b),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(loss, (a, b))


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_gradcheck_of_each_term(method: str) -> None:
    def terms(*views):
        return tuple(vicreg_terms(*views, method=method))

    a, b = views(4, 9)
    assert gradcheck(terms, (a, b), check_forward_ad=True)
    assert gradgradcheck(terms, (a, b))


def test_any_weighting_of_the_terms() -> None:
    a, b = views()
    terms = vicreg_terms(a, b)
    mixed = 2 * terms.invariance - 3 * terms.variance * terms.covariance + terms.loss
    parts = [torch.autograd.grad(term, a, retain_graph=True)[0] for term in terms]
    wanted = (
        parts[0]
        + 2 * parts[1]
        - 3 * (terms.covariance * parts[2] + terms.variance * parts[3]).detach()
    )
    close(torch.autograd.grad(mixed, a)[0], wanted)


def test_a_term_that_the_convention_does_not_have_has_no_gradient() -> None:
    a, b = views()
    weights = {"variance_weight": 2.0, "covariance_weight": 3.0}
    terms = vicreg_terms(a, b, convention="vcreg", **weights)
    assert terms.invariance == 0
    (gradient,) = torch.autograd.grad(terms.invariance, a, retain_graph=True)
    assert torch.equal(gradient, torch.zeros_like(a))
    (whole,) = torch.autograd.grad(terms.loss, a)
    close(whole, vicreg_value_and_grad(a, b, convention="vcreg", **weights)[1][0])


def test_only_one_view_needs_a_gradient(loss, exact) -> None:
    a, b = views()
    wanted = exact(a, b)
    for which in (0, 1):
        pair = [a.detach(), b.detach()]
        pair[which].requires_grad_()
        loss(*pair).backward()
        close(pair[which].grad, wanted[which])
        assert pair[1 - which].grad is None


def test_torch_func(loss, exact) -> None:
    a, b = views()
    wanted = exact(a, b)
    x, y = a.detach(), b.detach()
    close(torch.func.grad(loss, argnums=(0, 1))(x, y), wanted)
    close(torch.func.grad(loss)(x, y), wanted[0])
    _, change = torch.func.jvp(loss, (x, y), (y, x))
    close(change, (wanted[0] * y + wanted[1] * x).sum())
    hessian = torch.autograd.functional.hessian(lambda z: loss(z, y), x)
    close(torch.func.hessian(loss)(x, y), hessian)
    close(torch.func.jacrev(torch.func.jacrev(loss))(x, y), hessian)


def test_vmap(loss, exact) -> None:
    a, b = (view.detach() for view in views())
    s, t = torch.stack([a, b, a + b]), torch.stack([b, a, a - b])
    close(torch.vmap(loss)(s, t), torch.stack([loss(x, y) for x, y in zip(s, t, strict=True)]))
    wanted = torch.stack([torch.func.grad(loss)(x, y) for x, y in zip(s, t, strict=True)])
    close(torch.vmap(torch.func.grad(loss))(s, t), wanted)
    wanted = torch.stack([torch.func.grad(loss)(x, t[0]) for x in s])
    close(torch.vmap(torch.func.grad(loss), in_dims=(0, None))(s, t[0]), wanted)
    moved = torch.vmap(torch.func.grad(loss), in_dims=(1, None))(s.movedim(0, 1), t[0])
    close(moved, wanted)


def test_backward_through_vmap(loss) -> None:
    a, b = views()
    s = torch.stack([a, b, a + b]).detach().requires_grad_()
    torch.vmap(lambda x: loss(x, b.detach()))(s).sum().backward()
    wanted = torch.stack([torch.func.grad(loss)(x, b.detach()) for x in s.detach()])
    close(s.grad, wanted)


def test_positions_under_vmap_and_autograd() -> None:
    """`torch.moveaxis` has no batching rule for all its forms: axes are permuted."""
    z = torch.randn(3, 4, 5, 2, 6, dtype=torch.float64)
    got = torch.vmap(lambda x, y: vicreg_loss(x, y, feature_axis=1))(z, z.flip(0))
    wanted = [vicreg_loss(x, y, feature_axis=1) for x, y in zip(z, z.flip(0), strict=True)]
    close(got, torch.stack(wanted))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant: bool) -> None:
    a, b = views()
    loss = checkpoint(lambda x, y: vicreg_loss(2 * x, y), a, b, use_reentrant=reentrant)
    wanted = torch.autograd.grad(vicreg_loss(2 * a, b), a)[0]
    close(torch.autograd.grad(loss, a)[0] if not reentrant else _backward(loss, a), wanted)


def _backward(loss, view):
    loss.backward()
    return view.grad


#: Where the point is what is traced, "aot_eager" runs the graphs, forwards and backwards, as they
#: are; "inductor" makes code of them, which takes ten times as long.
TRACED = ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)]


def compiled(function, backend: str, *, dynamic: bool | None = False):
    """Return `function` under the compiler, which may not break the graph; warnings are errors."""
    torch._dynamo.reset()
    return in_one_graph(function, dynamic=dynamic, backend=backend)


@pytest.mark.parametrize("backend", TRACED)
@pytest.mark.parametrize(
    ("shape", "number"),
    [
        ((5, 11), 2),
        ((12, 4), 3),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (((5, 11), 3), ((12, 4), 2))),
    ],
    ids=str,
)
def test_compile_without_graph_break_or_warning(
    shape: tuple[int, int], number: int, backend: str
) -> None:
    """The loss, the terms and the closed form, for views of which any require a gradient."""

    def step(*views):
        return vicreg_loss(*views), vicreg_terms(*views), vicreg_value_and_grad(*views)

    everything = compiled(step, backend)
    given = [view.detach() for view in views(*shape, number=number)]
    for wanted in [(), tuple(range(number)), (number - 1,)]:
        leaves = [view.clone().requires_grad_(i in wanted) for i, view in enumerate(given)]
        got, right = everything(*leaves), step(*leaves)
        close(got, right)
        if wanted:
            chosen = [leaves[i] for i in wanted]
            for ours, eager in zip((got[0], *got[1]), (right[0], *right[1]), strict=True):
                gradients = torch.autograd.grad(ours, chosen, retain_graph=True)
                close(gradients, torch.autograd.grad(eager, chosen, retain_graph=True))


def test_code_that_is_generated() -> None:
    """By the default backend, for the route of the kept-apart features."""
    a, b = views()
    loss = compiled(vicreg_loss, "inductor")
    close(loss(a, b), vicreg_loss(a, b))
    close(torch.autograd.grad(loss(a, b), (a, b)), torch.autograd.grad(vicreg_loss(a, b), (a, b)))


@pytest.mark.parametrize("backend", TRACED)
@pytest.mark.parametrize(("weighted", "dynamic"), [(False, False), (True, False), (False, True)])
def test_compile_where_features_are_kept_apart_only_if_something_cancels(
    weighted: bool, dynamic: bool, backend: str
) -> None:
    """One program for both: the gradients of a loss, and those in closed form."""
    counter = CompileCounterWithBackend(backend)
    weight = torch.tensor([0.0, *(8 * [1.0]), 0.5]) if weighted else None
    settings = {"method": "gram", "sample_weight": weight, "covariance_weight": 1e3}

    def step(*views):
        closed_form = vicreg_value_and_grad(*views, **settings)
        return vicreg_loss(*views, **settings), closed_form

    everything = compiled(step, counter, dynamic=dynamic)
    plain = [view.detach() for view in views(10, 60, torch.float32)]
    graphs = []
    for runaway in (0, 1, 5, 0):
        given = [view.clone() for view in plain]
        for view in given:
            view[:, :runaway] *= 1e4
        by_definition = settings | {"method": "covariance"}
        right, exact = vicreg_value_and_grad(*(view.double() for view in given), **by_definition)
        _, plain_gradients = vicreg_value_and_grad(*given, **by_definition)
        leaves = [view.requires_grad_() for view in given]
        loss, (value, in_closed_form) = everything(*leaves)
        bound = rounding("float32", 10, 60)
        assert error(loss, right) <= bound
        assert error(value, right) <= bound
        for gradients in (torch.autograd.grad(loss, leaves), in_closed_form):
            for got, plainly, wanted in zip(gradients, plain_gradients, exact, strict=True):
                assert error(got, wanted) <= bound
                # A feature at a time: beside those of std 1e4 the others are seen too.
                for each in range(runaway, 60):
                    of_plain = error(plainly[:, each], wanted[:, each])
                    assert error(got[:, each], wanted[:, each]) <= max(bound, 4 * of_plain)
        graphs.append(counter.frame_count)
    assert len(set(graphs)) == 1


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return largest_error(got.detach().double().numpy(), wanted.detach().numpy())


@pytest.mark.parametrize("runaway", [0, 3])
def test_compile_each_term_and_pair_by_the_gram_route(runaway: int) -> None:
    """Of positions too, and where the forward pass is done again in the backward one."""
    settings = {"method": "gram", "sample_axis": -2}

    def terms(*views):
        # Not a slice of it, of which the compiler of PyTorch 2.7 makes nothing.
        _, invariance, variance, covariance = vicreg_terms(*views, **settings)
        return invariance, variance, covariance

    def checkpointed(*views):
        return checkpoint(terms, *views, use_reentrant=False)

    given = torch.randn((2, 2, 10, 60), generator=torch.manual_seed(0), dtype=torch.float64)
    given[..., :runaway] *= 1e3
    leaves = [view.clone().requires_grad_() for view in given]
    right = terms(*leaves)
    for function in (terms, checkpointed):
        got = compiled(function, "aot_eager")(*leaves)
        for chosen in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]:
            both = (differentiated(sum(of[i] for i in chosen), leaves) for of in (got, right))
            for one, other in zip(*both, strict=True):
                assert error(one, other) <= rounding("float64", 10, 60)


def differentiated(value: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return a value and its gradients, 0 where it does not depend on a leaf."""
    settings = {"retain_graph": True, "materialize_grads": True}
    return [value, *torch.autograd.grad(value, leaves, **settings)]


class TestOperation:
    """What a compiled program on a CPU does without the compiler looking into it."""

    N, D = 10, 60

    def arguments(self, runaway: int) -> tuple[str, list[torch.Tensor], str]:
        z = torch.randn((self.N, self.D), generator=torch.manual_seed(0))
        z[:, :runaway] *= 1e4
        centred = z - z.mean(dim=0)
        scale = torch.tensor(1 / 9, dtype=torch.float64)
        return "gram_value", [centred, (centred**2).sum(dim=0), scale], DEFAULT_SIZES.text

    @pytest.mark.parametrize("runaway", [0, 1, 40])
    def test_it_is_a_good_citizen(self, runaway: int) -> None:
        """It changes no input, returns none, and has the shapes that the compiler is told."""
        operation, checks = torch.ops.vicreg.operation, ("test_schema", "test_faketensor")
        name, arrays, sizes = self.arguments(runaway)
        torch.library.opcheck(operation, (name, arrays, sizes), test_utils=checks)
        _, k, _, a, m = operation(name, arrays, sizes)
        products = "gram_product", [k, arrays[0], a, m], sizes
        torch.library.opcheck(operation, products, test_utils=checks)

    def test_autocast_makes_no_difference(self) -> None:
        arguments = self.arguments(runaway=1)
        wanted = torch.ops.vicreg.operation(*arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = torch.ops.vicreg.operation(*arguments)
        assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))

    def test_what_is_kept_apart_costs_nothing_where_nothing_cancels(self) -> None:
        """Each is one product. What is kept apart needs thin ones, and the value a second."""
        run = torch.ops.vicreg.operation
        square = self.N * self.N * self.D

        def by_itself(name: str, arrays: list[torch.Tensor]) -> None:
            OPERATIONS[name](eager, tuple(arrays), DEFAULT_SIZES)

        def costs(runaway: int) -> list[int]:
            name, arrays, sizes = self.arguments(runaway)
            _, k, _, a, m = run(name, arrays, sizes)
            calls = (name, arrays), ("gram_product", [k, arrays[0], a, m])
            return [products(functools.partial(by_itself, *call)) for call in calls]

        assert costs(runaway=0) == [square, square]
        assert costs(runaway=1) == [2 * square + 9 * square // 10, square + 9 * square // 10]

    @pytest.mark.skipif(not COMPILES_OPERATIONS, reason="PyTorch 2.7 compiles plain operations")
    def test_a_compiled_program_has_it(self) -> None:
        graphs = []

        def keep(graph: torch.fx.GraphModule, _):
            graphs.append(graph)
            return graph

        a, b = (view.detach() for view in views(self.N, self.D))
        compiled(vicreg_value_and_grad, keep)(a, b, method="gram")
        called = [str(node.target) for node in graphs[0].graph.nodes]
        assert called.count("vicreg.operation") == 2
        assert not any("topk" in name for name in called)


@pytest.mark.parametrize("backend", TRACED)
def test_compile_for_any_number_of_samples(backend: str) -> None:
    """One graph serves many numbers: those up to the features, and those above."""
    counter = CompileCounterWithBackend(backend)
    terms = compiled(vicreg_terms, counter, dynamic=True)
    # Of fewer than 9 samples fewer features are kept apart: from a cache of its own the compiler
    # may then have known that its graph is for 9 and more.
    for n, graphs in ((10, 3), (9, 3), (11, 3), (12, 3), (20, 3), (3, 4)):
        a, b = views(n, 11)
        got, right = terms(a, b), vicreg_terms(a, b)
        close(got, right)
        mixed = got.loss + got.covariance, right.loss + right.covariance
        close(*(torch.autograd.grad(one, (a, b)) for one in mixed))
        assert counter.frame_count <= graphs


OF_ONE_VIEW = {"variance_weight": 0.7, "covariance_weight": 1.3}
LAYER = VCReg(**OF_ONE_VIEW)


@pytest.mark.parametrize(
    "loss",
    [
        vicreg_loss,
        VICRegLoss(gamma=0.9, eps=1e-3),
        lambda a, b: vcreg_loss(a, **OF_ONE_VIEW) + b.sum(),
        lambda a, b: LAYER(a).sum() * 2.0 + b.sum(),
    ],
    ids=["vicreg_loss", "VICRegLoss", "vcreg_loss", "VCReg"],
)
def test_compile_several_losses_for_any_shape(loss: Callable) -> None:
    """A number that the compiler meets in the first loss must be there for the second too."""

    def several(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return loss(a, b) + loss(b, 2.0 * a)

    step = compiled(several, "eager", dynamic=True)
    a, b = views(8, 5)
    value, right = step(a, b), several(a, b)
    close(value, right)
    close(torch.autograd.grad(value, (a, b)), torch.autograd.grad(right, (a, b)))


def test_compile_the_same_tensor_as_every_view() -> None:
    a, b = views()
    loss = compiled(vicreg_loss, "aot_eager")
    close(torch.autograd.grad(loss(a, a, b), a), torch.autograd.grad(vicreg_loss(a, a, b), a))


def test_compile_views_and_weights_that_are_parameters() -> None:
    given = torch.randn((2, 8, 5), generator=torch.manual_seed(0), dtype=torch.float64)
    leaves = [torch.nn.Parameter(array) for array in (*given, given.new_tensor(3.0))]
    criterion = VICRegLoss(variance_weight=leaves[2])
    wanted = criterion(*leaves[:2])
    got = compiled(criterion, "aot_eager")(*leaves[:2])
    for one, other in zip(
        differentiated(got, leaves), differentiated(wanted, leaves), strict=True
    ):
        assert error(one, other) <= rounding("float64", 8, 5)


def test_compile_torch_func() -> None:
    a, b = (view.detach() for view in views())
    grad = compiled(torch.func.grad(vicreg_loss), "aot_eager")
    close(grad(a, b), torch.func.grad(vicreg_loss)(a, b))
    s, t = torch.stack([a, b]), torch.stack([b, a])
    mapped = compiled(torch.vmap(vicreg_loss), "aot_eager")
    close(mapped(s, t), torch.vmap(vicreg_loss)(s, t))


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_nothing_waits_for_the_device(method: str) -> None:
    """The meta device has no values: reading one, or making a constant elsewhere, raises."""
    a, b = (torch.empty(4, 3, 6, device="meta", requires_grad=True) for _ in range(2))
    settings = {"method": method}
    loss, gradients = vicreg_value_and_grad(a, b, **settings)
    assert loss.device.type == gradients[0].device.type == "meta"
    loss = vicreg_loss(a, b, **settings)
    assert loss.device.type == "meta"
    loss.backward()
    assert a.grad.device.type == "meta"
    assert all(term.device.type == "meta" for term in vicreg_terms(a, b, **settings))


@pytest.mark.parametrize(
    "computed",
    [
        lambda a, b, n: vicreg_loss(a, b, sample_weight=n),
        lambda a, b, n: vicreg_value_and_grad(a, b, sample_weight=n)[1],
        lambda a, b, n: vicreg_loss(a, b, invariance_weight=n[0]),
        lambda a, b, n: grad_of_grad(vicreg_loss(a, b), a),
        lambda a, b, n: VCReg(variance_weight=1.0, covariance_weight=1.0)(a),
        lambda a, b, n: regional(a, b, n),
        lambda a, b, n: diagnose(a).std,
    ],
    ids=["weights", "closed form", "traced", "second derivative", "layer", "VICRegL", "diagnosis"],
)
def test_nothing_else_waits_for_the_device_either(computed: Callable) -> None:
    a, b = (torch.empty(6, 8, device="meta", requires_grad=True) for _ in range(2))
    got = computed(a, b, torch.empty(6, device="meta"))
    for one in got if isinstance(got, tuple) else (got,):
        assert one.device.type == "meta"
        if one.requires_grad:
            assert torch.autograd.grad(one.sum(), a)[0].device.type == "meta"


def grad_of_grad(loss: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss, a, create_graph=True)
    return torch.autograd.grad(gradient.sum(), a)[0]


def regional(a: torch.Tensor, b: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return VICRegL's loss of two views, whose maps have the embeddings at each of 9 places."""
    maps = [view[:, None, None].expand(6, 3, 3, 8) for view in (a, b)]
    places = counts[:, None, None, None].expand(6, 3, 3, 2)
    return vicregl_loss([a, b], maps, [places, places], num_matches=(4, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_makes_no_difference(dtype: torch.dtype) -> None:
    a, b = views(dtype=torch.float32)
    wanted = vicreg_loss(a, b)
    right = torch.autograd.grad(wanted, (a, b), create_graph=True)
    _, without = vicreg_value_and_grad(a, b)
    second = torch.autograd.grad(right[0].sum() + right[0].square().sum(), a)[0]
    with torch.autocast("cpu", dtype=dtype):
        loss = vicreg_loss(a, b)
        assert loss.dtype == torch.float32
        got = torch.autograd.grad(loss, (a, b), create_graph=True)
        _, closed = vicreg_value_and_grad(a, b)
    assert torch.equal(loss, wanted)
    for gradient, truth in zip((*got, *closed), (*right, *without), strict=True):
        assert torch.equal(gradient, truth)
    with torch.autocast("cpu", dtype=dtype):
        again = torch.autograd.grad(got[0].sum() + got[0].float().square().sum(), a)[0]
    assert torch.equal(again, second)


def test_autocast_makes_no_difference_where_it_is_compiled() -> None:
    a, b = (view.detach() for view in views(dtype=torch.float32))
    loss = compiled(vicreg_loss, "eager")
    wanted = loss(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(a, b), wanted)


def products(function) -> int:
    """Return the multiply-adds of the matrix products that `function` runs."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


N, D = 16, 512


@pytest.mark.parametrize(("n", "d"), [(N, D), (D, N)])
def test_a_gradient_costs_one_product_more_than_the_value(n: int, d: int) -> None:
    """Two of n · d · min(n, d) a view in all, under autograd and torch.func alike."""
    a, b = views(n, d, torch.float32)
    product = 2 * n * d * min(n, d)  # of the two views
    detached = a.detach(), b.detach()
    assert products(lambda: vicreg_loss(*detached)) == product
    assert products(lambda: vicreg_loss(a, b).backward()) == 2 * product
    assert products(lambda: vicreg_loss(a, detached[1]).backward()) == product + product // 2
    assert products(lambda: vicreg_value_and_grad(a, b)) == 2 * product
    both = torch.func.grad(vicreg_loss, argnums=(0, 1))
    assert products(lambda: both(*detached)) == 2 * product
    one = torch.func.grad(vicreg_loss)
    assert products(lambda: one(*detached)) == product + product // 2
    # Of a map no value can be asked: the largest features are kept apart, by two thin products. Of
    # 16 samples they are 15, not 32.
    thin = 2 * n * d * min(DEFAULT_SIZES.kept_apart_unseen, n - 1) if n <= d else 0
    stack = torch.stack(detached)[:, None]
    mapped = torch.func.vmap(torch.func.grad(vicreg_loss, argnums=(0, 1)))
    assert products(lambda: mapped(*stack)) == 2 * (product + thin)


def test_second_derivatives_of_a_dead_feature_without_eps_are_finite() -> None:
    views = torch.randn((2, 6, 4), dtype=torch.float64, generator=torch.manual_seed(0))
    views[:, :, 2] = 0.7
    z1, z2 = views[0].requires_grad_(), views[1]
    loss = vicreg_loss(z1, z2, convention="jolibrain")
    (first,) = torch.autograd.grad(loss, z1, create_graph=True)
    (second,) = torch.autograd.grad((first * z2).sum(), z1)
    assert torch.all(torch.isfinite(second))


def test_many_positions_of_few_samples_take_the_gram_route() -> None:
    """Each is small; all together they are not, and would form 64 covariances of 32 × 32."""
    n, positions, d = 8, 64, 32
    z = torch.linspace(-1.0, 1.0, n * positions * d).reshape(n, positions, d)
    one = z[:, 0], z[:, 1]
    assert products(lambda: vicreg_value_and_grad(*one)) == 2 * 2 * n * d * d
    assert products(lambda: vicreg_value_and_grad(z, z + z**2)) == 2 * 2 * positions * n * n * d


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_each_backward_pass_of_a_retained_graph_has_its_own_gradient(dtype: torch.dtype) -> None:
    a, b = views(dtype=dtype)
    loss = vicreg_loss(a, b)
    pair = (a, b)
    first = torch.autograd.grad(loss, pair, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    tripled = torch.autograd.grad(3 * loss, pair, retain_graph=True)
    again = torch.autograd.grad(loss, pair, create_graph=True)
    last = torch.autograd.grad(loss, pair)
    for one, *others in zip(kept, first, last, strict=True):
        assert all(torch.equal(one, other) for other in others)
    # What is recorded takes a call for each operation, with roundings of its own.
    for one, other in zip(kept, again, strict=True):
        bound = 4 * rounding(str(dtype).removeprefix("torch."), *a.shape)
        assert largest_error(other.detach().double().numpy(), one.double().numpy()) <= bound
    rounded = 3 * torch.finfo(dtype).eps  # of each side, and of the product here
    for one, other in zip(kept, tripled, strict=True):
        torch.testing.assert_close(other, 3 * one, rtol=rounded, atol=rounded)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, pair)


def test_a_scaled_loss_keeps_what_half_precision_would_lose() -> None:
    """Loss scaling is for gradients below the smallest number of float16."""
    a, b = (view.detach().half().requires_grad_() for view in views(64, 512, torch.float32))
    wide = a.detach().float().requires_grad_()
    tiny = 2.0**-30
    lost = torch.autograd.grad(tiny * vicreg_loss(a, b), a)[0]
    assert torch.count_nonzero(lost) == 0
    scaled = torch.autograd.grad(2.0**40 * (tiny * vicreg_loss(a, b)), a)[0]
    right = torch.autograd.grad(2.0**10 * vicreg_loss(wide, b.float()), wide)[0]
    torch.testing.assert_close(scaled, right.half(), rtol=2.0**-10, atol=0)


def test_no_product_where_its_term_has_no_weight_or_cotangent() -> None:
    a, b = views(N, D, torch.float32)
    assert products(lambda: vicreg_loss(a, b, covariance_weight=0).backward()) == 0
    terms = vicreg_terms(a, b)
    assert products(lambda: terms.variance.backward(retain_graph=True)) == 0
    assert products(lambda: terms.invariance.backward()) == 0


def test_saved_tensors_are_guarded_against_changes_in_place() -> None:
    a, b = views()
    x = a * 1
    loss = covariance_loss(x) + vicreg_loss(x, b)
    close(torch.autograd.grad(loss, a, retain_graph=True)[0], torch.autograd.grad(loss, a)[0])


def test_parameters_and_subclasses_are_tensors() -> None:
    class Mine(torch.Tensor):
        pass

    a, b = (view.detach() for view in views())
    wanted = vicreg_loss(a, b)
    close(vicreg_loss(torch.nn.Parameter(a), torch.nn.Parameter(b)).detach(), wanted)
    close(vicreg_loss(a.as_subclass(Mine), b.as_subclass(Mine)).as_subclass(torch.Tensor), wanted)


@pytest.mark.parametrize(
    "view",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(2, 3)]),
    ],
    ids=["sparse", "nested"],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors.*prototype:UserWarning")
def test_tensors_that_are_not_dense_are_refused(view) -> None:
    with pytest.raises(TypeError, match=r"views\[0\] must be a dense array"):
        vicreg_loss(view(), view())


class TestVICRegLoss:
    def test_it_is_the_function(self) -> None:
        a, b = views()
        settings = {"convention": "paper", "variance_weight": 3.0, "gamma": 2.0, "eps": 0.1}
        module = VICRegLoss(**settings)
        assert torch.equal(module(a, b), vicreg_loss(a, b, **settings))
        for got, wanted in zip(module.terms(a, b), vicreg_terms(a, b, **settings), strict=True):
            assert torch.equal(got, wanted)
        assert torch.equal(module(a, b, a), vicreg_loss(a, b, a, **settings))
        turned = VICRegLoss(feature_axis=0, method="covariance")
        assert torch.equal(turned(a, b), vicreg_loss(a, b, feature_axis=0, method="covariance"))

    def test_it_takes_the_place_of_pytorch_metric_learnings(self) -> None:
        losses = pytest.importorskip("pytorch_metric_learning.losses")
        a, b = views()
        theirs = losses.VICRegLoss(invariance_lambda=10, variance_mu=20, covariance_v=3)
        ours = VICRegLoss(invariance_weight=10, variance_weight=20, covariance_weight=3)
        known = inspect.signature(losses.VICRegLoss).parameters
        assert codebases["pytorch-metric-learning"].arguments.keys() <= known.keys()
        wanted = theirs(a, ref_emb=b)
        close(ours(a, ref_emb=b), wanted)
        close(torch.autograd.grad(ours(a, ref_emb=b), a), torch.autograd.grad(wanted, a))

    def test_its_settings_show(self) -> None:
        shown = repr(VICRegLoss(convention="jolibrain", covariance_weight=4))
        assert shown == (
            "VICRegLoss(convention='jolibrain', invariance_weight=25.0, variance_weight=15.0, "
            "covariance_weight=4.0, gamma=1.0, eps=0.0, method='auto', feature_axis=-1, "
            "sample_axis=None, pairs=None, comm=None)"
        )

    def test_both_names_of_its_convention_show(self) -> None:
        assert "(convention='official (lightly)', " in repr(VICRegLoss(convention="lightly"))
        assert "(convention='eb-jepa', " in repr(VICRegLoss(convention="EB_JEPA"))

    @pytest.mark.parametrize("codebase", codebases)
    def test_arguments_of_another_codebase_are_explained(self, codebase: str) -> None:
        arguments = codebases[codebase].arguments
        for name, ours in arguments.items():
            with pytest.raises(TypeError) as caught:
                VICRegLoss(**{name: 1})
            said = str(caught.value)
            assert said.startswith(f"VICRegLoss has no {name!r}, ")
            assert f"{codebase}'s" in said
            assert f"name: it is {ours}" in said
            assert "\n" not in said

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (
                {"sim_coeff": 1, "std_coeff": 2, "epsilon": 1e-3},
                "'sim_coeff', 'std_coeff', 'epsilon', stable-pretraining's names: they are "
                "invariance_weight=, variance_weight=, eps=",
            ),
            (
                {"std_coeff": 1, "cov_coeff": 2},
                "'std_coeff', 'cov_coeff', facebookresearch/vicreg's, stable-pretraining's, "
                "facebookresearch/eb_jepa's, pldm's names: they are variance_weight=, "
                "covariance_weight=, with convention='facebookresearch/eb_jepa' or 'pldm' for "
                "theirs",
            ),
            (
                {"var_loss_weight": 1},
                "'var_loss_weight', solo-learn's name: it is variance_weight=, with "
                "convention='solo-learn'",
            ),
            (
                {"var_loss_weight": 1, "convention": "solo-learn"},
                "'var_loss_weight', solo-learn's name: it is variance_weight=",
            ),
            (
                {"mu_param": 1, "nonsense": 2},
                "'mu_param', lightly's name: it is variance_weight=",
            ),
            ({"covariance_wieght": 1}, "'covariance_wieght': did you mean covariance_weight=?"),
            (
                {"nonsense": 1},
                "'nonsense': it has convention, invariance_weight, variance_weight, "
                "covariance_weight, gamma, eps, method, feature_axis, sample_axis, pairs, comm",
            ),
        ],
    )
    def test_unknown_arguments_are_explained(self, given: dict, said: str) -> None:
        with pytest.raises(TypeError) as caught:
            VICRegLoss(**given)
        assert str(caught.value) == f"VICRegLoss has no {said}"

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (
                (10, 20.0, 3),
                "takes arguments by name alone: invariance_weight=10, variance_weight=20.0, "
                "covariance_weight=3",
            ),
            (
                ([10, 20.0],),
                "takes arguments by name alone: invariance_weight=10, variance_weight=20.0",
            ),
            (("lightly",), "takes arguments by name alone: convention='lightly'"),
            (
                (conventions["vicregl"],),
                f"takes arguments by name alone: convention={conventions['vicregl']!r}",
            ),
            (views(), "takes no views, but makes what takes them: VICRegLoss()(z1, z2)"),
            ((views(),), "takes no views, but makes what takes them: VICRegLoss()(z1, z2)"),
        ],
        ids=["weights", "one sequence", "name", "convention", "views", "one of views"],
    )
    def test_arguments_by_position_are_explained(self, given: tuple, said: str) -> None:
        with pytest.raises(TypeError) as caught:
            VICRegLoss(*given)
        assert str(caught.value) == f"VICRegLoss {said}"

    def test_its_signature_is_that_of_its_arguments(self) -> None:
        shown = inspect.signature(VICRegLoss)
        assert all(one.kind is one.KEYWORD_ONLY for one in shown.parameters.values())
        assert list(shown.parameters) == list(VICRegLoss()._settings())

    def test_it_pickles_copies_and_compiles(self) -> None:
        a, b = views()
        module = VICRegLoss(convention="facebookresearch/vicregl", gamma=1.5)
        wanted = module(a, b)
        for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert torch.equal(other(a, b), wanted)
            assert repr(other) == repr(module)
        close(compiled(module, "aot_eager")(a, b), wanted)

    def test_it_has_no_state(self) -> None:
        module = VICRegLoss()
        assert not list(module.parameters())
        assert not module.state_dict()

    def test_bad_settings_are_refused_when_it_is_made(self) -> None:
        with pytest.raises(ValueError, match="variance_weight"):
            VICRegLoss(variance_weight=-1)
        with pytest.raises(ValueError, match="convention must be one of 'official'"):
            VICRegLoss(convention="barlow")


def test_half_precision_gradients_add_one_rounding() -> None:
    a, b = views(dtype=torch.float32)
    half = [view.detach().bfloat16().requires_grad_() for view in (a, b)]
    vicreg_loss(*half).backward()
    exact = [view.detach().double() for view in half]
    for view, wanted in zip(half, vicreg_value_and_grad(*exact)[1], strict=True):
        error = (view.grad.double() - wanted).abs().max() / wanted.abs().max()
        assert view.grad.dtype == torch.bfloat16
        assert error <= UNIT_ROUNDOFF["bfloat16"] + rounding("float32", 5, 11)
    assert np.isfinite(float(half[0].grad.float().sum()))


class TestVCReg:
    """Pooled images of 6 samples and 11 features: by the Gram matrix, whole, and in blocks."""

    SETTINGS = (
        {"feature_axis": 1},
        {"feature_axis": 1, "sample_axis": 0},
        {"penalty": "smooth_l1", "delta": 0.2, "feature_axis": 1},
        {"penalty": "smooth_l1", "delta": 0.2, "feature_axis": 0},
    )

    @pytest.fixture(params=SETTINGS, ids=str)
    def settings(self, request: pytest.FixtureRequest) -> dict:
        return request.param | {"variance_weight": 2.0, "covariance_weight": 30.0}

    @pytest.fixture
    def vcreg(self, settings: dict, in_small_blocks: Path):
        return lambda z: in_small_blocks.vcreg_loss(z, **settings)

    @pytest.fixture
    def closed_form(self, settings: dict, in_small_blocks: Path):
        return lambda z: in_small_blocks.vcreg_value_and_grad(z, **settings)

    @pytest.fixture
    def z(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        z = 0.8 * torch.randn(3, 11, 2, generator=generator, dtype=torch.float64)
        return z.requires_grad_()

    def test_backward_is_the_closed_form(self, vcreg, closed_form, z: torch.Tensor) -> None:
        value, gradient = closed_form(z)
        assert not value.requires_grad
        close(vcreg(z), value)
        close(torch.autograd.grad(vcreg(z), z)[0], gradient)
        with torch.no_grad():
            close(vcreg(z), value)

    def test_gradcheck_first_and_second_order_forwards_and_backwards(self, vcreg, z) -> None:
        assert gradcheck(
            vcreg,
            (z,),
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )
        assert gradgradcheck(vcreg, (z,))

    def test_torch_func(self, vcreg, z: torch.Tensor) -> None:
        (wanted,) = torch.autograd.grad(vcreg(z), z)
        x = z.detach()
        close(torch.func.grad(vcreg)(x), wanted)
        _, change = torch.func.jvp(vcreg, (x,), (x,))
        close(change, (wanted * x).sum())
        hessian = torch.autograd.functional.hessian(vcreg, x)
        close(torch.func.hessian(vcreg)(x), hessian)
        s = torch.stack([x, -0.5 * x, x.flip(0)])
        close(torch.vmap(vcreg)(s), torch.stack([vcreg(one) for one in s]))
        each = torch.stack([torch.func.grad(vcreg)(one) for one in s])
        close(torch.vmap(torch.func.grad(vcreg))(s), each)

    @pytest.mark.parametrize("backend", TRACED)
    @pytest.mark.parametrize(
        ("settings", "dynamic"),
        [
            pytest.param(settings, dynamic, marks=() if default == dynamic else pytest.mark.long)
            for settings, default in zip(SETTINGS, (True, False, False, True), strict=True)
            for dynamic in (False, True)
        ],
        indirect=["settings"],
        ids=str,
    )
    def test_compile_without_graph_break_or_warning(
        self, vcreg, closed_form, z: torch.Tensor, dynamic: bool, backend: str
    ) -> None:
        # Apart: of numbers that it takes for dynamic Dynamo loses track from one to the other.
        loss = compiled(vcreg, backend, dynamic=dynamic)
        close(loss(z), vcreg(z))
        close(torch.autograd.grad(loss(z), z), torch.autograd.grad(vcreg(z), z))
        close(compiled(closed_form, backend, dynamic=dynamic)(z), closed_form(z))

    def test_autocast_makes_no_difference(self, vcreg, z: torch.Tensor) -> None:
        z = z.detach().float().requires_grad_()
        wanted = vcreg(z)
        right = torch.autograd.grad(wanted, z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = vcreg(z)
            assert torch.equal(loss, wanted)
            assert torch.equal(torch.autograd.grad(loss, z)[0], right[0])

    def test_nothing_waits_for_the_device(self, vcreg, closed_form) -> None:
        z = torch.empty(3, 11, 2, device="meta", requires_grad=True)
        vcreg(z).backward()
        assert z.grad.device.type == "meta"
        assert closed_form(z)[0].device.type == "meta"


@pytest.mark.parametrize(("n", "d"), [(6, 64), (64, 6)])
def test_smooth_l1_costs_two_products_and_its_value_one(
    n: int, d: int, in_small_blocks: Path
) -> None:
    """In blocks as whole, n · d² each: no block is formed again for the gradient."""
    z = views(n, d, torch.float32)[0]
    settings = {"penalty": "smooth_l1", "variance_weight": 1.0, "covariance_weight": 1.0}
    loss, closed_form = in_small_blocks.vcreg_loss, in_small_blocks.vcreg_value_and_grad
    product = n * d * d
    assert products(lambda: loss(z.detach(), **settings)) == product
    assert products(lambda: loss(z, **settings).backward()) == 2 * product
    assert products(lambda: closed_form(z, **settings)) == 2 * product
    assert products(lambda: loss(z, **settings | {"covariance_weight": 0.0})) == 0


def test_smooth_l1_of_many_samples_costs_what_the_square_does() -> None:
    """A covariance no larger than the view is formed whole, and half of it is a mirror image."""
    z = views(520, 512, torch.float32)[0]
    weights = {"variance_weight": 1.0, "covariance_weight": 1.0}
    smooth_l1 = products(lambda: vcreg_value_and_grad(z, penalty="smooth_l1", **weights))
    square = products(lambda: vcreg_value_and_grad(z, method="covariance", **weights))
    assert smooth_l1 == square < 2 * 520 * 512**2


WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")


class TestWeights:
    """Weights that are tensors: numbers that are learned, or scheduled without compiling anew."""

    def test_the_loss_is_linear_in_each(self) -> None:
        a, b = views()
        weights = torch.tensor([3.0, 2.0, 0.5], dtype=a.dtype, requires_grad=True)
        given = dict(zip(WEIGHTS, weights, strict=True))
        loss = vicreg_loss(a, b, **given)
        numbers = dict(zip(WEIGHTS, weights.tolist(), strict=True))
        close(loss, vicreg_loss(a, b, **numbers))
        by_weights, by_view = torch.autograd.grad(loss, (weights, a))
        close(by_weights, torch.stack(vicreg_terms(a, b)[1:]))
        close(by_view, vicreg_value_and_grad(a, b, **numbers)[1][0])
        closed, gradients = vicreg_value_and_grad(a, b, **given)
        close(closed, loss)
        close(gradients[0], by_view)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_they_decide_no_dtype(self, dtype: torch.dtype) -> None:
        a, b = views(dtype=dtype)
        weight = torch.tensor(2.0, dtype=torch.float64)
        assert vicreg_loss(a, b, covariance_weight=weight).dtype == torch.float32
        loss, gradients = vicreg_value_and_grad(a, b, covariance_weight=weight)
        assert loss.dtype == torch.float32
        assert all(gradient.dtype == dtype for gradient in gradients)

    def test_one_of_0_is_computed(self) -> None:
        a, b = views()
        weight = torch.zeros((), dtype=a.dtype, requires_grad=True)
        (slope,) = torch.autograd.grad(vicreg_loss(a, b, covariance_weight=weight), weight)
        close(slope, vicreg_terms(a, b).covariance)

    def test_a_module_learns_its_weight(self) -> None:
        a, b = views(dtype=torch.float32)
        weight = torch.nn.Parameter(torch.tensor(1.0))
        criterion = VICRegLoss(covariance_weight=weight)
        assert list(criterion.parameters()) == [weight]
        criterion(a, b).backward()
        torch.testing.assert_close(weight.grad, vicreg_terms(a, b).covariance.detach())

    def test_no_value_compiles_anew(self) -> None:
        a, b = views(dtype=torch.float32)
        compiled = []

        def backend(graph, _):
            compiled.append(graph)
            return graph.forward

        def loss(a, b, weight):
            return vicreg_loss(a, b, covariance_weight=weight)

        function = in_one_graph(loss, backend=backend)
        for weight in (1.0, 2.0, 0.5):
            got = function(a, b, torch.tensor(weight))
            torch.testing.assert_close(got, vicreg_loss(a, b, covariance_weight=weight))
        assert len(compiled) == 1
