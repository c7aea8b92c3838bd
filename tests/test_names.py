"""Names that people guess: modules and functions, where they are looked for."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys

import pytest

import vicreg
from vicreg import _losses


def printed(code: str) -> str:
    """Return what `code` prints in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@pytest.mark.parametrize("module", ["distributed", "jax", "testing", "torch"])
def test_a_module_comes_when_it_is_asked_for(module: str) -> None:
    if module in ("jax", "torch"):
        pytest.importorskip(module)
    assert module in dir(vicreg)
    vars(vicreg).pop(module, None)
    assert getattr(vicreg, module) is importlib.import_module(f"vicreg.{module}")


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_each_librarys_module_has_the_losses(library: str) -> None:
    pytest.importorskip(library)
    module = importlib.import_module(f"vicreg.{library}")
    assert set(_losses.__all__) < set(module.__all__)
    for name in _losses.__all__:
        assert getattr(module, name) is getattr(vicreg, name)


def test_the_package_has_the_losses() -> None:
    assert set(_losses.__all__) < set(vicreg.__all__)


@pytest.mark.parametrize(
    ("loss", "other"),
    [
        ("vicreg_loss", "vicreg_terms"),
        ("vicreg_loss", "vicreg_value_and_grad"),
        ("vcreg_loss", "vcreg_value_and_grad"),
        ("vicregl_loss", "vicregl_value_and_grad"),
    ],
)
def test_functions_of_one_loss_have_the_same_settings(loss: str, other: str) -> None:
    """And the same defaults."""
    ours, theirs = (inspect.signature(getattr(vicreg, name)) for name in (loss, other))
    others = [one for name, one in theirs.parameters.items() if name != "terms"]
    assert [str(one) for one in ours.parameters.values()] == [str(one) for one in others]


@pytest.mark.parametrize("name", [one for one in _losses.__all__ if one.islower()])
def test_settings_are_given_by_name(name: str) -> None:
    """Arrays may go without a name. What every loss has alike has the same default in each."""
    arrays = {"views", "z", "z1", "z2", "embeddings", "maps", "locations"}
    of_vicreg = inspect.signature(vicreg.vicreg_loss).parameters
    for argument, parameter in inspect.signature(getattr(vicreg, name)).parameters.items():
        assert (parameter.kind == parameter.KEYWORD_ONLY) == (argument not in arrays)
        if argument in ("gamma", "feature_axis", "method", "comm", "sample_weight"):
            assert parameter.default == of_vicreg[argument].default


@pytest.mark.parametrize("name", ["", ".torch", ".jax", ".distributed", ".testing"])
def test_completion_shows_public_names_alone(name: str) -> None:
    if name in (".jax", ".torch"):
        pytest.importorskip(name[1:])
    module = importlib.import_module(f"vicreg{name}")
    beside = () if name else (*vicreg._MODULES, "__version__")
    assert dir(module) == sorted({*module.__all__, *beside})


@pytest.mark.parametrize(
    "name", ["VCReg", "VICRegLLoss", "VICRegLoss", "attach_vcreg", "cached_backward"]
)
def test_a_name_of_pytorch_is_the_one_of_its_module(name: str) -> None:
    torch = pytest.importorskip("vicreg.torch")
    public = getattr(vicreg, name)
    assert public is getattr(torch, name)
    assert pickle.loads(pickle.dumps(public)) is public
    assert name not in vicreg.__all__  # `from vicreg import *` brings no library


def test_what_needs_a_library_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "vicreg.torch"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "vicreg.torch")
    monkeypatch.delitem(vars(vicreg), "torch", raising=False)
    assert not hasattr(vicreg, "torch")
    with pytest.raises(AttributeError, match=r"^vicreg\.torch needs torch: pip install torch$"):
        _ = vicreg.torch
    wanted = r"^VICRegLoss is in vicreg\.torch, which needs torch: pip install torch$"
    with pytest.raises(ImportError, match=wanted):
        from vicreg import VICRegLoss  # noqa: F401


def test_a_name_that_is_not_there() -> None:
    assert not hasattr(vicreg, "vicreg_los")
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = vicreg.vicreg_los


def test_a_star_brings_no_library() -> None:
    check = "import sys; from vicreg import *; print({'torch', 'jax', 'mlx'} & set(sys.modules))"
    assert printed(check) == "set()"
