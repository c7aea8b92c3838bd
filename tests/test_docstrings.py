"""Every public name is documented in full: what holds for which name stands here as data."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import vicreg

REFERENCE = "".join(
    page.read_text() for page in (Path(__file__).parents[1] / "docs" / "reference").glob("*.md")
)

#: The modules that users import, each with the packages that it needs.
MODULES = {
    "vicreg": ("numpy",),
    "vicreg.torch": ("torch",),
    "vicreg.jax": ("jax",),
    "vicreg.lightning": ("torch", "lightning"),
    "vicreg.distributed": (),
    "vicreg.testing": ("numpy",),
}

#: The published formula that a name computes, by what its docstring must cite.
VICREG, VCREG, EFFECTIVE_RANK = "arXiv 2105.04906", "arXiv 2306.13292", "Roy and Vetterli"
VICREGL = "arXiv 2210.01571"
SOURCES = {
    "vicreg.vicreg_loss": VICREG,
    "vicreg.vicreg_terms": VICREG,
    "vicreg.vicreg_value_and_grad": VICREG,
    "vicreg.invariance_loss": VICREG,
    "vicreg.variance_loss": VICREG,
    "vicreg.covariance_loss": VICREG,
    "vicreg.vicregl_loss": VICREGL,
    "vicreg.vicregl_value_and_grad": VICREGL,
    "vicreg.vcreg_loss": VCREG,
    "vicreg.vcreg_value_and_grad": VCREG,
    "vicreg.diagnose": EFFECTIVE_RANK,
    "vicreg.Diagnosis": EFFECTIVE_RANK,
    "vicreg.torch.VICRegLoss": VICREG,
    "vicreg.torch.VICRegLLoss": VICREGL,
    "vicreg.torch.VCReg": VCREG,
    "vicreg.torch.attach_vcreg": VCREG,
    "vicreg.torch.cached_backward": "arXiv 2101.06983",
    "vicreg.jax.vcreg": VCREG,
}

#: Parameters that are arrays, and parameters whose parts are.
ARRAYS = {
    *("views", "z", "z1", "z2", "x", "other", "ref_emb", "embeddings", "samples", "array"),
    *("invariance_weight", "variance_weight", "covariance_weight"),
}
#: What has the name of an array and is a number.
NUMBERS = {"vicreg.distributed.plan": {"views"}, "vicreg.distributed.Plan": {"views"}}
#: Of arrays, the text may say "As in" another name's, where the shape stands.
BY_REFERENCE = {"invariance_weight", "variance_weight", "covariance_weight"}

#: What has no such section, with the reason.
ARE_MADE_BY_A_FUNCTION = {"vicreg.torch.AttachedVCReg"}  # no one calls the class
RAISE_NOTHING = {  # what only holds values or the result of a call, unchecked
    "vicreg.VICRegTerms",
    "vicreg.Diagnosis",
    "vicreg.Identification",
    "vicreg.torch.VCRegTerms",
    "vicreg.torch.AttachedVCReg",
    "vicreg.distributed.Communicator",  # abstract
    "vicreg.distributed.Plan",
    "vicreg.testing.ConformanceProblem",
}
RETURN_NOTHING = {"vicreg.testing.check_conformance"}  # it asserts
CALLED_BY_ITS_FRAMEWORK = {  # and documented there
    "extra_repr",
    "on_fit_start",
    "on_train_batch_end",
    "on_fit_end",
    "on_exception",
}


class Public(NamedTuple):
    """A public name, or a public method of a class."""

    name: str
    value: Any

    def __str__(self) -> str:
        return self.name


def own_names(module: ModuleType) -> Iterator[Public]:
    """Yield the names of a public module, without those that it has from the package."""
    for name in module.__all__:
        value = getattr(module, name)
        of_package = name in vicreg.__all__ and value is getattr(vicreg, name)
        if module is vicreg or not of_package:
            yield Public(f"{module.__name__}.{name}", value)


def public(module: str) -> list[Public]:
    for package in MODULES[module]:
        pytest.importorskip(package)
    names = own_names(importlib.import_module(module))
    return [one for one in names if not isinstance(one.value, ModuleType)]


def methods(one: Public) -> Iterator[Public]:
    """Yield the public methods and properties that a class defines itself."""
    for name, value in vars(one.value).items():
        elsewhere = name in CALLED_BY_ITS_FRAMEWORK or of_base(one.value, name)
        has_docstring = callable(value) or isinstance(value, property)
        if has_docstring and not name.startswith("_") and not elsewhere:
            yield Public(f"{one.name}.{name}", value)


def of_base(owner: type, name: str) -> bool:
    """Whether a base class of this package documents that method."""
    bases = (base for base in owner.__mro__[1:] if base.__module__.startswith("vicreg"))
    return any(name in vars(base) for base in bases)


def sections(text: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by title; "" has what is before the first."""
    _, *parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", "\n\n" + text, flags=re.M)
    before = re.split(r"^\w[\w ]*\n-{3,}\n", text, maxsplit=1, flags=re.M)[0]
    return {"": before} | dict(zip(parts[::2], parts[1::2], strict=True))


def entries(section: str) -> dict[str, str]:
    """Return the entries of a section, type and text together, by each of their names."""
    found = {}
    for entry in re.split(r"^(?=\S)", section, flags=re.M):
        names, _, text = entry.partition(":") if " :" in entry else (entry.split("\n")[0], "", "")
        found |= {name.strip().lstrip("*"): text or entry for name in names.split(",")}
    found.pop("", None)
    return found


def parameters(value: Any) -> set[str]:
    """Return the names in a signature, except for the instance and what a framework passes on."""
    taken = inspect.signature(value).parameters
    return {name for name in taken if name not in ("self", "_")}


def lacks(one: Public) -> Iterator[str]:
    """Yield what the docstring of a function, a class or a method lacks."""
    text = inspect.cleandoc(one.value.__doc__ or "")
    has = sections(text)
    summary = has[""].split("\n\n")[0]
    if not re.fullmatch(r"[A-Z`].*[.?]", summary) or summary.startswith("Alias for"):
        yield "a summary in one line"
    if isinstance(one.value, property):
        return
    is_class, is_method = isinstance(one.value, type), one.name.count(".") > depth(one)
    documented = entries(has.get("Parameters", ""))
    if one.name not in ARE_MADE_BY_A_FUNCTION:
        for name in parameters(one.value) ^ documented.keys():
            yield f"{name} in Parameters, or in the signature"
    for name in (ARRAYS - NUMBERS.get(one.name, set())) & documented.keys():
        refers = name in BY_REFERENCE and "As in" in documented[name]
        if "shape" not in documented[name] and not refers:
            yield f"the shape of {name}"
    returned = inspect.signature(one.value).return_annotation
    if not is_class and returned not in (None, "None") and one.name not in RETURN_NOTHING:
        if not has.get("Returns", has.get("Yields", "")).strip():
            yield "Returns"
        for line in re.findall(r"^\S.*\b(?:arrays?|Tensor)\b.*", has.get("Returns", ""), re.M):
            if "shape" not in line:
                yield f"the shape of what it returns: {line}"
    if is_method:
        return
    if one.name not in RAISE_NOTHING and not has.get("Raises", "").strip():
        yield "Raises"
    if not doctest.DocTestParser().get_examples(has.get("Examples", "")):
        yield "an example that is run"
    if one.name in SOURCES and SOURCES[one.name] not in text:
        yield f"its source, {SOURCES[one.name]}"


def depth(one: Public) -> int:
    """Return how many dots the name of a function or a class has in its module."""
    return max(module.count(".") for module in MODULES if one.name.startswith(f"{module}.")) + 1


def described(module: str) -> list[Public]:
    """Return what has a docstring of its own in a module: functions, classes and their methods."""
    names = [one for one in public(module) if callable(one.value)]
    classes = [one for one in names if isinstance(one.value, type)]
    return names + [method for one in classes for method in methods(one)]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module: str) -> None:
    lacking = {one.name: list(lacks(one)) for one in described(module)}
    assert {name: lack for name, lack in lacking.items() if lack} == {}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    for one in public(module):
        assert re.search(rf"^\.\. (py:|auto)\w+:: {re.escape(one.name)}$", REFERENCE, re.M), one
    assert f".. automodule:: {module}\n" in REFERENCE


@pytest.mark.parametrize("module", MODULES)
def test_names_in_backticks_are_there(module: str) -> None:
    """In whichever module they are: that needs all of their packages."""
    for package in itertools.chain.from_iterable(MODULES.values()):
        pytest.importorskip(package)
    for one in described(module):
        for name in re.findall(r"(?<!`)`([^`\s]+)`(?!`)", one.value.__doc__ or ""):
            assert is_known(name, one, module), (one.name, name)


def is_known(name: str, one: Public, module: str) -> bool:
    """Whether a name in single backticks is a link, or what the docstring itself describes."""
    owner, (first, *rest) = importlib.import_module(module), name.split(".")
    if first == "vicreg":
        return find(vicreg, rest) and not any(part.startswith("_") for part in rest)
    around = getattr(owner, one.name.removeprefix(f"{module}.").split(".")[0])
    own = described_names(one.value) | described_names(around)
    return name in own or (first in owner.__all__ and find(owner, [first, *rest]))


def described_names(value: Any) -> set[str]:
    has = sections(inspect.cleandoc(value.__doc__ or ""))
    documented = {n for title in ("Parameters", "Attributes") for n in entries(has.get(title, ""))}
    return documented | (set(vars(value)) if isinstance(value, type) else set())


def find(owner: Any, parts: list[str]) -> bool:
    for part in parts:
        fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
        if part in {field.name for field in fields}:
            return True
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def test_sources_are_of_names_that_are_there() -> None:
    for name in SOURCES | dict.fromkeys(RAISE_NOTHING | RETURN_NOTHING | ARE_MADE_BY_A_FUNCTION):
        module, _, last = name.rpartition(".")
        for package in MODULES[module]:
            pytest.importorskip(package)
        assert hasattr(importlib.import_module(module), last), name
