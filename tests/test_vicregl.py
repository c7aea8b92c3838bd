"""VICRegL: values and gradients of facebookresearch/VICRegL's own code, on every library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from errors import largest_error

import vicreg
from vicreg import vicregl_loss, vicregl_value_and_grad

CASES = json.loads((Path(__file__).parent / "data" / "vicregl.json").read_text())["cases"]
# Relative to the largest value.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}


def inputs(case: dict, xp: Backend | None = None) -> tuple[list, list, list]:
    asarray = np.asarray if xp is None else xp.asarray
    return tuple(
        [asarray(array) for array in case[kind]] for kind in ("embeddings", "maps", "locations")
    )


def in_places(views: tuple[list, list, list], grids: list) -> tuple[list, list, list]:
    """Return the views with flat maps, and so with flat locations."""
    embeddings, maps, locations = views
    flat = [array.reshape(array.shape[0], -1, 2) for array in locations]
    return embeddings, maps, flat


def settings(case: dict) -> dict[str, Any]:
    counts = tuple(case["num_matches"])
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    return {
        "alpha": case["alpha"],
        "num_matches": counts,
        "feature_matches": None if case["l2_all_matches"] else counts,
        **dict(zip(names, case["weights"], strict=True)),
    }


def test_numpy() -> None:
    for case in CASES:
        views = in_places(inputs(case), case["grids"])
        loss, (of_embeddings, of_maps) = vicregl_value_and_grad(*views, **settings(case))
        print(float(loss), case["loss"])
        print(float(vicregl_loss(*views, **{**settings(case),'alpha':1.})), sum(case['global_terms']))
        print(float(vicregl_loss(*views, **{**settings(case),'alpha':0.})), sum(case['local_terms']))
        for g, w in zip((*of_embeddings, *of_maps), (*case["grad_embeddings"], *case["grad_maps"])):
            print(largest_error(g, w))
