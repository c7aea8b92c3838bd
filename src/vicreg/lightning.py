"""A callback for Lightning, whether it is ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from vicreg import torch as vicreg_torch

__all__ = ["CollapseMonitor"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """Return the base class: of the package that is imported already, or of an installed one."""
    for package in sorted(_PACKAGES, key=lambda package: package not in sys.modules):
        try:
            return import_module(package).Callback
        except ModuleNotFoundError as error:
            if not package.startswith(str(error.name)):  # it is there, and something else is not
                raise
    raise ModuleNotFoundError(
        "vicreg.lightning needs Lightning (pip install lightning); without it there is "
        "vicreg.torch.CollapseMonitor",
        name="lightning",
    )


class CollapseMonitor(_callback()):  # type: ignore[misc]
    """Diagnose and log the outputs of named modules now and then, and warn once if they collapse.

    Parameters
    ----------
    modules : str, or iterable of str
        Names of submodules of the LightningModule, as its ``named_modules()`` gives them. Each
        must return one tensor of shape (n, d) or (n, ..., d). If it is called several times for a
        batch, as for two views, its last output in training mode is diagnosed.
    every_n_steps, max_samples, feature_axis : optional
        As in `vicreg.torch.CollapseMonitor`. A step is a training batch.
    stop : bool, optional
        Whether to end the training when an output has collapsed.

    Attributes
    ----------
    modules, stop
        As given.
    collapsed : bool
        Whether an output had collapsed.

    Raises
    ------
    TypeError, ValueError
        When the training begins, as `vicreg.torch.CollapseMonitor` does.

    Notes
    -----
    It writes every diagnosis to the loggers of the trainer, whatever ``log_every_n_steps`` is.

    Under DistributedDataParallel and FSDP the first process diagnoses its own samples. If `stop`
    is true, it sends its decision to the other processes, so that all end after the same batch.

    Examples
    --------
    >>> from vicreg.lightning import CollapseMonitor
    >>> monitor = CollapseMonitor(["projector"], stop=True)  # for Trainer(callbacks=[monitor])
    >>> monitor.collapsed
    False
    """

    def __init__(
        self,
        modules: str | Iterable[str],
        *,
        every_n_steps: int = 100,
        max_samples: int = 256,
        feature_axis: int | Sequence[int] = -1,
        stop: bool = False,
    ) -> None:
        self.modules = modules if isinstance(modules, str) else list(modules)
        self.stop = stop
        self._settings: dict[str, Any] = {
            "every_n_steps": every_n_steps,
            "max_samples": max_samples,
            "feature_axis": feature_axis,
        }

    @property
    def collapsed(self) -> bool:
        """Whether an output had collapsed in the last training, as the first process saw it."""
        return hasattr(self, "_monitor") and self._monitor.collapsed

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch the modules, in the first process; the others only count steps."""
        self._monitor = vicreg_torch.CollapseMonitor(pl_module, self.modules, **self._settings)
        if not trainer.is_global_zero:
            self._monitor.remove()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Diagnose what the modules returned for this batch, if that is due."""
        scalars = self._monitor.step()
        if scalars is None:
            return
        for logger in trainer.loggers:  # which write in the first process alone
            logger.log_metrics(scalars, step=trainer.global_step)
        if self.stop and trainer.strategy.broadcast(self._monitor.collapsed):
            trainer.should_stop = True

    def on_fit_end(self, *_: Any) -> None:
        """Stop watching."""
        self._monitor.remove()

    def on_exception(self, *_: Any) -> None:
        """Stop watching."""
        if hasattr(self, "_monitor"):
            self._monitor.remove()
