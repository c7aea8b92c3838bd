"""The faults that `planted_faults` plants: each can be. `nox -s faults` tries them."""

from __future__ import annotations

import planted_faults
import pytest


@pytest.mark.parametrize("fault", planted_faults.FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_each_is_there_once(fault: planted_faults.Fault) -> None:
    file = planted_faults.ROOT / planted_faults.PACKAGE / fault.file
    assert file.read_text().count(fault.old) == 1
    assert fault.old != fault.new
