"""Fixtures: the library under test, and what a value in it may differ by."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from array_api_extra.testing import patch_lazy_xp_functions
from backends import BACKENDS, Backend, forget_what_was_traced, why_not

from vicreg.core import smooth_l1

INSTALLED = {backend.name for backend in BACKENDS if backend.installed}

if "jax" in INSTALLED:
    import jax

    jax.config.update("jax_enable_x64", True)

if "mlx" in INSTALLED:
    import mlx.core

    mlx.core.set_default_device(mlx.core.cpu)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library",
        action="append",
        choices=sorted({backend.name for backend in BACKENDS}),
        help="the libraries that the shared tests run on (may be given more than once)",
    )


def pytest_configure(config: pytest.Config) -> None:
    missing = set(config.getoption("--library") or ()) - INSTALLED
    if missing:
        raise pytest.UsageError(f"not installed: {', '.join(sorted(missing))}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every test that asks for ``xp`` each library of the list."""
    if "xp" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--library")
    backends = [b for b in BACKENDS if chosen is None or b.name in chosen]
    metafunc.parametrize("xp", backends, ids=str, indirect=True)


@pytest.fixture
def xp(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """One library under test."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    lazy = {"jax": "jax.numpy", "dask": "array_api_compat.dask.array"}.get(request.param.name)
    if lazy is None:
        yield request.param
        return
    # What a test module marks by `lazy_xp_function` is compiled on JAX, and may not compute on
    # Dask.
    with patch_lazy_xp_functions(request, xp=importlib.import_module(lazy)):
        yield request.param


@pytest.fixture
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The smooth L1's covariance in blocks of 4 columns, as a large one is in larger ones."""
    forget_what_was_traced()
    monkeypatch.setattr(smooth_l1, "_BLOCK", 4)
    yield
    forget_what_was_traced()


@pytest.fixture(scope="session")
def published() -> list[dict]:
    """What the published implementations return, in float64."""
    path = Path(__file__).parent / "data" / "published.json"
    return json.loads(path.read_text())["cases"]
