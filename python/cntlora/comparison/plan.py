"""The plan of a comparison: which runs it needs, which rate each start gets, and which runs are still missing."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from peft import LoraConfig

from .runs import Run, rounded
from .starts import Start

# Fields of a LoraConfig that say nothing about the adapter.
NOT_SETTINGS = ("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "runtime_config")


class Key(NamedTuple):
    """A run that the plan needs."""

    phase: Literal["tuning", "report"]
    start: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """What is compared. `starts` holds the digest of each start by name, in the order of the table. The fields are those of `compare`."""

    starts: dict[str, str]
    rates: tuple[float, ...]
    measure: str
    better: Literal["lower", "higher"]
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    baseline: str
    extend: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        content = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})

    def quality(self, value: float) -> float:
        """Returns a number that is larger for a better value."""
        return value if self.better == "higher" else -value


class Runs:
    """The runs of a plan, by key. Runs of other settings are left out; `others` counts them by start."""

    def __init__(self, plan: Plan, runs: Iterable[Run]) -> None:
        self.plan = plan
        self.by_key: dict[Key, Run] = {}
        self.others: dict[str, int] = {}
        for run in runs:
            self.add(run)

    def add(self, run: Run) -> None:
        """Adds a run. The first of two equal runs counts."""
        name = run["start"]
        if name not in self.plan.starts:
            return
        if run["settings"] != self.plan.starts[name]:
            self.others[name] = self.others.get(name, 0) + 1
            return
        self.by_key.setdefault(Key(run["phase"], name, run["rate"], run["seed"]), run)

    def tuning(self, start: str, rate: float) -> list[Run]:
        """Returns the runs at a rate on the tuning seeds that exist."""
        return self._found(Key("tuning", start, rate, seed) for seed in self.plan.tuning_seeds)

    def report(self, start: str, rate: float) -> list[Run]:
        """Returns the runs at a rate on the report seeds that exist."""
        return self._found(Key("report", start, rate, seed) for seed in self.plan.seeds)

    def of(self, start: str) -> list[Run]:
        """Returns all runs of a start."""
        return [run for key, run in self.by_key.items() if key.start == start]

    def _found(self, keys: Iterable[Key]) -> list[Run]:
        return [self.by_key[key] for key in keys if key in self.by_key]

    def last(self, run: Run) -> float | None:
        """Returns the last measurement of a run; None if it diverged or failed."""
        return None if run["error"] else run["measurements"][-1][self.plan.measure]

    def is_unusable(self, start: str) -> bool:
        """True if the start itself failed and none of its runs trained. The rate has no part in that, so no more runs are made."""
        runs = self.of(start)
        return bool(runs) and all(did_not_start(run) for run in runs)


def did_not_start(run: Run) -> bool:
    """True if the start of a run failed, so that nothing was trained."""
    return bool(run["error"]) and run["error"].startswith(START_FAILED)


def diverged(run: Run) -> bool:
    """True if a measurement of a run was not finite."""
    return bool(run["error"]) and run["error"].startswith(DIVERGED)


# The first words of the errors of runs.
START_FAILED, TRAINING_FAILED, PROCESS_ENDED, DIVERGED = "the start failed", "the training failed", "the process ended", "diverged"


@dataclass
class Grid:
    """The rates of a start, and its best one. `missing` are the rates that lack runs; until there are none, nothing is chosen."""

    rates: list[float]
    missing: list[float]
    chosen: float | None = None
    # True if the best rate lies at an end of the grid although all rates that may be added were added.
    is_at_end: bool = False


def grid_of(runs: Runs, start: str) -> Grid:
    """Returns the grid of a start: the rates of the plan, and those added while the best rate lies at an end."""
    plan = runs.plan
    rates = list(plan.rates)
    below = above = 0
    while True:
        missing = [rate for rate in rates if len(runs.tuning(start, rate)) < len(plan.tuning_seeds)]
        if missing or runs.is_unusable(start):
            return Grid(rates, missing)
        best = max(rates, key=lambda rate: (_quality(runs, start, rate), -rate))
        if best == rates[0] and below < plan.extend:
            rates.insert(0, rounded(rates[0] * rates[0] / rates[1]))
            below += 1
        elif best == rates[-1] and above < plan.extend:
            rates.append(rounded(rates[-1] * rates[-1] / rates[-2]))
            above += 1
        else:
            has_runs = any(runs.last(run) is not None for run in runs.tuning(start, best))
            return Grid(rates, [], best if has_runs else None, has_runs and len(rates) > 1 and best in (rates[0], rates[-1]))


def _quality(runs: Runs, start: str, rate: float) -> tuple[int, float]:
    """Returns what decides between rates. A run that diverged or failed is worse than any other."""
    found = [value for run in runs.tuning(start, rate) if (value := runs.last(run)) is not None]
    failed = len(runs.plan.tuning_seeds) - len(found)
    return -failed, runs.plan.quality(math.fsum(found) / len(found)) if found else 0.0


def missing(runs: Runs) -> list[Key]:
    """Returns the runs that can be made now, in the order in which partial results are of most use.

    First come the rates of the plan, one tuning seed after another, then added rates, then the report seeds one after another. Runs that
    depend on others, such as those at a rate that is not yet chosen, come in a later list.
    """
    plan = runs.plan
    grids = {start: grid_of(runs, start) for start in plan.starts if not runs.is_unusable(start)}
    shared = [Key("tuning", start, rate, seed) for seed in plan.tuning_seeds for rate in plan.rates for start in grids]
    added = [
        Key("tuning", start, rate, seed)
        for start, grid in grids.items() for rate in grid.rates if rate not in plan.rates for seed in plan.tuning_seeds
    ]
    report = [
        Key("report", start, grid.chosen, seed) for seed in plan.seeds for start, grid in grids.items() if grid.chosen is not None
    ]
    return [key for key in shared + added + report if key not in runs.by_key]


def count_ahead(runs: Runs) -> int:
    """Returns the number of runs that the plan still needs at least."""
    waiting = [
        start for start in runs.plan.starts if not runs.is_unusable(start) and grid_of(runs, start).missing
    ]
    return len(missing(runs)) + len(waiting) * len(runs.plan.seeds)


def digest_of(start: Start, config: LoraConfig) -> str:
    """Returns a short text that differs between starts, and between configurations of plain LoRA, with different settings."""
    usual = LoraConfig().to_dict()
    fields = {
        name: value for name, value in config.to_dict().items()
        if name not in NOT_SETTINGS and value != usual.get(name, dataclasses.MISSING)
    }
    text = json.dumps([start.settings, fields], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return value.value if isinstance(value, enum.Enum) else repr(value)
