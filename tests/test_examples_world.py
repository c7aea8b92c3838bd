"""The world model of the examples collapses without the variance term, in each library."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("rich")

SCRIPT = Path(__file__).parent.parent / "examples" / "world_model.py"


@pytest.fixture
def world_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, SCRIPT.stem, module)  # its dataclasses look their module up
    spec.loader.exec_module(module)
    torch = sys.modules.get("torch")
    threads = torch and torch.get_num_threads()
    yield module
    if torch:
        torch.set_num_threads(threads)


def test_the_shape_is_where_it_is_said_and_moves_as_the_actions_say(
    world_model: ModuleType,
) -> None:
    films = world_model.Films.of(20, np.random.default_rng(0))
    frames = world_model.drawn(films.places, np.arange(20) % 3)[:, 0]
    total = frames.sum(axis=(2, 3))
    for axis, pixel in enumerate(np.ogrid[: world_model.SIDE, : world_model.SIDE]):
        centre = (frames * pixel).sum(axis=(2, 3)) / total
        np.testing.assert_allclose(centre, films.places[:, axis], atol=0.1)  # edges are soft
    np.testing.assert_allclose(np.diff(films.places, axis=2), films.actions, atol=1e-5)


def test_the_probe_finds_what_is_there_whatever_its_size(world_model: ModuleType) -> None:
    rng = np.random.default_rng(0)
    films = world_model.Films.of(200, rng)
    z = films.places[..., None, None]  # (B, 2, T, 1, 1): all that is asked for
    for scale in (1e-3, 1):
        assert world_model.probe_error(scale * z, films.places) < 0.01
    assert world_model.probe_error(rng.standard_normal(z.shape), films.places) > 3


def test_what_stands_in_the_padding_changes_nothing(world_model: ModuleType) -> None:
    """Not even NaN: the loss is that of the valid predictions, whatever the others are."""
    rng = np.random.default_rng(0)
    layers = {name: rng.normal(0, 0.1, shape) for name, (shape, _) in world_model.LAYERS.items()}
    films = world_model.Films.of(20, rng, padded=True)
    valid = films.valid.astype(float)
    assert 0 < valid[:, -1].sum() < len(valid)
    losses = []
    for padding in (0, 100, np.nan):
        frames = np.where(films.valid[:, None, :, None, None], films.frames, padding)
        batch = (frames, films.actions, valid)
        losses.append(world_model.loss_of(layers, *batch, einsum=np.einsum)[0])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_it_collapses_without_the_variance_term_alone(
    world_model: ModuleType, capsys: pytest.CaptureFixture, library: str
) -> None:
    """The prediction is better, and the features say less."""
    pytest.importorskip(library)
    pytest.importorskip("optax" if library == "jax" else library)
    world_model.main(["--library", library])
    rows = re.findall(r"^ +300 (.*)$", capsys.readouterr().out, flags=re.M)
    (error, std, _, probe), (best, nothing, _, lost), (_, padded_std, _, padded_probe) = (
        map(float, row.split()) for row in rows
    )
    assert best < error / 4
    assert std > 0.8
    assert nothing < 0.05
    assert probe < 1.5
    assert lost > 3.5
    assert padded_std > 0.8
    assert padded_probe < 1.5


def test_it_refuses_too_few_steps(world_model: ModuleType) -> None:
    with pytest.raises(SystemExit, match="2"):
        world_model.main(["--steps", "9"])
