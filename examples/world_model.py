"""Train a small world model of moving shapes, with the variance term and without: one collapses.

An encoder turns each frame of a film into features. A predictor is given the features of a frame
and the action, how far the shape is about to move, and predicts the features of the next frame.
Nothing else is asked of the encoder; so the same features for all frames would be predicted best.
The variance and covariance terms forbid that. Features are `(B, C, T, h, w)`: the channels are
what varies, the sequences, frames and places are samples of it. A third training has films of
different length, padded, and a `sample_weight` that leaves the padding out. Needs PyTorch or JAX
(with optax) and rich, and matplotlib for the picture:

    python examples/world_model.py --library torch --plot world_model.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vicreg import diagnose, vicreg_terms

SEQUENCES, FRAMES, SIDE, RADIUS = 64, 6, 16, 2.5
HIDDEN, FEATURES, PLACES, LEARNING_RATE = 128, 16, (2, 2), 2e-3
# Each channel has statistics over all sequences, frames and places. For a set of statistics a
# frame, with each channel of each place a feature: {"feature_axis": (1, 3, 4), "sample_axis": 0}.
AXES = {"feature_axis": 1, "sample_axis": (0, 2, 3, 4)}
LAYERS = {  # name: shape, of which the last axes are the outputs, and the number of inputs
    "frame to hidden": ((SIDE, SIDE, HIDDEN), SIDE**2),
    "hidden to features": ((HIDDEN, FEATURES, *PLACES), HIDDEN),
    "features to hidden": ((FEATURES, *PLACES, HIDDEN), FEATURES * np.prod(PLACES)),
    "action to hidden": ((2, HIDDEN), 2),
    "hidden to next features": ((HIDDEN, FEATURES, *PLACES), HIDDEN),
}


@dataclass(frozen=True)
class Films:
    """Sequences of frames in which a disc, a square or a cross moves."""

    frames: np.ndarray  # (B, 1, T, H, W)
    actions: np.ndarray  # (B, 2, T-1): how far the shape moves after each frame but the last
    places: np.ndarray  # (B, 2, T): where the shape is, in pixels
    valid: np.ndarray  # (B, T): whether the film has this frame, else it is padding

    @classmethod
    def of(cls, count: int, rng: np.random.Generator, padded: bool = False) -> Films:
        low, high = RADIUS, SIDE - 1 - RADIUS
        places = [rng.uniform(low, high, (count, 2))]
        for _ in range(FRAMES - 1):
            moved = places[-1] + rng.uniform(-3, 3, (count, 2))
            places.append(np.clip(moved, low, high))  # a wall stops it
        places = np.stack(places, axis=2)
        frames = drawn(places, rng.integers(0, 3, count))
        frames += 0.1 * rng.standard_normal(frames.shape)
        actions = np.diff(places, axis=2)
        lengths = rng.integers(2, FRAMES + 1, (count, 1)) if padded else FRAMES
        valid = np.broadcast_to(np.arange(FRAMES) < lengths, (count, FRAMES))
        frames *= valid[:, None, :, None, None]
        actions *= valid[:, None, 1:]
        return cls(frames.astype(np.float32), actions.astype(np.float32), places, valid)


def drawn(places: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Return a picture of each shape (0, 1 or 2) at its places, with soft edges."""
    down, right = (
        abs(pixel - place[:, None, :, None, None])
        for pixel, place in zip(np.ogrid[:SIDE, :SIDE], np.moveaxis(places, 1, 0), strict=True)
    )
    disc, square, cross = np.hypot(down, right), np.maximum(down, right), down + right
    distance = np.choose(shapes[:, None, None, None, None], (disc, square, cross))
    return np.clip(RADIUS + 0.5 - distance, 0, 1)


def encode(layers: dict[str, Any], einsum: Callable, frames: Any) -> Any:
    """Return the features of each frame: `(B, 1, T, H, W)` to `(B, C, T, h, w)`."""
    hidden = relu(einsum("bityx,yxk->bkt", frames, layers["frame to hidden"]))
    return einsum("bkt,kchw->bcthw", hidden, layers["hidden to features"])


def predict(layers: dict[str, Any], einsum: Callable, features: Any, actions: Any) -> Any:
    """Return the features of the frame after each of these, given the actions between them."""
    hidden = einsum("bcthw,chwk->bkt", features, layers["features to hidden"])
    hidden = relu(hidden + einsum("bat,ak->bkt", actions, layers["action to hidden"]))
    return einsum("bkt,kchw->bcthw", hidden, layers["hidden to next features"])


def relu(x: Any) -> Any:
    return x * (x > 0)


def loss_of(
    layers: dict[str, Any],
    frames: Any,
    actions: Any,
    valid: Any = None,
    *,
    einsum: Callable,
    **weights: float,
) -> tuple[Any, Any]:
    """Return the loss and the prediction error, which is its invariance term.

    Each prediction of a frame that is not `valid`, `(B, T)`, has a weight of 0.
    """
    features = encode(layers, einsum, frames)
    predicted = predict(layers, einsum, features[:, :, :-1], actions)
    weight = None if valid is None else valid[:, 1:, None, None]  # B, T-1, and any h and w
    terms = vicreg_terms(predicted, features[:, :, 1:], **AXES, sample_weight=weight, **weights)
    return terms.loss, terms.invariance


def in_torch(layers: dict[str, np.ndarray], weights: dict[str, float]) -> tuple:
    import torch

    torch.set_num_threads(1)  # a small network is slower on more
    layers = {name: torch.tensor(kernel).requires_grad_() for name, kernel in layers.items()}
    optimizer = torch.optim.Adam(layers.values(), lr=LEARNING_RATE)

    def step(*batch: np.ndarray) -> float:
        batch = map(torch.asarray, batch)
        loss, error = loss_of(layers, *batch, einsum=torch.einsum, **weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return error.item()

    @torch.no_grad()
    def features(frames: np.ndarray) -> np.ndarray:
        return encode(layers, torch.einsum, torch.asarray(frames)).numpy()

    return step, features


def in_jax(layers: dict[str, np.ndarray], weights: dict[str, float]) -> tuple:
    import jax
    import optax

    optimizer = optax.adam(LEARNING_RATE)
    gradient_of = jax.grad(partial(loss_of, einsum=jax.numpy.einsum, **weights), has_aux=True)

    @jax.jit
    def update(layers: dict[str, Any], state: Any, *batch: Any) -> tuple:
        gradient, error = gradient_of(layers, *batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(layers, updates), state, error

    layers = jax.tree.map(jax.numpy.asarray, layers)
    state = optimizer.init(layers)

    def step(*batch: np.ndarray) -> float:
        nonlocal layers, state
        layers, state, error = update(layers, state, *batch)
        return float(error)

    encoder = jax.jit(partial(encode, einsum=jax.numpy.einsum))

    def features(frames: np.ndarray) -> np.ndarray:
        return np.asarray(encoder(layers, frames=frames))

    return step, features


LIBRARIES = {"torch": ("PyTorch", in_torch), "jax": ("JAX", in_jax)}


def trained(
    make: Callable, weights: dict[str, float], steps: int, said: Callable, padded: bool = False
) -> list[dict]:
    """Train a model; return what was seen of it, at 11 steps from the first to the last."""
    rng = np.random.default_rng(0)
    layers = {
        name: rng.normal(0, (2 / inputs) ** 0.5, shape).astype(np.float32)
        for name, (shape, inputs) in LAYERS.items()
    }
    step, features = make(layers, weights)
    held_out = Films.of(256, rng)
    seen = []
    for number in range(1, steps + 1):
        films = Films.of(SEQUENCES, rng, padded)
        weight = [films.valid.astype(np.float32)] if padded else []
        error = step(films.frames, films.actions, *weight)
        if number == 1 or number * 10 // steps > (number - 1) * 10 // steps:
            z = features(held_out.frames)
            seen.append({"step": number, "prediction error": error, **measured(z, held_out)})
        said()
    return seen


def measured(z: np.ndarray, films: Films) -> dict[str, float]:
    found = diagnose(z, **AXES)
    return {
        "mean std": float(found.mean_std),
        "effective rank": float(found.effective_rank),
        "probe error": probe_error(z, films.places),
    }


def probe_error(z: np.ndarray, places: np.ndarray) -> float:
    """Return how far from the shape a linear probe of features places it, in pixels, on average.

    Its ridge penalty is relative to the size of the features: that they are small is no hindrance.
    """
    x = np.moveaxis(z, 2, 1).reshape(len(z) * FRAMES, -1).astype(np.float64)
    y = np.moveaxis(places, 2, 1).reshape(len(x), 2)
    half = len(x) // 2
    x, y = x - x[:half].mean(axis=0), y - y[:half].mean(axis=0)
    fit, test = slice(half), slice(half, None)
    penalty = 1e-3 * x[fit].var() * half * np.eye(x.shape[1])
    probe = np.linalg.solve(x[fit].T @ x[fit] + penalty, x[fit].T @ y[fit])
    return float(np.linalg.norm(x[test] @ probe - y[test], axis=1).mean())


def table(name: str, seen: list[dict[str, float]]) -> str:
    lines = [name, "  step  prediction error  mean std  effective rank  probe error, pixels"]
    for row in [seen[0], *seen[1::3]]:
        lines.append(
            f"{row['step']:6}{row['prediction error']:18.2e}{row['mean std']:10.4f}"
            f"{row['effective rank']:16.1f}{row['probe error']:21.2f}"
        )
    return "\n".join(lines)


def draw(histories: dict[tuple[str, str], list[dict[str, float]]], file: str) -> None:
    import matplotlib.pyplot as plt

    _, panels = plt.subplots(4, 1, sharex=True, figsize=(5.2, 8.6))
    kinds = list(dict.fromkeys(kind for _, kind in histories))
    names = list(dict.fromkeys(name for name, _ in histories))
    for axes, (value, title) in zip(
        panels,
        (
            ("prediction error", "Without the variance term it predicts best ..."),
            ("mean std", "... because the features shrink to nothing;"),
            ("effective rank", "their rank, which is relative, does not tell,"),
            ("probe error", "but a linear probe finds the shape no more."),
        ),
        strict=True,
    ):
        for (name, kind), seen in histories.items():
            thick = 2 * (len(names) - names.index(name))  # under thin, so that both are seen
            style = {"color": f"C{kinds.index(kind)}", "linewidth": thick}
            style["alpha"] = 0.35 if thick > 2 else 1
            style["linestyle"] = "-" if thick > 2 or len(names) == 1 else "--"
            steps = [row["step"] for row in seen]
            axes.plot(steps, [row[value] for row in seen], label=f"{kind}, {name}", **style)
        axes.set_title(title)
        axes.set(ylabel={"probe error": "probe error, pixels"}.get(value, value))
        axes.set(**{"yscale": "log"} if value == "prediction error" else {"ylim": (0, None)})
    panels[-1].set(xlabel="step")
    panels[-1].legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.35), ncols=len(names), fontsize=9
    )
    plt.savefig(file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    installed = [name for name in LIBRARIES if find_spec(name)]
    parser.add_argument("--library", choices=LIBRARIES, help="torch or jax; both by default")
    parser.add_argument("--steps", type=int, default=300, help="of each training; 10 or more")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, such as world_model.svg")
    options = parser.parse_args(arguments)
    if options.steps < 10:
        parser.error(f"--steps must be 10 or more; got {options.steps}")
    libraries = [options.library] if options.library else installed
    kinds = {
        "with the variance term": {"weights": {}},
        "without": {"weights": {"variance_weight": 0.0}},
        "with it, padded films": {"weights": {}, "padded": True},
    }
    histories = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=len(libraries) * len(kinds) * options.steps)
        for library in libraries:
            name, make = LIBRARIES[library]
            for kind, settings in kinds.items():
                bar.update(task, description=f"{name}, {kind}")
                said = partial(bar.advance, task)
                histories[name, kind] = trained(make, steps=options.steps, said=said, **settings)
    for (name, kind), seen in histories.items():
        print(table(f"{name}, {kind}", seen))
    if options.plot:
        draw(histories, options.plot)


if __name__ == "__main__":
    main()
