"""The directives of the gallery: scripts of `examples/`, run when the site is built.

``{example} NAME`` shows the picture that `examples/NAME.py` drew, what it printed and its code;
``{thumbnails}`` shows the pictures of pages, each with a link, and one sentence a page:

    ```{example} digits
    :alt: What one sees, for those who do not.
    ```

    ```{thumbnails}
    digits: What it shows in a sentence.
    ```
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from pictures import FOLDER, images
from scripts import DOCS, dark, printed, run_if_newer

EXAMPLES = DOCS.parent / "examples"


def script_of(name: str) -> Path:
    """Return the file of an example."""
    return EXAMPLES / f"{name}.py"


def picture_of(name: str) -> Path:
    """Return the file of an example's picture."""
    return DOCS / FOLDER / "examples" / f"{name}.svg"


class Example(Directive):
    """The picture, the output and the code of an example."""

    required_arguments = 1
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the picture, the output and the code."""
        (name,) = self.arguments
        script = script_of(name)
        if "alt" not in self.options:
            raise self.error(f"{name}: an example's picture needs an :alt:")
        self.state.document.settings.env.note_dependency(str(script))
        picture = picture_of(name)
        output = nodes.literal_block(text=printed(picture).read_text().rstrip())
        output["language"] = "text"
        code = nodes.literal_block(text=script.read_text().rstrip())
        code["language"] = "python"
        return [
            *images(picture, self.options["alt"]),
            _paragraph("It printed:"),
            output,
            _paragraph(f"The whole of examples/{name}.py:"),
            code,
        ]


def _paragraph(text: str) -> nodes.paragraph:
    return nodes.paragraph(text=text)


class Thumbnails(Directive):
    """The pictures of pages of this folder as links, each with a sentence."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the grid of cards."""
        grid = nodes.container(classes=["thumbnails"])
        self.state.nested_parse(_cards(list(self.content)), self.content_offset, grid)
        return [grid]


def _cards(lines: list[str]) -> Any:
    from docutils.statemachine import StringList

    cards = [":::::{grid} 1 1 2 2", ":gutter: 3"]
    for line in lines:
        page, sentence = line.split(": ", 1)
        picture = Path("/") / picture_of(_example_of(page)).relative_to(DOCS)
        cards += [
            "::::{grid-item-card}",
            f":link: {page}",
            ":link-type: doc",
            f"![]({picture}){{.only-light}}",
            f"![]({dark(picture)}){{.only-dark}}",
            "",
            sentence,
            "::::",
        ]
    return StringList([*cards, ":::::"], source="thumbnails")


def _example_of(page: str) -> str:
    return _EXAMPLE.findall((DOCS / "gallery" / f"{page}.md").read_text())[0]


_EXAMPLE = re.compile(r"^```\{example\} (\w+)$", flags=re.M)


def run_examples(app: Any) -> None:
    """Run each example of the gallery that is newer than its picture, some at a time."""
    pages = sorted((DOCS / "gallery").glob("*.md"))
    names = [name for page in pages for name in _EXAMPLE.findall(page.read_text())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda name: run_if_newer(script_of(name), picture_of(name)), names))


def setup(app: Any) -> dict[str, bool]:
    """Give Sphinx the directives, and run the examples before it reads the pages."""
    app.add_directive("example", Example)
    app.add_directive("thumbnails", Thumbnails)
    app.connect("builder-inited", run_examples)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
