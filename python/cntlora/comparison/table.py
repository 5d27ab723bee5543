"""The results of a comparison as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .plan import Plan
from .runs import shown_rate
from .statistics import Mean
from .summary import Result

NOTHING = "–"


def text_table(plan: Plan, results: dict[str, Result], missing: int) -> str:
    """Returns a table with one line for each start, and sentences about what it lacks."""
    return "\n".join([*_lines(header(plan, results), rows(plan, results)), *(f"\n{text}" for text in sentences(plan, results, missing))])


def header(plan: Plan, results: dict[str, Result]) -> list[str]:
    """Returns the names of the columns."""
    others = other_names(results)
    return [
        "start", "rate", plan.measure, f"difference from {plan.baseline}", "95 % interval", "verdict", "steps", "area", *others,
        "parameters", "seconds", "failed",
    ]


def rows(plan: Plan, results: dict[str, Result]) -> list[list[str]]:
    """Returns the cells of each start. The best start comes first, starts without a result come last."""
    others = other_names(results)
    return [
        [
            result.start, NOTHING if result.rate is None else shown_rate(result.rate), _with_half(result), *_difference(result.difference),
            verdict(plan, result), number(result.steps, 4), number(result.area),
            *(number(result.others[name].mean if name in result.others else None) for name in others),
            NOTHING if result.parameters is None else f"{result.parameters:,}".replace(",", " "), number(result.seconds, 2),
            str(sum(result.failures.values()) or NOTHING),
        ]
        for result in ordered(plan, results)
    ]


def ordered(plan: Plan, results: dict[str, Result]) -> list[Result]:
    """Returns the results, the best one first, those without a mean last."""
    return sorted(results.values(), key=lambda result: (result.last is None, -plan.quality(result.last.mean) if result.last else 0.0))


def sentences(plan: Plan, results: dict[str, Result], missing: int) -> list[str]:
    """Returns what a reader of the table has to know: what is missing, what failed, and which rates lie at the end of their grid."""
    found = []
    if missing:
        found.append(f"The comparison is not finished: {are_missing(missing)}. Call compare again to continue.")
    for result in results.values():
        if result.is_at_end:
            rate = shown_rate(result.rate)
            found.append(f"The best rate of {result.start}, {rate}, lies at the end of its grid: a better one may lie outside.")
        if result.failures and result.rate is None and not any(entry.mean is not None for entry in result.grid):
            found.append(f"No run of {result.start} finished.")
        for reason, count in result.failures.items():
            found.append(f"{result.start}: {count} {'run' if count == 1 else 'runs'}: {visible(reason)}")
    return found


def other_names(results: dict[str, Result]) -> list[str]:
    """Returns the names of the other measurements, in order."""
    return list(dict.fromkeys(name for result in results.values() for name in result.others))


def verdict(plan: Plan, result: Result) -> str:
    """Returns the verdict on a start in words."""
    if result.start == plan.baseline:
        return "baseline"
    if result.rate is not None and result.runs < result.wanted:
        return f"{result.runs} of {result.wanted} runs"
    return result.verdict or NOTHING


def are_missing(count: int) -> str:
    """Returns a clause that says how many runs are missing."""
    return "at least 1 run is missing" if count == 1 else f"at least {count} runs are missing"


def visible(text: str) -> str:
    """Returns a text on one line, without characters that would change the terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with that many significant digits. Whole numbers have no decimal places."""
    if value is None:
        return NOTHING
    places = 0 if float(value).is_integer() else digits - 1 - math.floor(math.log10(abs(value)))
    return _minus(f"{value:.{places}f}" if 0 < places < 10 else f"{value:.{digits}g}")


def _with_half(result: Result) -> str:
    """Returns the mean and half of its interval. The half has two significant digits, and the mean as many places."""
    mean = result.last
    if mean is None:
        return NOTHING
    lost = "" if mean.count == result.runs else f" ({mean.count} of {result.runs})"
    if mean.high is None:
        return number(mean.mean) + lost
    half = mean.high - mean.mean
    places = _places(half)
    return _minus(f"{mean.mean:.{places}f} ± {half:.{places}f}") + lost if half else f"{number(mean.mean)} ± 0{lost}"


def _difference(mean: Mean | None) -> tuple[str, str]:
    """Returns a difference and its interval, with the same places."""
    if mean is None or mean.low is None or mean.high is None:
        return NOTHING if mean is None else _minus(f"{mean.mean:+.3g}"), NOTHING
    if mean.high == mean.mean:
        return (_minus(f"{mean.mean:+.3g}" if mean.mean else "0"),) * 2
    places = _places(mean.high - mean.mean)
    return _minus(f"{mean.mean:+.{places}f}"), _minus(f"{mean.low:+.{places}f} … {mean.high:+.{places}f}")


def _places(half: float) -> int:
    """Returns how many decimal places show two significant digits."""
    return min(12, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4


def _minus(text: str) -> str:
    """Returns a number with a minus sign in place of the hyphen, except in its exponent."""
    return re.sub(r"(?<!e)-", "−", text)


def _lines(names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in (names, *cells)) for place in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (names, *cells)]
