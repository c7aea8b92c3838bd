"""The paths that only large views take, on small ones: each gives what the others give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from backends import Backend, forget_what_was_traced
from errors import largest_error, rounding

from vicreg import vicreg_terms, vicreg_value_and_grad
from vicreg.core import blocks, covariance, layout

SHAPES = [(13, 21), (21, 13), (9, 2, 16)]


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each view by itself and in blocks, products in strips, the largest found in short runs."""
    forget_what_was_traced()
    monkeypatch.setattr(layout, "_LARGE", 0)
    monkeypatch.setattr(blocks, "_LENGTH", 3)
    monkeypatch.setattr(blocks, "_ELEMENTS", 30)
    monkeypatch.setattr(covariance, "_STRIP_ROWS", 3)
    monkeypatch.setattr(covariance, "_RUN", covariance.KEPT_APART)
    yield
    forget_what_was_traced()


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("as_if_large")
def test_large_views_take_another_path_to_the_same_numbers(
    xp: Backend, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], method: str, views: int
) -> None:
    arrays = list(np.random.default_rng(0).standard_normal((views, *shape)))
    arrays[0][..., 3] *= 100
    given = [xp.asarray(array) for array in arrays]
    loss, gradients = vicreg_value_and_grad(*given, method=method)
    for array, view in zip(arrays, given, strict=True):
        assert np.array_equal(xp.numpy(view), array.astype(xp.dtypes[0]))  # left as they were

    monkeypatch.undo()
    wanted, right = vicreg_value_and_grad(*arrays, method="covariance")
    bound = 4 * rounding(xp.dtypes[0], shape[0], shape[-1])
    assert largest_error(xp.numpy(loss), wanted) <= bound
    for gradient, truth in zip(gradients, right, strict=True):
        assert largest_error(xp.numpy(gradient), truth) <= bound


@pytest.mark.usefixtures("as_if_large")
@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_pytorch_differentiates_it_twice_and_keeps_no_large_array(method: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.autograd import gradcheck, gradgradcheck

    from vicreg import vicreg_loss

    a, b = torch.randn(2, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair = a.requires_grad_(), b.requires_grad_()

    def loss(x, y):
        return vicreg_loss(x, y, method=method)

    assert gradcheck(loss, pair, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, pair)
    value = loss(*pair)
    first = torch.autograd.grad(value, pair, retain_graph=True)
    again = torch.autograd.grad(value, pair)  # nothing that was saved has been written to
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert first[0].untyped_storage().data_ptr() != first[1].untyped_storage().data_ptr()


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", [(1023, 257), (1024, 256), (1100, 1200)], ids=str)
def test_pytorch_gives_the_gradient_of_any_terms_at_any_size(
    shape: tuple[int, int], views: int
) -> None:
    """On both sides of the sizes from which the views are worked on in blocks."""
    torch = pytest.importorskip("torch")
    arrays = np.random.default_rng(0).standard_normal((views, *shape))
    given = [torch.tensor(array, requires_grad=place != 1) for place, array in enumerate(arrays)]
    chosen = [view for view in given if view.requires_grad]
    terms = vicreg_terms(*given)[1:]
    alone = [torch.autograd.grad(term, chosen, retain_graph=True) for term in terms]
    weights = dict.fromkeys(("invariance_weight", "variance_weight", "covariance_weight"), 0.0)
    for term, name, gradients in zip(terms, weights, alone, strict=True):
        _, truth = vicreg_value_and_grad(*arrays, **weights | {name: 1.0}, method="covariance")
        right = [truth[place] for place in range(views) if place != 1]
        for gradient, wanted in zip(gradients, right, strict=True):
            error = largest_error(gradient.numpy(), wanted)
            assert error <= 4 * rounding("float64", *shape), (name, float(term))
    for pair in ((0, 1), (0, 2), (1, 2), (0, 1, 2)):
        of_sum = torch.autograd.grad(sum(terms[i] for i in pair), chosen, retain_graph=True)
        for place, gradient in enumerate(of_sum):
            wanted = sum(alone[i][place] for i in pair)
            assert largest_error(gradient.numpy(), wanted.numpy()) <= 4 * rounding("float64", 1, 1)


def test_gradients_of_small_views_share_no_memory() -> None:
    views = np.random.default_rng(0).standard_normal((2, 5, 7))
    _, (first, second) = vicreg_value_and_grad(*views)
    assert first.base is None
    assert second.base is None
