"""The command ``vicreg``: parsing and printing, with one module per subcommand."""

# No `from __future__ import annotations`: typer reads the annotations. It is imported when needed.

import errno
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

from vicreg import __version__
from vicreg.tools.command.errors import discard, stop

if TYPE_CHECKING:
    from typer import Typer

__all__ = ["application", "main"]

#: The subcommands in the order of the help. Each is a module with a function ``add_to(app)``.
_SUBCOMMANDS = ("demo", "diagnose", "verify", "identify", "bench", "conventions")

# typer leaves paragraphs that begin with \b as they are.
_HELP = """The variance-invariance-covariance loss: see it work, and see which one you have.

\b
vicreg demo                    train an encoder with and without each term
vicreg demo --plot demo.png    the same, and draw what happened
vicreg diagnose z.npy          how far saved embeddings have collapsed
vicreg identify losses:mine    which convention a function of yours is
vicreg verify                  do the libraries here compute the same?
vicreg verify --distributed 2  do two processes compute what one does?
vicreg bench --quick           how fast each library is here
vicreg conventions             compare the published implementations
vicreg conventions --json      the same as data: every subcommand has --json

vicreg COMMAND --help has the examples of each. The exit status is 0 for yes or done, 1 for no or
failed, 2 for bad usage. python -m vicreg is the same command.
"""


def main() -> None:
    """Run the command; print one line if it cannot run."""
    try:
        _prepare_streams()
        try:
            status = _run()
        finally:
            sys.stdout.flush()  # here, where it is known what to do if it fails
    except KeyboardInterrupt:
        stop("stopped", status=130)
    except BrokenPipeError:  # whoever read the output wants no more of it
        discard(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE or error.filename is not None:
            raise
        discard(sys.stdout)
        stop(f"cannot write: {error.strerror}", status=1)
    sys.exit(status or 0)


#: No space on the device, nothing left of a quota, a file too large, an error of the device.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before Python began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # print ? for what the terminal cannot show
            stream.reconfigure(errors="replace")


def _run() -> Any:
    """Return the exit status of the command, None where it is done."""
    try:
        for package in ("typer", "rich"):
            importlib.import_module(package)
    except ImportError:
        stop("the command needs typer and rich: pip install typer rich")
    try:
        return application()(prog_name="vicreg", standalone_mode=False)
    except Exception as error:
        # A usage error of click (or of typer's copy of it), which would print several lines.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        command = ["vicreg", *(word for word in sys.argv[1:2] if word in _SUBCOMMANDS)]
        stop(f"{message().rstrip('.')}: see {' '.join(command)} --help")


def application() -> "Typer":
    """Return the command as a typer application.

    Returns
    -------
    typer.Typer
    """
    import typer

    from vicreg.tools.command.shared import Subcommands

    app = typer.Typer(
        help=_unwrapped(_HELP),
        cls=Subcommands,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"vicreg {__version__}")
            raise typer.Exit

    @app.callback(invoke_without_command=True)
    def options(
        context: typer.Context,
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=print_version, is_eager=True, help="Print the version."
            ),
        ] = False,
    ) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    for name in _SUBCOMMANDS:
        importlib.import_module(f"vicreg.tools.command.{name}").add_to(app)
    for command in app.registered_commands:
        command.help = _unwrapped(command.help or "")
    return app


def _unwrapped(text: str) -> str:
    r"""Return `text` with each paragraph on one line, except those that begin with \b."""
    return "\n\n".join(
        paragraph if paragraph.startswith("\b") else " ".join(paragraph.split("\n"))
        for paragraph in text.strip().split("\n\n")
    )
