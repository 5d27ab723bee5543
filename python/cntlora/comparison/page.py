"""The results of a comparison as a self-contained page, and its drawings."""

from __future__ import annotations

from collections.abc import Sequence

from . import table
from .drawing import STYLE, Axes, Line, chart, escaped
from .plan import Runs
from .runs import shown_rate
from .summary import Result, curve_of, measures_of

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison of starts</title>
<style>
:root {{ --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #5c6570; --line: #d8dde3; --good: #00734f; --bad: #a63a00; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #14171b; --card: #1d2127; --ink: #e6e9ed; --quiet: #9aa4b0; --line: #363d46; --good: #4fd6a8; --bad: #ff9d66; }}
}}
body {{
  margin: 0 auto; max-width: 85rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--line); }}
p, li, figcaption {{ max-width: 50rem; }}
.lead {{ font-size: 1.1rem; }}
.warning {{ padding: .6rem .8rem .6rem 2rem; border-left: .25rem solid var(--bad); background: var(--card); }}
figure {{ margin: 1rem 0; padding: 1rem; background: var(--card); border-radius: .5rem; overflow-x: auto; }}
figure {{ width: fit-content; max-width: 100%; box-sizing: border-box; }}
figure > svg {{ max-width: 100%; height: auto; }}
figcaption, caption {{ color: var(--quiet); font-size: .85rem; text-align: left; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; min-width: 8em; max-width: 20em; }}
.best {{ font-weight: 700; }}
.better {{ color: var(--good); font-weight: 600; }}
.worse {{ color: var(--bad); font-weight: 600; }}
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(runs: Runs, results: dict[str, Result], missing: int) -> str:
    """Returns the page of a comparison, finished or not."""
    plan = runs.plan
    curves = "\n".join(
        f"<figure>{curves_svg(runs, results, measure, is_alone=False)}</figure>"
        for measure in measures_of(runs) if _has_curve(runs, measure)
    )
    sentences = table.sentences(plan, results, missing)
    warnings = f'<ul class="warning">{"".join(f"<li>{escaped(text)}</li>" for text in sentences)}</ul>' if sentences else ""
    body = f"""<h1>Comparison of starts</h1>
<p class="lead">{escaped(verdicts(plan.baseline, results))}</p>
{warnings}
<p>Every start was trained at {len(plan.rates)} learning rates on the seeds {_listed(plan.tuning_seeds)}, and at further ones while its best
rate lay at an end. The mean of <b>{escaped(plan.measure)}</b> at the end of the training chose its rate ({plan.better} is better). The
results are those of the seeds {_listed(plan.seeds)} at this rate. No result comes from a seed that chose something.</p>
<h2>Results</h2>
{_results_table(runs, results)}
<h2>Curves</h2>
<p>Means over the report seeds at the chosen rate of each start. The bands are 95 % intervals of the mean.</p>
{curves or "<p>There are no curves yet.</p>"}
<h2>Learning rates</h2>
<figure>{rates_svg(runs, results, is_alone=False)}
<figcaption>Means at the end of the training over the tuning seeds. Runs that diverged or failed are left out.</figcaption></figure>
{_rates_table(runs, results)}
<h2>How to read this</h2>
<ul>
<li>A difference is that between two runs with the same seed, start minus {escaped(plan.baseline)}. Its interval is Student's t. The verdict
is “better” or “worse” if the interval leaves out zero.</li>
<li>Each interval stands alone: of twenty starts that differ in nothing, one is called better or worse by chance.</li>
<li>“steps”: where the mean curve first reaches the value with which {escaped(plan.baseline)} ends.</li>
<li>“area”: the mean over the {len(plan.rates)} shared rates on the tuning seeds. It says how a start does at rates that nobody tuned.</li>
<li>“seconds”: the median time of the initialization. “parameters”: those that are trained.</li>
<li>A run that diverges or fails counts as the worst when a rate is chosen. A start that lost runs is not called better.</li>
</ul>"""
    return PAGE.format(style=STYLE, body=body)


def curves_svg(
    runs: Runs, results: dict[str, Result], measure: str, starts: Sequence[str] | None = None, title: str | None = None,
    is_alone: bool = True,
) -> str:
    """Returns the mean curves of a measurement at the chosen rates, with 95 % bands."""
    plan = runs.plan
    if measure not in measures_of(runs):
        raise ValueError(f"no run measured {measure!r}. They measured {', '.join(measures_of(runs))}")
    lines = []
    for name, place in _places(runs, starts).items():
        rate = results[name].rate
        curve = curve_of(runs, name, rate, measure)
        if curve is not None:
            means = curve.means
            band = [(mean.low, mean.high) for mean in means if mean.low is not None and mean.high is not None]
            points = [(step, mean.mean) for step, mean in zip(curve.steps, means, strict=True)]
            note = f"{name}, rate {shown_rate(rate)}: {table.number(means[-1].mean)} at the end"
            lines.append(Line(name, place, points, band if len(band) == len(means) else [], note))
    is_low_better = plan.better == "lower" if measure == plan.measure else _falls(lines)
    suffix = f" ({plan.better} is better)" if measure == plan.measure else ""
    return chart(lines, Axes(title or f"{measure} during training", "step", measure + suffix, is_low_better=is_low_better), is_alone)


def rates_svg(
    runs: Runs, results: dict[str, Result], starts: Sequence[str] | None = None, title: str | None = None, is_alone: bool = True
) -> str:
    """Returns the last measurement of each start against the learning rate, on the tuning seeds."""
    plan = runs.plan
    lines = []
    for name, place in _places(runs, starts).items():
        points = [(entry.rate, entry.mean) for entry in results[name].grid if entry.mean is not None]
        rate = results[name].rate
        lines.append(Line(name, place, points, note=name if rate is None else f"{name}: best at {shown_rate(rate)}"))
    axes = Axes(
        title or f"Last {plan.measure} against the learning rate", "learning rate", f"{plan.measure} ({plan.better} is better)",
        is_log=True, is_low_better=plan.better == "lower", has_dots=True,
    )
    return chart(lines, axes, is_alone)


def verdicts(baseline: str, results: dict[str, Result]) -> str:
    """Returns a sentence for each verdict, with the starts that have it."""
    words = {"better": "Better than", "worse": "Worse than", "not distinguished": "Not distinguished from"}
    names = {word: [result.start for result in results.values() if result.verdict == word] for word in words}
    found = [f"{text} {baseline}: {', '.join(names[word])}." for word, text in words.items() if names[word]]
    return " ".join(found) or "There are no verdicts yet."


def _places(runs: Runs, starts: Sequence[str] | None) -> dict[str, int]:
    """Returns the places of starts in the order of colours: 0 for the baseline. A start has the same colour in all drawings."""
    others = [name for name in runs.plan.starts if name != runs.plan.baseline]
    places = {runs.plan.baseline: 0, **{name: place for place, name in enumerate(others, 1)}}
    for name in starts or ():
        if name not in places:
            raise ValueError(f"the comparison has no start {name!r}. It has {', '.join(places)}")
    return {name: place for name, place in places.items() if starts is None or name in starts}


def _has_curve(runs: Runs, measure: str) -> bool:
    """True if some run measured it more than twice, so that there is more to see than the two ends."""
    return any(sum(measure in one for one in run["measurements"]) > 2 for run in runs.by_key.values())


def _falls(lines: list[Line]) -> bool:
    """True if most curves end below their beginning."""
    return sum(line.points[-1][1] < line.points[0][1] for line in lines) * 2 >= len(lines)


def _results_table(runs: Runs, results: dict[str, Result]) -> str:
    plan = runs.plan
    head = "".join(f"<th>{escaped(name)}</th>" for name in table.header(plan, results))
    lines = []
    for cells, result in zip(table.rows(plan, results), table.ordered(plan, results), strict=True):
        kind = f' class="{result.verdict}"' if result.verdict in ("better", "worse") else ""
        columns = [f"<td{kind if cell == result.verdict else ''}>{escaped(cell)}</td>" for cell in cells[1:]]
        lines.append(f"<tr><td><bdi>{escaped(cells[0])}</bdi></td>{''.join(columns)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _rates_table(runs: Runs, results: dict[str, Result]) -> str:
    """Returns a table of starts and rates. A cell with fewer runs than the plan needs says so."""
    rates = sorted({entry.rate for result in results.values() for entry in result.grid})
    head = "<th>start</th>" + "".join(f"<th>{shown_rate(rate)}</th>" for rate in rates)
    lines = []
    for result in results.values():
        entries = {entry.rate: entry for entry in result.grid}
        cells = []
        for rate in rates:
            entry = entries.get(rate)
            if entry is None or not entry.values:
                cells.append(f"<td>{table.NOTHING}</td>")
                continue
            lost = sum(value is None for value in entry.values)
            unmade = 0 if runs.is_unusable(result.start) else len(runs.plan.tuning_seeds) - len(entry.values)
            notes = [f"{lost} lost"] * bool(lost) + [f"{unmade} missing"] * bool(unmade)
            text = table.number(entry.mean) + (f" ({', '.join(notes)})" if notes else "")
            cells.append(f'<td class="best">{text}</td>' if rate == result.rate else f"<td>{text}</td>")
        lines.append(f"<tr><td><bdi>{escaped(result.start)}</bdi></td>{''.join(cells)}</tr>")
    caption = "<caption>The chosen rates are bold. “lost”: runs that diverged or failed.</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
