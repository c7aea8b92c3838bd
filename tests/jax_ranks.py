"""What test_ranks_jax.py runs on eight devices of the host, which JAX makes when it begins."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ranks
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vicreg import (
    vcreg_loss,
    vcreg_value_and_grad,
    vicreg_loss,
    vicreg_terms,
    vicreg_value_and_grad,
)
from vicreg.distributed import JaxCommunicator
from vicreg.jax import vcreg

ROWS = (2,) * 8
SHAPES = {"wide": (40,), "narrow": (4,), "positions": (3, 20)}
#: What the default tests have of the shapes, with and without JAX's check of types.
SHORT = (("wide", True), ("narrow", False))
SHARDED, WHOLE = PartitionSpec("i"), PartitionSpec()
VCREG = {"variance_weight": 1.0, "covariance_weight": 0.5}
COMM = JaxCommunicator("i")


def mapped(function: Any, checked: bool, outputs: Any) -> Callable[..., Any]:
    """Return `function` of the views under shard_map, with or without JAX's check of types."""
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    shard_map = functools.partial(jax.shard_map, mesh=mesh, in_specs=SHARDED, check_vma=checked)
    return shard_map(function, out_specs=outputs)


def numpy(tree: Any) -> Any:
    return jax.tree.map(lambda array: np.asarray(array, dtype=np.float64), tree)


def of_views(views: tuple[Any, ...], checked: bool) -> dict[str, Any]:
    """Values, gradients in every way, and second derivatives, of the loss of two views."""
    places = (0, 1)
    direction = tuple(jnp.cos(view) for view in views)
    loss = functools.partial(vicreg_loss, comm=COMM)
    through = mapped(loss, checked, WHOLE)

    def along(*views: Any) -> Any:
        gradients = jax.grad(through, places)(*views)
        return sum((g * t).sum() for g, t in zip(gradients, direction, strict=True))

    inside = mapped(jax.grad(loss, places), checked, SHARDED)(*views)
    closed = functools.partial(vicreg_value_and_grad, comm=COMM)
    return {
        "through": jax.value_and_grad(through, places)(*views),
        # Without the check of types, a sum over devices counts once for each of them.
        "inside": [gradient / (1 if checked else 8) for gradient in inside],
        "closed form": mapped(closed, checked, (WHOLE, SHARDED))(*views),
        "forwards": jax.jvp(through, views, direction)[1],
        "second": jax.grad(along, places)(*views),
    }


def of_one_view(z: Any, checked: bool, penalty: str) -> dict[str, Any]:
    """VCReg: the loss through shard_map, the closed form, and what the layer adds."""
    settings = VCREG | {"penalty": penalty, "comm": COMM}
    loss = mapped(functools.partial(vcreg_loss, **settings), checked, WHOLE)
    closed = functools.partial(vcreg_value_and_grad, **settings)

    def of_device(z: Any) -> Any:
        return vcreg(z, **settings).sum()

    return {
        "through": jax.value_and_grad(loss)(z),
        "closed form": mapped(closed, checked, (WHOLE, SHARDED))(z),
        "layer": (mapped(jax.grad(of_device), checked, SHARDED)(z) - 1) / 8,
    }


def of_weighted(views: tuple[Any, ...], weights: Any, checked: bool) -> dict[str, Any]:
    """Losses of weighted samples: through shard_map, in closed form, and the layer's gradient."""

    def loss(weight: Any, *views: Any) -> Any:
        return vicreg_loss(*views, sample_weight=weight, comm=COMM)

    def closed(weight: Any, *views: Any) -> Any:
        return vicreg_value_and_grad(*views, sample_weight=weight, comm=COMM)

    def smooth_l1(weight: Any, z: Any) -> Any:
        settings = VCREG | {"penalty": "smooth_l1", "comm": COMM}
        return vcreg_value_and_grad(z, sample_weight=weight, **settings)

    def of_layer(weight: Any, z: Any) -> Any:
        layer = functools.partial(vcreg, sample_weight=weight, comm=COMM, **VCREG)
        return jax.vjp(layer, z)[1](jnp.zeros_like(z))[0]

    through, both = mapped(loss, checked, WHOLE), (WHOLE, SHARDED)
    return {
        "through": jax.value_and_grad(through, (1, 2))(weights, *views),
        "closed form": mapped(closed, checked, both)(weights, *views),
        "smooth_l1": mapped(smooth_l1, checked, both)(weights, views[0]),
        "layer": mapped(of_layer, checked, SHARDED)(weights, views[0]) / 8,
    }


def on_two_axes(views: tuple[Any, ...], axes: Any) -> Any:
    mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    loss = functools.partial(vicreg_loss, comm=JaxCommunicator(axes))
    return jax.shard_map(loss, mesh=mesh, in_specs=PartitionSpec(axes), out_specs=WHOLE)(*views)


def others(views: tuple[Any, ...]) -> dict[str, Any]:
    """Axes, precisions and weights besides."""
    loss = functools.partial(vicreg_loss, comm=COMM)
    terms = functools.partial(vicreg_terms, comm=COMM)
    with_terms = functools.partial(vicreg_value_and_grad, comm=COMM, terms=True)
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    same = jax.shard_map(loss, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE)

    def weighted(weight: Any) -> Any:
        return mapped(lambda *v: loss(*v, covariance_weight=weight), True, WHOLE)(*views)

    return {
        "two axes": on_two_axes(views, ("i", "j")),
        "one of two axes": on_two_axes(views, "i"),
        "terms": tuple(mapped(terms, True, WHOLE)(*views)),
        "terms with gradients": mapped(with_terms, True, (WHOLE, SHARDED))(*views)[0],
        "half": mapped(loss, True, WHOLE)(*[view.astype(jnp.bfloat16) for view in views]),
        "by the weight": jax.grad(weighted)(jnp.float64(2.0)),
        "mapped": jax.vmap(loss, axis_name="i")(*[view.reshape(8, 2, 40) for view in views]),
        "the same views on each": jax.value_and_grad(same, (0, 1))(*views),
    }


def on_explicit_axes(views: tuple[Any, ...]) -> Any:
    mesh = jax.make_mesh((8,), ("i",))
    loss = functools.partial(vicreg_loss, comm=COMM)
    on_mesh = [jax.device_put(view, NamedSharding(mesh, SHARDED)) for view in views]
    return jax.shard_map(loss, mesh=mesh, in_specs=SHARDED, out_specs=WHOLE)(*on_mesh)


def on_some_explicit_axes(views: tuple[Any, ...]) -> Any:
    """The gradient through shard_map of one explicit axis; another one is left to the types."""
    mesh = jax.make_mesh((4, 2), ("i", "j"))
    mapped = jax.shard_map(
        functools.partial(vicreg_loss, comm=COMM),
        mesh=mesh,
        in_specs=SHARDED,
        out_specs=WHOLE,
        axis_names={"i"},
    )
    with jax.set_mesh(mesh):
        on_mesh = [jax.device_put(view, NamedSharding(mesh, SHARDED)) for view in views]
        return jax.jit(jax.value_and_grad(mapped, (0, 1)))(*on_mesh)


def together(
    views: tuple[Any, ...], hidden: tuple[Any, ...], weights: Any, checked: bool
) -> dict[str, Any]:
    """What is found for one shape: one program, which compiles sooner than many."""
    of_penalties = {p: of_one_view(views[0], checked, p) for p in ("square", "smooth_l1")}
    weighted = {"weighted": of_weighted(hidden, weights, checked)}
    return of_views(views, checked) | of_penalties | weighted


def main(folder: Path, what: str) -> None:
    jax.config.update("jax_enable_x64", True)
    results: dict[Any, Any] = {}
    for shape in SHAPES:
        whole, weights = ranks.whole(ROWS, SHAPES[shape]), ranks.weights(ROWS, *SHAPES[shape][:-1])
        views, hidden = (
            tuple(map(jnp.asarray, each)) for each in (whole, ranks.hidden(whole, weights))
        )
        for checked in (True, False):
            if what == ("short" if (shape, checked) in SHORT else "long"):
                found = jax.jit(together, static_argnums=3)(views, hidden, weights, checked)
                results[shape, checked] = numpy(found)
    if what == "short":
        others_too(results)
    (folder / "results").write_bytes(pickle.dumps(results))


def others_too(results: dict[Any, Any]) -> None:
    views = tuple(map(jnp.asarray, ranks.whole(ROWS, SHAPES["wide"])))
    results["others"] = numpy(jax.jit(others)(views))
    results["explicit axes"] = numpy(on_explicit_axes(views))
    results["some explicit axes"] = numpy(on_some_explicit_axes(views))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
