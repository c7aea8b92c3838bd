"""Devices of JAX under shard_map: values and derivatives are those of the batch as one array.

One process with eight devices of the host runs tests/jax_ranks.py; the tests read what it found.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from errors import largest_error, rounding

jax = pytest.importorskip("jax")

from vicreg import (  # noqa: E402
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.distributed import JaxCommunicator  # noqa: E402

HERE = Path(__file__).parent
ROWS = (2,) * 8
SHAPES = {"wide": (40,), "narrow": (4,), "positions": (3, 20)}
VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5}
#: Those that run by default are the ones that jax_ranks.py calls short.
EACH = pytest.mark.parametrize(
    ("shape", "checked"),
    [
        ("wide", True),
        ("narrow", False),
        pytest.param("wide", False, marks=pytest.mark.long),
        pytest.param("narrow", True, marks=pytest.mark.long),
        pytest.param("positions", True, marks=pytest.mark.long),
        pytest.param("positions", False, marks=pytest.mark.long),
    ],
)


def run(what: str, factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Return what the eight devices found of `what`, "short" or "long"."""

    def make(folder: Path) -> None:
        flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        ended = subprocess.run(
            [sys.executable, str(HERE / "jax_ranks.py"), str(folder), what],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr

    found: dict[Any, Any] = pickle.loads(
        (ranks.once(factory, f"jax-{what}", make) / "results").read_bytes()
    )
    return found


@pytest.fixture
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Any]:
    """What the eight devices found."""
    is_long = request.node.get_closest_marker("long") is not None
    return run("long" if is_long else "short", tmp_path_factory)


def close(got: Any, wanted: Any, shape: str) -> None:
    n = sum(ROWS) * (SHAPES[shape][0] if shape == "positions" else 1)
    assert largest_error(got, wanted) <= rounding("float64", n, SHAPES[shape][-1])


@EACH
def test_derivatives_of_the_loss(shape: str, checked: bool, results: dict[Any, Any]) -> None:
    views = tuple(map(jax.numpy.asarray, ranks.whole(ROWS, SHAPES[shape])))
    found = results[shape, checked]
    wanted, gradients = vicreg_value_and_grad(*views)
    for way in ("through", "closed form"):
        close(found[way][0], wanted, shape)
        for got, gradient in zip(found[way][1], gradients, strict=True):
            close(got, gradient, shape)
    for got, gradient in zip(found["inside"], gradients, strict=True):
        close(got, gradient, shape)
    direction = tuple(jax.numpy.cos(view) for view in views)
    change = jax.jvp(vicreg_loss, views, direction)[1]
    close(found["forwards"], change, shape)

    def along(*views: Any) -> Any:
        gradients = jax.grad(vicreg_loss, (0, 1))(*views)
        return sum((g * t).sum() for g, t in zip(gradients, direction, strict=True))

    for got, second in zip(found["second"], jax.grad(along, (0, 1))(*views), strict=True):
        close(got, second, shape)


@EACH
@pytest.mark.parametrize("penalty", ["square", "smooth_l1"])
def test_vcreg(shape: str, penalty: str, checked: bool, results: dict[Any, Any]) -> None:
    z, _ = ranks.whole(ROWS, SHAPES[shape])
    wanted, gradient = vcreg_value_and_grad(z, **VCREG, penalty=penalty)
    found = results[shape, checked][penalty]
    for way in ("through", "closed form"):
        close(found[way][0], wanted, shape)
        close(found[way][1], gradient, shape)
    # The layer adds to a gradient of 1, which takes digits from a small one.
    assert np.abs(found["layer"] - gradient).max() <= 1e-12


@EACH
def test_weighted_samples(shape: str, checked: bool, results: dict[Any, Any]) -> None:
    """Of the first device all weigh 0, and of the others some."""
    found = results[shape, checked]["weighted"]
    weights = ranks.weights(ROWS, *SHAPES[shape][:-1])
    views = ranks.hidden(ranks.whole(ROWS, SHAPES[shape]), weights)
    wanted, gradients = vicreg_value_and_grad(*views, sample_weight=weights)
    for way in ("through", "closed form"):
        close(found[way][0], wanted, shape)
        for got, gradient in zip(found[way][1], gradients, strict=True):
            close(got, gradient, shape)
    given = VCREG | {"sample_weight": weights}
    value, gradient = vcreg_value_and_grad(views[0], penalty="smooth_l1", **given)
    close(found["smooth_l1"][0], value, shape)
    close(found["smooth_l1"][1], gradient, shape)
    close(found["layer"], vcreg_value_and_grad(views[0], **given)[1], shape)


def test_axes_meshes_weights_and_precisions(results: dict[Any, Any]) -> None:
    found = results["others"]
    whole = ranks.whole(ROWS, SHAPES["wide"])
    wanted = vicreg_loss(*whole)
    for value in (found["two axes"], found["one of two axes"], results["explicit axes"]):
        close(value, wanted, "wide")
    value, gradients = results["some explicit axes"]
    close(value, wanted, "wide")
    for got, gradient in zip(gradients, vicreg_value_and_grad(*whole)[1], strict=True):
        close(got, gradient, "wide")
    close(found["mapped"], np.full(8, wanted), "wide")
    terms = vicreg_terms(*whole)
    for way in ("terms", "terms with gradients"):
        for got, term in zip(found[way], terms, strict=True):
            close(got, term, "wide")
    close(found["by the weight"], terms.covariance, "wide")
    rounded = [np.asarray(jax.numpy.asarray(view, dtype="bfloat16"), float) for view in whole]
    half = vicreg_loss(*rounded)
    assert largest_error(found["half"], half) <= rounding("float32", 16, 40)
    # Each device counts the same rows again.
    eightfold, of_eightfold = vicreg_value_and_grad(
        *[np.concatenate([view] * 8) for view in whole]
    )
    value, gradients = found["the same views on each"]
    assert largest_error(value, eightfold) <= rounding("float64", 128, 40)
    for got, gradient in zip(gradients, of_eightfold, strict=True):
        of_each = gradient.reshape(8, 16, 40).sum(0)
        assert largest_error(got, of_each) <= rounding("float64", 128, 40)


def test_outside_of_shard_map_the_axis_is_said_to_be_missing() -> None:
    z = jax.numpy.eye(3)
    with pytest.raises(ValueError, match=r"inside jax.shard_map; got the axis 'i'"):
        vicreg_loss(z, z, comm=JaxCommunicator("i"))
