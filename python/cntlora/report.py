"""The report of an initialization."""

from __future__ import annotations

import html
import json
from typing import Any

from . import _cntlora
from .document import Document


class Report(Document):
    """The result of an initialization: the report of the tool, and what was done to the model.

    It shows itself in a notebook, and as text when it is printed.
    """

    NOUN = "report"

    def __init__(self, engine: dict[str, Any], model: dict[str, Any]) -> None:
        """`engine` is the report of the tool; `model` says what was done to the model."""
        self._engine = engine
        self._model = model

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The initialized layers in order of name, each with its rank, singular values and the share that the rank keeps."""
        return self._engine["layers"]

    @property
    def left_out(self) -> dict[str, str]:
        """The layers that kept PEFT's own initialization, each with the reason."""
        return self._model["left_out"]

    @property
    def notes(self) -> list[str]:
        """What was done to the model, in sentences."""
        return self._model["notes"]

    def json(self) -> str:
        """Returns the report as one JSON object: the fields of `cntlora init --json`, and `peft` with what was done to the model."""
        return json.dumps({**self._engine, "peft": self._model})

    def html(self) -> str:
        """Returns the report as a self-contained page."""
        page = _cntlora.report_html(json.dumps(self._engine))
        rows = "".join(f"<li>{html.escape(note)}</li>" for note in self._sentences())
        return page.replace("<main>", f"<main>\n<section><h2>Model</h2>\n<ul>{rows}</ul></section>", 1)

    def __str__(self) -> str:
        return "\n".join([_cntlora.report_text(json.dumps(self._engine)).rstrip(), "", *self._sentences()])

    def __repr__(self) -> str:
        return f"<cntlora.Report: {len(self.layers)} layers, {len(self.left_out)} left out>"

    def _sentences(self) -> list[str]:
        kept = [f"{name} kept PEFT's own initialization: {reason}" for name, reason in self.left_out.items()]
        return self.notes + kept
