"""A monitor that diagnoses the embeddings of a training now and then, for every library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vicreg._adapters.dispatch import adapter_for
from vicreg._checks import checked_library, checked_objective
from vicreg._diagnostics import diagnose
from vicreg._typing import Array, ArrayT

__all__ = ["CollapseMonitor"]

#: The levels of a diagnosis that are warned of, and what to look at then.
_LOOK_AT = {
    "collapsed": "the variance term (does the loss have it, of these embeddings, with enough "
    "weight?), then at the learning rate",
    "not-finite": "the learning rate, then at divisions and roots of 0 in the network",
}


class CollapseMonitor:
    """Diagnose embeddings now and then in a training, and warn once if they have collapsed.

    Call it with the embeddings of each step, as arrays of any library; in JAX, outside the
    functions that are compiled. In most steps it only counts. Embeddings that are not finite count
    as collapsed.

    `vicreg.torch.CollapseMonitor` gets the embeddings from the modules of a model, and
    `vicreg.lightning.CollapseMonitor` is a callback.

    Parameters
    ----------
    every_n_steps : int, optional
        The number of steps from one diagnosis to the next. The first step is not diagnosed: the
        network has learned nothing yet.
    max_samples : int, optional
        The most samples that are diagnosed, to bound the cost. If there are more, some are taken,
        evenly spaced.
    feature_axis : int or sequence of int, optional
        The axes of the features; all others hold samples.

    Attributes
    ----------
    every_n_steps, max_samples : int
        As given.
    collapsed : bool
        Whether any of the diagnosed embeddings had collapsed.
    is_due : bool
        Whether the embeddings of the current step will be diagnosed.

    Raises
    ------
    TypeError
        `every_n_steps` or `max_samples` is not an integer; and when the monitor is called, for
        what `diagnose` would refuse, or an array that JAX traces.
    ValueError
        `every_n_steps` is below 1, or `max_samples` below 2; and when the monitor is called, for
        what `diagnose` would refuse.

    Warns
    -----
    UserWarning
        Embeddings have collapsed, or are not finite: once for each name.

    Examples
    --------
    >>> import numpy as np
    >>> from vicreg import CollapseMonitor
    >>> rng, monitor = np.random.default_rng(0), CollapseMonitor(every_n_steps=100)
    >>> for step in range(250):
    ...     z = rng.standard_normal((64, 8))  # of a training step
    ...     scalars = monitor(z)
    ...     if scalars is not None:
    ...         print(step, round(scalars["mean_std"], 2), monitor.collapsed)
    99 1.0 False
    199 1.0 False
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 100,
        max_samples: int = 256,
        feature_axis: int | Sequence[int] = -1,
    ) -> None:
        self.every_n_steps = _checked_count(every_n_steps, "every_n_steps", 1)
        self.max_samples = _checked_count(max_samples, "max_samples", 2)
        axes = (feature_axis, None)
        self._objective, _ = checked_objective(
            "official", (0.0, 1.0, 1.0), 1.0, None, "auto", axes, pooled=True
        )
        self._step = 0
        self._collapsed: set[str] = set()

    @property
    def collapsed(self) -> bool:
        """Whether any of the diagnosed embeddings had collapsed: a reason to stop the training."""
        return bool(self._collapsed)

    @property
    def is_due(self) -> bool:
        """Whether the embeddings of the current step will be diagnosed."""
        return (self._step + 1) % self.every_n_steps == 0

    def __call__(self, embeddings: Array | Mapping[str, Array]) -> dict[str, float] | None:
        """Count a step, and diagnose its embeddings if that is due.

        Parameters
        ----------
        embeddings : array, shape (n, d) or (n, ..., d), or mapping of str to such arrays
            The embeddings of the step, or several of them by name.

        Returns
        -------
        dict of str to float, or None
            What `vicreg.Diagnosis.scalars` returns, for a logger. Where names were given, each
            begins with that name and a slash. None in a step without a diagnosis.
        """
        named = embeddings if isinstance(embeddings, Mapping) else {"": embeddings}
        for name, z in named.items():
            if any(kind.__name__ == "Tracer" for kind in type(z).__mro__):
                raise TypeError(
                    f"{name or 'embeddings'} must be an array that has values; got one of a "
                    "function that JAX traces: return it, and call the monitor outside"
                )
            self._library_of(z, name)  # an error comes in the first step, not in one that is due
        samples = named if self.is_due else {}
        return self.step({name: self.sample(z, name) for name, z in samples.items()})

    def sample(self, z: ArrayT, name: str = "") -> ArrayT:
        """Return the samples that would be diagnosed, for `step`.

        Use it to keep a few samples now, and to diagnose them later in the step.

        Parameters
        ----------
        z : array, shape (n, d) or (n, ..., d)
            The embeddings.
        name : str, optional
            What errors call them.

        Returns
        -------
        array, shape (m, d)
            At most `max_samples` of the samples, detached.
        """
        rows: Any = adapter_for(self._library_of(z, name)).rows(z, self._objective.axes)
        n = rows.shape[0]
        if n <= self.max_samples:
            return cast(ArrayT, rows)
        # Of several axes of samples no step falls on the same position of each.
        step = n // self.max_samples
        while math.gcd(step, n) > 1:
            step -= 1
        return cast(ArrayT, rows[: step * self.max_samples : step, :])

    def _library_of(self, z: Array, name: str) -> str:
        return checked_library((z,), (name or "embeddings",), self._objective)

    def step(self, samples: Mapping[str, Array]) -> dict[str, float] | None:
        """Count a step, and diagnose samples if that is due.

        A call of the monitor does the same with whole embeddings.

        Parameters
        ----------
        samples : mapping of str to array, each of shape (m, d)
            What `sample` returned, by name. In a step that is not due it is not looked at, and may
            be empty.

        Returns
        -------
        dict of str to float, or None
            As for a call.
        """
        is_due = self.is_due
        self._step += 1
        if not is_due:
            return None
        scalars: dict[str, float] = {}
        for name, z in samples.items():
            diagnosis = diagnose(z)
            scalars |= diagnosis.scalars(f"{name}/" if name else "")
            if diagnosis.level in _LOOK_AT and name not in self._collapsed:
                self._collapsed.add(name)
                warnings.warn(
                    f"{name or 'the embeddings'}, step {self._step}: {diagnosis.verdict}. Look at "
                    f"{_LOOK_AT[diagnosis.level]}; print(vicreg.diagnose(z)) shows more.",
                    stacklevel=3,
                )
        return scalars


def _checked_count(value: object, argument: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument} must be an integer; got {value!r}")
    if value < least:
        raise ValueError(f"{argument} must be {least} or more; got {value}")
    return value
