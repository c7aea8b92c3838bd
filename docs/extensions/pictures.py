"""The directive ``{picture} NAME``: what `pictures/NAME.py` draws, light or dark as the page is.

```{picture} accuracy
:alt: What one sees, for those who do not.
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from scripts import DOCS, dark, run_if_newer

#: Where drawn pictures lie, of the site's folder of sources.
FOLDER = "_build/pictures"


class Picture(Directive):
    """The picture of a script, twice: the theme shows the one that fits."""

    required_arguments = 1
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the two pictures, drawn anew where the script is newer."""
        (name,) = self.arguments
        env = self.state.document.settings.env
        script = DOCS / "pictures" / f"{name}.py"
        if not script.exists() or "alt" not in self.options:
            raise self.error(f"{name}: a picture needs {script} and an :alt:")
        env.note_dependency(str(script))
        picture = DOCS / FOLDER / f"{name}.svg"
        run_if_newer(script, picture)
        return images(picture, self.options["alt"])


def images(picture: Path, alt: str) -> list[nodes.Node]:
    """Return `picture` and its dark copy, of which a page shows one."""
    return [
        nodes.image(uri=f"/{file.relative_to(DOCS)}", alt=alt, classes=[shown, "picture"])
        for file, shown in ((picture, "only-light"), (dark(picture), "only-dark"))
    ]


def setup(app: Any) -> dict[str, bool]:
    """Give Sphinx the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
