"""Computes the factors of layers with the tool: its options, its statistics, and runs over groups of layers."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import _cntlora
from .factors import read_factors
from .layers import Layer
from .weights import weight_of

METHODS = _cntlora.methods()
# Methods that need no activations.
WITHOUT_DATA = [name for name, (reads_activations, _, _) in METHODS.items() if not reads_activations]
# Methods that need pre-training activations, and those among them that use no others.
NEEDS_SOURCE = [name for name, (_, _, source) in METHODS.items() if source in ("needed", "alone")]
ONLY_SOURCE = [name for name, (_, _, source) in METHODS.items() if source == "alone"]

# Methods whose factors do not depend on the scale.
NO_SCALE = ("olora", "olora-tail", "sc-lora", "astra", "mica", "orthogonal", "eva", "lora", "gaussian")

# Options of `cntlora init` that have no effect here, and the reason. The tool itself refuses others.
REFUSED = {
    "out": "the factors are written into the model: save it with model.save_pretrained(FOLDER)",
    "force": "no file is written",
    "report": "the function returns the report: save it with report.save(FILE)",
    "dtype": "the factors have the number format of the model's own lora_A and lora_B",
    "rename": "the weights are those of the model",
    "adapter_name_rename": "the names are those of the model",
}

# Names in one regular expression; longer ones could exceed the limit of the tool.
NAMES_PER_PATTERN = 100


@dataclass
class Factors:
    """The factors of a layer. The adapter adds `scale · B A`."""

    a: torch.Tensor
    b: torch.Tensor
    rank: int
    scale: float
    # True if the weight is too small for the rank of the layer, so that PEFT's own units were added.
    is_padded: bool = False


@dataclass
class Request:
    """What to compute: the layers by name, their statistics, and the options of `cntlora init`."""

    layers: dict[str, Layer]
    # Those of pre-training activations, if the method uses no others.
    statistics: _cntlora.Statistics
    source: _cntlora.Statistics | None
    # The name of each layer in the statistics.
    recorded: dict[str, str]
    method: str
    options: dict[str, Any]
    progress: bool


@dataclass
class Group:
    """Layers that one run of the tool computes, because they have one rank and one scale."""

    names: list[str]
    words: list[str]
    # None if the layers have different scales: then the tool computes factors of the scale 1.
    scale: float | None
    # False if the tool chooses the ranks.
    keeps_ranks: bool


def compute(request: Request) -> tuple[dict[str, Any], dict[str, Factors]]:
    """Returns the report of the tool, with the names of the model, and the factors of each layer with a rank of at least 1."""
    reports, factors = [], {}
    for group in groups(request.layers, request.method, request.options):
        report, found = _compute_group(request, group)
        reports.append(report)
        factors.update(found)
    report = joined(reports)
    _name_as_in_model(report, request.recorded)
    return report, factors


def _compute_group(request: Request, group: Group) -> tuple[dict[str, Any], dict[str, Factors]]:
    layers = {request.recorded[name]: request.layers[name] for name in group.names}
    modules = recorded_modules(request.statistics, request.layers)
    others = sorted(name for module, names in modules.items() if module not in layers for name in names)
    words = words_of(request.options) + group.words
    for first in range(0, len(others), NAMES_PER_PATTERN):
        words.append("--exclude=^(?:" + "|".join(map(re.escape, others[first : first + NAMES_PER_PATTERN])) + ")$")
    weights = [weight_of(layer, module) for module, layer in layers.items()]
    with tempfile.TemporaryDirectory() as folder, shown(request.progress, "layers") as show:
        out = pathlib.Path(folder, "adapter")
        only_source = request.method in ONLY_SOURCE
        statistics, source = (None, request.statistics) if only_source else (request.statistics, request.source)
        text = _cntlora.initialize(words, weights, out, statistics=statistics, source=source, progress=show)
        tensors = read_factors(out)
    report = json.loads(text)
    # The groups of a convolution divide its rank.
    ranks = {entry["module"]: entry["rank"] * layers[entry["module"]].parts for entry in report["layers"]}
    found = {}
    for module, (a, b) in tensors.items():
        layer, rank = layers[module], ranks[module]
        scale = layer.scale if group.scale is None else group.scale
        if group.scale is None and request.method not in NO_SCALE and b.any():
            a, b = a / scale**0.5, b / scale**0.5
        is_padded = group.keeps_ranks and rank < layer.rank
        if is_padded:
            a, b = layer.padded(a, b, rank)
        found[layer.name] = Factors(a, b, layer.rank if is_padded else rank, scale, is_padded)
    return report, found


def groups(layers: dict[str, Layer], method: str, options: dict[str, Any]) -> list[Group]:
    """Divides the layers into groups of one rank and one scale, because the tool has one of each.

    Raises ValueError if a choice depends on all layers together, but their ranks differ.
    """
    scale = options.get("scale")
    is_given = options.get("rank") is not None or options.get("energy") is not None
    chooses = f"the method {method}" if method in ("eva", "astra") else "budget" if options.get("budget") else None
    limits = options.get("start") == "update" and options.get("strength") is None
    ranks, scales = {layer.rank for layer in layers.values()}, {layer.scale for layer in layers.values()}
    if not is_given and len(ranks) > 1 and (chooses or limits):
        what = f"{chooses} shares ranks out among the layers" if chooses else "the start update limits the shift of all layers together"
        raise ValueError(
            f"{what}, but the ranks of the model differ ({', '.join(map(str, sorted(ranks)))}): give rank=R"
            + ("" if chooses else ", or strength=S")
        )
    together = bool(chooses) or limits

    def key(layer: Layer) -> tuple[int | None, float | None]:
        rank = None if is_given else layer.rank if together else min(layer.rank, largest_rank(layer, method, options))
        return rank, scale or (None if together and len(scales) > 1 else layer.scale)

    named: dict[tuple[int | None, float | None], list[str]] = {}
    for name, layer in layers.items():
        named.setdefault(key(layer), []).append(name)
    made = []
    for (rank, of_group), names in named.items():
        words = [] if rank is None else [f"--rank={rank}"]
        if scale is None and of_group is not None:
            words.append(f"--scale={of_group!r}")
        made.append(Group(names, words, of_group, keeps_ranks=not (is_given or together)))
    return made


def largest_rank(layer: Layer, method: str, options: dict[str, Any]) -> int:
    """Returns the largest rank that the factors of a layer can have. The groups of a convolution have their own limits."""
    if layer.is_convolution and layer.base.groups > 1:
        return layer.rank
    rank = min(layer.inputs, layer.outputs)
    if start_of(method, options) == "mirrored":
        return rank + rank % 2
    return max(rank - rank % 2, 2) if method == "orthogonal" else rank


def start_of(method: str, options: dict[str, Any]) -> str | None:
    """Returns the start, by default that of the method. None for a method that does not exist, which the tool refuses."""
    _, starts, _ = METHODS.get(method, (False, [None], "none"))
    return options.get("start") or starts[0]


def words_of(options: dict[str, Any]) -> list[str]:
    """Returns options as words of the command line."""
    words = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"{option}={one}" for one in values]
    return words


def placeholder(layers: dict[str, Layer]) -> _cntlora.Statistics:
    """Returns statistics without rows, which name the layers for methods that need no data."""
    statistics = _cntlora.Statistics()
    for name, layer in layers.items():
        statistics.declare(name, [name], layer.inputs, tokens=layer.is_embedding)
    return statistics


def recorded_modules(statistics: _cntlora.Statistics, layers: dict[str, Layer]) -> dict[str, list[str]]:
    """Returns the modules in the statistics, each with its names there: experts that were recorded one by one have several."""
    found: dict[str, list[str]] = {}
    for site in statistics.sites().values():
        for module in site.modules:
            parent, _, number = module.rpartition(".")
            is_expert = number.isdecimal() and parent in layers and layers[parent].is_experts
            found.setdefault(parent if is_expert else module, []).append(module)
    return found


def recorded_names(statistics: _cntlora.Statistics, layers: dict[str, Layer]) -> dict[str, str]:
    """Returns the name of each layer in the statistics.

    The names may differ by a prefix, if the statistics come from another class of the model, such as one without a head.
    """
    recorded = set(recorded_modules(statistics, layers))
    found = {name: name for name in layers if name in recorded}
    if not found:
        for name in layers:
            alike = [other for other in recorded if name.endswith("." + other) or other.endswith("." + name)]
            if len(alike) == 1:
                found[name] = alike[0]
    twice = [other for other, count in Counter(found.values()).items() if count > 1]
    return {name: other for name, other in found.items() if other not in twice}


def _name_as_in_model(engine: dict[str, Any], names: dict[str, str]) -> None:
    """Gives the layers of a report the names of the model."""
    in_model = {recorded: name for name, recorded in names.items()}
    for entry in engine["layers"]:
        entry["module"] = in_model.get(entry["module"], entry["module"])
    for entry in engine["skipped"]:
        entry["name"] = in_model.get(entry["name"], entry["name"])
    for site in engine["unusable"]:
        site["modules"] = [in_model.get(module, module) for module in site["modules"]]


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins the reports of runs over different layers of one model into one."""
    first = dict(reports[0])
    for part in ("sites", "layers", "skipped", "unusable"):
        entries = {(entry.get("name") or entry["module"], entry.get("block") or 0): entry for report in reports for entry in report[part]}
        first[part] = [entries[key] for key in sorted(entries)]
    for number in ("parameters", "seconds"):
        first[number] = sum(report[number] for report in reports)
    return first


@contextlib.contextmanager
def shown(progress: bool, unit: str) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Yields the function that shows the progress of a computation, or None."""
    if not progress:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(unit=unit) as bar:

        def show(stage: str, done: int, total: int | None) -> None:
            bar.set_description(stage)
            bar.total, bar.n = total, done
            bar.refresh()

        yield show
