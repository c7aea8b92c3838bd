"""The check of the links between the site's own pages: each leads to a page, and to a place on it.

Sphinx checks what it resolves itself. This looks at the pages as they were written, links in
included files and in tables too.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from sphinx.util import logging

logger = logging.getLogger(__name__)


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag links to, and the place that it is."""
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        target = values.get("href") if tag == "a" else values.get("src")
        if target and not urlsplit(target).scheme:
            self.links.add(target)


def dead_links(folder: Path) -> list[str]:
    """Return the links of the pages in `folder` that lead nowhere, each with its page."""
    pages = {file.resolve(): _Page(file) for file in folder.rglob("*.html")}
    dead = []
    for file, page in pages.items():
        for link in sorted(page.links):
            path, anchor = urldefrag(unquote(link))
            path = path.partition("?")[0]
            target = (file.parent / path).resolve() if path else file
            known = pages.get(target)
            if not target.exists() or (anchor and known and anchor not in known.anchors):
                dead.append(f"{file.relative_to(folder.resolve())}: {link}")
    return dead


def check(app: Any, error: Exception | None) -> None:
    """Warn of each dead link, once the pages are written."""
    if error is None and app.builder.name == "html":
        for link in dead_links(Path(app.outdir)):
            logger.warning("a link that leads nowhere: %s", link)


def setup(app: Any) -> dict[str, bool]:
    """Check the links when the site is built."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
