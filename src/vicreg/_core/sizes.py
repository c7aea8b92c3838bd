"""The sizes at which the core goes another way: numbers of an objective, not of a module.

So that a check can run each way on arrays that it has a truth for. Nobody else has a reason to
change them: each was measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """From which size on what is done in another way, or in parts.

    Parameters
    ----------
    stacked : int
        Views of up to so many elements are stacked and worked on as one array; larger ones are
        worked on one after another.
    block_length, block_elements : int
        How many rows or columns a block has at least, and how many elements: with fewer, matrix
        products become slow, or a call costs more than its work. In float32 the default is half a
        MiB.
    strips, strip_length : int
        Into how many strips a symmetric product is cut at most, and how many rows one has at
        least. Four leave 10 of 16 blocks to compute; narrower ones make the products slower than
        they save.
    kept_apart : int
        How many of the largest features the Gram route keeps apart. Eight cured every case tried.
    asks_samples : bool
        Whether there are fewer of them where so many dimensions are not spanned. False is for a
        number of samples that stands for any.
    run : int
        The largest features are found among those of runs of so many; not below `kept_apart`.
    summed : int
        How many numbers are added one after another, in libraries that add so: in float32 a sum
        of a million would be wrong in its fourth digit. Longer sums are of sums of so many.
    columns : int
        How many columns of the covariance smooth L1 has at a time, where it has more than that and
        than there are samples.
    """

    stacked: int = 2**16
    block_length: int = 512
    block_elements: int = 2**17
    strips: int = 4
    strip_length: int = 128
    kept_apart: int = 8
    asks_samples: bool = True
    run: int = 64
    summed: int = 512
    columns: int = 256


DEFAULT_SIZES = Sizes()
