"""MLX: gradients through its own transformations are the closed form."""

from __future__ import annotations

import numpy as np
import pytest
from errors import rounding

from vicreg import (
    variance_loss,
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.tools.verification.paths import Path

mx = pytest.importorskip("mlx.core")

N, D = 5, 11


@pytest.fixture
def views() -> list:
    rng = np.random.default_rng(0)
    return [mx.array(view, dtype=mx.float64) for view in 0.8 * rng.standard_normal((2, N, D))]


@pytest.fixture(params=["gram", "covariance"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def close(got, wanted, scale: float = 1.0) -> None:
    bound = scale * rounding("float64", N, D)
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.array(got), wanted, rtol=0, atol=bound * np.abs(wanted).max())


def test_value_and_grad(views, method: str) -> None:
    a, b = views
    wanted, gradients = vicreg_value_and_grad(*map(np.array, views), method=method)

    def loss(x, y):
        return vicreg_loss(x, y, method=method)

    value, got = mx.value_and_grad(loss, argnums=(0, 1))(a, b)
    close(value, wanted)
    for gradient, right in zip(got, gradients, strict=True):
        close(gradient, right)
    close(mx.grad(loss, argnums=1)(a, b), gradients[1])
    _, (change,) = mx.jvp(loss, [a, b], [b, a])
    close(change, np.sum(gradients[0] * np.array(b)) + np.sum(gradients[1] * np.array(a)), 8)


# MLX calls a compiler of C++ for each: seconds where everything else takes none.
@pytest.mark.parametrize("method", ["gram", pytest.param("covariance", marks=pytest.mark.long)])
def test_a_compiled_gradient(views, method: str) -> None:
    def gradient(x, y):
        return mx.grad(lambda x: vicreg_loss(x, y, method=method))(x)

    wanted = vicreg_value_and_grad(*map(np.array, views), method=method)[1][0]
    close(mx.compile(gradient)(*views), wanted)


def test_each_term(views, method: str) -> None:
    a, b = views

    def term(name):
        return mx.grad(lambda x: getattr(vicreg_terms(x, b, method=method), name))(a)

    whole = 25 * term("invariance") + 25 * term("variance") + term("covariance")
    close(term("loss"), np.array(whole))
    close(term("loss"), vicreg_value_and_grad(*map(np.array, views))[1][0])


def test_second_derivative(views, method: str) -> None:
    """Against a central difference of the closed form in NumPy's long double."""
    a, b = views
    x, y = (np.array(view).astype(np.longdouble) for view in views)

    def gradient(z):
        return vicreg_value_and_grad(z, y, method=method)[1][0]

    step = np.longdouble(1e-6)
    wanted = (gradient(x + step * y) - gradient(x - step * y)) / (2 * step)
    got = mx.grad(lambda z: (mx.grad(lambda w: vicreg_loss(w, b, method=method))(z) * b).sum())(a)
    # The difference is off by the third derivative times step²/6: about 1e-11 of the scale here.
    np.testing.assert_allclose(
        np.array(got), wanted.astype(float), rtol=0, atol=1e-9 * float(np.abs(wanted).max())
    )


def test_second_derivatives_agree_in_every_nesting(views, method: str) -> None:
    a, b = views

    def loss(z):
        return vicreg_loss(z, b, method=method)

    def change(z):
        return mx.jvp(loss, [z], [b])[1][0]

    reverse = mx.grad(lambda z: (mx.grad(loss)(z) * b).sum())(a)
    assert float(mx.abs(reverse).max()) > 0
    close(mx.jvp(mx.grad(loss), [a], [b])[1][0], np.array(reverse), 8)
    close(mx.grad(change)(a), np.array(reverse), 8)
    wanted = float((reverse * b).sum())
    scale = float(mx.abs(reverse * b).sum())
    got = float(mx.jvp(change, [a], [b])[1][0])
    assert abs(got - wanted) <= 8 * rounding("float64", N, D) * scale


def test_second_derivatives_of_a_single_term(views) -> None:
    a, b = views

    def loss(z):
        return variance_loss(0.3 * z)

    reverse = mx.grad(lambda z: (mx.grad(loss)(z) * b).sum())(a)
    assert float(mx.abs(reverse).max()) > 0
    close(mx.jvp(mx.grad(loss), [a], [b])[1][0], np.array(reverse), 8)


def test_vmap(views, method: str) -> None:
    a, b = views
    s, t = mx.stack([a, b]), mx.stack([b, a])

    def loss(x, y):
        return vicreg_loss(x, y, method=method)

    close(mx.vmap(loss)(s, t), [np.array(loss(a, b)), np.array(loss(b, a))])
    wanted = [np.array(mx.grad(loss)(a, b)), np.array(mx.grad(loss)(b, a))]
    close(mx.vmap(mx.grad(loss))(s, t), wanted)


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [
        ("square", (3, 11, 2)),
        ("smooth_l1", (3, 11, 2)),  # in blocks
        ("smooth_l1", (12, 5)),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("square", (5, 11)), ("square", (12, 5)), ("smooth_l1", (5, 11)))
        ),
    ],
    ids=str,
)
def test_vcreg(in_small_blocks: Path, shape: tuple[int, ...], penalty: str) -> None:
    """By its transformations, twice differentiated and over a batch."""
    settings = {"variance_weight": 2.0, "covariance_weight": 30.0, "penalty": penalty}
    settings |= {"feature_axis": 1}
    z, other = 0.8 * np.random.default_rng(0).standard_normal((2, *shape))
    a, b = mx.array(z, dtype=mx.float64), mx.array(other, dtype=mx.float64)

    def loss(x):
        return in_small_blocks.vcreg_loss(x, **settings)

    wanted, gradient = vcreg_value_and_grad(z, **settings)
    value, got = mx.value_and_grad(loss)(a)
    close(value, wanted)
    close(got, gradient)
    close(mx.jvp(loss, [a], [b])[1][0], np.sum(gradient * other), 8)
    reverse = mx.grad(lambda x: (mx.grad(loss)(x) * b).sum())(a)
    assert float(mx.abs(reverse).max()) > 0
    close(mx.jvp(mx.grad(loss), [a], [b])[1][0], np.array(reverse), 8)
    close(mx.vmap(loss)(mx.stack([a, b])), [wanted, vcreg_value_and_grad(other, **settings)[0]])


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [
        ("smooth_l1", (3, 11, 2)),  # in blocks
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("square", (3, 11, 2)), ("square", (12, 5)), ("smooth_l1", (12, 5)))
        ),
    ],
    ids=str,
)
def test_a_compiled_gradient_of_vcreg(
    in_small_blocks: Path, shape: tuple[int, ...], penalty: str
) -> None:
    settings = {"variance_weight": 2.0, "covariance_weight": 30.0, "penalty": penalty}
    settings |= {"feature_axis": 1}
    z = 0.8 * np.random.default_rng(0).standard_normal(shape)
    gradient = mx.compile(mx.grad(lambda x: in_small_blocks.vcreg_loss(x, **settings)))
    close(gradient(mx.array(z, dtype=mx.float64)), vcreg_value_and_grad(z, **settings)[1])


@pytest.mark.parametrize("function", ["gradient", "closed form"])
def test_smooth_l1_takes_no_memory_for_all_blocks_at_once(function: str) -> None:
    """What is lazy is put in an order in which each block is used up before the next."""
    settings = {"penalty": "smooth_l1", "variance_weight": 1.0, "covariance_weight": 1.0}
    d = 4096
    z = mx.array(np.random.default_rng(0).standard_normal((64, d)).astype(np.float32))
    mx.eval(z)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    if function == "gradient":
        mx.eval(mx.value_and_grad(lambda x: vcreg_loss(x, **settings))(z))
    else:
        mx.eval(vcreg_value_and_grad(z, **settings))
    assert mx.get_peak_memory() - held <= 4 * d * d  # the size of C
