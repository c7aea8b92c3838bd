"""The README as the page of a package index shows it.

Links to files of the repository lead nowhere there. Where `[project.urls]` in pyproject.toml names
a `Source`, they become links to it. While it names none, they become plain text, and pictures are
left out: an index shows no picture that a package brings itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_WHERE = "\nThe pages that this text names are in the folder `docs` of the source distribution.\n"
_RELATIVE = r"\((?!https?:|#)([^)\s]+)\)"


def for_an_index(readme: str, source: str | None) -> str:
    """Return a README whose links all work away from the repository."""
    if source is None:
        without_pictures = re.sub(rf"!\[[^\]]*\]{_RELATIVE}\n*", "", readme)
        return re.sub(rf"\[([^\]]*)\]{_RELATIVE}", r"\1", without_pictures) + _WHERE
    pictures = re.sub(rf"(!\[[^\]]*\]){_RELATIVE}", rf"\1({source}/raw/main/\2)", readme)
    return re.sub(rf"\]{_RELATIVE}", rf"]({source}/blob/main/\1)", pictures)


class ReadmeHook(MetadataHookInterface):
    """Give the package the README for an index."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme of `metadata`."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = for_an_index(readme, metadata.get("urls", {}).get("Source"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
