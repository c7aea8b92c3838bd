"""What one library alone can show: laziness, a graph, a namespace without its device."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_extra.testing import assert_close, lazy_xp_function
from backends import BACKENDS, Backend, why_not
from errors import rounding

import vicreg
import vicreg._core
from vicreg._adapters import dispatch
from vicreg._core.library import Library
from vicreg._core.sizes import Sizes
from vicreg.tools.libraries import LIBRARIES, NAMES, names_where
from vicreg.tools.verification import costs, paths

CORE = Path(vicreg._core.__file__).parent
ROOT = Path(__file__).parents[1]
VIEWS = np.random.default_rng(0).standard_normal((2, 5, 11))

IN_SMALL_BLOCKS = paths.Path("in small blocks", Sizes(columns=4))


def lazy(function: Callable) -> Callable:
    """Return `function`, under jax.jit on JAX, and on Dask with computing forbidden.

    As a function of this module's own: what is marked so is so in every module that has it.
    """

    @functools.wraps(function)
    def called(*views: Any, **settings: Any) -> Any:
        return function(*views, **settings)

    lazy_xp_function(called, allow_dask_compute=False, jax_jit=True)
    return called


vicreg_loss = lazy(vicreg.vicreg_loss)
vicreg_terms = lazy(vicreg.vicreg_terms)
vicreg_value_and_grad = lazy(vicreg.vicreg_value_and_grad)
vcreg_loss = lazy(IN_SMALL_BLOCKS.vcreg_loss)
vcreg_value_and_grad = lazy(IN_SMALL_BLOCKS.vcreg_value_and_grad)


@pytest.mark.representative
@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_in_the_callers_own_namespace(xp: Backend, method: str) -> None:
    """`assert_close` checks library, dtype, shape and device besides the values."""
    if not xp.in_testing:
        pytest.skip("array_api_extra.testing does not know the library")
    wanted, gradients = vicreg_value_and_grad(*VIEWS, method=method)
    arrays = [xp.asarray(view) for view in VIEWS]
    bound = rounding(xp.dtypes[0], 5, 11)
    assert_close(vicreg_loss(*arrays, method=method), xp.asarray(wanted), rtol=bound)
    loss, got = vicreg_value_and_grad(*arrays, method=method)
    assert_close(loss, xp.asarray(wanted), rtol=bound)
    for gradient, right in zip(got, gradients, strict=True):
        atol = bound * float(np.abs(right).max())
        assert_close(gradient, xp.asarray(right), atol=atol)


VCREG = {"variance_weight": 2.0, "covariance_weight": 3.0}
SMOOTH_L1 = VCREG | {"penalty": "smooth_l1", "delta": 0.2}


@pytest.mark.representative
@pytest.mark.parametrize("settings", [VCREG, SMOOTH_L1], ids=["square", "smooth_l1"])
def test_vcreg_in_the_callers_own_namespace(xp: Backend, settings: dict) -> None:
    """Pooled images, compiled on JAX and not computed on Dask."""
    if not xp.in_testing:
        pytest.skip("array_api_extra.testing does not know the library")
    z = np.random.default_rng(0).standard_normal((3, 11, 2))
    wanted, right = vcreg_value_and_grad(z, feature_axis=1, **settings)
    array, bound = xp.asarray(z), rounding(xp.dtypes[0], 6, 11)
    got = vcreg_loss(array, feature_axis=1, **settings)
    assert_close(got, xp.asarray(wanted), rtol=bound)
    loss, gradient = vcreg_value_and_grad(array, feature_axis=1, **settings)
    assert_close(loss, xp.asarray(wanted), rtol=bound)
    assert_close(gradient, xp.asarray(right), atol=bound * float(np.abs(right).max()))


def test_dask_computes_nothing_before_the_caller_does() -> None:
    dask = pytest.importorskip("dask")
    from dask import array

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    views = [array.from_array(view, chunks=(3, 11)) for view in VIEWS]
    with dask.config.set(scheduler=refuse):
        for method in ("gram", "covariance"):
            loss, _ = vicreg_value_and_grad(*views, method=method)
            vicreg_terms(*views, method=method)
            with pytest.raises(AssertionError, match="computed"):
                loss.compute()


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((1000, 2000), (10, 2000)), ((1000, 2000), (100, 200)), ((2000, 500), (20, 500))],
    ids=str,
)
def test_the_graph_of_dask_has_few_tasks(shape: tuple[int, int], chunks: tuple[int, int]) -> None:
    """However the views are chunked, in a hundred of them; and gradients come in their chunks."""
    array = pytest.importorskip("dask.array")
    views = [array.ones(shape, chunks=chunks) for _ in range(2)]
    loss, gradients = vicreg.vicreg_value_and_grad(*views)
    tasks = {key for output in (loss, *gradients) for key in output.__dask_graph__()}
    assert len(tasks) <= 5000
    for gradient, view in zip(gradients, views, strict=True):
        assert gradient.chunks == view.chunks


@pytest.mark.parametrize("shape", [(24, 30), (30, 24), (24, 3, 30), (30, 3, 8)], ids=str)
@pytest.mark.parametrize("chunks", [(5, 7), (6, -1), (-1, 4)], ids=str)
def test_chunks_change_no_value(shape: tuple[int, ...], chunks: tuple[int, int]) -> None:
    """In float32, with an offset far larger than the std, and views in chunks that differ."""
    array = pytest.importorskip("dask.array")
    arrays = np.random.default_rng(3).standard_normal((2, *shape)) + 1e3
    arrays = arrays.astype(np.float32)
    wanted, right = vicreg.vicreg_value_and_grad(*arrays.astype(np.float64))
    rows, features = chunks
    first = array.from_array(arrays[0], chunks=(rows, *shape[1:-1], features))
    loss, gradients = vicreg.vicreg_value_and_grad(first, array.from_array(arrays[1]))
    bound = 4 * rounding("float32", shape[0], shape[-1])
    np.testing.assert_allclose(loss.compute(), wanted, rtol=bound)
    alone = vicreg.vicreg_loss(first, array.from_array(arrays[1]))
    np.testing.assert_allclose(alone.compute(), wanted, rtol=bound)
    for gradient, truth in zip(gradients, right, strict=True):
        atol = bound * np.abs(truth).max()
        np.testing.assert_allclose(gradient.compute(), truth, rtol=0, atol=atol)


def test_an_unknown_shape_is_refused() -> None:
    array = pytest.importorskip("dask.array")
    view = array.from_array(VIEWS[0], chunks=(3, 11))
    unknown = view[view[:, 0] > 0]
    with pytest.raises(ValueError, match=r"views\[0\] must have a shape that is known"):
        vicreg_loss(unknown, unknown)


def test_the_graph_of_vcreg_runs_in_onnxruntime() -> None:
    ndx = pytest.importorskip("ndonnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    z = ndx.argument(shape=(3, 11, 2), dtype=ndx.float32)
    loss, gradient = vcreg_value_and_grad(z, feature_axis=1, **SMOOTH_L1)
    model = ndx.build({"z": z}, {"loss": loss, "gradient": gradient})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    low = np.random.default_rng(0).standard_normal((3, 11, 2)).astype(np.float32)
    got = session.run(["loss", "gradient"], {"z": low})
    wanted, right = vcreg_value_and_grad(low.astype(np.float64), feature_axis=1, **SMOOTH_L1)
    bound = rounding("float32", 6, 11)
    np.testing.assert_allclose(got[0], wanted, rtol=bound)
    np.testing.assert_allclose(got[1], right, rtol=0, atol=bound * np.abs(right).max())


@pytest.mark.parametrize("method", ["gram", "covariance"])
def test_the_graph_of_the_loss_runs_in_onnxruntime(method: str) -> None:
    ndx = pytest.importorskip("ndonnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    z1, z2 = (ndx.argument(shape=(5, 11), dtype=ndx.float32) for _ in range(2))
    loss, (grad1, grad2) = vicreg_value_and_grad(z1, z2, method=method)
    outputs = {"loss": loss, "grad1": grad1, "grad2": grad2}
    model = ndx.build({"z1": z1, "z2": z2}, outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    low = VIEWS.astype(np.float32)
    got = session.run(list(outputs), {"z1": low[0], "z2": low[1]})
    wanted, gradients = vicreg_value_and_grad(*low.astype(np.float64))
    bound = rounding("float32", 5, 11)
    np.testing.assert_allclose(got[0], wanted, rtol=bound)
    for gradient, right in zip(got[1:], gradients, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=0, atol=bound * np.abs(right).max())


def standard_functions() -> dict[str, list[ast.Call]]:
    """Return every function of the namespace that the core calls, with its calls.

    In "linalg.svdvals" the first name is that of the namespace's part.
    """
    calls: dict[str, list[ast.Call]] = {}
    for path in CORE.rglob("*.py"):
        # A `Library` has the functions of its namespace.
        namespaces = r"self|.*\bxp" if path.name == "library.py" else r".*\bxp"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner, _, part = ast.unparse(node.func.value).partition(".linalg")
                if re.fullmatch(namespaces, owner) and not part:
                    linalg = "linalg." if "linalg" in ast.unparse(node.func.value) else ""
                    calls.setdefault(linalg + node.func.attr, []).append(node)
    return calls


def test_cupys_namespace_has_each_function_that_the_core_uses() -> None:
    """Without a GPU CuPy cannot run, but its functions can be asked what they take."""
    pytest.importorskip("cupy")
    namespace = pytest.importorskip("array_api_compat.cupy")
    calls = standard_functions()
    assert {"stack", "matmul", "sort", "cumulative_sum", "sum", "where"} <= set(calls)
    assert {"astype", "matrix_transpose", "linalg.svdvals", "linalg.eigvalsh"} <= set(calls)
    for name, nodes in calls.items():
        if hasattr(Library, name):  # beyond the standard
            continue
        function = operator.attrgetter(name)(namespace)
        try:
            signature = inspect.signature(function)
        except ValueError:  # a ufunc or a compiled function: it takes what the standard says
            assert callable(function)
            continue
        for node in nodes:
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue
            keywords = {keyword.arg: None for keyword in node.keywords}
            signature.bind(*(None for _ in node.args), **keywords)
    for name in ("float32", "float64", "int32"):
        assert hasattr(namespace, name)


def test_cupy_says_why_it_does_not_run() -> None:
    (cupy,) = (backend for backend in BACKENDS if backend.name == "cupy")
    reason = why_not(cupy)
    if reason is None:
        pytest.skip("CuPy runs here")
    assert "not installed" in reason or "no CUDA device" in reason


def test_import_brings_no_array_library() -> None:
    check = (
        "import sys, vicreg, vicreg._checks, vicreg._core.engine; "
        f"print([name for name in {NAMES!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("library", ["torch", "jax", "mlx"])
def test_one_librarys_array_does_not_bring_another(library: str) -> None:
    pytest.importorskip(library)
    make = {
        "torch": "import torch; z = torch.eye(3)",
        "jax": "import jax.numpy; z = jax.numpy.eye(3)",
        "mlx": "import mlx.core; z = mlx.core.eye(3)",
    }[library]
    others = [name for name in NAMES if name not in (library, "numpy")]
    check = (
        f"import sys, vicreg; {make}; vicreg.vicreg_value_and_grad(z, z); "
        f"print([name for name in {others!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def modules_of(package: str) -> set[str]:
    """Return the names of the modules in a package of `vicreg.tools`."""
    paths = (Path(vicreg.__file__).parent / "tools" / package).glob("*.py")
    return {path.stem for path in paths} - {"__init__"}


class TestOneListOfLibraries:
    """What cannot be derived from `vicreg.tools.libraries` names the same libraries."""

    PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
    EXTRAS = PYPROJECT["project"]["optional-dependencies"]

    def test_each_has_a_module_where_it_says_so(self) -> None:
        own = modules_of("backends") - {"base", "standard"}
        assert own == set(names_where("has_backend"))

    def test_each_that_trains_has_a_trainer(self) -> None:
        assert modules_of("demo/trainers") - {"standard"} == set(names_where("trains_demo"))

    def test_each_has_its_costs(self) -> None:
        assert set(costs._COSTS) == set(NAMES)

    def test_arrays_are_recognised_by_the_same_names(self) -> None:
        assert set(dispatch._LIBRARIES.values()) <= set(NAMES)

    def test_what_pip_installs_is_in_an_extra(self) -> None:
        lines = {line for extra in self.EXTRAS.values() for line in extra}
        packages = {re.split(r"[><=;]", line)[0] for line in lines}
        for name, library in LIBRARIES.items():
            installed = [package.strip("'") for package in library.package.split()]
            assert installed[0].replace("-", "_").startswith(name)
            assert set(installed) <= packages, name

    def test_each_has_a_session_with_the_versions_of_its_extra(self) -> None:
        noxfile = ast.parse((ROOT / "noxfile.py").read_text())
        values = {
            ast.unparse(node.targets[0]): ast.unparse(node.value)
            for node in noxfile.body
            if isinstance(node, ast.Assign)
        }
        sessions = eval(values["LIBRARIES"], {"TORCH": ast.literal_eval(values["TORCH"])})
        assert set(sessions) == set(NAMES)
        known = {line.partition(";")[0] for extra in self.EXTRAS.values() for line in extra}
        for pins in sessions.values():
            assert set(pins) <= known

    def test_the_core_may_import_none(self) -> None:
        contracts = self.PYPROJECT["tool"]["importlinter"]["contracts"]
        (forbidden,) = (set(c["forbidden_modules"]) for c in contracts if c["type"] == "forbidden")
        assert forbidden == set(NAMES)

    def test_the_docstring_of_identify_names_each(self) -> None:
        text = inspect.getdoc(vicreg.identify)
        listed = re.search(r"The library of the arrays: (.*?), or the", text, flags=re.S)
        assert re.findall(r'"(\w+)"', listed[1]) == list(NAMES)
