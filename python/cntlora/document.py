"""Results that show themselves in a notebook, and are saved as JSON or as a page."""

from __future__ import annotations

import html
import pathlib
from abc import ABC, abstractmethod


class Document(ABC):
    """A result that can be saved. `NOUN` names it in messages."""

    NOUN: str

    @abstractmethod
    def json(self) -> str:
        """Returns it as one JSON object."""

    @abstractmethod
    def html(self) -> str:
        """Returns it as a self-contained page."""

    def save(self, path: str | pathlib.Path) -> None:
        """Writes it, as JSON or as a self-contained page. The name ends with `.json` or `.html`."""
        path = pathlib.Path(path)
        if path.suffix == ".json":
            text = self.json() + "\n"
        elif path.suffix in (".html", ".htm"):
            text = self.html()
        else:
            raise ValueError(f"the name of a {self.NOUN} ends with .json or .html, found {str(path)!r}")
        path.write_text(text, encoding="utf-8")

    def _repr_html_(self) -> str:
        # The page has its own styles and scripts, so it gets a frame of its own.
        return f'<iframe srcdoc="{html.escape(self.html())}" style="width:100%;height:640px;border:0"></iframe>'
