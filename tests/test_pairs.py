"""The invariance over chosen pairs of views, `pairs`."""

from __future__ import annotations

import itertools
from typing import Any

import definition
import numpy as np
import pytest
import ranks
from backends import Backend
from errors import largest_error, rounding
from one_graph import in_one_graph

from vicreg import vicreg_loss, vicreg_terms, vicreg_value_and_grad
from vicreg.tools.verification.paths import PATHS, Path

#: Of four views one is in both pairs, as the second and, in order, as the first; one is in none.
PAIRS = [(0, 1), (2, 1)]
SHAPE = (5, 2, 3)  # with positions
WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")


def drawn(shape: tuple[int, ...] = SHAPE, views: int = 4) -> list[np.ndarray]:
    return list(np.random.default_rng(views).standard_normal((views, *shape)))


def truth(views: list[np.ndarray], weights: tuple[float, ...] = (25.0, 25.0, 1.0)) -> list:
    return definition.gradients(lambda v: definition.loss(v, weights=weights, pairs=PAIRS), views)


def test_value_terms_and_gradients(xp: Backend) -> None:
    views = drawn()
    terms, gradients = vicreg_value_and_grad(*map(xp.asarray, views), pairs=PAIRS, terms=True)
    bound = rounding(xp.dtypes[0], SHAPE[0], SHAPE[-1])
    for term, wanted in zip(terms[1:], definition.terms(views, "official", 1, PAIRS), strict=True):
        assert largest_error(xp.numpy(term), wanted) <= bound
    assert largest_error(xp.numpy(terms.loss), definition.loss(views, pairs=PAIRS)) <= bound
    for gradient, wanted in zip(gradients, truth(views), strict=True):
        assert largest_error(xp.numpy(gradient), wanted) <= bound


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_each_path_and_each_term_alone(library: str, path: Path) -> None:
    """With the invariance alone the view in no pair has a gradient of 0."""
    asarray: Any = np.array if library == "numpy" else pytest.importorskip("torch").tensor
    views = drawn()
    for weights in [(1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (1.0, 2.0, 3.0)]:
        given = [asarray(view) for view in views]
        settings = dict(zip(WEIGHTS, weights, strict=True)) | {"pairs": PAIRS}
        loss, gradients = path.vicreg_value_and_grad(*given, **settings)
        bound = rounding("float64", SHAPE[0], SHAPE[-1])
        wanted = definition.loss(views, weights=weights, pairs=PAIRS)
        assert largest_error(np.asarray(loss), wanted) <= bound
        for gradient, right in zip(gradients, truth(views, weights), strict=True):
            assert largest_error(np.asarray(gradient), right) <= bound


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_pytorch_goes_back_to_a_view_that_nothing_depends_on(path: Path) -> None:
    """By the invariance alone, of a view in no pair: its gradient is 0, in each backward pass."""
    torch = pytest.importorskip("torch")
    views = [torch.tensor(view, requires_grad=True) for view in drawn()]
    settings = dict(zip(WEIGHTS, (1.0, 0.0, 0.0), strict=True)) | {"pairs": PAIRS}
    loss = path.vicreg_loss(*views, **settings)
    for _ in range(2):
        gradients = torch.autograd.grad(loss, views, retain_graph=True)
        assert not gradients[3].any()
        for gradient, right in zip(gradients, truth(drawn(), (1.0, 0.0, 0.0)), strict=True):
            bound = rounding("float64", SHAPE[0], SHAPE[-1])
            assert largest_error(gradient.numpy(), right) <= bound


def test_one_pair_of_two_views_is_what_there_is_without() -> None:
    """To the last bit, and in either order."""
    views = drawn(views=2)
    loss, gradients = vicreg_value_and_grad(*views)
    for pairs in [[(0, 1)], ((1, 0),), [[np.int64(1), 0]]]:
        own, of_own = vicreg_value_and_grad(*views, pairs=pairs)
        assert own == loss
        assert all(map(np.array_equal, of_own, gradients))


def test_all_pairs_are_what_there_is_without() -> None:
    views = drawn()
    pairs = list(itertools.combinations(range(4), 2))
    loss, gradients = vicreg_value_and_grad(*views)
    own, of_own = vicreg_value_and_grad(*views, pairs=pairs)
    bound = rounding("float64", SHAPE[0], SHAPE[-1])
    assert largest_error(own, loss) <= bound
    for gradient, right in zip(of_own, gradients, strict=True):
        assert largest_error(gradient, right) <= bound


def test_with_weights_of_samples() -> None:
    """A weight of 0 leaves a sample out, and one of 2 repeats it."""
    views = drawn((7, 4))
    times = np.asarray([1, 0, 2, 1, 1, 0, 3])
    repeated = [np.repeat(view, times, axis=0) for view in views]
    for view in views:
        view[times == 0] = np.nan
    loss, gradients = vicreg_value_and_grad(*views, pairs=PAIRS, sample_weight=times)
    bound = rounding("float64", int(times.sum()), 4)
    assert largest_error(loss, definition.loss(repeated, pairs=PAIRS)) <= bound
    for gradient, right in zip(gradients, truth(repeated), strict=True):
        summed = np.add.reduceat(right, (np.cumsum(times) - times)[times > 0], axis=0)
        assert largest_error(gradient[times > 0], summed) <= bound
        assert not gradient[times == 0].any()


@pytest.mark.parametrize("shape", [(6,), (30,)], ids=["summed", "gathered"])
def test_ranks_together_are_one_batch(shape: tuple[int, ...]) -> None:
    rows = ranks.UNEVEN
    whole = ranks.whole(rows, shape, views=4)
    loss, gradients = vicreg_value_and_grad(*whole, pairs=PAIRS)

    def of_rank(comm: ranks.Thread) -> Any:
        own = ranks.own(whole, rows, comm.rank)
        return vicreg_value_and_grad(*own, pairs=PAIRS, comm=comm)

    bound = rounding("float64", sum(rows), shape[0])
    for rank, (own, of_own) in enumerate(ranks.on_threads(len(rows), of_rank)):
        assert largest_error(own, loss) <= bound
        for gradient, right in zip(of_own, ranks.own(gradients, rows, rank), strict=True):
            assert np.abs(gradient - right).max() <= bound * max(
                np.abs(g).max() for g in gradients
            )


def test_ranks_whose_pairs_differ() -> None:
    def of_rank(comm: ranks.Thread) -> Any:
        return vicreg_loss(*drawn(), pairs=[(0, 1 + comm.rank)], comm=comm)

    for error in ranks.on_threads(2, of_rank):
        assert isinstance(error, ValueError)
        assert "pairs must be the same on every rank of comm" in str(error)
        assert "((0, 2),) on rank 1" in str(error)


@pytest.mark.parametrize("path", [PATHS[0], PATHS[3]], ids=str)
def test_pytorch_differentiates_each_term_twice(path: Path) -> None:
    """As stacked views and one by one, with a view that has no gradient."""
    torch = pytest.importorskip("torch")
    arrays = drawn((3, 2))
    views = [torch.tensor(view, requires_grad=place != 2) for place, view in enumerate(arrays)]

    def terms(*views: Any) -> tuple:
        return tuple(path.vicreg_terms(*views, pairs=PAIRS))[1:]

    assert torch.autograd.gradcheck(terms, views)
    assert torch.autograd.gradgradcheck(terms, views)
    wanted = definition.terms(arrays, "official", 1, PAIRS)
    for term, right in zip(terms(*views), wanted, strict=True):
        assert largest_error(term.item(), right) <= rounding("float64", 3, 2)


def test_jax_differentiates_it_as_it_is_compiled() -> None:
    jax = pytest.importorskip("jax")
    views = drawn((5, 3))

    def of_terms(*views: Any) -> Any:
        terms = vicreg_terms(*views, pairs=PAIRS)
        return 25.0 * terms.invariance + 25.0 * terms.variance + terms.covariance

    gradients = jax.jit(jax.grad(of_terms, (0, 1, 2, 3)))(*views)
    for gradient, right in zip(gradients, truth(views), strict=True):
        assert largest_error(np.asarray(gradient), right) <= rounding("float64", 5, 3)


def test_mlx_differentiates_it() -> None:
    mx = pytest.importorskip("mlx.core")
    views = drawn((5, 3))
    given = [mx.array(view.astype(np.float32)) for view in views]
    gradients = mx.grad(lambda *v: vicreg_loss(*v, pairs=PAIRS), (0, 1, 2, 3))(*given)
    for gradient, right in zip(gradients, truth(views), strict=True):
        assert largest_error(np.asarray(gradient), right) <= rounding("float32", 5, 3)


@pytest.mark.long
def test_compiled_by_pytorch_as_one_graph() -> None:
    torch = pytest.importorskip("torch")
    views = [torch.tensor(view, requires_grad=True) for view in drawn()]
    loss = in_one_graph(vicreg_loss, backend="aot_eager")(*views, pairs=PAIRS)
    loss.backward()
    for view, right in zip(views, truth(drawn()), strict=True):
        assert largest_error(view.grad.numpy(), right) <= rounding("float64", SHAPE[0], SHAPE[-1])


def test_the_module() -> None:
    torch = pytest.importorskip("torch")
    from vicreg.torch import VICRegLoss

    views = [torch.tensor(view) for view in drawn()]
    criterion = VICRegLoss(pairs=PAIRS)
    assert torch.equal(criterion(*views), vicreg_loss(*views, pairs=PAIRS))
    assert criterion.terms(*views).loss == criterion(*views)
    assert "pairs=[(0, 1), (2, 1)]" in repr(criterion)
    with pytest.raises(ValueError, match="different views"):
        VICRegLoss(pairs=[(1, 1)])
    with pytest.raises(ValueError, match="from 0 to 1, since there are 2 views"):
        criterion(*views[:2])


BAD = {
    "no sequence": (3, TypeError, "pairs must be a list or a tuple of pairs of indices; got 3"),
    "no list": (iter([]), TypeError, "pairs must be a list or a tuple of pairs of indices"),
    "one pair": ((0, 1), TypeError, r"pairs must be of two indices each, as \(0, 1\); got 0"),
    "three": ([(0, 1, 2)], TypeError, r"of two indices each, as \(0, 1\); got \(0, 1, 2\)"),
    "a fraction": ([(0, 1.0)], TypeError, r"of two indices each, as \(0, 1\); got \(0, 1.0\)"),
    "a boolean": ([(0, True)], TypeError, r"of two indices each, as \(0, 1\); got \(0, True\)"),
    "a word": (["01"], TypeError, r"of two indices each, as \(0, 1\); got '01'"),
    "none": ([], ValueError, "pairs must be one pair of views or more, or None for all; got none"),
    "itself": ([(1, 1)], ValueError, r"pairs must be of two different views; got \(1, 1\)"),
    "twice": ([(0, 1), (0, 1)], ValueError, r"once, in either order; got \(0, 1\) twice"),
    "both ways": ([(0, 1), (1, 0)], ValueError, r"once, in either order; got \(0, 1\) twice"),
    "beyond": (
        [(0, 1), (0, 4)],
        ValueError,
        r"indices from 0 to 3, since there are 4 views; got \(0, 4\)",
    ),
    "from the end": ([(0, -1)], ValueError, "indices from 0 to 3, since there are 4 views"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [vicreg_loss, vicreg_terms, vicreg_value_and_grad])
def test_bad_input(function: Any, name: str) -> None:
    pairs, error, message = BAD[name]
    with pytest.raises(error, match=message):
        function(*drawn(), pairs=pairs)


def test_a_convention_without_an_invariance() -> None:
    weights = {"variance_weight": 1.0, "covariance_weight": 1.0}
    with pytest.raises(ValueError, match="pairs must be None: convention 'vcreg' has no invar"):
        vicreg_loss(*drawn(), convention="vcreg", pairs=PAIRS, **weights)
