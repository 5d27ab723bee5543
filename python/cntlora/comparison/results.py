"""The result of a comparison: the runs that exist, and what follows from them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from ..document import Document
from . import runs as files
from .page import curves_svg, page, rates_svg
from .plan import Plan, Runs, count_ahead
from .summary import Result, results_of
from .table import text_table

# The plan of the last call lies beside the runs.
PLAN_FILE = "comparison.json"


def save_plan(folder: pathlib.Path, plan: Plan) -> None:
    """Writes the plan of a comparison into its folder. A kill leaves the old plan or the new one."""
    beside = folder / (PLAN_FILE + ".part")
    beside.write_text(plan.to_json(), encoding="utf-8")
    beside.replace(folder / PLAN_FILE)


class Comparison(Document):
    """The result of a comparison, finished or not. It shows itself in a notebook, and as a table when it is printed."""

    NOUN = "comparison"

    def __init__(self, plan: Plan, runs: Runs) -> None:
        self._plan, self._runs = plan, runs

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Comparison:
        """Returns the comparison of a folder, with the runs that exist. Raises ValueError if the folder holds none."""
        folder = pathlib.Path(folder)
        if not (folder / PLAN_FILE).is_file():
            raise ValueError(f"{folder} holds no comparison: it has no file {PLAN_FILE}")
        try:
            plan = Plan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        except (TypeError, ValueError, AttributeError) as problem:
            raise ValueError(f"{folder / PLAN_FILE} is not the plan of a comparison: {problem}") from None
        return cls(plan, Runs(plan, files.read(folder / files.FILE)[0]))

    def against(self, baseline: str) -> Comparison:
        """Returns the same comparison with another baseline. Raises ValueError if it has no start of this name."""
        if baseline not in self._plan.starts:
            raise ValueError(f"the comparison has no start {baseline!r}: it has {', '.join(map(repr, self._plan.starts))}")
        plan = dataclasses.replace(self._plan, baseline=baseline)
        return Comparison(plan, Runs(plan, self._runs.by_key.values()))

    @property
    def results(self) -> dict[str, Result]:
        """The results of the starts by name."""
        return results_of(self._runs)

    @property
    def missing(self) -> int:
        """The number of runs that are still to be made, at least. Call `compare` again to make them."""
        return count_ahead(self._runs)

    @property
    def runs(self) -> list[files.Run]:
        """The runs that exist, as they lie in the file."""
        return list(self._runs.by_key.values())

    def json(self) -> str:
        """Returns the plan, the results of each start and the number of missing runs as one JSON object."""
        results = [dataclasses.asdict(result) for result in self.results.values()]
        return json.dumps({"plan": dataclasses.asdict(self._plan), "missing": self.missing, "results": results}, ensure_ascii=False)

    def html(self) -> str:
        """Returns the comparison as a self-contained page."""
        return page(self._runs, self.results, self.missing)

    def curves_svg(self, measure: str | None = None, starts: Sequence[str] | None = None, title: str | None = None) -> str:
        """Returns the mean curves at the chosen rates with their 95 % bands, as an SVG file.

        - `measure`: the measurement; by default the one that decides.
        - `starts`: the starts to draw, all by default. A start keeps its colour.
        - `title`: the title, instead of the usual one.
        """
        return curves_svg(self._runs, self.results, measure or self._plan.measure, starts, title)

    def rates_svg(self, starts: Sequence[str] | None = None, title: str | None = None) -> str:
        """Returns the last measurement of each start against the learning rate, on the tuning seeds, as an SVG file."""
        return rates_svg(self._runs, self.results, starts, title)

    def __str__(self) -> str:
        return text_table(self._plan, self.results, self.missing)

    def __repr__(self) -> str:
        return f"<cntlora.Comparison: {len(self._plan.starts)} starts, {len(self._runs.by_key)} runs, {self.missing} missing>"
