"""A callback for Lightning: of ``lightning.pytorch``, and of ``pytorch_lightning``."""

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
    """Diagnose the outputs of named modules now and then, log them, and warn once on collapse.

    Parameters
    ----------
    modules : str, or iterable of str
        Names of submodules of the LightningModule, as its ``named_modules()`` gives them; each
        returns one tensor. Of several calls in a batch, as for two views, it is the last output
        in training mode.
    every_n_steps, max_samples, feature_axis : optional
        As in `vicreg.torch.CollapseMonitor`; a step is a training batch.
    stop : bool, optional
        Whether to end the training when a batch has collapsed.

    Attributes
    ----------
    collapsed : bool
        Whether an output that was looked at in the last training had collapsed; in the first
        process.

    Raises
    ------
    TypeError, ValueError
        As `vicreg.torch.CollapseMonitor` does, when the training begins.

    Notes
    -----
    It writes to the trainer's loggers by itself: ``log_dict`` would drop each diagnosis that is
    not due in a step of the trainer's ``log_every_n_steps``.

    Under DistributedDataParallel and FSDP the first process diagnoses its own samples, and no
    samples are sent. If `stop` is true it sends its decision to the others, so that all end after
    the same batch.

    Examples
    --------
    >>> from vicreg.lightning import CollapseMonitor
    >>> callbacks = [CollapseMonitor(["projector"], stop=True)]  # for the Trainer
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
        """Whether an output that was looked at in the last training had collapsed."""
        return hasattr(self, "_monitor") and self._monitor.collapsed

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch the modules: in the first process, the others count steps."""
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
