"""Fixtures, above all ``xp``: the library under test; and what did not run."""

from __future__ import annotations

import argparse
import importlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from array_api_extra.testing import patch_lazy_xp_functions
from backends import BACKENDS, Backend, on_device, why_not

from vicreg._core.sizes import Sizes
from vicreg.tools.verification import paths

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
    parser.addoption(
        "--device",
        help="the device of each library that the shared tests run on, as cuda or mps",
    )
    parser.addoption(
        "--part",
        type=_part,
        metavar="K/N",
        help="run part K of N, which hold the same number of tests or so, of every kind",
    )


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, as 1/12; got {text!r}")
    return int(number), int(count)


def pytest_configure(config: pytest.Config) -> None:
    missing = set(config.getoption("--library") or ()) - INSTALLED
    if missing:
        raise pytest.UsageError(f"not installed: {', '.join(sorted(missing))}")
    device = config.getoption("--device")
    if device is not None and not on_device(BACKENDS, device):
        raise pytest.UsageError(f"no library has the device {device} here")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise every test with the fixture ``xp`` by the libraries."""
    if "xp" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--library")
    backends = [b for b in BACKENDS if chosen is None or b.name in chosen]
    if (device := metafunc.config.getoption("--device")) is not None:
        backends = on_device(backends, device)
    metafunc.parametrize("xp", backends, ids=str, indirect=True)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests as long that are long on their library only, and keep those of a part."""
    for item in items:
        backend = item.callspec.params.get("xp") if hasattr(item, "callspec") else None
        if not isinstance(backend, Backend):
            continue
        named = {name for mark in item.iter_markers("long_on") for name in mark.args}
        is_sampled = backend.sampled and not item.get_closest_marker("representative")
        if is_sampled or backend.name in named:
            item.add_marker("long")
    if config.getoption("--part") is not None:
        number, count = config.getoption("--part")
        # By name, so that a part has tests of every library, and the same ones each time.
        others = [item for item in items if _hash(item) % count != number - 1]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _hash(item) % count == number - 1]


def _hash(item: pytest.Item) -> int:
    return zlib.crc32(item.nodeid.encode())


_left_out = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that `-m` and `-k` leave out."""
    if items:
        stash = items[0].config.stash
        stash[_left_out] = stash.get(_left_out, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the count to the main process of pytest-xdist."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = session.config.stash.get(_left_out, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the count, which is the same in each process."""
    count = getattr(node, "workeroutput", {}).get("left out", 0)
    node.config.stash[_left_out] = max(count, node.config.stash.get(_left_out, 0))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what did not run and why, the most frequent reason first."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(_reason(report.longrepr[2]) for report in skipped)
    left_out = config.stash.get(_left_out, 0)
    if reasons or left_out:
        terminalreporter.section("not run")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:6} skipped: {reason}")
    is_default = config.option.markexpr == "not long" and config.getoption("--part") is None
    if left_out and is_default and not config.option.keyword:
        terminalreporter.line(f"{left_out:6} left out as long: nox -s tests_all runs them too")
    elif left_out:
        terminalreporter.line(f"{left_out:6} left out by -m, -k or --part")


def _reason(text: str) -> str:
    """Return why a test was skipped, without the name of the library."""
    reason = text.removeprefix("Skipped: ").partition(": ")[0]
    name, has, what = reason.partition(" has ")
    return f"the library{has}{what}" if name in map(str, BACKENDS) else reason


@pytest.fixture
def xp(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """One library under test."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    lazy = {"jax": "jax.numpy", "dask": "array_api_compat.dask.array"}.get(request.param.name)
    with ExitStack() as stack:
        stack.enter_context(request.param.tools_backend.active())
        if lazy is not None:
            # Functions marked by `lazy_xp_function` are compiled on JAX, and may not compute on
            # Dask.
            library = importlib.import_module(lazy)
            stack.enter_context(patch_lazy_xp_functions(request, xp=library))
        yield request.param


@pytest.fixture
def in_small_blocks() -> paths.Path:
    """The public functions, with covariances for smooth L1 in blocks of 4 columns."""
    return paths.Path("in small blocks", Sizes(columns=4))


@pytest.fixture(scope="session")
def published() -> list[dict]:
    """The values and gradients of the published implementations, in float64."""
    path = Path(__file__).parent / "data" / "published.json"
    return json.loads(path.read_text())["cases"]
