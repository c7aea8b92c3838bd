"""The sizes from which on the core works in parts: numbers of an objective, not of a module.

So a check can run each way on arrays that it has a truth for. Nobody else has a reason to change
them: each was measured.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True)
class Sizes:
    """From which size on the core works in parts.

    Parameters
    ----------
    stacked : int
        Views of up to so many elements are stacked and worked on as one array, since each call of
        a library costs more than its work there. 0 is for none, whatever the library says.
    strips, strip_length : int
        Into how many strips a product of a matrix with its own transpose is cut at most, and how
        many rows one has at least if not as many as the library says. Four strips leave 10 of 16
        blocks to compute; narrower ones make the products slower than they save.
    kept_apart, kept_apart_unseen : int
        How many of the largest features the Gram route keeps apart: if the library can choose by
        values what it computes, and if it cannot.
    on_device : bool
        Whether arrays on a CPU are worked on as on another device, where each call takes longer
        to begin than small arrays take to be worked on, and no value is waited for.
    sees_values : bool
        Whether the library chooses by values if it can.
    cancels : float
        Which part of what the Gram route subtracts is left where its difference is no longer
        right to a few roundings.
    asks_samples : bool
        Whether fewer are kept apart where there are few samples. False is for a number of samples
        that stands for any.
    first_subtracted : int
        Of up to so many samples the first is subtracted from each before their mean is taken; of
        more the median of three, which takes four more calls. At least 2.
    defined : int
        Where n d² times the positions is at most this, the covariance is formed by the definition
        if the method is "auto": it takes fewer calls.
    sorted : int
        The largest features are looked for in runs of so many; not fewer than are kept apart.
    summed : int
        How many numbers are added one after another, in libraries that add so. Longer sums are
        sums of so many.
    block : int
        How many numbers a block of samples has, in libraries that work on one after another.
    part : int
        How many numbers of a gradient are formed at a time, in the memory of the centred views,
        in libraries that do so where there are four times as many.
    columns : int
        How many columns of the covariance there are at a time, where it is larger than a view.

    Attributes
    ----------
    text : str
        All of these, for what takes strings.
    """

    # Of each instance, and no field: the compiler of PyTorch 2.7 makes a copy from all fields.
    text: ClassVar[str]

    stacked: int = 2**16
    strips: int = 4
    strip_length: int = 0
    kept_apart: int = 8
    kept_apart_unseen: int = 32
    on_device: bool = False
    sees_values: bool = True
    cancels: float = 0.25
    asks_samples: bool = True
    first_subtracted: int = 32
    defined: int = 2**18
    sorted: int = 64
    summed: int = 512
    block: int = 2**18
    part: int = 2**19
    columns: int = 256

    def __post_init__(self) -> None:
        # Written once: a compiler that traces it would take its float for one that may change.
        values = (getattr(self, each.name) for each in fields(self))
        object.__setattr__(self, "text", repr(tuple(values)))

    @classmethod
    def of_text(cls, text: str) -> Sizes:
        """Return the sizes whose ``text`` it is."""
        return cls(*ast.literal_eval(text))


DEFAULT_SIZES = Sizes()
