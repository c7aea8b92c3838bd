"""Run long work so that Ctrl-C ends it at once, and show that it is running.

A decomposition of a large matrix is one call, and Python would notice an interrupt only when it
returns. So the work runs in a thread while the main thread waits.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NoReturn, TypeVar

from rich.console import Console

__all__ = ["interruptible"]

T = TypeVar("T")

#: In seconds: how often the main thread looks up, and after how long the display begins.
_POLL, _PATIENCE = 0.1, 1.0


def interruptible(work: Callable[[], T], console: Console, doing: str) -> T:
    """Return ``work()``, which Ctrl-C ends at once.

    Parameters
    ----------
    work : callable
        What takes long. It runs in another thread.
    console : rich.console.Console
        Where `doing` and the seconds since the start are shown if they are more than one; where
        there is no terminal, `doing` alone.
    doing : str
        What is being done.

    Returns
    -------
    object
        What `work` returns. What it raises is raised here.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        # A daemon, for which the end of the program would not wait.
        threading.Thread(target=run, daemon=True).start()
        _show_until_done(future, console, doing)
    except KeyboardInterrupt:
        _exit_at_once()
    return future.result()


def _show_until_done(future: Future[T], console: Console, doing: str) -> None:
    if wait({future}, _PATIENCE).done:
        return
    start = time.monotonic() - _PATIENCE
    if not console.is_terminal:
        console.print(f"{doing} ...", markup=False, highlight=False, soft_wrap=True)
    with console.status("") as status:
        while not wait({future}, _POLL).done:
            status.update(f"{doing}: {time.monotonic() - start:.0f} s")


def _exit_at_once() -> NoReturn:
    """Exit as an interrupted command does, without waiting for the thread."""
    print("vicreg: stopped", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # An orderly exit would wait for the library's own threads.
    os._exit(130)
