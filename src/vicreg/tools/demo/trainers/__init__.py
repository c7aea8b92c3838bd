"""One trainer per library, with the interface of `vicreg.tools.demo.encoder.Trainer`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from vicreg.tools.demo.encoder import Layer, TermWeights, Trainer
from vicreg.tools.libraries import names_where
from vicreg.tools.requirements import require

__all__ = ["BACKENDS", "MakeTrainer", "trainer_factory"]

MakeTrainer = Callable[[list[Layer], TermWeights], Trainer]

#: The libraries that can train the encoder.
BACKENDS = names_where("trains_demo")
#: The packages that it needs in addition to the library.
_ALSO_NEEDED = {"jax": ("optax",)}


def trainer_factory(backend: str) -> MakeTrainer:
    """Return the function that makes a trainer in the library `backend`.

    Parameters
    ----------
    backend : str
        One of `BACKENDS`.

    Returns
    -------
    callable
        ``(layers, weights) -> Trainer``.

    Raises
    ------
    RequirementError
        The library is not installed, or has no device to run on.
    """
    require(backend, *_ALSO_NEEDED.get(backend, ()))
    module = importlib.import_module(f"vicreg.tools.demo.trainers.{backend}")
    make: MakeTrainer = module.make_trainer
    return make
