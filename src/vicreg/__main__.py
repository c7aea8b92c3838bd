"""``python -m vicreg`` is the command ``vicreg``."""

from vicreg.tools.command import main

main()
