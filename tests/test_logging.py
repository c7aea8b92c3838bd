"""The terms and a diagnosis as numbers for loggers, and the terms beside the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ranks
from backends import Backend
from errors import UNIT_ROUNDOFF

from vicreg import VICRegTerms, diagnose, vicreg_terms, vicreg_value_and_grad
from vicreg._core import engine

RNG = np.random.default_rng(0)
VIEWS = RNG.standard_normal((2, 12, 5))
WEIGHTS = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 0.5}


def views_of(xp: Backend) -> list[Any]:
    return [xp.asarray(view) for view in VIEWS]


def same(xp: Backend, left: Any, right: Any) -> None:
    np.testing.assert_array_equal(xp.numpy(left), xp.numpy(right))


#: Two orders of a sum over the samples differ by at most this, in units of rounding.
SUMS = 2 * len(VIEWS[0])


@pytest.mark.parametrize("convention", ["official", "article"])
def test_terms_beside_the_gradients(xp: Backend, convention: str) -> None:
    views, settings = views_of(xp), {"convention": convention, **WEIGHTS}
    terms, gradients = vicreg_value_and_grad(*views, **settings, terms=True)
    loss, wanted = vicreg_value_and_grad(*views, **settings)
    assert isinstance(terms, VICRegTerms)
    same(xp, terms.loss, loss)
    for gradient, other in zip(gradients, wanted, strict=True):
        same(xp, gradient, other)
    tolerance = SUMS * UNIT_ROUNDOFF[xp.dtypes[0]]
    for term, other in zip(terms, vicreg_terms(*views, **settings), strict=True):
        np.testing.assert_allclose(xp.numpy(term), xp.numpy(other), rtol=tolerance)


def test_a_term_of_weight_0_is_a_term_without_a_gradient(xp: Backend) -> None:
    views, settings = views_of(xp), WEIGHTS | {"variance_weight": 0.0}
    terms, gradients = vicreg_value_and_grad(*views, **settings, terms=True)
    _, wanted = vicreg_value_and_grad(*views, **settings)
    assert float(xp.numpy(terms.variance)) > 0
    for gradient, other in zip(gradients, wanted, strict=True):
        same(xp, gradient, other)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[dict[str, int]]:
    """Count how often the engine does each of these."""
    calls = dict.fromkeys(names, 0)

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            calls[name] += 1
            return function(*args, **settings)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(engine, name, counting(name, getattr(engine, name)))
        yield calls


PASSES = ("_forward", "_gradient", "weighted_sum")


def test_terms_take_no_second_pass(xp: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if xp.name == "jax":
        pytest.skip("compiled before: what it computes is in test_jax_computes_the_same_products")
    views = views_of(xp)
    counts = []
    for terms in (False, True):
        with counted(monkeypatch, *PASSES) as calls:
            vicreg_value_and_grad(*views, **WEIGHTS, terms=terms)
        counts.append(calls)
    assert counts[0] == counts[1]
    assert counts[0] == dict.fromkeys(PASSES, 1)


def test_jax_computes_the_same_products() -> None:
    jax = pytest.importorskip("jax")

    def products(terms: bool) -> int:
        function = jax.jit(lambda z1, z2: vicreg_value_and_grad(z1, z2, terms=terms))
        return str(jax.make_jaxpr(function)(*map(jax.numpy.asarray, VIEWS))).count("dot_general")

    assert products(True) == products(False) > 0


@pytest.mark.long_on("mlx")
def test_terms_of_a_compiled_function(xp: Backend) -> None:
    if not xp.tools_backend.compiles or xp.name == "torch":
        pytest.skip("torch.compile is in test_torch_compiles_the_terms")
    views = views_of(xp)

    def function(z1: Any, z2: Any) -> Any:
        terms, gradients = vicreg_value_and_grad(z1, z2, terms=True)
        return (*terms, *gradients)

    terms, gradients = vicreg_value_and_grad(*views, terms=True)
    got = xp.tools_backend.compiled(function)(*views)
    tolerance = SUMS * UNIT_ROUNDOFF[xp.dtypes[0]]
    for one, other in zip(got, (*terms, *gradients), strict=True):
        np.testing.assert_allclose(xp.numpy(one), xp.numpy(other), rtol=tolerance, atol=tolerance)


@pytest.mark.long
def test_torch_compiles_the_terms() -> None:
    torch = pytest.importorskip("torch")
    views = [torch.asarray(view) for view in VIEWS]
    function = torch.compile(
        lambda z1, z2: vicreg_value_and_grad(z1, z2, terms=True),
        backend="aot_eager",
        fullgraph=True,
    )
    terms, gradients = function(*views)
    wanted, others = vicreg_value_and_grad(*views, terms=True)
    torch.testing.assert_close((*terms, *gradients), (*wanted, *others))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("features", [40, 5])
def test_terms_of_a_batch_over_ranks(library: str, features: int) -> None:
    module = pytest.importorskip(library)
    whole = [module.asarray(view) for view in ranks.whole((5, 2, 9), (features,))]

    def of_rank(comm: ranks.Thread) -> Any:
        own = ranks.own(whole, (5, 2, 9), comm.rank)
        return vicreg_value_and_grad(*own, comm=comm, terms=True)

    wanted, (gradient, _) = vicreg_value_and_grad(*whole, terms=True)
    by_rank = ranks.on_threads(3, of_rank)
    for terms, _ in by_rank:
        np.testing.assert_allclose(terms, wanted, rtol=1e-12)
    got = np.concatenate([np.asarray(of_first) for _, (of_first, _) in by_rank])
    np.testing.assert_allclose(got, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.representative
def test_terms_as_floats(xp: Backend) -> None:
    terms = vicreg_terms(*views_of(xp))
    scalars = terms.scalars("train/")
    assert list(scalars) == [f"train/{name}" for name in VICRegTerms._fields]
    assert all(type(value) is float for value in scalars.values())
    assert list(scalars.values()) == [float(xp.numpy(term)) for term in terms]


def test_floats_of_differentiable_terms_go_with_a_backward_pass() -> None:
    torch = pytest.importorskip("torch")
    view = torch.asarray(VIEWS[0]).requires_grad_()
    terms = vicreg_terms(view, torch.asarray(VIEWS[1]))
    assert terms.scalars()["loss"] == terms.loss.item()  # and no warning
    terms.loss.backward()
    _, (wanted, _) = vicreg_value_and_grad(view.detach(), torch.asarray(VIEWS[1]))
    torch.testing.assert_close(view.grad, wanted)


@pytest.mark.parametrize("other", [False, True])
def test_a_diagnosis_as_numbers(xp: Backend, other: bool) -> None:
    if not hasattr(xp.xp, "linalg"):
        pytest.skip(f"{xp} has no linalg extension")
    z, second = views_of(xp)
    diagnosis = diagnose(z, other=second if other else None)
    scalars = diagnosis.scalars("projector/")
    assert scalars.pop("projector/collapsed") == 0
    assert ("projector/invariance" in scalars) == other
    for name, value in scalars.items():
        assert value == float(xp.numpy(getattr(diagnosis, name.removeprefix("projector/"))))
        assert type(value) is (int if name == "projector/dead_features" else float)


@pytest.mark.parametrize("terms", ["yes", 1, None])
def test_terms_is_true_or_false(terms: Any) -> None:
    with pytest.raises(TypeError, match="terms must be True or False; got"):
        vicreg_value_and_grad(*VIEWS, terms=terms)
