"""The table of dtypes is that of NumPy, and of bfloat16 by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from vicreg.tools.dtypes import BYTES, DTYPES, LARGEST, UNDERFLOW, UNIT_ROUNDOFF


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_numbers_are_numpys(dtype: str) -> None:
    info = np.finfo(dtype)
    assert UNIT_ROUNDOFF[dtype] == info.eps / 2
    assert BYTES[dtype] == info.bits // 8
    assert LARGEST.get(dtype, info.max) == info.max
    smallest = info.smallest_subnormal if dtype == "float16" else info.smallest_normal
    assert UNDERFLOW[dtype] == smallest


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    bits = np.asarray([0x3F80, 0x3F81, 0x7F7F, 0x0080], dtype=np.uint32) << 16
    one, next_one, largest, smallest = map(float, bits.view(np.float32))
    assert UNIT_ROUNDOFF["bfloat16"] == (next_one - one) / 2
    assert LARGEST["bfloat16"] == largest
    assert UNDERFLOW["bfloat16"] == smallest
    assert BYTES["bfloat16"] == 2


def test_each_table_has_each_dtype() -> None:
    assert set(BYTES) == set(UNDERFLOW) == set(UNIT_ROUNDOFF) == set(DTYPES)
