"""The ways that large views take through the core, on small ones: each gives what the others do.

Values and gradients of the loss, of each term alone and of each pair of terms, on every library.
"""

from __future__ import annotations

import functools
import itertools
import tracemalloc

import definition
import numpy as np
import pytest
from backends import Backend
from errors import largest_error, rounding

from vicreg import vicreg_terms, vicreg_value_and_grad
from vicreg._core.sizes import DEFAULT_SIZES
from vicreg._core.terms.covariance import uses_gram
from vicreg.tools.verification.paths import PATHS, Path

#: Each route with as many features as it is taken for and with positions, of 2 and of 3 views; the
#: other combinations, which nothing but a product's shape tells apart, are long.
CASES = [
    pytest.param((9, 14), "gram", 2, marks=pytest.mark.representative),
    ((9, 14), "gram", 3),
    ((14, 9), "covariance", 3),
    ((7, 2, 10), "gram", 3),
    ((7, 2, 10), "covariance", 2),
    pytest.param((14, 9), "covariance", 2, marks=pytest.mark.long),
    pytest.param((7, 2, 10), "gram", 2, marks=pytest.mark.long),
    pytest.param((7, 2, 10), "covariance", 3, marks=pytest.mark.long),
    pytest.param((9, 14), "covariance", 2, marks=pytest.mark.long),
    pytest.param((14, 9), "gram", 3, marks=pytest.mark.long),
]
WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")

#: The loss, each term alone, and each pair of them.
CHOICES = [choice for choice in itertools.product((0.0, 1.0), repeat=3) if any(choice)]


#: Libraries that compile, or build, each choice of settings anew.
COMPILED = ("jax", "ndonnx")

#: Weights that leave out what the others need: each term alone, and the two of one view.
LEFT_OUT = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0)]


@pytest.fixture(params=PATHS, ids=str)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def draw(shape: tuple[int, ...], views: int) -> list[np.ndarray]:
    """Return views with one feature 100 times as large, and stds on both sides of the hinge."""
    arrays = np.random.default_rng(0).standard_normal((views, *shape))
    arrays *= np.linspace(0.5, 1.5, shape[-1])
    arrays[..., 3] *= 100
    return list(arrays)


@pytest.mark.parametrize(
    ("shape", "is_gram"),
    [
        ((64, 64), False),  # n d² is 2¹⁸, the most of a small view
        ((65, 65), True),  # as many samples as features
        ((66, 65), False),
        ((40, 64), False),
        ((2, 40, 64), True),  # positions count
    ],
)
def test_the_route_is_chosen_by_shape_alone(shape: tuple[int, ...], is_gram: bool) -> None:
    assert uses_gram("auto", shape, DEFAULT_SIZES) == is_gram


@pytest.mark.long_on("ndonnx")
@pytest.mark.parametrize(("shape", "method", "views"), CASES)
def test_each_path_gives_the_definition(
    xp: Backend, path: Path, shape: tuple[int, ...], method: str, views: int
) -> None:
    arrays = draw(shape, views)
    given = [xp.asarray(array) for array in arrays]
    # Where each choice is compiled, or built: all in one. JAX has each in test_jax.
    for weights in [(1.0, 1.0, 1.0)] if xp.name in COMPILED else CHOICES:
        settings = dict(zip(WEIGHTS, weights, strict=True)) | {"method": method}
        loss, gradients = path.vicreg_value_and_grad(*given, **settings)
        wanted = definition.loss(arrays, weights=weights)
        right = truth(shape, views, weights)
        bound = 4 * rounding(xp.dtypes[0], shape[0], shape[-1])
        assert largest_error(xp.numpy(loss), wanted) <= bound, weights
        assert largest_error(xp.numpy(path.vicreg_loss(*given, **settings)), wanted) <= bound
        for gradient, of_view in zip(gradients, right, strict=True):
            assert largest_error(xp.numpy(gradient), of_view) <= bound, weights
    for array, view in zip(arrays, given, strict=True):
        assert np.array_equal(xp.numpy(view), array.astype(xp.dtypes[0]))  # left as they were


@functools.cache
def truth(shape: tuple[int, ...], views: int, weights: tuple[float, ...]) -> list[np.ndarray]:
    """Return the gradients of the definition."""
    return definition.gradients(
        lambda given: definition.loss(given, weights=weights), draw(shape, views)
    )


def combined(shape: tuple[int, ...], views: int, choice: tuple[float, ...]) -> list[np.ndarray]:
    """Return the gradients of the chosen terms together, each alone by the definition."""
    alone = [truth(shape, views, tuple(map(float, row))) for row in np.eye(3)]
    return [
        sum(c * of_term[v] for c, of_term in zip(choice, alone, strict=True)) for v in range(views)
    ]


def check(got: list, right: list[np.ndarray], shape: tuple[int, ...], what: object) -> None:
    bound = 4 * rounding("float64", shape[0], shape[-1])
    for gradient, wanted in zip(got, right, strict=True):
        assert largest_error(np.asarray(gradient), wanted) <= bound, what


def subsets(views: int) -> list[list[int]]:
    """Return the views that require a gradient: every one, and every choice that leaves some."""
    places = range(views)
    return [list(some) for size in places for some in itertools.combinations(places, size + 1)]


@pytest.mark.parametrize(("shape", "method", "views"), CASES)
class TestPyTorch:
    """Each Function, with cotangents of any of the terms, for any of the views."""

    def test_gradients(self, path: Path, shape: tuple[int, ...], method: str, views: int) -> None:
        torch = pytest.importorskip("torch")
        for wanted in subsets(views):
            given = [torch.tensor(view) for view in draw(shape, views)]
            chosen = [given[place].requires_grad_() for place in wanted]
            terms = path.vicreg_terms(*given, method=method)[1:]
            for choice in CHOICES:
                right = combined(shape, views, choice)
                right = [right[place] for place in wanted]
                of_sum = sum(c * term for c, term in zip(choice, terms, strict=True) if c)
                for create_graph in (False, True):
                    got = torch.autograd.grad(
                        of_sum, chosen, retain_graph=True, create_graph=create_graph
                    )
                    check([g.detach() for g in got], right, shape, (wanted, choice))
                weights = dict(zip(WEIGHTS, choice, strict=True))
                loss = path.vicreg_loss(*given, method=method, **weights)
                for retain in (True, False):  # the first takes what was kept, the second forms it
                    got = torch.autograd.grad(3 * loss, chosen, retain_graph=retain)
                    check([g / 3 for g in got], right, shape, (wanted, choice))

    def test_transformations(
        self, path: Path, shape: tuple[int, ...], method: str, views: int
    ) -> None:
        torch = pytest.importorskip("torch")
        given = tuple(torch.tensor(view) for view in draw(shape, views))
        along = tuple(torch.tensor(view[::-1].copy()) for view in draw(shape, views))

        def terms(*views):
            return path.vicreg_terms(*views, method=method)[1:]

        _, vjp = torch.func.vjp(terms, *given)
        for choice in CHOICES:
            got = vjp(tuple(torch.tensor(c, dtype=torch.float64) for c in choice))
            check(got, combined(shape, views, choice), shape, choice)
        _, changes = torch.func.jvp(terms, given, along)
        for change, row in zip(changes, np.eye(3), strict=True):
            right = combined(shape, views, tuple(row))
            parts = [g * a.numpy() for g, a in zip(right, along, strict=True)]
            sizes = sum(float(np.sum(np.abs(part))) for part in parts)
            error = abs(float(change) - sum(float(np.sum(part)) for part in parts))
            assert error <= 4 * rounding("float64", shape[0], shape[-1]) * sizes


@pytest.mark.parametrize(("shape", "method", "views"), CASES)
def test_jax(path: Path, shape: tuple[int, ...], method: str, views: int) -> None:
    """Compiled once: each term forwards and backwards, and the loss where terms are left out."""
    jax = pytest.importorskip("jax")
    given = draw(shape, views)

    @jax.jit
    def everything(*views):
        every = tuple(range(len(views)))
        _, vjp = jax.vjp(lambda *v: path.vicreg_terms(*v, method=method)[1:], *views)
        of_losses = []
        for choice in LEFT_OUT:
            settings = dict(zip(WEIGHTS, choice, strict=True)) | {"method": method}
            grad = jax.grad(lambda *v, s=settings: path.vicreg_loss(*v, **s), argnums=every)
            of_losses += [grad(*views), path.vicreg_value_and_grad(*views, **settings)[1]]
        return [vjp(tuple(map(jax.numpy.asarray, choice))) for choice in CHOICES], of_losses

    of_terms, of_losses = everything(*map(jax.numpy.asarray, given))
    for got, choice in zip(of_terms, CHOICES, strict=True):
        check(got, combined(shape, views, choice), shape, choice)
    for got, choice in zip(of_losses, np.repeat(LEFT_OUT, 2, axis=0), strict=True):
        check(got, combined(shape, views, tuple(choice)), shape, choice)


@pytest.mark.parametrize(("shape", "method", "views"), CASES)
def test_mlx(path: Path, shape: tuple[int, ...], method: str, views: int) -> None:
    mx = pytest.importorskip("mlx.core")
    given = [mx.array(view, dtype=mx.float64) for view in draw(shape, views)]

    def terms(*views):
        return list(path.vicreg_terms(*views, method=method)[1:])

    for choice in CHOICES:
        _, got = mx.vjp(terms, given, [mx.array(c, dtype=mx.float64) for c in choice])
        check(got, combined(shape, views, choice), shape, choice)
        weights = dict(zip(WEIGHTS, choice, strict=True))
        got = mx.grad(
            lambda *v, w=weights: path.vicreg_loss(*v, method=method, **w),
            argnums=list(range(views)),
        )(*given)
        check(got, combined(shape, views, choice), shape, choice)


@pytest.mark.long_on("jax")
def test_each_path_gives_what_was_published(
    xp: Backend, path: Path, published: list[dict]
) -> None:
    """Every convention, by both routes; what has to be compiled by the route it is taken for."""
    compiled = xp.name in COMPILED
    for case in published[: 2 if compiled else None]:
        views = [xp.asarray(case[name]) for name in ("z1", "z2")]
        bound = 1e-12 if xp.dtypes[0] == "float64" else 1e-5  # what the data are given to
        for source, method in itertools.product(case["published"], ("gram", "covariance")):
            if compiled and (method == "gram") != (case["shape"][0] <= case["shape"][-1]):
                continue
            settings = dict(zip(WEIGHTS, source["weights"], strict=True)) | {"method": method}
            settings["convention"] = source["convention"]
            loss, gradients = path.vicreg_value_and_grad(*views, **settings)
            where = f"{case['name']}, {source['source']}, {method}"
            assert largest_error(xp.numpy(loss), source["loss"]) <= bound, where
            for gradient, wanted in zip(gradients, ("grad1", "grad2"), strict=True):
                assert largest_error(xp.numpy(gradient), source[wanted]) <= bound, where


@pytest.mark.parametrize("sample_axis", [None, 0])
@pytest.mark.parametrize("delta", [None, 0.2], ids=["square", "smooth L1"])
def test_vcreg_by_each_path(
    xp: Backend, path: Path, delta: float | None, sample_axis: int | None
) -> None:
    (z,) = draw((5, 2, 11), 1)
    settings = {"variance_weight": 2.0, "covariance_weight": 3.0, "sample_axis": sample_axis}
    if delta is not None:
        settings |= {"penalty": "smooth_l1", "delta": delta}

    def of(views: list[np.ndarray]) -> complex:
        pooled = sample_axis is None
        return definition.vcreg(views[0], (2.0, 3.0), delta=delta, pooled=pooled)

    given = xp.asarray(z)
    loss, gradient = path.vcreg_value_and_grad(given, **settings)
    bound = 4 * rounding(xp.dtypes[0], 10, 11)
    assert largest_error(xp.numpy(loss), of([z])) <= bound
    assert largest_error(xp.numpy(path.vcreg_loss(given, **settings)), of([z])) <= bound
    assert largest_error(xp.numpy(gradient), definition.gradients(of, [z])[0]) <= bound


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_pytorch_differentiates_it_twice_and_keeps_no_large_array(path: Path, method: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.autograd import gradcheck, gradgradcheck

    a, b = torch.randn(2, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair = a.requires_grad_(), b.requires_grad_()

    def loss(x, y):
        return path.vicreg_loss(x, y, method=method)

    assert gradcheck(loss, pair, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, pair)
    value = loss(*pair)
    first = torch.autograd.grad(value, pair, retain_graph=True)
    again = torch.autograd.grad(value, pair)  # nothing that was saved has been written to
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    if path.sizes.stacked == 0:  # each view's by itself
        assert first[0].untyped_storage().data_ptr() != first[1].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("shape", "count", "most"),
    [((8192, 64), 2, 3.2), ((8192, 64), 4, 7), ((1024, 8, 64), 2, 3.5)],
    ids=str,
)
def test_large_views_leave_little_in_memory(
    shape: tuple[int, ...], count: int, most: float
) -> None:
    """The gradients, and what one view needs; no stack, and nothing as large between the views."""
    views = list(np.random.default_rng(0).standard_normal((count, *shape)))
    vicreg_value_and_grad(*views)
    tracemalloc.start()
    try:
        vicreg_value_and_grad(*views)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * views[0].nbytes


def test_gradients_of_small_views_share_no_memory() -> None:
    views = np.random.default_rng(0).standard_normal((2, 5, 7))
    _, (first, second) = vicreg_value_and_grad(*views)
    assert first.base is None
    assert second.base is None


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", [(1023, 257), (1024, 256), (1100, 1200)], ids=str)
def test_pytorch_gives_the_gradient_of_any_terms_at_any_size(
    shape: tuple[int, int], views: int
) -> None:
    """On both sides of the sizes from which the views are worked on in blocks, as they come."""
    torch = pytest.importorskip("torch")
    arrays = np.random.default_rng(0).standard_normal((views, *shape))
    given = [torch.tensor(array, requires_grad=place != 1) for place, array in enumerate(arrays)]
    chosen = [view for view in given if view.requires_grad]
    terms = vicreg_terms(*given)[1:]
    alone = [torch.autograd.grad(term, chosen, retain_graph=True) for term in terms]
    bound = 4 * rounding("float64", *shape)
    for term, gradients in enumerate(alone):
        weights = dict(zip(WEIGHTS, np.eye(3)[term].tolist(), strict=True))
        _, truth = vicreg_value_and_grad(*arrays, **weights, method="covariance")
        right = [truth[place] for place in range(views) if place != 1]
        for gradient, wanted in zip(gradients, right, strict=True):
            assert largest_error(gradient.numpy(), wanted) <= bound, term
    for pair in ((0, 1), (0, 2), (1, 2), (0, 1, 2)):
        of_sum = torch.autograd.grad(sum(terms[i] for i in pair), chosen, retain_graph=True)
        for place, gradient in enumerate(of_sum):
            wanted = sum(alone[i][place] for i in pair)
            assert largest_error(gradient.numpy(), wanted.numpy()) <= bound, pair
