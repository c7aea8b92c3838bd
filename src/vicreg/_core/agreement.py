"""How ranks find out that they compute the same loss, and how many rows each of them has.

A short header goes in front of what each rank sends anyway. So ranks that differ are told so
before anything is computed, and a rank may have another number of rows in each call. What is sent
must have one length on all ranks before they know of each other: the length for the call that is
expected, which is the one that followed on the last one before. Where another one comes, all ranks
see it in the headers, and send again.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Array = Any

_BASE = 128  # digits of the headers: exact in each floating-point dtype
_DIGITS = 5
_LONGEST = 2**14  # of all settings, in JSON
_MOST = 1024  # successors that are remembered


@dataclass(frozen=True)
class Own:
    """What one rank brings to a call."""

    form: int  # a checksum of what decides, with the rows of each rank, how much is sent
    settings: dict[str, str]  # what must be the same on every rank, by the name it has in errors
    settings_sum: int  # a checksum of them
    count: int


@dataclass(frozen=True)
class _Expected:
    """A call that all ranks expect: the same one."""

    form: int
    counts: tuple[int, ...]  # the rows of each rank
    library: str
    dtype: Any  # of what is sent, of that library
    length: int


class Agreement:
    """What the ranks of a group know of each other. On each rank it is the same at any time."""

    def __init__(self) -> None:
        self._last: _Expected | None = None
        self._next: dict[_Expected, _Expected] = {}  # what followed on what

    def exchange(
        self,
        xp: Any,
        comm: Any,
        own: Own,
        payload: Callable[[tuple[int, ...]], Array],
        device: Any,
    ) -> tuple[tuple[int, ...], list[Array]]:
        """Return the number of rows of each rank, and what each of them sends.

        Parameters
        ----------
        xp, comm : Library, Communicator
            Of the arrays and of the ranks.
        own : Own
            What this rank brings.
        payload : callable
            What it sends, from the number of rows of each rank: an array of any shape.
        device : device
            Of what is sent.

        Returns
        -------
        counts : tuple of int
        received : list of arrays
            In the order of the ranks, each of the shape of `payload`.

        Raises
        ------
        ValueError
            The ranks differ in their settings. It is raised on each of them.
        """
        numbers = (own.form, own.settings_sum, own.count)
        expected = self._last and self._next.get(self._last, self._last)
        if expected is not None and expected.library != xp.name:
            expected = None  # a communicator may send arrays of several libraries
        while True:
            if expected is None:
                sent = xp.zeros((0,), dtype=xp.float32, device=device)
            elif (expected.form, expected.counts[comm.rank]) == (own.form, own.count):
                sent = payload(expected.counts)
            else:
                sent = xp.zeros((expected.length,), dtype=expected.dtype, device=device)
            header = xp.asarray(_digits(numbers), dtype=sent.dtype, device=device)
            received = comm.all_gather(xp.concat([header, xp.reshape(sent, (-1,))]))
            headers = [_numbers(row) for row in received[:, : header.shape[0]].tolist()]
            forms, sums, counts = zip(*headers, strict=True)
            if len({*zip(forms, sums, strict=True)}) > 1:
                self._last, self._next = None, {}
                raise ValueError(_difference(xp, comm, own.settings, device))
            if expected is not None and (expected.form, expected.counts) == (own.form, counts):
                self._remember(expected)
                # Each by itself is in one piece of memory: nothing is copied.
                rest = (received[rank, header.shape[0] :] for rank in range(comm.size))
                return counts, [xp.reshape(each, sent.shape) for each in rest]
            like = payload(counts)
            expected = _Expected(own.form, counts, xp.name, like.dtype, math.prod(like.shape))

    def _remember(self, call: _Expected) -> None:
        if len(self._next) > _MOST:
            self._next.clear()
        if self._last is not None:
            self._next[self._last] = call
        self._last = call


def checksum(of: Any) -> int:
    """Return a number that differs, in all likelihood, where the ``repr`` of `of` does."""
    return zlib.crc32(repr(of).encode())


def _digits(numbers: Sequence[int]) -> list[float]:
    return [
        float(number // _BASE**place % _BASE) for number in numbers for place in range(_DIGITS)
    ]


def _numbers(digits: Sequence[float]) -> tuple[int, ...]:
    return tuple(
        sum(int(digit) * _BASE**place for place, digit in enumerate(digits[i : i + _DIGITS]))
        for i in range(0, len(digits), _DIGITS)
    )


def _difference(xp: Any, comm: Any, settings: dict[str, str], device: Any) -> str:
    """Return what differs, and on which ranks; they send each other their settings once."""
    text = json.dumps(settings).encode()[:_LONGEST].ljust(_LONGEST)
    codes = xp.asarray([float(code) for code in text], dtype=xp.float32, device=device)
    received = comm.all_gather(codes).tolist()
    of_ranks = [json.loads(bytes(map(int, codes)).decode()) for codes in received]
    for name in settings:
        values = [of_rank[name] for of_rank in of_ranks]
        if len(set(values)) > 1:
            listed = "; ".join(f"{value} on {_ranks(value, values)}" for value in _unique(values))
            return f"{name} must be the same on every rank of comm; got {listed}"
    return "all arguments must be the same on every rank of comm; got others on some of them"


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _ranks(value: str, values: Sequence[str]) -> str:
    places = [str(rank) for rank, other in enumerate(values) if other == value]
    return f"rank{'s' if len(places) > 1 else ''} {', '.join(places)}"
