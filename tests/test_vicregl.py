"""VICRegL: values and gradients of facebookresearch/VICRegL's own code, on every library."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import definition
import numpy as np
import pytest
import ranks
from backends import Backend
from errors import largest_error, rounding

from vicreg import vicregl_loss, vicregl_value_and_grad
from vicreg.distributed import LOCAL, MPICommunicator

CASES = json.loads((Path(__file__).parent / "data" / "vicregl.json").read_text())["cases"]
# Relative to the largest value: what the published gradients are held to in float64, and the
# rounding of sums over samples, features and, on a level more, matches in float32.
PLACES = max(len(array[0]) for case in CASES for array in case["maps"])
FEATURES = max(len(array[0]) for case in CASES for array in case["embeddings"])
TOLERANCES = {"float64": 1e-12, "float32": rounding("float32", PLACES, FEATURES)}

Inputs = tuple[list, list, list]

ONE = pytest.mark.long_on("torch", "mlx", "dask", "jax", "ndonnx", "array_api_strict", "mparray")


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


def differentiated_by_torch(views: Inputs, given: dict[str, Any]) -> tuple[float, list]:
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(array, requires_grad=True) for array in flat(views)]
    count = len(views[0])
    loss = vicregl_loss(
        leaves[:count],
        leaves[count : 2 * count],
        leaves[2 * count :],
        **in_library(torch.asarray, given),
    )
    loss.backward()
    assert all(leaf.grad is None for leaf in leaves[2 * count :])
    return loss.item(), [leaf.grad.numpy() for leaf in leaves[: 2 * count]]


def differentiated_by_jax(views: Inputs, given: dict[str, Any]) -> tuple[float, list]:
    jax = pytest.importorskip("jax")
    embeddings, maps, places = ([jax.numpy.asarray(array) for array in kind] for kind in views)
    settings = in_library(jax.numpy.asarray, given)

    def function(embeddings: list, maps: list) -> Any:
        return vicregl_loss(embeddings, maps, places, **settings)

    loss, gradients = jax.value_and_grad(function, (0, 1))(embeddings, maps)
    return float(loss), [np.asarray(array) for array in itertools.chain(*gradients)]


def differentiated_by_mlx(views: Inputs, given: dict[str, Any]) -> tuple[float, list]:
    mx = pytest.importorskip("mlx.core")
    arrays = [mx.array(array.astype(np.float32)) for array in flat(views)]
    count, settings = len(views[0]), in_library(mx.array, given)

    def function(*leaves: Any) -> Any:
        return vicregl_loss(leaves[:count], leaves[count:], arrays[2 * count :], **settings)

    leaves = arrays[: 2 * count]
    loss, gradients = mx.value_and_grad(function, list(range(2 * count)))(*leaves)
    return loss.item(), [np.asarray(array) for array in gradients]


def in_library(asarray: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return settings with what is an array in a library."""
    return {k: asarray(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}


def flat(views: Inputs) -> list[np.ndarray]:
    return list(itertools.chain(*views))


IN_EACH_LIBRARY = pytest.mark.parametrize(
    ("differentiated", "tolerance"),
    [
        (differentiated_by_torch, 1e-12),
        (differentiated_by_jax, 1e-12),
        (differentiated_by_mlx, TOLERANCES["float32"]),
    ],
)


@IN_EACH_LIBRARY
def test_what_differentiates_gets_the_published_gradients(
    differentiated: Any, tolerance: float
) -> None:
    case = CASES[0]
    loss, gradients = differentiated(inputs(case), settings(case))
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


#: What other codebases compute, by the settings here. Each is on a case with its weights.
LIGHTLY = {"num_matches": (4, 2), "feature_matches": (4, 2), "match_order": "distance"}
STABLE_PRETRAINING = {
    "num_global": 1,
    "num_matches": (0, 0),
    "feature_matches": (None, 0),
    "feature_distance": "cosine",
    "statistics": "all",
    "covariance_weight": 2.0,
}
JOLIBRAIN = {
    "num_matches": (4, 4),
    "feature_matches": (4, 4),
    "match_order": "distance",
    "statistics": "sample",
    "eps": 0.0,
    # Where the matches by features and by location are added, and not their mean taken.
    "alpha": 6 / 7,
    "invariance_weight": 25 * 7 / 8,
    "variance_weight": 15 * 7 / 8,
    "covariance_weight": 7 / 8,
}


def matched(
    own: np.ndarray, other: np.ndarray, distances: np.ndarray, kept: int | None, order: str
) -> list[np.ndarray]:
    """Return the places of `own` that are kept, and the nearest of `other`, sample by sample."""
    nearest, least = distances.argmin(2), distances.min(2)
    chosen = np.argsort(least, axis=1, kind="stable")[:, :kept]
    if order == "place":
        chosen = np.sort(chosen, axis=1)
    return [
        np.stack([view[places] for view, places in zip(own, chosen, strict=True)]),
        np.stack(
            [view[at[places]] for view, at, places in zip(other, nearest, chosen, strict=True)]
        ),
    ]


def lengths(array: np.ndarray) -> np.ndarray:
    return (array**2).sum(-1, keepdims=True) ** 0.5


def truth(views: Inputs, given: dict[str, Any]) -> Any:
    """Return the loss of VICRegL by its definition: of real numbers, or complex ones."""
    embeddings, maps, locations = views
    weights = (25.0, 25.0, given.get("covariance_weight", 1.0))
    order, num_global = given.get("match_order", "place"), given.get("num_global", 2)
    pairs = [(i, j) for i in range(num_global) for j in range(len(maps)) if j != i]

    def loss(views: list[np.ndarray], pairs: Any = None) -> Any:
        return definition.loss(views, "vicregl", weights, pairs=pairs)

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if given.get("feature_distance") == "cosine":
            a, b = a / lengths(a), b / lengths(b)
        return ((a[:, :, None] - b[:, None]) ** 2).sum(-1)

    def local(kept: Any, distances: Any) -> Any:
        of_ways = []
        for i, j in pairs:
            for (one, other), count in zip(((i, j), (j, i)), kept, strict=True):
                if count == 0:
                    continue
                both = matched(maps[one], maps[other], distances(one, other), count, order)
                if given.get("statistics") == "all":
                    both = [view.reshape(-1, view.shape[-1]) for view in both]
                if given.get("statistics") == "sample":
                    both = [np.swapaxes(view, 0, 1) for view in both]
                of_ways.append(loss(both))
        return definition.average(of_ways) if of_ways else 0.0

    at = [np.reshape(array, (len(array), -1, 2)) for array in locations]
    by_features = local(
        given.get("feature_matches") or (None, None),
        lambda i, j: between(maps[i].real, maps[j].real),
    )
    by_location = local(
        given["num_matches"], lambda i, j: ((at[i][:, :, None] - at[j][:, None]) ** 2).sum(-1)
    )
    return 0.75 * loss(embeddings, pairs) + 0.25 * (by_features + by_location)


def derivative(views: Inputs, given: dict[str, Any], place: int, along: np.ndarray) -> float:
    """Return the derivative by one embedding or map, in a direction."""
    moved = [array + 0j for array in (*views[0], *views[1])]
    moved[place] += 1j * definition.STEP * along
    count = len(views[0])
    return truth((moved[:count], moved[count:], views[2]), given).imag / definition.STEP


@pytest.mark.long_on("ndonnx", "jax")
@pytest.mark.parametrize(
    ("given", "case"),
    [
        (LIGHTLY, CASES[1]),
        (STABLE_PRETRAINING, CASES[0]),
        # Each setting by itself, with the defaults of the others.
        pytest.param({"num_matches": (4, 2), "match_order": "distance"}, CASES[0], marks=ONE),
        pytest.param({"num_matches": (4, 2), "feature_distance": "cosine"}, CASES[1], marks=ONE),
        pytest.param({"num_matches": (4, 2), "statistics": "all"}, CASES[1], marks=ONE),
        ({"num_matches": (4, 2), "statistics": "sample"}, CASES[1]),
        pytest.param({"num_matches": (0, 2)}, CASES[1], marks=ONE),
        pytest.param({"num_matches": (3, 0), "feature_matches": (0, 0)}, CASES[1], marks=ONE),
    ],
)
def test_value_and_gradients_of_each_setting(
    xp: Backend, given: dict[str, Any], case: dict
) -> None:
    skip_without_indices(xp)
    loss, gradients = vicregl_value_and_grad(*inputs(case, xp), **given)
    tolerance, views = TOLERANCES[xp.dtypes[0]], inputs(case)
    assert largest_error(xp.numpy(loss), truth(views, given)) <= tolerance
    rng = np.random.default_rng(0)
    for place, gradient in enumerate(map(xp.numpy, itertools.chain(*gradients))):
        along = rng.standard_normal(gradient.shape)
        along /= np.abs(along).sum()  # so that no rounding weighs more than that of one element
        wanted = derivative(views, given, place, along)
        assert abs((gradient * along).sum() - wanted) <= tolerance * np.abs(gradient).max()


def with_counts(case: dict) -> tuple[Inputs, np.ndarray, Inputs]:
    """Return views with counts of their samples, and the same with each sample so often.

    What is counted 0 times is NaN, or infinite.
    """
    counts = np.asarray([2, 0, 1, 1, 3, 1][: len(case["maps"][0])])
    views = inputs(case)
    repeated = tuple([np.repeat(array, counts, axis=0) for array in kind] for kind in views)
    for place, array in enumerate(flat(views)):
        array[counts == 0] = np.inf if place % 2 else np.nan
    return views, counts, repeated


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_weight_is_finite_in_the_dtype_of_the_maps_too(library: str) -> None:
    pytest.importorskip(library)
    xp = Backend(library)
    embeddings, *others = inputs(CASES[0])
    views = (
        [xp.asarray(array, "float64") for array in embeddings],
        *([xp.asarray(array, "float32") for array in kind] for kind in others),
    )
    weight = xp.asarray(np.full(len(embeddings[0]), 1e39), "float64")
    for function in (vicregl_loss, vicregl_value_and_grad):
        with pytest.raises(ValueError, match=r"finite in the dtype.*got 1e\+39"):
            function(*views, sample_weight=weight)


def test_two_places_have_statistics_of_a_sample() -> None:
    embeddings, *others = inputs(CASES[0])
    views = (embeddings, *([array[:, :2] for array in kind] for kind in others))
    given = {"statistics": "sample", "num_matches": (2, 2)}
    wanted = truth(views, given)
    assert largest_error(vicregl_loss(*views, **given), wanted) <= TOLERANCES["float64"]


def test_the_loss_is_an_array_in_numpy() -> None:
    views = inputs(CASES[0])
    loss, _ = vicregl_value_and_grad(*views)
    for each in (loss, vicregl_loss(*views)):
        assert isinstance(each, np.ndarray)
        assert each.shape == ()


@pytest.mark.long_on("ndonnx", "jax")
@pytest.mark.parametrize(
    ("given", "case"),
    [
        ({"num_matches": (4, 2)}, CASES[1]),
        pytest.param(LIGHTLY, CASES[1], marks=ONE),
        (STABLE_PRETRAINING, CASES[0]),
    ],
)
def test_a_weight_is_how_often_a_sample_occurs(
    xp: Backend, given: dict[str, Any], case: dict
) -> None:
    skip_without_indices(xp)
    views, counts, repeated = with_counts(case)
    tolerance = TOLERANCES[xp.dtypes[0]]
    loss, gradients = vicregl_value_and_grad(
        *([xp.asarray(array) for array in kind] for kind in views),
        **given,
        sample_weight=xp.asarray(counts.astype(xp.dtypes[0])),
    )
    assert largest_error(xp.numpy(loss), truth(repeated, given)) <= tolerance
    rng = np.random.default_rng(0)
    for place, gradient in enumerate(map(xp.numpy, itertools.chain(*gradients))):
        assert np.all(gradient[counts == 0] == 0)
        along = rng.standard_normal(gradient.shape)
        along /= np.abs(along).sum()
        wanted = derivative(repeated, given, place, np.repeat(along, counts, axis=0))
        assert abs((gradient * along).sum() - wanted) <= tolerance * np.abs(gradient).max()

    once = tuple([array[counts > 0] for array in kind] for kind in views)
    arrays = ([xp.asarray(array) for array in kind] for kind in views)
    masked = vicregl_loss(*arrays, **given, sample_weight=xp.asarray(counts) > 0)
    assert largest_error(xp.numpy(masked), truth(once, given)) <= tolerance


@IN_EACH_LIBRARY
def test_absent_samples_get_a_gradient_of_0_where_the_library_differentiates(
    differentiated: Any, tolerance: float
) -> None:
    views, counts, _ = with_counts(CASES[0])
    present = counts > 0
    chosen = tuple([array[present] for array in kind] for kind in views)
    wanted_loss, right = vicregl_value_and_grad(*chosen)
    loss, found = differentiated(views, {"sample_weight": present})
    assert largest_error(np.asarray(loss), wanted_loss) <= tolerance
    for gradient, wanted in zip(found, itertools.chain(*right), strict=True):
        assert np.all(gradient[~present] == 0)
        assert largest_error(gradient[present], wanted) <= tolerance


def test_one_weight_is_that_of_every_sample() -> None:
    views = inputs(CASES[0])
    twice = tuple([np.repeat(array, 2, axis=0) for array in kind] for kind in views)
    for weight in (np.asarray(2), np.asarray([2])):
        assert vicregl_loss(*views, sample_weight=weight) == pytest.approx(vicregl_loss(*twice))


#: The loss that each codebase's own code returns in float64, and the sum of the squares of its
#: gradient by each embedding and each map: lightly 1.6.0, stable-pretraining 0.1.8, and commit
#: 7b2b018 of jolibrain/vicreg-loss, where all features of a match are taken: it takes the first.
OTHERS = {
    "lightly, global views": (
        LIGHTLY,
        CASES[0],
        68.30758772958168,
        [116.83044175763172, 100.59836716037418, 4.624823033851301, 4.860725962589731],
    ),
    "lightly": (
        LIGHTLY,
        CASES[1],
        64.37672959147442,
        [
            *(52.1267655122083, 40.986606148325976, 17.138635351883224),
            *(2.2894478292875626, 3.2256619897622323, 1.6143192063798417),
        ],
    ),
    "stable-pretraining": (
        STABLE_PRETRAINING,
        CASES[0],
        56.30062785239021,
        [132.499991364231, 100.90756525530787, 0.7269585755787955, 1.352502837778037],
    ),
    "jolibrain": (
        JOLIBRAIN,
        CASES[0],
        56.0836280057029,
        [117.43688503244425, 102.17306945444656, 1.0463939353879745, 1.1834560571282944],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_codebases_return(name: str) -> None:
    given, case, wanted, squares = OTHERS[name]
    loss, gradients = vicregl_value_and_grad(*inputs(case), **given)
    assert loss == pytest.approx(wanted, rel=1e-12)
    own = [np.sum(gradient**2) for gradient in itertools.chain(*gradients)]
    assert own == pytest.approx(squares, rel=1e-12)


def test_statistics_of_each_sample_are_of_this_process() -> None:
    given, case, wanted, _ = OTHERS["jolibrain"]
    assert vicregl_loss(*inputs(case), **given, comm=LOCAL) == pytest.approx(wanted, rel=1e-12)


def test_the_nearest_matches_come_first() -> None:
    """Where all are kept too, as in lightly: the order decides which of them share statistics."""
    views = inputs(CASES[0])
    by_place = vicregl_loss(*views, alpha=0)
    by_distance = vicregl_loss(*views, alpha=0, match_order="distance")
    given = {"num_matches": (20, 4), "match_order": "distance"}
    wanted = (truth(views, given) - 0.75 * vicregl_loss(*views, alpha=1)) / 0.25
    assert by_distance == pytest.approx(wanted, rel=1e-12)
    assert by_distance != pytest.approx(by_place, rel=1e-3)


def test_no_locations_are_needed_where_nothing_is_matched_by_them() -> None:
    embeddings, maps, locations = inputs(CASES[1])
    own = vicregl_value_and_grad(embeddings, maps, None, num_matches=(0, 0))
    with_them = vicregl_value_and_grad(embeddings, maps, locations, num_matches=(0, 0))
    assert own[0] == with_them[0]
    for gradient, right in zip(
        itertools.chain(*own[1]), itertools.chain(*with_them[1]), strict=True
    ):
        assert np.array_equal(gradient, right)


def test_features_that_are_0_have_a_cosine_of_0() -> None:
    embeddings, maps, locations = inputs(CASES[0])
    maps[1][:, 3] = 0.0
    loss, gradients = vicregl_value_and_grad(
        embeddings, maps, locations, feature_distance="cosine"
    )
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in itertools.chain(*gradients))


@pytest.mark.parametrize(
    ("c", "given"),
    [
        (8, {}),
        (128, {}),
        (128, {"match_order": "distance", "feature_matches": (20, 4)}),
        (8, {"feature_distance": "cosine", "statistics": "all"}),
    ],
)
def test_no_array_is_larger_than_the_distances_or_a_map(c: int, given: dict[str, Any]) -> None:
    """With 14 pairs of maps: of 8 features the distances are the larger, of 128 the maps."""
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes: list[int] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ):
            outputs = function(*args, **(kwargs or {}))
            sizes.extend(out.numel() for out in tree_leaves(outputs) if hasattr(out, "numel"))
            return outputs

    def drawn(shape: tuple[int, ...]) -> Any:
        return torch.rand(shape, generator=torch.manual_seed(0), requires_grad=True)

    n, grids = 32, [(7, 7)] * 2 + [(3, 3)] * 6
    embeddings = [drawn((n, 16)) for _ in grids]
    maps = [drawn((n, *grid, c)) for grid in grids]
    locations = [drawn((n, *grid, 2)).detach() for grid in grids]
    largest = max(n * 49 * 49, n * 49 * c)
    with Counted():
        vicregl_loss(embeddings, maps, locations, **given).backward()
    assert max(sizes) == largest
    sizes.clear()
    with Counted():
        vicregl_value_and_grad(embeddings, maps, locations, **given)
    assert max(sizes) == largest


@pytest.mark.parametrize("statistics", ["place", "all"])
def test_ranks_together_are_one_batch_of_each_setting(statistics: str) -> None:
    shapes = ((5,), (3, 2, 4), (3, 2, 2))
    rows = ranks.UNEVEN
    whole = [ranks.whole(rows, shape, views=3, seed=seed) for seed, shape in enumerate(shapes)]
    given = {"num_matches": (4, 2), "match_order": "distance", "statistics": statistics}
    loss, gradients = vicregl_value_and_grad(*whole, **given)

    def of_rank(comm: ranks.Thread) -> Any:
        own = [ranks.own(kind, rows, comm.rank) for kind in whole]
        return vicregl_value_and_grad(*own, **given, comm=comm)

    for rank, (own_loss, own_gradients) in enumerate(ranks.on_threads(len(rows), of_rank)):
        assert own_loss == pytest.approx(loss, rel=1e-12)
        for kind, right in zip(own_gradients, gradients, strict=True):
            for gradient, wanted in zip(kind, ranks.own(right, rows, rank), strict=True):
                assert np.abs(gradient - wanted).max() <= 1e-12


def test_a_part_without_a_share_is_not_computed() -> None:
    """What it is of may be infinite, and nothing needs to be matched."""
    embeddings, maps, locations = inputs(CASES[0])
    nothing = [np.full_like(array, np.inf) for array in embeddings]
    whole = vicregl_loss(embeddings, maps, locations, alpha=0)
    assert vicregl_loss(nothing, maps, locations, alpha=0) == whole
    nowhere = [np.full_like(array, np.inf) for array in maps]
    counts = {"num_matches": (0, 0), "feature_matches": (0, 0)}
    whole = vicregl_loss(embeddings, maps, locations, alpha=1)
    assert vicregl_loss(embeddings, nowhere, locations, alpha=1) == whole
    assert vicregl_loss(embeddings, nowhere, None, alpha=1, **counts) == whole


def test_fewer_places_than_matches_are_all_matched() -> None:
    case = CASES[1]
    views = inputs(case)
    all_of_them = vicregl_loss(*views)  # 20 and 4, of 9 and 4 places
    assert all_of_them == vicregl_loss(*views, num_matches=(9, 4))
    assert all_of_them == vicregl_loss(*views, feature_matches=(9, 9))


@ONE
@pytest.mark.parametrize("order", ["place", "distance"])
def test_of_equally_near_locations_the_first_are_taken(xp: Backend, order: str) -> None:
    skip_without_indices(xp)
    embeddings, maps, locations = inputs(CASES[1])
    # Of two values for each coordinate: few distances, each of many places, and none rounded.
    ties = [np.round(array) for array in locations]
    given = {"num_matches": (3, 2), "match_order": order}
    kinds = [[xp.asarray(array) for array in kind] for kind in (embeddings, maps, ties)]
    loss, wanted = vicregl_loss(*kinds, **given), truth((embeddings, maps, ties), given)
    assert largest_error(xp.numpy(loss), wanted) <= TOLERANCES[xp.dtypes[0]]
    backwards = [array[:, ::-1].copy() for array in maps], [array[:, ::-1] for array in ties]
    assert abs(truth((embeddings, *backwards), given) - wanted) > 1e-3  # it does make a difference


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

    views, counts, repeated = with_counts(case)
    kinds = [[torch.from_numpy(array) for array in kind] for kind in views]
    loss = compiled(*kinds, **settings(case), sample_weight=torch.from_numpy(counts))
    assert loss.item() == pytest.approx(vicregl_loss(*repeated, **settings(case)), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [ranks.UNEVEN, ranks.NONE], ids=str)
def test_ranks_together_are_one_batch(rows: tuple[int, ...], weighted: bool) -> None:
    """Uneven rows, and a rank without any: each matches its own, the statistics are of all."""
    shapes = ((5,), (3, 2, 4), (3, 2, 2))
    whole = [ranks.whole(rows, shape, views=3, seed=seed) for seed, shape in enumerate(shapes)]
    counts = np.arange(sum(rows)) % 3 if weighted else None
    loss, gradients = vicregl_value_and_grad(*whole, num_matches=(4, 2), sample_weight=counts)

    def of_rank(comm: ranks.Thread) -> Any:
        own = [ranks.own(kind, rows, comm.rank) for kind in whole]
        weight = None if counts is None else ranks.own([counts], rows, comm.rank)[0]
        return vicregl_value_and_grad(*own, num_matches=(4, 2), sample_weight=weight, comm=comm)

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
    "no embeddings": (lambda e, m, at: (None, m, at), {}, TypeError, "embeddings must be a list"),
    "a map too few": (
        lambda e, m, at: (e, m[:1], at),
        {},
        ValueError,
        "maps must be as many as embeddings, 2; got 1",
    ),
    "a grid too few": (
        lambda e, m, at: (e, m, at[:1]),
        {},
        ValueError,
        "locations must be as many as embeddings, 2; got 1",
    ),
    "features": (
        lambda e, m, at: (e, [m[0], m[1][..., :3]], at),
        {},
        ValueError,
        r"maps\[1\] must be of 6 samples, as embeddings\[0\] is, and of 4 features",
    ),
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
        r"maps\[1\] must have the dtype of maps\[0\], float64; got float32",
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
    "below 0": (None, {"feature_matches": (-1, 1)}, ValueError, "feature_matches must be 0 or"),
    "nothing": (
        None,
        {"feature_matches": (0, 0), "num_matches": (0, 0)},
        ValueError,
        r"must not both be \(0, 0\) where alpha is below 1",
    ),
    "no locations": (
        lambda e, m, at: (e, m, None),
        {},
        TypeError,
        r"unless num_matches is \(0, 0",
    ),
    "order": (
        None,
        {"match_order": "nearest"},
        ValueError,
        "match_order must be 'place' or 'distance'; got 'nearest'",
    ),
    "distance": (
        None,
        {"feature_distance": None},
        ValueError,
        "feature_distance must be 'euclidean' or 'cosine'; got None",
    ),
    "statistics": (
        None,
        {"statistics": ["all"]},
        ValueError,
        r"statistics must be 'place', 'all' or 'sample'; got \['all'\]",
    ),
    "statistics of one match": (
        None,
        {"statistics": "sample", "num_matches": (20, 1)},
        ValueError,
        r"num_matches must not have a 1 where statistics is 'sample', .*; got \(20, 1\)",
    ),
    "statistics of one match by features": (
        None,
        {"statistics": "sample", "feature_matches": (1, None)},
        ValueError,
        "feature_matches must not have a 1 where statistics is 'sample'",
    ),
    "statistics of one place": (
        lambda e, m, at: (e, [m[0], m[1][:, :1]], [at[0], at[1][:, :1]]),
        {"statistics": "sample"},
        ValueError,
        r"maps\[1\] must have two places or more where statistics is 'sample', .*\(6, 1, 4\)",
    ),
    "statistics of each weighted sample": (
        None,
        {"statistics": "sample", "sample_weight": np.ones(6)},
        ValueError,
        "sample_weight must be None where statistics is 'sample'",
    ),
    "statistics of each sample of ranks": (
        None,
        {"statistics": "sample", "comm": MPICommunicator()},
        ValueError,
        r"comm must be None or LOCAL where statistics is 'sample', .*; got MPICommunicator",
    ),
    "a fraction": (None, {"num_matches": (0.5, 1)}, TypeError, "num_matches must be of integers"),
    "num_global": (None, {"num_global": 3}, ValueError, "num_global must be at most"),
    "weights of places": (
        None,
        {"sample_weight": np.ones((6, 9))},
        ValueError,
        r"sample_weight must have a shape that broadcasts to \(6,\), the shape of embeddings\[0\]",
    ),
    "a weight below 0": (
        None,
        {"sample_weight": np.asarray([1, 1, 1, -1, 1, 1])},
        ValueError,
        "sample_weight must be 0 or more everywhere",
    ),
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
    criterion = VICRegLLoss(**settings(case))
    loss = criterion(features[:2], grids[:2], *of_local)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    published = (*case["grad_embeddings"], *case["grad_maps"])
    for leaf, wanted in zip((*embeddings, *maps), published, strict=True):
        assert largest_error(leaf.grad.numpy(), np.reshape(wanted, leaf.shape)) <= 1e-12
    counts = torch.arange(len(embeddings[0]))
    weighted = criterion(features[:2], grids[:2], *of_local, sample_weight=counts)
    kinds = [[array.detach() for array in kind] for kind in (embeddings, maps, grids)]
    assert weighted == vicregl_loss(*kinds, **settings(case), sample_weight=counts)


def test_the_module_says_what_lightlys_arguments_are_called() -> None:
    pytest.importorskip("torch")
    from vicreg.torch import VICRegLLoss

    with pytest.raises(TypeError, match="invariance_weight"):
        VICRegLLoss(lambda_param=25.0)
    with pytest.raises(ValueError, match="must be given together"):
        VICRegLLoss()([], [], local_view_features=[])
    with pytest.raises(ValueError, match="global_view_grids must be as many"):
        VICRegLLoss()([], [1])
    with pytest.raises(ValueError, match="global_view_grids must be given unless"):
        VICRegLLoss()([])
    with pytest.raises(ValueError, match="match_order must be 'place' or 'distance'"):
        VICRegLLoss(match_order="order")


def test_the_module_has_stable_pretrainings_settings() -> None:
    """Of one global view, so that the other is matched one way alone."""
    torch = pytest.importorskip("torch")
    from vicreg.torch import VICRegLLoss

    given, case, wanted, _ = OTHERS["stable-pretraining"]
    embeddings, maps, _ = ([torch.from_numpy(array) for array in kind] for kind in inputs(case))
    first, second = zip(embeddings, maps, strict=True)
    settings = {name: value for name, value in given.items() if name != "num_global"}
    criterion = VICRegLLoss(**settings)
    loss = criterion([first], local_view_features=[second])
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert "feature_distance='cosine', statistics='all'" in repr(criterion)
