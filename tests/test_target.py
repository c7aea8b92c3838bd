"""Users' functions as they are written: what they take, what they return, how they are made."""

from __future__ import annotations

import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vicreg import identify, vicreg_loss
from vicreg.tools.axes import Axes
from vicreg.tools.backends import backend_named
from vicreg.tools.functions import FunctionError, LossFunction
from vicreg.tools.loading import arguments_of, load_function
from vicreg.tools.requirements import RequirementError
from vicreg.tools.verification.cases import case_of_size
from vicreg.tools.verification.explanation import explanations
from vicreg.tools.verification.suitable import Suitable
from vicreg.tools.verification.target import TARGET_CASES, run_target

NUMPY = backend_named("numpy")
VIEWS = np.random.default_rng(0).standard_normal((2, 6, 4))


def mine(z1: Any, z2: Any) -> Any:
    return ((z1 - z2) ** 2).mean()


EXPECTED = float(mine(*VIEWS))


# --- what is returned ---------------------------------------------------------------------

Named = namedtuple("Named", "steps loss")


@dataclass
class Result:
    loss: Any
    logs: Any = None


@dataclass
class Part:
    total: float


RETURNED = {
    "a dict": lambda x: {"sim": 3.0, "loss": x, "n": np.zeros(4)},
    "another name": lambda x: {"sim": 3.0, "total_loss": x},
    "one entry": lambda x: {"vicreg": x},
    "a tuple": lambda x: (np.zeros((3, 2)), x, {"sim": 3.0}),
    "a list": lambda x: [None, x, 3.0],
    "a nested dict": lambda x: {"loss": {"total_loss": x, "sim": 3.0}},
    "a dict in a tuple": lambda x: ({"loss": x}, 3.0),
    "a namedtuple": lambda x: Named(3.0, x),
    "an object": lambda x: Result(x),
    "a float": float,
    "one element": lambda x: x.reshape(1, 1),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_the_loss_in_what_is_returned(kind: str) -> None:
    function = LossFunction(lambda a, b: RETURNED[kind](mine(a, b)), NUMPY)
    assert function(*VIEWS) == EXPECTED


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        (lambda x: {"loss": 3.0, "mine": x}, "mine"),
        (lambda x: {"a.b": x, "loss": 3.0}, "a.b"),
        (lambda x: {"parts": [3.0, {"mine": x}]}, "parts.1.mine"),
        (lambda x: {0: 3.0, 1: x}, 1),
        (lambda x: (3.0, x), 1),
        (lambda x: (x, 3.0, 4.0), "-3"),
        (lambda x: Named(x, 3.0), "steps"),
        (lambda x: Result(3.0, logs={"loss": x}), "logs"),
    ],
)
def test_the_part_that_output_names(returned: Any, output: str | int) -> None:
    function = LossFunction(lambda a, b: returned(mine(a, b)), NUMPY, output)
    assert function(*VIEWS) == EXPECTED


@pytest.mark.parametrize(
    ("returned", "output", "said"),
    [
        ({"a": 1.0, "b": 2.0}, None, "dict ('a': float, 'b': float); output (--output) says"),
        ({"loss": np.zeros(3), "b": 2}, None, "'loss': ndarray of float64 and shape (3,)"),
        ({}, None, "it returned dict"),
        (("x", None), None, "it returned tuple (str, NoneType)"),
        (object(), None, "it returned object"),
        (Part(1.0), None, "it returned Part ('total': float); output (--output) says"),
        ({"a": 1.0}, "b", "dict ('a': float), with no number at output 'b'"),
        ((1.0, 2.0), 2, "tuple (float, float), with no number at output '2'"),
    ],
)
def test_what_has_no_loss_is_described(returned: Any, output: Any, said: str) -> None:
    with pytest.raises(FunctionError) as caught:
        LossFunction(lambda a, b: returned, NUMPY, output)(*VIEWS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- how it is called ---------------------------------------------------------------------


class ForwardAlone:
    def forward(self, z1: Any, z2: Any) -> Any:
        return mine(z1, z2) + (z1[0, 0] - z2[0, 0])


class Lightning:
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": ForwardAlone().forward(*batch)}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ForwardAlone().forward(x, y),
        lambda z, *, other: ForwardAlone().forward(z, other),
        lambda *, z_a, z_b: ForwardAlone().forward(z_a, z_b),
        lambda z, *, scale=1.0, other: ForwardAlone().forward(z, other),
        lambda z, labels=None, ref_emb=None: ForwardAlone().forward(z, ref_emb),
        lambda *views: ForwardAlone().forward(*views),
        ForwardAlone(),
        Lightning().training_step,
    ],
)
def test_the_views_are_given_as_the_parameters_ask(function: Any) -> None:
    # Not symmetric: the order matters.
    assert LossFunction(function, NUMPY)(*VIEWS) == ForwardAlone().forward(*VIEWS)


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ("n,d", (6, 4)),
        ("d, n", (4, 6)),
        ("(n,d,1,1)", (6, 4, 1, 1)),
        ("B C T H W", (6, 4, 1, 1, 1)),
        ("n,d,3", (2, 4, 3)),
        ("n,3,d", (2, 3, 4)),
        ("n,2d,d", (6, 2, 2)),
        ("2,n,d,2d", (2, 3, 2, 2)),
    ],
)
def test_axes_hold_the_samples_and_the_features(shape: str, given: tuple[int, ...]) -> None:
    axes, z = Axes.of(shape), VIEWS[0]
    arranged = axes.arranged(z)
    assert arranged.shape == given
    assert np.array_equal(axes.restored(arranged, 6, 4), z)
    # A place on the axes of features belongs to one feature, whatever the sample.
    features = axes.arranged(np.broadcast_to(np.arange(4.0), (6, 4)))
    of_samples = tuple(a for a, is_feature in enumerate(axes.of_features) if not is_feature)
    assert np.all(np.ptp(features, axis=of_samples) == 0)


@pytest.mark.parametrize("shape", ["", "n", "n,n", "n,d,x", "2,3", "n,d,0", "n,d,d"])
def test_a_shape_that_is_none_says_what_one_is(shape: str) -> None:
    with pytest.raises(ValueError, match=r"^shape must have n \(samples\) and d .*'n,d,1,1'"):
        identify(mine, shape=shape)


def test_bad_types_of_output_and_shape() -> None:
    with pytest.raises(TypeError, match=r"^output must be a string or an int; got float"):
        identify(mine, output=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^shape must be a string; got tuple"):
        identify(mine, shape=(1, 2))  # type: ignore[arg-type]


def of_videos(z1: Any, z2: Any) -> Any:
    """Each place of (B, C, T, H, W) is a sample."""
    rows = [np.moveaxis(z, 1, -1).reshape(-1, z.shape[1]) for z in (z1, z2)]
    assert z1.ndim == 5
    return {"sim": 1.0, "total": vicreg_loss(*rows, convention="algorithm1")}


def test_a_loss_of_more_axes_is_identified() -> None:
    found = identify(of_videos, output="total", shape="n,d,2,2,1")
    assert (found.convention, found.weights) == ("algorithm1", (25, 25, 1))


# --- how it is found and made -------------------------------------------------------------

MODULE = """
from beside import shift

class Loss:
    def __init__(self, weight, mode="mean"):
        self.weight, self.mode = weight, mode
    def forward(self, z1, z2):
        return self.weight * ((z1 - z2) ** 2).mean() + shift
    def other(self, z1, z2):
        return self.weight

def loss(z1, z2, weight=1.0):
    return {"loss": weight * ((z1 - z2) ** 2).mean() + shift}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("beside", "in_a_file", "vicreg_", "a_package"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    inner = tmp_path / "inner"
    package = inner / "a_package"
    package.mkdir(parents=True)
    (inner / "beside.py").write_text("shift = 2.0\n")
    (inner / "in_a_file.py").write_text(MODULE)
    (inner / "vicreg.py").write_text(MODULE)
    (package / "__init__.py").write_text("")
    (package / "beside.py").write_text("shift = 2.0\n")
    (package / "losses.py").write_text(MODULE.replace("from beside", "from .beside"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "path", ["./inner/in_a_file.py", "inner/vicreg.py", "inner/a_package/losses.py"]
)
def test_a_file_is_loaded_with_what_lies_beside_it(folder: Path, path: str) -> None:
    assert LossFunction(load_function(f"{path}:loss"), NUMPY)(*VIEWS) == EXPECTED + 2
    made = load_function(f"{path}:Loss", {"weight": 2.0})
    assert LossFunction(made, NUMPY)(*VIEWS) == 2 * EXPECTED + 2
    assert load_function(f"{path}:Loss.other", {"weight": 7})(1, 2) == 7
    called = load_function(f"{path}:loss", {"weight": 3.0})
    assert LossFunction(called, NUMPY)(*VIEWS) == pytest.approx(3 * EXPECTED + 2)
    assert LossFunction(called, NUMPY).name == "loss"


@pytest.mark.parametrize(
    ("path", "arguments", "said"),
    [
        ("inner/nowhere.py:f", {}, "there is no file 'inner/nowhere.py'"),
        ("inner/in_a_file:loss", {}, "must be MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("inner/in_a_file.py", {}, "must be MODULE:FUNCTION or FILE.py:FUNCTION"),
        ("inner/in_a_file.py:los", {}, "has no 'los'; it has Loss, loss"),
        ("inner/in_a_file.py:Loss", {}, "made without arguments: .*; --kwargs 'NAME=VALUE'"),
        ("inner/in_a_file.py:Loss", {"v": 1}, "cannot be made with v=1: TypeError: "),
        ("inner/in_a_file.py:loss", {"v": 1}, "does not take v=1: .*unexpected keyword"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(
    folder: Path, path: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(FunctionError, match=said) as caught:
        load_function(path, arguments)
    assert "\n" not in str(caught.value)


def test_arguments_are_literals() -> None:
    given = arguments_of(["a=1, b=(2, 3)", "c='x, y'", "a=-2.5", "d=None"])
    assert given == {"a": -2.5, "b": (2, 3), "c": "x, y", "d": None}
    for text in ("a", "1", "", "a=b", "a=f()", "a=1)(b=2", "**{}", "a=1) or dict(b=2", "a=\n("):
        with pytest.raises(RequirementError, match=r"^--kwargs must be NAME=VALUE"):
            arguments_of([text])


# --- verify -------------------------------------------------------------------------------


def only(condition: Any, loss: Any = vicreg_loss) -> Any:
    def function(z1: Any, z2: Any) -> Any:
        assert condition(*z1.shape)
        return {"loss": loss(z1, z2), "n": len(z1)}

    return function


SMALL = (
    *(case for case in TARGET_CASES if case.name in ("dead, tall", "variance alone", "tall")),
    *(case_of_size(*shape) for shape in ((8, 3), (12, 15), (5, 60))),
)


@pytest.mark.parametrize(
    "condition",
    [
        lambda n, d: n >= 64 and d % 8 == 0,
        lambda n, d: d == 32,
        lambda n, d: n == 100,
    ],
)
def test_verify_enlarges_inputs_until_the_function_takes_them(condition: Any) -> None:
    right = LossFunction(only(condition), NUMPY)
    results = run_target([right], ["float64"], "official", cases=SMALL)
    assert results.passed
    assert len(results.measurements) >= 2
    assert all(condition(case.n, case.d) for _, _, case in results.returned)
    off = LossFunction(only(condition, lambda *z: 2 * vicreg_loss(*z)), NUMPY)
    results = run_target([off], ["float64"], "official", cases=SMALL)
    assert "the variance term is 2 times that of official" in explanations(
        off, "official", results
    )


def test_verify_says_which_inputs_raise_though_their_shape_is_taken() -> None:
    def no_dead_feature(z1: Any, z2: Any) -> Any:
        assert (np.ptp(z1, axis=0) > 0).all(), "dead"
        return vicreg_loss(z1, z2)

    cases = [case for case in TARGET_CASES if case.name in ("tall", "dead, tall")]
    loss = LossFunction(no_dead_feature, NUMPY)
    results = run_target([loss], ["float64"], "official", cases=cases)
    failed = {one.case: one.complaint for one in results.measurements if not one.passed}
    assert all("AssertionError: dead" in complaint for complaint in failed.values())
    assert set(failed) == {"dead, tall"}


def test_verify_leaves_out_sizes_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    suitable = Suitable(
        LossFunction(vicreg_loss, NUMPY), ["float64"], [case_of_size(12, d) for d in (2, 50, 99)]
    )
    monkeypatch.setattr(suitable, "_seconds", lambda n, d: 1e-3 if d < 50 else 1.0)
    assert [case.d for case in suitable.cases()] == [2]
    assert suitable.left_out == {"vicreg_loss on numpy, 12 × 50 and 1 more": "it takes long"}


def test_the_gradient_of_more_axes_is_checked() -> None:
    torch = pytest.importorskip("torch")

    def of_images(z1: Any, z2: Any) -> Any:
        assert z1.ndim == 4
        rows = [z.movedim(1, -1).flatten(0, -2) for z in (z1, z2)]
        return torch.zeros(3), vicreg_loss(*rows)

    loss = LossFunction(of_images, backend_named("torch"), shape="n,d,2,2")
    results = run_target([loss], ["float64"], "official", cases=SMALL)
    assert results.passed
    assert all("autodiff gradient" in one.errors for one in results.measurements)


# --- the commands -------------------------------------------------------------------------


def test_the_commands_take_it_all(folder: Path) -> None:
    pytest.importorskip("typer")
    from test_command import refused, run

    (folder / "video.py").write_text(
        "import numpy as np\n"
        "from vicreg import vicreg_loss\n"
        "class Video:\n"
        "    def __init__(self, weight): self.weight = weight\n"
        "    def __call__(self, z1, z2):\n"
        "        rows = [np.moveaxis(z, 1, -1).reshape(-1, z.shape[1]) for z in (z1, z2)]\n"
        "        return {'n': 2, 'total': self.weight * vicreg_loss(*rows)}\n"
    )
    given = ("--kwargs", "weight=1.0", "--output", "total", "--shape", "n,d,1,1")
    result = run("identify", "./video.py:Video", *given)
    assert result.stdout.startswith("official, with its published weights 25, 25, 1; ")
    for command in (("identify", "./video.py:Video"), ("verify", "--target", "./video.py:Video")):
        refused(run(*command), "made without arguments", "--kwargs")
        refused(run(*command, "--kwargs", "weight"), "--kwargs must be NAME=VALUE")
        refused(run(*command, *given[:2], "--shape", "n,m"), "shape must have n")
        refused(run(*command, *given[:2], *given[4:]), "'total'", "output (--output)")
    refused(run("verify", "--output", "total"), "--kwargs, --output and --shape are of --target")
    distributed = ("--distributed", "2", "--target", "./video.py:Video", *given)
    refused(run("verify", *distributed), "it has no --shape")
