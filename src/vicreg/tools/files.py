"""Output files: checked before the work, and replaced only once they are complete."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vicreg.tools.requirements import RequirementError, ToolError, require

__all__ = ["check_figure_file", "check_file", "real", "replacing"]

#: The formats that need LaTeX, which may not be installed.
_UNCERTAIN_FORMATS = {"pgf"}


def check_file(file: Path) -> None:
    """Check, before any work, that `file` can be written.

    Parameters
    ----------
    file : path
        The file to write or replace.

    Raises
    ------
    RequirementError
        Its directory does not exist or is not writable, or `file` is a directory or may not be
        written.
    """
    name, file = repr(str(file)), real(file)
    try:
        folder, kind = _mode(file.parent), _mode(file)
    except OSError as error:
        raise RequirementError(f"cannot write {name}: {error.strerror or error}") from error
    if not stat.S_ISDIR(folder):
        raise RequirementError(f"cannot write {name}: {str(file.parent)!r} is no directory")
    if stat.S_ISDIR(kind):
        raise RequirementError(f"cannot write {name}: it is a directory")
    if kind and not stat.S_ISREG(kind):
        raise RequirementError(f"cannot write {name}: it is no plain file")
    if not os.access(file.parent, os.W_OK):
        raise RequirementError(f"cannot write {name}: {str(file.parent)!r} is not writable")
    # A new file could take its place all the same; whoever protected it wants to keep it.
    if kind and not os.access(file, os.W_OK):
        raise RequirementError(f"cannot write {name}: it is not writable")


def _mode(file: Path) -> int:
    """Return the mode of `file`, which says what it is; 0 where there is none."""
    # `Path.is_dir` and the like say no to any error from Python 3.14 on, as to a name too long.
    try:
        return os.stat(file).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def real(file: Path) -> Path:
    """Return the file that `file` is, or is a link to, or will be."""
    return Path(os.path.realpath(file))  # `Path.resolve` fails on a link to itself


def check_figure_file(file: Path) -> None:
    """Check, before any work, that a figure can be written to `file`.

    Parameters
    ----------
    file : path
        The file; its suffix determines the format.

    Raises
    ------
    RequirementError
        matplotlib is missing or cannot write the suffix; or as in `check_file`.
    """
    require("matplotlib")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(set(FigureCanvasBase.get_supported_filetypes()) - _UNCERTAIN_FORMATS)
    if file.suffix.lower().removeprefix(".") not in formats:
        raise RequirementError(
            f"cannot write {str(file)!r}: its suffix must be one of {', '.join(formats)}"
        )
    check_file(file)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Replace `file` by what the block writes, once it is complete.

    Parameters
    ----------
    file : path
        The file to replace. It is left unchanged if the block raises.

    Yields
    ------
    path
        The path to write to: a temporary file beside `file`, with the same suffix.

    Raises
    ------
    ToolError
        The file cannot be written.
    """
    file = real(file)  # keep a symbolic link
    # Of a long name only the beginning: it may be as long already as a name can be.
    unfinished = file.with_name(f".{file.stem[:32]}.{os.getpid()}{file.suffix[:16]}")
    try:
        yield unfinished
        if file.exists():
            shutil.copymode(file, unfinished)  # who may read it
        os.replace(unfinished, file)
    except OSError as error:
        raise ToolError(f"cannot write {str(file)!r}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
