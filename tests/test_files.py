"""Files that a tool writes: refused before the work, replaced only by a complete one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vicreg.tools.files import check_file, replacing
from vicreg.tools.requirements import RequirementError, ToolError


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("before")
    with replacing(file) as unfinished:
        unfinished.write_text("after")
        assert file.read_text() == "before"
        assert unfinished.suffix == ".json"
    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


def test_it_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        with replacing(file) as unfinished:
            unfinished.write_text("half")
            raise error

    file = tmp_path / "report.json"
    file.write_text("before")
    with pytest.raises(ToolError, match=r"cannot write .*: No space left"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "report.json", tmp_path / "latest.json"
    file.write_text("before")
    link.symlink_to(file)
    with replacing(link) as unfinished:
        unfinished.write_text("after")
    assert link.is_symlink()
    assert file.read_text() == "after"


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file, said in (
        (tmp_path, "it is a directory"),
        (tmp_path / "no" / "report", "is no directory"),
        (tmp_path / "pipe", "it is no plain file"),
        (tmp_path / ("long" * 100), "name too long"),
    ):
        with pytest.raises(RequirementError, match=said):
            check_file(file)
    check_file(tmp_path / "new")
