"""The command ``vicreg``: parsing and printing, with one module per subcommand."""

# No `from __future__ import annotations`: typer reads the annotations. It is imported when needed.

import importlib
import io
import sys
from typing import TYPE_CHECKING, Annotated

from vicreg import __version__
from vicreg.tools.command.errors import stop

if TYPE_CHECKING:
    from typer import Typer

__all__ = ["application", "main"]

#: The subcommands in the order of the help. Each is a module with a function ``add_to(app)``.
_SUBCOMMANDS = ("demo", "diagnose", "verify", "identify", "bench", "conventions")

# typer rewraps all paragraphs except those that begin with \b.
_HELP = """The variance-invariance-covariance loss: see it work, and see which one you have.

\b
vicreg demo                    train an encoder with and without each term
vicreg demo --backend torch    the same on PyTorch
vicreg demo --plot demo.png    and draw what happened
vicreg diagnose FILE.npy       how far saved embeddings have collapsed
vicreg verify                  do the libraries here compute the same?
vicreg verify --distributed 2  do two processes compute what one does?
vicreg identify MODULE:NAME    which convention a function of yours is
vicreg bench --quick           how fast each library is here
vicreg conventions             compare the published implementations
vicreg conventions --json      the same as data, as of every subcommand

python -m vicreg is the same command.
"""


def main() -> None:
    """Run the command; print one line if it cannot run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print ? for what the terminal cannot show
            stream.reconfigure(errors="replace")
    try:
        for package in ("typer", "rich"):
            importlib.import_module(package)
    except ImportError:
        stop("the command needs typer and rich: pip install typer rich")
    try:
        status = application()(prog_name="vicreg", standalone_mode=False)
    except Exception as error:
        # A usage error of click (or of typer's copy of it), which would print several lines.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        command = ["vicreg", *(word for word in sys.argv[1:2] if word in _SUBCOMMANDS)]
        stop(f"{message().rstrip('.')}: see {' '.join(command)} --help")
    sys.exit(status or 0)


def application() -> "Typer":
    """Return the command as a typer application.

    Returns
    -------
    typer.Typer
    """
    import typer

    from vicreg.tools.command.shared import Subcommands

    app = typer.Typer(
        help=_HELP,
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
    return app
