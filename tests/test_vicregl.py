"""VICRegL: values and gradients of facebookresearch/VICRegL's own code, on every library."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from backends import Backend
from errors import largest_error, rounding

from vicreg import vicregl_loss, vicregl_value_and_grad

CASES = json.loads((Path(__file__).parent / "data" / "vicregl.json").read_text())["cases"]
# Relative to the largest value: what the published gradients are held to in float64, and the
# rounding of sums over samples, features and, on a level more, matches in float32.
PLACES = max(len(array[0]) for case in CASES for array in case["maps"])
FEATURES = max(len(array[0]) for case in CASES for array in case["embeddings"])
TOLERANCES = {"float64": 1e-12, "float32": rounding("float32", PLACES, FEATURES)}

Inputs = tuple[list, list, list]


def inputs(case: dict, xp: Backend | None = None, is_image: bool = False) -> Inputs:
    """Return the embeddings, maps and locations, with their places on one axis or on two."""

    def made(array: Any, *places: int) -> Any:
        values = np.asarray(array)
        if places:
            values = values.reshape(len(array), *places, values.shape[-1])
        return values if xp is None else xp.asarray(values)

    grids = case["grids"] if is_image else [[-1]] * len(case["grids"])
    return (
        [made(array) for array in case["embeddings"]],
        [made(array, *grid) for array, grid in zip(case["maps"], grids, strict=True)],
        [made(array, *grid) for array, grid in zip(case["locations"], grids, strict=True)],
    )


def skip_without_indices(xp: Backend) -> None:
    if str(xp) == "array_api_strict:no_x64":
        pytest.skip("the library has no argmin: its indices are of a dtype that it refuses")


def settings(case: dict) -> dict[str, Any]:
    counts = tuple(case["num_matches"])
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    return {
        "alpha": case["alpha"],
        "num_matches": counts,
        "feature_matches": None if case["l2_all_matches"] else counts,
        **dict(zip(names, case["weights"], strict=True)),
    }


@pytest.mark.long_on("ndonnx", "jax")
@pytest.mark.parametrize(
    "case",
    [CASES[0], pytest.param(CASES[1], marks=pytest.mark.long_on("torch", "mlx"))],
    ids=lambda case: case["name"],
)
def test_value_and_gradients_are_those_published(xp: Backend, case: dict) -> None:
    skip_without_indices(xp)
    tolerance = TOLERANCES[xp.dtypes[0]]
    views = inputs(case, xp, is_image=True)
    loss, (of_embeddings, of_maps) = vicregl_value_and_grad(*views, **settings(case))
    assert largest_error(xp.numpy(loss), case["loss"]) <= tolerance
    for gradient, wanted in zip(of_embeddings, case["grad_embeddings"], strict=True):
        assert largest_error(xp.numpy(gradient), wanted) <= tolerance
    for gradient, array, wanted in zip(of_maps, views[1], case["grad_maps"], strict=True):
        assert gradient.shape == array.shape
        right = np.reshape(wanted, tuple(array.shape))
        assert largest_error(xp.numpy(gradient), right) <= tolerance


@pytest.mark.long_on("jax", "ndonnx")
def test_the_parts_are_those_published(xp: Backend) -> None:
    """Of places on one axis; a part without a share is not computed."""
    skip_without_indices(xp)
    case = CASES[1]
    views = inputs(case, xp)
    for alpha, part in ((1.0, "global_terms"), (0.0, "local_terms")):
        loss = vicregl_loss(*views, **settings(case) | {"alpha": alpha})
        assert largest_error(xp.numpy(loss), sum(case[part])) <= TOLERANCES[xp.dtypes[0]]


def differentiated_by_torch(case: dict) -> tuple[float, list]:
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(array, requires_grad=True) for array in flat(inputs(case))]
    count = len(case["maps"])
    loss = vicregl_loss(
        leaves[:count], leaves[count : 2 * count], leaves[2 * count :], **settings(case)
    )
    loss.backward()
    assert all(leaf.grad is None for leaf in leaves[2 * count :])
    return loss.item(), [leaf.grad.numpy() for leaf in leaves[: 2 * count]]


def differentiated_by_jax(case: dict) -> tuple[float, list]:
    jax = pytest.importorskip("jax")
    embeddings, maps, locations = inputs(case)

    def function(embeddings: list, maps: list) -> Any:
        return vicregl_loss(embeddings, maps, places, **settings(case))

    arrays = [list(map(jax.numpy.asarray, kind)) for kind in (embeddings, maps)]
    places = list(map(jax.numpy.asarray, locations))
    loss, gradients = jax.value_and_grad(function, (0, 1))(*arrays)
    return float(loss), [np.asarray(array) for array in itertools.chain(*gradients)]


def differentiated_by_mlx(case: dict) -> tuple[float, list]:
    mx = pytest.importorskip("mlx.core")
    given = [mx.array(array.astype(np.float32)) for array in flat(inputs(case))]
    count = len(case["maps"])

    def function(*arrays: Any) -> Any:
        return vicregl_loss(arrays[:count], arrays[count:], given[2 * count :], **settings(case))

    leaves = given[: 2 * count]
    loss, gradients = mx.value_and_grad(function, list(range(2 * count)))(*leaves)
    return loss.item(), [np.asarray(array) for array in gradients]


def flat(views: Inputs) -> list[np.ndarray]:
    return list(itertools.chain(*views))


@pytest.mark.parametrize(
    ("differentiated", "tolerance"),
    [
        (differentiated_by_torch, 1e-12),
        (differentiated_by_jax, 1e-12),
        (differentiated_by_mlx, TOLERANCES["float32"]),
    ],
)
def test_what_differentiates_gets_the_published_gradients(
    differentiated: Any, tolerance: float
) -> None:
    case = CASES[0]
    loss, gradients = differentiated(case)
    assert largest_error(np.asarray(loss), case["loss"]) <= tolerance
    wanted = (*case["grad_embeddings"], *case["grad_maps"])
    for gradient, right in zip(gradients, wanted, strict=True):
        assert largest_error(gradient, right) <= tolerance


@pytest.mark.parametrize("method", ["gram", "covariance"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_both_routes_give_the_published_gradients(case: dict, method: str) -> None:
    loss, gradients = vicregl_value_and_grad(*inputs(case), **settings(case), method=method)
    assert largest_error(loss, case["loss"]) <= 1e-12
    published = (case["grad_embeddings"], case["grad_maps"])
    for kind, wanted in zip(gradients, published, strict=True):
        for gradient, right in zip(kind, wanted, strict=True):
            assert largest_error(gradient, right) <= 1e-12


def test_fewer_places_than_matches_are_all_matched() -> None:
    case = CASES[1]
    views = inputs(case)
    all_of_them = vicregl_loss(*views)  # 20 and 4, of 9 and 4 places
    assert all_of_them == vicregl_loss(*views, num_matches=(9, 4))
    assert all_of_them == vicregl_loss(*views, feature_matches=(9, 9))


def test_devices_differ() -> None:
    torch = pytest.importorskip("torch")
    embeddings, maps, grids = ([torch.from_numpy(a) for a in kind] for kind in inputs(CASES[0]))
    with pytest.raises(ValueError, match=r"maps\[1\] must have the device of embeddings\[0\]"):
        vicregl_loss(embeddings, [maps[0], maps[1].to("meta")], grids)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    half = [
        [torch.from_numpy(array).to(getattr(torch, dtype)).requires_grad_() for array in kind]
        for kind in inputs(CASES[0])
    ]
    single = [[array.detach().float() for array in kind] for kind in half]
    loss, (_, of_maps) = vicregl_value_and_grad(*single, num_matches=(4, 2))
    own = vicregl_loss(*half, num_matches=(4, 2))
    own.backward()
    assert own.dtype == torch.float32
    assert own.item() == loss.item()
    for array, right in zip(half[1], of_maps, strict=True):
        assert torch.equal(array.grad, right.to(array.dtype))


@pytest.mark.long
def test_compiled_by_pytorch_as_one_graph() -> None:
    torch = pytest.importorskip("torch")
    case = CASES[0]
    views = [[torch.from_numpy(array) for array in kind] for kind in inputs(case)]
    leaves = [array.requires_grad_() for array in views[1]]
    compiled = torch.compile(vicregl_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(*views, **settings(case))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    for leaf, wanted in zip(leaves, case["grad_maps"], strict=True):
        assert largest_error(leaf.grad.numpy(), wanted) <= 1e-12


@pytest.mark.parametrize("rows", [ranks.UNEVEN, ranks.NONE], ids=str)
def test_ranks_together_are_one_batch(rows: tuple[int, ...]) -> None:
    """Uneven rows, and a rank without any: each matches its own, the statistics are of all."""
    shapes = ((5,), (3, 2, 4), (3, 2, 2))
    whole = [ranks.whole(rows, shape, views=3, seed=seed) for seed, shape in enumerate(shapes)]
    loss, gradients = vicregl_value_and_grad(*whole, num_matches=(4, 2))

    def of_rank(comm: ranks.Thread) -> Any:
        own = [ranks.own(kind, rows, comm.rank) for kind in whole]
        return vicregl_value_and_grad(*own, num_matches=(4, 2), comm=comm)

    for rank, found in enumerate(ranks.on_threads(len(rows), of_rank)):
        own_loss, own_gradients = found
        assert own_loss == pytest.approx(loss, rel=1e-12)
        for kind, right in zip(own_gradients, gradients, strict=True):
            for gradient, wanted in zip(kind, ranks.own(right, rows, rank), strict=True):
                assert gradient.shape == wanted.shape
                assert np.abs(gradient - wanted).max(initial=0.0) <= 1e-12


BAD = {
    "embeddings": (lambda e, m, at: (e[0], m, at), {}, TypeError, "embeddings must be a list"),
    "too few views": (
        lambda e, m, at: (e[:1], m[:1], at[:1]),
        {},
        ValueError,
        "two or more views",
    ),
    "a map too few": (lambda e, m, at: (e, m[:1], at), {}, ValueError, "maps must be as many"),
    "axes": (lambda e, m, at: (e, e, at), {}, ValueError, r"maps\[0\] must have the axes"),
    "locations": (
        lambda e, m, at: (e, m, m),
        {},
        ValueError,
        r"locations\[0\] must have the shape",
    ),
    "samples": (
        lambda e, m, at: (e, [a[:4] for a in m], [a[:4] for a in at]),
        {},
        ValueError,
        r"maps\[0\] must be of 6 samples",
    ),
    "dtype": (
        lambda e, m, at: (e, [m[0], m[1].astype("float32")], at),
        {},
        TypeError,
        r"maps\[1\] must have the dtype",
    ),
    "positions": (
        lambda e, m, at: ([a[:, None] for a in e], m, at),
        {},
        ValueError,
        "embeddings must have the shape",
    ),
    "alpha": (None, {"alpha": 1.5}, ValueError, "alpha must be from 0 to 1"),
    "counts": (None, {"num_matches": 20}, TypeError, "num_matches must be two integers"),
    "one count": (None, {"num_matches": (20,)}, ValueError, "num_matches must be two integers"),
    "no match": (None, {"feature_matches": (0, 1)}, ValueError, "feature_matches must be 1 or"),
    "a fraction": (None, {"num_matches": (0.5, 1)}, TypeError, "num_matches must be of integers"),
    "num_global": (None, {"num_global": 3}, ValueError, "num_global must be at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    changed, given, error, message = BAD[name]
    views = inputs(CASES[0])
    with pytest.raises(error, match=message):
        vicregl_loss(*(views if changed is None else changed(*views)), **given)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_module_takes_what_lightlys_does(case: dict) -> None:
    torch = pytest.importorskip("torch")
    from vicreg.torch import VICRegLLoss

    embeddings, maps, grids = (
        [torch.from_numpy(array).requires_grad_() for array in kind]
        for kind in inputs(case, is_image=True)
    )
    features = list(zip(embeddings, maps, strict=True))
    of_local = (features[2:], grids[2:]) if features[2:] else ()
    loss = VICRegLLoss(**settings(case))(features[:2], grids[:2], *of_local)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    published = (*case["grad_embeddings"], *case["grad_maps"])
    for leaf, wanted in zip((*embeddings, *maps), published, strict=True):
        assert largest_error(leaf.grad.numpy(), np.reshape(wanted, leaf.shape)) <= 1e-12


def test_the_module_says_what_lightlys_arguments_are_called() -> None:
    pytest.importorskip("torch")
    from vicreg.torch import VICRegLLoss

    with pytest.raises(TypeError, match="invariance_weight"):
        VICRegLLoss(lambda_param=25.0)
    with pytest.raises(ValueError, match="must be given together"):
        VICRegLLoss()([], [], local_view_features=[])
    with pytest.raises(ValueError, match="global_view_grids must be as many"):
        VICRegLLoss()([], [1])
