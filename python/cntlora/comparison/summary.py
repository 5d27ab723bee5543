"""The results of each start, from its runs."""

from __future__ import annotations

import dataclasses
import math
import statistics as standard
from dataclasses import dataclass
from typing import Any

from .plan import Grid, Runs, diverged, grid_of
from .runs import Run
from .statistics import Curve, Mean, first_step, mean_curve, mean_of


@dataclass(frozen=True)
class AtRate:
    """The runs of a start at a rate on the tuning seeds. `mean` leaves out runs that diverged or failed."""

    rate: float
    mean: float | None
    # The last measurement of each run in order of seed; None if it diverged or failed.
    values: list[float | None]


@dataclass(frozen=True)
class Result:
    """The results of a start. What is not known yet is None.

    - `rate`: the rate that the tuning seeds chose. `is_at_end`: it lies at an end of the grid, so a better one may lie outside.
    - `last`: the last measurement on the report seeds, without runs that diverged or failed.
    - `difference`: that of the start minus that of the baseline, seed by seed.
    - `verdict`: "better", "worse" or "not distinguished" from the baseline by the interval of the difference. A start that lost runs
      which the baseline finished is not called better, and is worse if it lost all of them; the other way round for the baseline.
    - `steps`: the step at which the mean curve first reaches the baseline's last mean.
    - `area`: the mean of the last measurement over the rates that all starts share, on the tuning seeds.
    - `others`: the means of the other last measurements on the report seeds, by name.
    - `parameters`: how many are trained. `seconds`: the median time of the initialization.
    - `runs`, `wanted`: report runs that exist, and that the plan needs.
    - `failures`: how many runs diverged or failed, by the reason.
    """

    start: str
    rate: float | None
    is_at_end: bool
    last: Mean | None
    difference: Mean | None
    verdict: str | None
    steps: float | None
    area: float | None
    others: dict[str, Mean]
    parameters: int | None
    seconds: float | None
    runs: int
    wanted: int
    failures: dict[str, int]
    grid: list[AtRate]


def results_of(runs: Runs) -> dict[str, Result]:
    """Returns the results of all starts by name."""
    plan = runs.plan
    grids = {start: grid_of(runs, start) for start in plan.starts}
    baseline = _report(runs, grids, plan.baseline)
    return {start: _result(runs, start, grids[start], _report(runs, grids, start), baseline) for start in plan.starts}


def curve_of(runs: Runs, start: str, rate: float | None, measure: str) -> Curve | None:
    """Returns the mean curve of a measurement at a rate on the report seeds. Runs that diverged or failed are left out."""
    finished = [] if rate is None else [run for run in runs.report(start, rate) if not run["error"]]
    points = [[(one["step"], one[measure]) for one in run["measurements"] if measure in one] for run in finished]
    return mean_curve([curve for curve in points if curve])


def measures_of(runs: Runs) -> list[str]:
    """Returns the names of all measurements. The one that decides comes first."""
    names = dict.fromkeys([runs.plan.measure])
    for run in runs.by_key.values():
        for measurement in run["measurements"]:
            names.update(dict.fromkeys(measurement))
    return [name for name in names if name != "step"]


def _report(runs: Runs, grids: dict[str, Grid], start: str) -> dict[int, Run]:
    """Returns the report runs of a start at its chosen rate, by seed."""
    rate = grids[start].chosen
    return {} if rate is None else {run["seed"]: run for run in runs.report(start, rate)}


def _result(runs: Runs, start: str, grid: Grid, report: dict[int, Run], baseline: dict[int, Run]) -> Result:
    plan = runs.plan
    values = {seed: value for seed, run in report.items() if (value := runs.last(run)) is not None}
    targets = {seed: value for seed, run in baseline.items() if (value := runs.last(run)) is not None}
    is_baseline = start == plan.baseline
    pairs = [values[seed] - targets[seed] for seed in plan.seeds if seed in values and seed in targets]
    difference = None if is_baseline else mean_of(pairs)
    is_complete = len(report) == len(baseline) == len(plan.seeds)
    lost, lost_by_baseline = targets.keys() - values.keys(), values.keys() - targets.keys()
    rates = [_at_rate(runs, start, rate) for rate in grid.rates]
    shared = [value for entry in rates if entry.rate in plan.rates for value in entry.values if value is not None]
    curve = curve_of(runs, start, grid.chosen, plan.measure)
    steps = None
    if curve and targets and len(values) == len(report):
        target = mean_of(list(targets.values()))
        points = [(step, mean.mean) for step, mean in zip(curve.steps, curve.means, strict=True)]
        steps = first_step(points, target.mean, plan.better == "higher")
    everything = runs.of(start)
    seconds = [run["seconds_start"] for run in everything if run["seconds_start"] is not None]
    return Result(
        start=start, rate=grid.chosen, is_at_end=grid.is_at_end, last=mean_of(list(values.values())), difference=difference,
        verdict=_verdict(plan.quality(1), difference, bool(lost), bool(lost_by_baseline)) if is_complete and not is_baseline else None,
        steps=steps, area=math.fsum(shared) / len(shared) if shared and not grid.missing else None,
        others=_others(runs, report), parameters=next((run["parameters"] for run in everything if run["parameters"] is not None), None),
        seconds=standard.median(seconds) if seconds else None, runs=len(report), wanted=len(plan.seeds), failures=_failures(everything),
        grid=rates,
    )


def _at_rate(runs: Runs, start: str, rate: float) -> AtRate:
    values = [runs.last(run) for run in runs.tuning(start, rate)]
    mean = mean_of([value for value in values if value is not None])
    return AtRate(rate, mean and mean.mean, values)


def _verdict(sign: float, difference: Mean | None, has_lost: bool, has_baseline_lost: bool) -> str | None:
    if difference is None:
        return "worse" if has_lost and not has_baseline_lost else None
    if difference.low is None or difference.high is None:
        return None
    low, high = sorted((sign * difference.low, sign * difference.high))
    if low > 0 and not has_lost:
        return "better"
    return "worse" if high < 0 and not has_baseline_lost else "not distinguished"


def _others(runs: Runs, report: dict[int, Run]) -> dict[str, Mean]:
    """Returns the means of the last measurements other than the one that decides. Names that some runs lack are left out."""
    last = [run["measurements"][-1] for run in report.values() if not run["error"]]
    names = [name for name in (last[0] if last else ()) if name not in ("step", runs.plan.measure) and all(name in one for one in last)]
    found = {name: mean_of([one[name] for one in last]) for name in names}
    return {name: mean for name, mean in found.items() if mean is not None}


def _failures(runs: list[Run]) -> dict[str, int]:
    """Returns the reasons of runs that diverged or failed, with their counts. The step of a divergence is left out."""
    counts: dict[str, int] = {}
    for run in runs:
        if run["error"]:
            reason = "diverged" if diverged(run) else run["error"]
            counts[reason] = counts.get(reason, 0) + 1
    return counts
