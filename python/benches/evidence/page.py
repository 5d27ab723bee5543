"""Writes the results into docs/evidence.md, and draws the curves beside it.

The prose of the page is written by hand. Between `<!-- NAME -->` and `<!-- end -->` stands what this module writes.
"""

import importlib
import json
import math
import re

import cntlora
from cntlora.comparison.runs import shown_rate
from starts import CHOICES, PEERS, start_of

DEFAULT = "cntlora"
BLOCK = re.compile(r"(<!-- (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Starts with a gradient of the loss before training, or with more parameters.
NO_PEERS = ("lora-ga", "lora-2r")
NAMES = [start_of(start).name for start in PEERS]


def write(results, docs):
    """Writes the blocks of the page, and the drawings. `results` is the folder of the runs, `docs` that of the page."""
    page = docs / "evidence.md"
    drawings = docs / "evidence"
    drawings.mkdir(exist_ok=True)
    text = BLOCK.sub(lambda found: found[1] + block(found["name"], results, drawings) + found[3], page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


def block(name, results, drawings):
    """Returns the text of a block."""
    kind, *words = name.split()
    writers = {"task": task, "summary": summary, "verdicts": verdicts, "choices": choices, "rates": rates, "machines": machines}
    return writers[kind](results, drawings, *words)


def loaded(results, part):
    """Returns the comparisons of a part by the name of the task, without those that were not begun."""
    folders = sorted(path for path in results.iterdir() if (path / part / "comparison.json").exists())
    return {folder.name: cntlora.Comparison.load(folder / part) for folder in folders}


def module(name):
    return importlib.import_module(f"tasks.{name}")


def sign_of(name):
    """Returns the sign that makes a positive difference better on a task."""
    return 1 if module(name).BETTER == "higher" else -1


def measure_of(described):
    """Returns the name of the column of a task's measure."""
    return f"{described.MEASURE} ({described.BETTER} is better)"


def table(head, rows):
    """Returns a table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def interval(mean, digits=3, sign=""):
    """Returns a mean with half the width of its interval."""
    if mean is None:
        return "–"
    text = f"{mean.mean:{sign}.{digits}f}"
    return text if mean.low is None else f"{text} ± {mean.mean - mean.low:.{digits}f}"


def rate_of(result):
    if result.rate is None:
        return "–"
    return shown_rate(result.rate) + (" (end of the grid)" if result.is_at_end else "")


def task(results, drawings, name):
    """The section of a task: its description, its curves and the table of its starts."""
    described, comparisons = module(name), loaded(results, "peers")
    heading = f"## {described.TITLE}\n\n"
    if name not in comparisons:
        return f"{heading}This task was not run.\n"
    comparison = comparisons[name]
    found = comparison.results
    (drawings / f"{name}.svg").write_text(comparison.curves_svg(title=described.TITLE), encoding="utf-8")
    (drawings / f"{name}-rates.svg").write_text(comparison.rates_svg(title=described.TITLE), encoding="utf-8")
    head = ["start", "rate", measure_of(described), "difference from plain LoRA", "steps", "over all rates", "kept", "parameters", "seconds"]
    rows = []
    for start, result in found.items():
        if result.last is None:
            rows.append([f"`{start}`", "–", reason_of(result), *["–"] * 6])
            continue
        difference = interval(result.difference, sign="+")
        if result.verdict in ("better", "worse"):
            difference = f"**{difference}** {result.verdict}"
        rows.append([
            f"`{start}`", rate_of(result), interval(result.last), difference, number(result.steps, 0), number(result.area),
            interval(result.others.get("kept")), str(result.parameters), number(result.seconds, 2),
        ])
    missing = f"{comparison.missing} runs are missing.\n\n" if comparison.missing else ""
    curves = f"![Curves of the {described.MEASURE} at the best rate of each start](evidence/{name}.svg)\n\n"
    against = f"![{described.MEASURE} against the learning rate](evidence/{name}-rates.svg)\n\n"
    command = f"    python python/benches/evidence run {name}\n"
    return f"{heading}{described.DESCRIPTION}\n\n{curves}{against}{table(head, rows)}\n{missing}{command}"


def reason_of(result):
    return "; ".join(" ".join(reason.split())[:160] for reason in result.failures) or "not run"


def summary(results, drawings):
    """On how many tasks each start is better or worse than plain LoRA, at its own best rate and over all rates."""
    found = {name: comparison.results for name, comparison in loaded(results, "peers").items()}
    rows = []
    for start in NAMES[1:]:
        words = [starts[start].verdict for starts in found.values()]
        areas = [(name, starts[start].area, starts["lora"].area) for name, starts in found.items()]
        known = [sign_of(name) * (value - lora) for name, value, lora in areas if None not in (value, lora)]
        counts = [words.count("better"), words.count("not distinguished"), words.count("worse")]
        rows.append([f"`{start}`", *map(str, counts), f"{sum(value > 0 for value in known)} of {len(known)}"])
    return table(["start", "better", "not distinguished", "worse", "better over all rates"], rows)


def verdicts(results, drawings):
    """How the default differs from every other start on every task, in the paired difference and its interval."""
    comparisons = loaded(results, "peers")
    found = {name: comparison.against(DEFAULT).results for name, comparison in comparisons.items()}
    head = ["start", *(module(name).TITLE for name in found)]
    rows, ahead = [], []
    for start in NAMES:
        if start == DEFAULT:
            continue
        cells = []
        for name in found:
            result = found[name].get(start)
            if result is None or result.difference is None:
                cells.append("–")
                continue
            # The sum makes a positive zero of a negative one.
            text = f"{sign_of(name) * result.difference.mean + 0.0:+.3f}"
            cells.append(f"**{text}** {result.verdict}" if result.verdict in ("better", "worse") else text)
        rows.append([f"`{start}`", *cells])
    for name, starts in found.items():
        peers = [result for start, result in starts.items() if start not in (DEFAULT, *NO_PEERS) and result.last is not None]
        if peers and all(result.verdict == "worse" for result in peers):
            ahead.append(module(name).TITLE)
    claim = "The default is ahead of every start of the same rank that needs no gradients, outside the interval, on "
    claim += f"{len(ahead)} of {len(found)} tasks"
    claim += f": {'; '.join(ahead)}." if ahead else "."
    return f"{table(head, rows)}\n{claim}\n"


def only(comparison):
    """Returns the option that selects the choices of a comparison, if it does not have all of them."""
    chosen = [start for start in comparison.results if start != DEFAULT]
    every = {start_of(start).name for start in CHOICES}
    return "" if every <= {DEFAULT, *chosen} else " --only " + " ".join(f'"{start}"' for start in chosen)


def choices(results, drawings):
    """How the choices inside cntlora differ from the default."""
    parts = []
    for name, comparison in loaded(results, "choices").items():
        rows = []
        for start, result in comparison.results.items():
            difference = interval(result.difference, sign="+")
            verdict = "the default" if start == DEFAULT else result.verdict or reason_of(result)
            rows.append([start, rate_of(result), interval(result.last), difference, verdict, number(result.area), str(result.parameters)])
        described = module(name)
        head = ["choice", "rate", measure_of(described), "difference from the default", "", "over all rates", "parameters"]
        missing = f"\n{comparison.missing} runs are missing.\n" if comparison.missing else ""
        command = f"\n    python python/benches/evidence run {name} --part choices{only(comparison)}\n"
        parts.append(f"### {described.TITLE}\n\n{table(head, rows)}{missing}{command}")
    return "\n".join(parts) or "No choices were compared.\n"


def best_rate(result):
    """Returns the best rate of a start between the rates of its grid: the vertex of the parabola through the best three, over the
    logarithm of the rate. Beside a run that diverged, and where the three are equal, it is that of the grid; at an end of the grid, None."""
    grid = [(entry.rate, entry.mean if None not in entry.values else None) for entry in result.grid]
    places = [place for place, (rate, _) in enumerate(grid) if rate == result.rate]
    if not places or not 0 < places[0] < len(grid) - 1:
        return None
    points = grid[places[0] - 1 : places[0] + 2]
    if any(value is None for _, value in points):
        return result.rate
    (x, low), (y, middle), (z, high) = ((math.log(rate), value) for rate, value in points)
    bend = (high - middle) / (z - y) - (middle - low) / (y - x)
    if bend == 0:
        return result.rate
    slope = ((high - middle) / (z - y) * (y - x) + (middle - low) / (y - x) * (z - y)) / (z - x)
    return math.exp(min(max(y - slope * (z - x) / (2 * bend), x), z))


def rates(results, drawings):
    """The best rate of each start as a multiple of LoRA's, and the multiples that the bound of the curvature predicts."""
    head, rows, right, count = ["start"], {start: [] for start in NAMES if start not in ("lora", "lora+")}, [0, 0], 0
    for name, comparison in loaded(results, "peers").items():
        path = results / name / "curvature.json"
        if not path.exists():
            continue
        bounds, found = json.loads(path.read_text(encoding="utf-8")), comparison.results
        head.append(module(name).TITLE)
        lora = best_rate(found["lora"])
        for start, cells in rows.items():
            best = best_rate(found[start]) if start in found else None
            if lora is None or best is None or start not in bounds:
                cells.append("–")
                continue
            measured, ratio = best / lora, total(bounds["lora"]) / total(bounds[start])
            cells.append(f"{measured:.2f} ({ratio**0.5:.2f})")
            count += 1
            for place, predicted in enumerate((ratio**0.5, ratio)):
                right[place] += 0.5 <= predicted / measured <= 2
    if count == 0:
        return "No curvature was measured.\n"
    says = f"Within a factor of two: {right[0]} of {count} by the square root of the bound, {right[1]} of {count} by the bound itself.\n"
    return table(head, [[f"`{start}`", *cells] for start, cells in rows.items()]) + "\n" + says


def total(bounds):
    return bounds["along_b"] + bounds["along_a"]


def machines(results, drawings):
    """The machines and versions of all runs."""
    found = []
    for path in sorted(results.glob("*/*/machines.json")):
        for one in json.loads(path.read_text(encoding="utf-8")):
            if one not in found:
                found.append(one)
    head = ["processor", "cores", "date", "versions"]
    names = [name for name in (found[0] if found else {}) if name not in ("processor", "cores", "date")]
    versions = [", ".join(f"{name} {one[name]}" for name in names) for one in found]
    return table(head, [[one["processor"], str(one["cores"]), one["date"], text] for one, text in zip(found, versions)])
