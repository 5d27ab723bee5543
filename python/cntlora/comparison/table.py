"""The results of a comparison as text."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import Plan
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
        "start", "rate", plan.measure, f"difference from {plan.baseline}", "95 % interval", "verdict", "steps", "area", *others, "parameters",
        "seconds", "failed",
    ]


def rows(plan: Plan, results: dict[str, Result]) -> list[list[str]]:
    """Returns the cells of each start. The best start comes first, starts without a result come last."""
    others = other_names(results)
    return [
        [
            result.start, number(result.rate, 3), _with_half(result), number(result.difference and result.difference.mean, 3, sign=True),
            interval(result.difference), verdict(plan, result), number(result.steps, 4), number(result.area),
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
        found.append(f"The comparison is not finished: at least {missing} runs are missing. Call compare again to make them.")
    for result in results.values():
        if result.is_at_end:
            found.append(f"The best rate of {result.start}, {number(result.rate, 3)}, lies at the end of its grid: a better one may lie outside.")
        if result.failures and result.rate is None and not any(entry.mean is not None for entry in result.grid):
            found.append(f"No run of {result.start} finished.")
        for reason, count in result.failures.items():
            found.append(f"{result.start}: {count} {'run' if count == 1 else 'runs'}: {reason}")
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


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """Returns a number with that many significant digits, without an exponent where it is short."""
    if value is None:
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{digits}g}"
    if "e" in text and 1e-6 < abs(value) < 1e6:
        places = max(0, digits - 1 - int(f"{value:e}".partition("e")[2]))
        text = f"{value:{'+' if sign else ''}.{places}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−") if value < 0 else text


def interval(mean: Mean | None) -> str:
    """Returns the two ends of an interval."""
    return NOTHING if mean is None or mean.low is None else f"{number(mean.low, 3, sign=True)} … {number(mean.high, 3, sign=True)}"


def _with_half(result: Result) -> str:
    if result.last is None:
        return NOTHING
    half = "" if result.last.high is None else f" ± {number(result.last.high - result.last.mean, 2)}"
    lost = "" if result.last.count == result.runs else f" ({result.last.count} of {result.runs})"
    return number(result.last.mean) + half + lost


def _lines(names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in (names, *cells)) for place in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (names, *cells)]
