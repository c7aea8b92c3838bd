"""A batch larger than memory: the gradients are those of the whole batch's loss."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from vicreg._adapters.torch import cached  # noqa: E402
from vicreg.torch import VCReg, VICRegLoss, attach_vcreg, cached_backward  # noqa: E402

INPUTS, OUTPUTS, ROWS = 6, 20, 22
CRITERION = VICRegLoss()


def encoder(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, 16), nn.Tanh(), *between, nn.Linear(16, OUTPUTS)
    ).double()


def inputs(rows: int = ROWS) -> tuple[Any, Any]:
    torch.manual_seed(1)
    common = torch.randn(rows, INPUTS, dtype=torch.float64)
    return tuple(common + 0.3 * torch.randn_like(common) for _ in range(2))


def gradients(module: nn.Module) -> Any:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def plain(module: nn.Module, views: Any, loss: Any = CRITERION) -> Any:
    value = loss(*(module(view) for view in views))
    value.backward()
    return value.detach()


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("chunk_size", [1, 4, 7, ROWS, 100])
def test_gradients_are_those_of_the_whole_batch(chunk_size: int) -> None:
    one, other, views = encoder(), encoder(), inputs()
    wanted = plain(one, views)
    value = cached_backward(other, views, CRITERION, chunk_size)
    assert_close(value, wanted)
    assert not value.requires_grad
    assert_close(gradients(other), gradients(one))


@pytest.mark.parametrize(("rows", "chunks"), [(1, [1]), (3, [1, 1, 1])])
def test_no_chunk_is_empty(rows: int, chunks: list[int]) -> None:
    """Each is embedded twice: for the loss, and for its gradient."""
    seen: list[int] = []

    def counted(x: Any) -> Any:
        seen.append(len(x))
        return x

    (view, _) = inputs(rows)
    cached_backward(counted, (view.requires_grad_(),), lambda z: z.sum(), 1)
    assert seen == 2 * chunks
    assert torch.equal(view.grad, torch.ones_like(view))


def test_plain_accumulation_is_another_gradient() -> None:
    whole, chunks, views = encoder(), encoder(), inputs(64)
    plain(whole, views)
    for rows in zip(*(view.split(16) for view in views), strict=True):
        plain(chunks, rows, lambda *z: CRITERION(*z) / 4)
    error = (gradients(chunks) - gradients(whole)).abs().max() / gradients(whole).abs().max()
    assert error > 0.01


def test_it_adds_to_what_is_in_grad_and_reaches_inputs_and_the_loss() -> None:
    results = []
    for way in (plain, lambda *a: cached_backward(*a, 5)):
        module = encoder()
        views = [view.requires_grad_() for view in inputs()]
        weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        criterion = VICRegLoss(covariance_weight=weight)
        for _ in range(2):
            way(module, views, criterion)
        results.append([gradients(module), *(view.grad for view in views), weight.grad])
    for got, wanted in zip(*results[::-1], strict=True):
        assert_close(got, wanted)


def test_any_loss_and_an_encoder_for_each_view() -> None:
    def loss(a: Any, b: Any) -> Any:
        return (a.T @ b).pow(2).sum().sqrt()

    views = inputs()
    ones = [encoder(), encoder(nn.Tanh())]
    others = copy.deepcopy(ones)
    loss(*(one(view) for one, view in zip(ones, views, strict=True))).backward()
    cached_backward(others, views, loss, 5)
    for one, other in zip(ones, others, strict=True):
        assert_close(gradients(other), gradients(one))


def test_an_encoder_that_is_not_trained() -> None:
    views, student, teacher = inputs(), encoder(), encoder(nn.Tanh()).requires_grad_(False)
    wanted = encoder()
    CRITERION(wanted(views[0]), teacher(views[1])).backward()
    cached_backward([student, teacher], views, CRITERION, 5)
    assert_close(gradients(student), gradients(wanted))


def test_random_numbers_are_the_same_in_both_runs() -> None:
    views, module = inputs(), encoder(nn.Dropout(0.5))
    embedded: list[Any] = []
    module.register_forward_hook(lambda *call: embedded.append(call[-1].detach()))
    torch.manual_seed(3)
    cached_backward(module, views, CRITERION, 5)
    after = torch.rand(1)
    half = len(embedded) // 2
    for first, second in zip(embedded[:half], embedded[half:], strict=True):
        assert torch.equal(first, second)
    # As in the plain way, chunk by chunk, with the same masks; and what follows is the same too.
    wanted = encoder(nn.Dropout(0.5))
    torch.manual_seed(3)
    z1, z2 = (torch.cat([wanted(rows) for rows in view.split(5)]) for view in views)
    CRITERION(z1, z2).backward()
    assert torch.equal(after, torch.rand(1))
    assert_close(gradients(module), gradients(wanted))


def test_buffers_are_updated_once_and_batch_statistics_are_warned_of() -> None:
    views = inputs()
    module, wanted = encoder(nn.BatchNorm1d(16)), encoder(nn.BatchNorm1d(16))
    taken = r"2 \(BatchNorm1d\) takes the statistics of each chunk"
    with pytest.warns(UserWarning, match=taken) as caught:
        cached_backward(module, views, CRITERION, 11)
    assert caught[0].filename == __file__  # it points to the caller
    with torch.no_grad():
        for view in views:
            for rows in view.split(11):
                wanted(rows)
    for got, buffer in zip(module.buffers(), wanted.buffers(), strict=True):
        assert torch.equal(got, buffer)
    assert vars(module).keys() == vars(wanted).keys()
    whole, chunks = encoder(nn.BatchNorm1d(16)), encoder(nn.BatchNorm1d(16))
    plain(whole, views)
    cached_backward(chunks, views, CRITERION, ROWS)  # in one chunk: without a warning
    assert_close(gradients(chunks), gradients(whole))
    whole, chunks = encoder(nn.BatchNorm1d(16)).eval(), encoder(nn.BatchNorm1d(16)).eval()
    plain(whole, views)
    cached_backward(chunks, views, CRITERION, 5)  # without a warning
    assert_close(gradients(chunks), gradients(whole))


class Centred(nn.Module):
    """It puts a new tensor in the place of its buffer in each forward pass, as DINO's centre."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS).double()
        self.register_buffer("centre", torch.zeros(OUTPUTS, dtype=torch.float64))

    def forward(self, x: Any) -> Any:
        z = self.layer(x)
        self.centre = 0.9 * self.centre + 0.1 * z.mean(0)
        return z

    def encode(self, x: Any) -> Any:
        return self(x)


@pytest.mark.parametrize("is_method", [False, True])
def test_buffers_that_are_replaced_are_updated_once(is_method: bool) -> None:
    torch.manual_seed(0)
    module, views = Centred(), inputs()
    wanted = copy.deepcopy(module)
    cached_backward(module.encode if is_method else module, views, CRITERION, 11)
    with torch.no_grad():
        for view in views:
            for rows in view.split(11):
                wanted(rows)
    assert torch.equal(module.centre, wanted.centre)
    assert not module.centre.requires_grad  # nor is any graph kept
    assert dict(module.named_buffers())["centre"] is module.centre


class Growing(nn.Module):
    """It multiplies by a buffer that each forward pass doubles, in place or by a new tensor."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.in_place = nn.Linear(INPUTS, OUTPUTS).double(), in_place
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def forward(self, x: Any) -> Any:
        z = self.factor.clone() * self.layer(x)
        with torch.no_grad():
            self.factor = self.factor.mul_(2) if self.in_place else 2 * self.factor
        return z


@pytest.mark.parametrize("in_place", [True, False])
def test_a_chunk_finds_the_buffers_of_the_first_run_again(in_place: bool) -> None:
    one, other, views = Growing(in_place), Growing(in_place), inputs()
    value = CRITERION(*(torch.cat([one(rows) for rows in view.split(8)]) for view in views))
    value.backward()
    assert_close(cached_backward(other, views, CRITERION, 8), value.detach())
    assert_close(gradients(other), gradients(one))
    assert other.factor == one.factor == 2**6


def test_a_spectral_norm_in_one_chunk() -> None:
    norm = nn.utils.parametrizations.spectral_norm
    one = nn.Sequential(norm(nn.Linear(INPUTS, 16)), nn.Tanh(), norm(nn.Linear(16, OUTPUTS)))
    one = one.double()
    other, views = copy.deepcopy(one), inputs()
    plain(one, views)
    cached_backward(other, views, CRITERION, ROWS)
    assert_close(gradients(other), gradients(one))
    for got, wanted in zip(other.buffers(), one.buffers(), strict=True):
        assert torch.equal(got, wanted)


def test_buffers_are_as_the_first_run_left_them_where_the_second_fails() -> None:
    module, calls = Growing(in_place=True), []

    def failing(x: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise ArithmeticError
        return Growing.forward(module, x)

    module.forward = failing
    with pytest.raises(ArithmeticError):
        cached_backward(module, inputs(), CRITERION, ROWS)
    assert module.factor == 4


@pytest.mark.parametrize("attached", [True, False])
def test_layers_that_regularize_a_batch_are_warned_of(attached: bool) -> None:
    weights = {"variance_weight": 1.0, "covariance_weight": 1.0}
    module = encoder() if attached else encoder(VCReg(**weights))
    if attached:
        attach_vcreg(module, "2", **weights)
    with pytest.warns(UserWarning, match=r"2 \(VCReg\) takes the statistics of each chunk"):
        cached_backward(module, inputs(), CRITERION, 11)
    cached_backward(module.eval(), inputs(), CRITERION, 11)  # without a warning


def test_a_method_is_warned_of_as_its_module_is() -> None:
    with pytest.warns(UserWarning, match=r"2 \(BatchNorm1d\) takes the statistics of each chunk"):
        cached_backward(encoder(nn.BatchNorm1d(16)).forward, inputs(), CRITERION, 11)


def test_under_autocast_with_a_scaler() -> None:
    views = [view.float() for view in inputs()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def scaled(*z: Any) -> Any:
        assert {array.dtype for array in z} == {torch.bfloat16}
        return scaler.scale(CRITERION(*z))

    one, other = encoder().float(), encoder().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = plain(one, views, scaled)
        value = cached_backward(other, views, scaled, 5)
    assert_close(value, wanted, 1e-2)
    # Products of bfloat16 are rounded for each chunk by itself.
    assert_close(gradients(other), gradients(one), 4 * 2.0**-8)


def test_activations_of_one_chunk_are_kept_at_a_time() -> None:
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            nonlocal alive, most
            ctx.rows = x.shape[0]
            alive += ctx.rows
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            nonlocal alive
            alive -= ctx.rows
            return gradient

    class Counting(nn.Module):
        def forward(self, x: Any) -> Any:
            return Counted.apply(x) if torch.is_grad_enabled() else x

    cached_backward(encoder(Counting()), inputs(), CRITERION, 5)
    assert (alive, most) == (0, 5)


def test_a_view_without_a_part_in_the_loss() -> None:
    def loss(a: Any, b: Any) -> Any:
        return a.pow(2).mean()

    views, one, other = inputs(), encoder(), [encoder(), encoder(nn.Tanh())]
    plain(one, views, loss)
    shared: list[bool] = []

    class Shared(nn.Module):
        """What DistributedDataParallel is to it: how often gradients are shared."""

        def __init__(self) -> None:
            super().__init__()
            self.module, self.now = other[0], True

        @contextlib.contextmanager
        def no_sync(self) -> Iterator[None]:
            self.now = False
            yield
            self.now = True

        def forward(self, x: Any) -> Any:
            if torch.is_grad_enabled():
                shared.append(self.now)
            return self.module(x)

    wrapped = Shared()
    cached_backward(wrapped, views, loss, 5)
    assert_close(gradients(wrapped), gradients(one))
    assert shared == [False] * 4 + [True]
    cached_backward(other, views, loss, 5)
    assert all(parameter.grad is None for parameter in other[1].parameters())
    # The other way round: the first view has no part.
    both = encoder(nn.Tanh()), encoder()
    cached_backward(both, views[::-1], lambda a, b: loss(b, a), 5)
    assert all(parameter.grad is None for parameter in both[0].parameters())
    assert_close(gradients(both[1]), gradients(one))


def test_ranks_share_gradients_once_where_parameters_are_sharded() -> None:
    """As a module of ``fully_shard`` does, which is told when, and is left as it was."""
    told: list[bool] = []

    class Sharded(nn.Sequential):
        def set_requires_gradient_sync(self, now: bool) -> None:
            told.append(now)

    cached_backward(Sharded(encoder()), inputs(), CRITERION, 11)
    assert told[::2] == [False, False, False, True]  # of two chunks of each view
    assert all(told[1::2])  # after each


def test_the_random_state_of_the_encoders_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU, when the views are on a CPU: here of a device without random numbers."""
    asked: list[set[str]] = []

    def states(*tensors: Any) -> Any:
        asked.append({tensor.device.type for tensor in tensors})
        return [], []

    monkeypatch.setattr(cached, "get_device_states", states)

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, device="meta"))

        def forward(self, x: Any) -> Any:
            return x

    x = inputs()[0].requires_grad_()
    cached_backward(Elsewhere(), (x,), lambda z: z.sum(), ROWS)
    assert asked == [{"cpu", "meta"}]


def test_compiled() -> None:
    one, other, views = encoder(), encoder(), inputs()
    plain(one, views)
    cached_backward(torch.compile(other, backend="aot_eager"), views, CRITERION, 11)
    assert_close(gradients(other), gradients(one))


def test_what_is_wrong_is_said() -> None:
    module, views = encoder(), inputs()
    for error, words, arguments in [
        (TypeError, "chunk_size must be an integer; got 2.5", (module, views, CRITERION, 2.5)),
        (ValueError, "chunk_size must be 1 or more", (module, views, CRITERION, 0)),
        (ValueError, "1 or more rows; got True", (module, views, CRITERION, True)),
        (ValueError, "2 views and 1 encoders", ([module], views, CRITERION, 5)),
        (ValueError, "0 views", (module, (), CRITERION, 5)),
        (TypeError, "encoder must be callable; got int", (3, views, CRITERION, 5)),
        (TypeError, r"views\[1\] must be a tensor", (module, (views[0], [1]), CRITERION, 5)),
        (TypeError, "encoder must return one tensor", (lambda x: (x, x), views, CRITERION, 5)),
        (TypeError, "with a row for each", (lambda x: x[:1], views, CRITERION, 5)),
        (TypeError, "got a tensor of shape", (module, views, lambda a, b: a - b, 5)),
        (TypeError, "got float", (module, views, lambda a, b: 1.0, 5)),
        (TypeError, "loss must return", (module, views, lambda a, b: a.detach().sum(), 5)),
        (
            ValueError,
            r"views\[0\] must be an input",
            (module, (views[0].clone().requires_grad_() * 2, views[1]), CRITERION, 5),
        ),
    ]:
        with pytest.raises(error, match=words):
            cached_backward(*arguments)
    with torch.no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        cached_backward(module, views, CRITERION, 5)
    assert all(parameter.grad is None for parameter in module.parameters())
