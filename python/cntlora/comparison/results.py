"""The result of a comparison: the runs that exist, and what follows from them."""

from __future__ import annotations

import pathlib

from . import runs as files
from .plan import Plan, Runs, count_ahead
from .summary import Result, results_of
from .table import text_table

# The plan of the last call lies beside the runs.
PLAN_FILE = "comparison.json"


class Comparison:
    """The result of a comparison, finished or not. It shows itself in a notebook, and as a table when it is printed."""

    def __init__(self, plan: Plan, runs: Runs) -> None:
        self._plan, self._runs = plan, runs

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Comparison:
        """Returns the comparison of a folder, with the runs that exist. Raises ValueError if the folder holds none."""
        folder = pathlib.Path(folder)
        if not (folder / PLAN_FILE).is_file():
            raise ValueError(f"{folder} holds no comparison: it has no file {PLAN_FILE}")
        plan = Plan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        return cls(plan, Runs(plan, files.read(folder / files.FILE)[0]))

    @property
    def results(self) -> dict[str, Result]:
        """The results of the starts by name."""
        return results_of(self._runs)

    @property
    def missing(self) -> int:
        """The number of runs that are still to be made, at least. Call `compare` again to make them."""
        return count_ahead(self._runs)

    def __str__(self) -> str:
        return text_table(self._plan, self.results, self.missing)

    def __repr__(self) -> str:
        return f"<cntlora.Comparison: {len(self._plan.starts)} starts, {len(self._runs.by_key)} runs, {self.missing} missing>"
