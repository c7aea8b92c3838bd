"""VCReg as a layer: the identity, whose backward pass adds the gradient of the loss."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from errors import UNIT_ROUNDOFF, largest_error, rounding
from one_graph import in_one_graph

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from vicreg import vcreg_loss, vcreg_value_and_grad  # noqa: E402
from vicreg.torch import VCReg, attach_vcreg  # noqa: E402

WEIGHTS = {"variance_weight": 0.7, "covariance_weight": 1.3}
SETTINGS = [
    {},
    {"gamma": 0.5, "eps": 1e-3},
    {"penalty": "smooth_l1", "delta": 0.05},
    {"sample_axis": 0},
    {"feature_axis": 1},
    {"variance_weight": 0.0},
]
SHAPES = [(9, 5), (5, 9), (4, 3, 2, 5)]


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (0.6 * torch.randn(*shape, generator=generator, dtype=dtype)).requires_grad_()


def close(got: torch.Tensor, wanted: object, times: float = 1.0) -> None:
    bound = times * 8 * rounding("float64", 64, 64)
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else wanted
    assert largest_error(got.detach().numpy(), np.asarray(wanted)) <= bound


def user_loss(y: torch.Tensor) -> torch.Tensor:
    return (y**3).sum() / 7


def added(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what the layer adds to the gradient of a user's loss."""
    with_layer = torch.autograd.grad(user_loss(layer(x)), x)[0]
    return with_layer - torch.autograd.grad(user_loss(x), x)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_the_identity_and_adds_the_gradient_of_the_loss(shape, settings: dict) -> None:
    x, given = batch(*shape), WEIGHTS | settings
    layer = VCReg(**given)
    assert torch.equal(layer(x), x)
    close(added(layer, x), torch.autograd.grad(vcreg_loss(x, **given), x)[0])


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)], ids=str)
def test_the_published_gradient_leaves_out_the_samples(shape) -> None:
    """Of the paper's pseudocode, 4β/(d(d − 1)) zc O; the hinge's part is that of the loss."""
    x = batch(*shape)
    n, d = shape
    zc = (x - x.mean(0)).detach()
    c = zc.T @ zc / (n - 1)
    covariance = 4 * 1.3 / (d * (d - 1)) * zc @ (c - torch.diag(torch.diag(c)))
    hinge = torch.autograd.grad(vcreg_loss(x, **WEIGHTS | {"covariance_weight": 0.0}), x)[0]
    layer = VCReg(**WEIGHTS, covariance_gradient="published")
    close(added(layer, x), covariance + hinge)
    loss = layer.last_terms.loss  # of the loss itself, whatever the gradient's scale
    close(loss, vcreg_loss(x, **WEIGHTS))


def test_where_nothing_is_trained_it_returns_its_very_input() -> None:
    x = batch(9, 5)
    layer = VCReg(**WEIGHTS)
    assert layer(x.detach()) is not x
    detached = x.detach()
    assert layer(detached) is detached
    with torch.no_grad():
        assert layer(x) is x
    assert layer.eval()(x) is x


def test_a_gradient_scaler_does_not_shrink_it() -> None:
    x = batch(9, 5, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    layer = VCReg(**WEIGHTS, scale=scaler.get_scale)
    scaler.scale(user_loss(layer(x))).backward()
    right = torch.autograd.grad(user_loss(x) + vcreg_loss(x, **WEIGHTS), x)[0]
    torch.testing.assert_close(x.grad / scaler.get_scale(), right, rtol=1e-5, atol=1e-7)
    unscaled = VCReg(**WEIGHTS)
    shrunk = torch.autograd.grad(scaler.scale(user_loss(unscaled(x))), x)[0] / scaler.get_scale()
    assert not torch.allclose(shrunk, right, rtol=1e-3, atol=1e-5)


def test_a_number_scales_it() -> None:
    x = batch(9, 5)
    close(added(VCReg(**WEIGHTS, scale=0.25), x), 0.25 * added(VCReg(**WEIGHTS), x))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_last_terms_are_those_of_the_last_input(settings: dict) -> None:
    x, given = batch(4, 3, 2, 5), WEIGHTS | settings
    layer = VCReg(**given)
    for _ in range(2):
        y = layer(x)
        before = layer.last_terms
        user_loss(y).backward()
        after = layer.last_terms
        for terms in (before, after):
            close(terms.loss, vcreg_loss(x, **given))
            for name in ("variance", "covariance"):
                alone = {f"{other}_weight": float(other == name) for other in terms._fields[1:]}
                close(getattr(terms, name), vcreg_loss(x, **given | alone))
                assert not getattr(terms, name).requires_grad
        x = (2 * x).detach().requires_grad_()


def test_last_terms_take_no_second_pass_over_the_input() -> None:
    x = batch(9, 50)
    layer = VCReg(**WEIGHTS)
    user_loss(layer(x)).backward()
    assert products(lambda: layer.last_terms) == 0


def test_it_says_when_there_are_no_terms_yet() -> None:
    layer = VCReg(**WEIGHTS)
    with pytest.raises(RuntimeError, match="regularized an input"):
        _ = layer.last_terms


def test_a_layer_used_twice_adds_it_twice() -> None:
    x = batch(4, 6)
    layer = VCReg(**WEIGHTS)
    twice = torch.autograd.grad(user_loss(layer(layer(x))), x)[0]
    close(twice, 2 * added(layer, x) + torch.autograd.grad(user_loss(x), x)[0])


def test_a_second_derivative_is_refused() -> None:
    """Under ``torch.func`` too, and by what the layer's input depends on."""
    x = batch(4, 6)
    first = torch.autograd.grad(user_loss(VCReg(**WEIGHTS)(x)), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"Add vicreg\.vcreg_loss"):
        first.sum().backward()

    def norm(z: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda z: user_loss(VCReg(**WEIGHTS)(z)))(z).square().sum()

    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.func.grad(norm)(x.detach())
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    first = torch.func.grad(lambda z: user_loss(VCReg(**WEIGHTS)(factor * z)))(x.detach())
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


def test_what_works_in_place_on_its_output_is_refused_and_not_computed_wrong() -> None:
    x = batch(4, 6) * 1
    with pytest.raises(RuntimeError, match="modified inplace"):
        torch.relu_(VCReg(**WEIGHTS)(x))


def test_each_backward_pass_of_a_retained_graph_adds_it() -> None:
    x = batch(9, 5)
    loss = user_loss(VCReg(**WEIGHTS)(x))
    one = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(one, torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = batch(9, 5).detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = VCReg(**WEIGHTS)(x)
    y.backward(torch.zeros_like(y))
    _, right = vcreg_value_and_grad(x.detach(), **WEIGHTS)
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, right)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)]
)
def test_it_compiles_without_a_graph_break_and_without_terms(backend: str) -> None:
    torch._dynamo.reset()
    x = batch(9, 5)
    layer = VCReg(**WEIGHTS)
    right = torch.autograd.grad(user_loss(layer(x)), x)[0]
    assert layer.last_terms.loss > 0
    compiled = in_one_graph(lambda z: user_loss(layer(z)), backend=backend)
    close(torch.autograd.grad(compiled(x), x)[0], right)
    with pytest.raises(RuntimeError, match=r"not under torch\.compile"):  # none of another pass
        _ = layer.last_terms
    layer.eval()
    close(torch.autograd.grad(compiled(x), x)[0], torch.autograd.grad(user_loss(x), x)[0])


# Dynamo looks for the attribute behind a filter of its own, which warnings as errors pass by.
@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf")
def test_compiled_code_follows_a_scale_that_changes() -> None:
    """A plain callable is traced and watched; the scaler's breaks the graph around the layer."""
    torch._dynamo.reset()
    x = batch(9, 5)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # before which it has no scale to update
    factor = {"now": 4.0}
    right = torch.autograd.grad(user_loss(x) + vcreg_loss(x, **WEIGHTS), x)[0]
    for scale, whole in ((lambda: factor["now"], True), (scaler.get_scale, False)):
        layer = VCReg(**WEIGHTS, scale=scale)
        compiles = in_one_graph if whole else torch.compile
        compiled = compiles(lambda z, layer=layer: user_loss(layer(z)), backend="aot_eager")
        for now in (4.0, 16.0):
            factor["now"] = now
            scaler.update(now)
            close(torch.autograd.grad(now * compiled(x), x)[0] / now, right)


def mapped(function: Callable) -> dict[str, Callable]:
    """Return the ways to the gradient of a function, for each element of a batch of batches."""

    def backward(s: torch.Tensor) -> torch.Tensor:
        leaf = s.detach().requires_grad_()
        return torch.autograd.grad(torch.vmap(function)(leaf).sum(), leaf)[0]

    return {
        "vmap of grad": torch.vmap(torch.func.grad(function)),
        "grad of vmap": torch.func.grad(lambda s: torch.vmap(function)(s).sum()),
        "backward of vmap": backward,
    }


@pytest.mark.parametrize("way", mapped(torch.sum))
def test_under_vmap_each_element_is_a_batch(way: str) -> None:
    x = batch(3, 9, 5)
    layer = VCReg(**WEIGHTS)
    got = mapped(lambda z: user_loss(layer(z)))[way](x.detach())
    each = [
        torch.autograd.grad(user_loss(z) + vcreg_loss(z, **WEIGHTS), z)[0] for z in batch_of(x)
    ]
    close(got, torch.stack(each))


@pytest.mark.parametrize("way", ["vmap of grad", "grad of vmap"])
def test_compiled_torch_func_is_right_or_refused(way: str) -> None:
    """Dynamo leaves the backward pass of a Function out there, and says nothing."""
    torch._dynamo.reset()
    x = batch(3, 9, 5).detach()
    layer = VCReg(**WEIGHTS)
    derivative = mapped(lambda z: user_loss(layer(z)))[way]

    def function(s: torch.Tensor) -> torch.Tensor:
        return derivative(s)

    close(torch.compile(function, backend="aot_eager")(x), function(x))
    torch._dynamo.reset()
    # The compilers of PyTorch 2.7 and 2.8 name the type of the error alone.
    is_old = torch.__version__.startswith(("2.7.", "2.8."))
    refusal = "NotImplementedError" if is_old else r"VCReg cannot be compiled under torch\.func"
    with pytest.raises(Exception, match=refusal):
        in_one_graph(function, backend="aot_eager")(x)


def test_a_batch_of_incoming_gradients() -> None:
    x = batch(9, 5)
    y = VCReg(**WEIGHTS)(x)
    incoming = batch(3, 9, 5).detach()
    got = torch.autograd.grad(y, x, incoming, is_grads_batched=True)[0]
    close(got, incoming + torch.autograd.grad(vcreg_loss(x, **WEIGHTS), x)[0])


def batch_of(x: torch.Tensor) -> list[torch.Tensor]:
    return [z.detach().requires_grad_() for z in x]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_makes_no_difference(reentrant: bool) -> None:
    """Of a layer used twice the last pass is the model's, not one of the repetition."""
    x = batch(9, 5)
    layer = VCReg(**WEIGHTS)

    def block(z: torch.Tensor) -> torch.Tensor:
        return user_loss(layer(0.5 * layer(z)))

    right = torch.autograd.grad(block(x), x)[0]
    terms = layer.last_terms
    layer(3 * x)  # terms of another pass
    loss = checkpoint(block, x, use_reentrant=reentrant)
    loss.backward()
    close(x.grad, right)
    assert layer.last_terms == terms


def activation(x: torch.Tensor, kept: list) -> torch.Tensor:
    """Return a tensor that only what follows keeps alive."""
    h = torch.sin(x)
    kept.append(weakref.ref(h.untyped_storage()))
    return h


def test_it_keeps_no_activation_alive() -> None:
    x, kept = batch(9, 5), []
    layer = VCReg(**WEIGHTS)

    def alive() -> list[bool]:
        gc.collect()
        return [storage() is not None for storage in kept]

    loss = layer(activation(x, kept)).sum()
    assert alive() == [True]  # of the graph
    loss.backward()
    assert alive() == [False]
    assert layer.last_terms.loss > 0

    loss = checkpoint(lambda z: layer(activation(z, kept)).sum(), x, use_reentrant=False)
    assert alive() == [False, False]
    with pytest.raises(RuntimeError, match="after the backward pass"):
        _ = layer.last_terms
    loss.backward()
    assert alive() == [False, False, False]
    assert layer.last_terms.loss > 0

    layer(activation(x, kept))
    assert alive() == [False, False, False, False]
    with pytest.raises(RuntimeError, match="dropped"):
        _ = layer.last_terms


def test_terms_are_read_under_autocast_in_full_precision() -> None:
    x = batch(9, 50, dtype=torch.float32)
    layer = VCReg(**WEIGHTS)
    right = vcreg_value_and_grad(x.detach(), **WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        loss = layer.last_terms.loss
    torch.testing.assert_close(loss, right[0], rtol=rounding("float32", 9, 50), atol=0)
    # What was computed for the terms is what the backward pass starts from.
    assert largest_error((torch.autograd.grad(y.sum(), x)[0] - 1).numpy(), right[1].numpy()) <= (
        4 * rounding("float32", 9, 50) + 2 * UNIT_ROUNDOFF["float32"] / right[1].abs().max()
    )


def test_terms_that_are_read_first_spare_the_backward_pass_their_product() -> None:
    x = batch(9, 50)
    layer = VCReg(**WEIGHTS)
    loss = user_loss(layer(x))
    alone = products(lambda: loss.backward(retain_graph=True))
    loss = user_loss(layer(x))
    reading = products(lambda: layer.last_terms)
    assert 0 < reading < alone
    assert products(loss.backward) == alone - reading


@pytest.mark.parametrize("shape", [(50, 9), (9, 50)], ids=str)
def test_without_a_covariance_there_is_no_product(shape) -> None:
    x = batch(*shape)
    layer = VCReg(variance_weight=0.7, covariance_weight=0.0)
    loss = user_loss(layer(x))
    assert products(lambda: (layer.last_terms, loss.backward())) == 0
    loss, variance, covariance = layer.last_terms
    close(loss, vcreg_loss(x, variance_weight=0.7, covariance_weight=0.0))
    close(variance, loss / 0.7)
    assert covariance.isnan()


def products(function: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products that `function` runs."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_it_is_copied_and_stored_without_its_last_input() -> None:
    layer = VCReg(**WEIGHTS, scale=2.0)
    layer(batch(9, 5))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        assert torch.equal(added(other, batch(9, 5)), added(layer, batch(9, 5)))
    assert not layer.state_dict()


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"variance_weight": None}, ValueError, "variance_weight must be given"),
        ({"covariance_gradient": "paper"}, ValueError, "'exact' or 'published'"),
        ({"scale": "2"}, TypeError, "scale must be a number"),
        ({"scale": -1}, ValueError, "scale must be a finite number"),
        ({"penalty": "l1"}, ValueError, "penalty must be"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_it_is_made(settings, error, text) -> None:
    with pytest.raises(error, match=text):
        VCReg(**WEIGHTS | settings)


def test_bad_input_is_refused_when_it_is_called() -> None:
    layer = VCReg(**WEIGHTS)
    with pytest.raises(ValueError, match="x must have at least 2 samples"):
        layer(torch.ones(1, 4))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        layer(np.ones((4, 4)))


class TestAttach:
    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)
        ).double()

    def gradients(self, model: torch.nn.Module) -> list[torch.Tensor]:
        x = batch(9, 3).detach()
        return list(torch.autograd.grad(user_loss(model(x)), list(model.parameters())))

    def test_it_regularizes_what_the_modules_return_until_removed(self) -> None:
        model, given = self.model(), WEIGHTS | {"gamma": 2.0}
        plain = self.gradients(model)
        attached = attach_vcreg(model, ["1", "2"], **given)
        got = self.gradients(model)
        x = batch(9, 3).detach()
        hidden = model[1](model[0](x))
        attached.remove()
        hidden = model[1](model[0](x))
        out = model[2](hidden)
        whole = user_loss(out) + vcreg_loss(hidden, **given) + vcreg_loss(out, **given)
        for one, right in zip(
            got, torch.autograd.grad(whole, list(model.parameters())), strict=True
        ):
            close(one, right, 4)
        for one, right in zip(self.gradients(model), plain, strict=True):
            assert torch.equal(one, right)
        attached.remove()  # once more is no error

    def test_it_rests_where_the_module_does(self) -> None:
        model = self.model()
        plain = self.gradients(model)
        with attach_vcreg(model, "1", **WEIGHTS) as attached:
            model.eval()
            assert all(map(torch.equal, self.gradients(model), plain))
            model.train()
            assert not all(map(torch.equal, self.gradients(model), plain))
            assert attached.layers["1"].last_terms.variance > 0
        assert all(map(torch.equal, self.gradients(model), plain))

    def test_it_compiles_with_the_model(self) -> None:
        torch._dynamo.reset()
        model = self.model()
        plain = self.gradients(model)
        with attach_vcreg(model, "1", **WEIGHTS):
            right = self.gradients(model)
            compiled = in_one_graph(model, backend="aot_eager")
            x = batch(9, 3).detach()

            def gradients() -> list[torch.Tensor]:
                return list(torch.autograd.grad(user_loss(compiled(x)), list(model.parameters())))

            for one, other in zip(gradients(), right, strict=True):
                close(one, other)
            model.eval()
            for one, other in zip(gradients(), plain, strict=True):
                close(one, other)

    def test_a_copy_of_the_model_has_layers_of_its_own(self) -> None:
        model = self.model()
        attached = attach_vcreg(model, ["1", "2"], **WEIGHTS)
        right = self.gradients(model)
        terms = attached.layers["1"].last_terms
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other[0].weight.data.mul_(2)  # so that its terms are others
            assert not torch.equal(self.gradients(other)[-1], right[-1])
            assert attached.layers["1"].last_terms == terms
            other[0].weight.data.div_(2)
            for one, wanted in zip(self.gradients(other), right, strict=True):
                assert torch.equal(one, wanted)

    def test_what_cannot_be_attached_is_refused(self) -> None:
        twice = torch.nn.Linear(3, 3)
        with pytest.raises(ValueError, match="'0' and '1', names of one"):
            attach_vcreg(torch.nn.Sequential(twice, twice), ["0", "1"], **WEIGHTS)
        with pytest.raises(ValueError, match="'layer'"):
            attach_vcreg(self.model(), ["layer"], **WEIGHTS)
        with pytest.raises(ValueError, match="different names"):
            attach_vcreg(self.model(), [], **WEIGHTS)
        with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
            attach_vcreg(3, ["1"], **WEIGHTS)
        with pytest.raises(TypeError, match="names of submodules"):
            attach_vcreg(self.model(), [1], **WEIGHTS)
        model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
        with attach_vcreg(model, "0", **WEIGHTS), pytest.raises(TypeError, match="one tensor"):
            model(torch.ones(5, 2, 3))
