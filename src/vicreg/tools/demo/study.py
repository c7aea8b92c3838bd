"""The variants, trained and measured under the same settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from vicreg._diagnostics import diagnose
from vicreg.tools.demo.digits import Digits, batches, load_digits
from vicreg.tools.demo.encoder import Encoded, TermValues, TermWeights, Trainer, initial_layers
from vicreg.tools.demo.features import correlations, probe_accuracy
from vicreg.tools.demo.trainers import MakeTrainer, trainer_factory
from vicreg.tools.requirements import ToolError

__all__ = [
    "BATCH_SIZE",
    "NO_COVARIANCE",
    "NO_VARIANCE",
    "TRAINED",
    "UNTRAINED",
    "VICREG",
    "DivergedError",
    "Outcome",
    "Study",
    "run_study",
]

Floats = npt.NDArray[np.floating[Any]]
OnEpoch = Callable[[str, int, TermValues], None]

BATCH_SIZE = 256

VICREG = "VICReg (this loss)"
NO_VARIANCE = "without the variance term"
NO_COVARIANCE = "without the covariance term"
UNTRAINED = "untrained encoder"

_WEIGHTS = {
    VICREG: TermWeights(),
    NO_VARIANCE: TermWeights(variance_weight=0.0),
    NO_COVARIANCE: TermWeights(covariance_weight=0.0),
}
#: The variants to train, in order.
TRAINED = tuple(_WEIGHTS)


class DivergedError(ToolError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one variant, measured on the held-out images without augmentation.

    Parameters
    ----------
    history : list of TermValues
        The loss and its terms, averaged over each epoch; empty for the untrained encoder.
    mean_std : float
        The mean standard deviation of a feature of the embeddings.
    effective_rank, rank_limit : float, int
        The effective rank of the embeddings, and its upper limit min(n - 1, d).
    probe_accuracy : float
        The accuracy of a linear classifier of the representations, in [0, 1].
    singular_values : array, shape (rank_limit,)
        The singular values of the centred embeddings.
    correlations : array, shape (d, d)
        The correlations of the features of the embeddings.
    """

    history: list[TermValues]
    mean_std: float
    effective_rank: float
    rank_limit: int
    probe_accuracy: float
    singular_values: Floats
    correlations: Floats


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings of a run, and the result of each variant by name."""

    backend: str
    epochs: int
    seed: int
    outcomes: dict[str, Outcome]


def run_study(
    backend: str = "numpy",
    *,
    epochs: int,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> Study:
    """Train and measure every variant from the same initial layers on the same batches.

    Parameters
    ----------
    backend : str, optional
        The library that trains, one of `vicreg.tools.demo.trainers.BACKENDS`.
    epochs : int
        Passes over the training images, at least 1.
    seed : int, optional
        Chooses the held-out images, the initial layers, the batches and the augmentations.
    on_epoch : callable, optional
        Called after each epoch with the variant's name, the number of epochs done, and the
        terms averaged over the epoch.

    Returns
    -------
    Study

    Raises
    ------
    RequirementError
        The library is not installed, or has no device to run on.
    DivergedError
        The loss of a variant became infinite or NaN.
    """
    make_trainer = trainer_factory(backend)
    digits = load_digits(seed)
    # Matrices this small gain nothing from the threads of BLAS and OpenMP, which wait in a loop:
    # if another process used the same cores, they made a run 5 (NumPy) to 20 (PyTorch) times
    # slower. The limit applies to libraries that are loaded, so it comes after the import.
    with threadpool_limits(1):
        outcomes = {
            name: _outcome(name, make_trainer, digits, epochs, seed, on_epoch or _ignore)
            for name in (*TRAINED, UNTRAINED)
        }
    return Study(backend=backend, epochs=epochs, seed=seed, outcomes=outcomes)


def _ignore(name: str, epoch: int, terms: TermValues) -> None:
    pass


def _outcome(
    name: str,
    make_trainer: MakeTrainer,
    digits: Digits,
    epochs: int,
    seed: int,
    on_epoch: OnEpoch,
) -> Outcome:
    # One seed for before training and one for during it, the same for each variant.
    initial, training = np.random.SeedSequence(seed).generate_state(2)
    trainer = make_trainer(initial_layers(int(initial)), _WEIGHTS.get(name, TermWeights()))
    rng = np.random.default_rng(int(training))
    history: list[TermValues] = []
    for epoch in range(1, epochs + 1 if name in TRAINED else 1):
        history.append(_trained_epoch(trainer, digits.train_images, rng, name, epoch))
        on_epoch(name, epoch, history[-1])
    return _measured(name, trainer, digits, history)


def _trained_epoch(
    trainer: Trainer, images: Floats, rng: np.random.Generator, name: str, epoch: int
) -> TermValues:
    steps = []
    # A loss that is not finite is reported below, in place of NumPy's warnings.
    with np.errstate(all="ignore"):
        for first, second in batches(images, BATCH_SIZE, rng):
            steps.append(trainer.step(first, second))
            if not np.all(np.isfinite(steps[-1])):
                raise DivergedError(f"{name}: training diverged in epoch {epoch}")
    return TermValues(*np.mean(steps, axis=0).tolist())


def _measured(name: str, trainer: Trainer, digits: Digits, history: list[TermValues]) -> Outcome:
    # The last step comes after the last loss, which would not show that it diverged.
    with np.errstate(all="ignore"):
        train: Encoded = trainer.encode(digits.train_images)
        test: Encoded = trainer.encode(digits.test_images)
    if not all(np.isfinite(array).all() for array in (*train, *test)):
        raise DivergedError(f"{name}: training diverged in its last step")
    diagnosis = diagnose(test.embedding)
    return Outcome(
        history=history,
        mean_std=float(diagnosis.mean_std),
        effective_rank=float(diagnosis.effective_rank),
        rank_limit=diagnosis.rank_limit,
        probe_accuracy=probe_accuracy(
            train.representation, digits.train_labels, test.representation, digits.test_labels
        ),
        singular_values=diagnosis.singular_values,
        correlations=correlations(test.embedding, diagnosis.std == 0),
    )
