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


def test_who_may_read_a_file_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("before")
    file.chmod(0o600)
    with replacing(file) as unfinished:
        unfinished.write_text("after")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_name_as_long_as_can_be(tmp_path: Path) -> None:
    for name in ("a" * 250 + ".json", "ä" * 125 + ".json", "." + "a" * 250, "a." + "a" * 250):
        file = tmp_path / name
        check_file(file)
        with replacing(file) as unfinished:
            unfinished.write_text("all")
        assert file.read_text() == "all"
        file.unlink()
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "loop.json"
    link.symlink_to(link)
    check_file(link)
    with replacing(link) as unfinished:
        unfinished.write_text("all")
    assert link.read_text() == "all"


def test_a_protected_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    file.write_text("mine")
    file.chmod(0o444)
    if os.access(file, os.W_OK):  # nothing is protected from the administrator
        monkeypatch.setattr(os, "access", lambda path, mode: not os.path.samefile(path, file))
    with pytest.raises(RequirementError, match=r"report.json': it is not writable"):
        check_file(file)


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "report")
    for file, said in (
        (tmp_path, "it is a directory"),
        (tmp_path / "no" / "report", "is no directory"),
        (tmp_path / "link", "is no directory"),
        (tmp_path / "pipe", "it is no plain file"),
        (tmp_path / ("long" * 100), "name too long"),
    ):
        with pytest.raises(RequirementError, match=said):
            check_file(file)
    check_file(tmp_path / "new")
