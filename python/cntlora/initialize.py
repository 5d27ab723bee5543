"""Initializes the LoRA adapter of a model from data."""

from __future__ import annotations

import pathlib
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from . import _cntlora
from .engine import (
    NEEDS_SOURCE, ONLY_SOURCE, REFUSED, WITHOUT_DATA, Request, compute, placeholder, recorded_names, shown, start_of,
)
from .layers import check_numbers, config_of, layers_of, root_of
from .recorder import Recorder, run
from .report import Report
from .weights import check_is_whole
from .writing import check_residual, write

NOT_SELECTED = "the options target, include and exclude leave it out"


def initialize_lora_weights(
    model: torch.nn.Module,
    loader: Iterable | None = None,
    *,
    moments: Any = None,
    source: Any = None,
    adapter_name: str = "default",
    strict: bool = False,
    progress: bool | None = None,
    recording: dict[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Initializes the LoRA weights of a PEFT model, in place.

    Runs the model over `loader` with its adapters switched off, computes the factors, and writes them into `lora_A` and `lora_B`. The
    model keeps its LoraConfig. Each layer keeps its rank and its scale, unless `rank`, `budget`, `energy` or `scale` is given. The
    adapter can be on the meta device: `get_peft_model(…, low_cpu_mem_usage=True)` saves the time for numbers that are replaced.

    - `loader`: batches as the model takes them: dicts, tensors or tuples. Methods that need no data do not read it.
    - `moments`: statistics instead of a loader: a moments file, a list of them, `Statistics`, or a `Recorder`.
    - `source`: pre-training data of the same layers: a loader, or the same as for `moments`. The method `sc-lora` needs them, and
      `lora-null` uses them in place of fine-tuning data.
    - `adapter_name`: the adapter to initialize.
    - `strict`: raises an error if a layer cannot be initialized. Otherwise the function warns, and the layer keeps PEFT's own
      initialization.
    - `progress`: shows the progress on stderr. By default, it does so on a terminal.
    - `recording`: further options of `record`, such as `dict(per_expert=True)`.
    - `options`: the options of `cntlora init`, by the same names: `--rank 8` is `rank=8`, `--max-shift` is `max_shift`, and
      `--budget` without a value is `budget=True`.

    Returns the report. Raises TypeError if the model is not a PEFT model with LoRA layers, ValueError if the model or the arguments
    cannot be used, and `cntlora.Error` for everything that the tool refuses. Until the factors of all layers are computed, the model
    stays as it is.
    """
    root = root_of(model)
    method = options.get("method", "cntlora")
    config = config_of(model, adapter_name, method)
    _check_arguments(method, loader, moments, source, options)
    found, reasons = layers_of(model, adapter_name)
    left_out = {layer.name: reason for layer, reason in reasons if _is_selected(layer.name, options)}
    # If the options select nothing, the tool says so, with similar names.
    layers = {name: layer for name, layer in found.items() if _is_selected(name, options)} or found
    for layer in layers.values():
        check_is_whole(layer)
    check_numbers(found, config)
    is_residual = start_of(method, options) == "residual"
    if is_residual:
        check_residual(root, layers)

    progress = sys.stderr.isatty() if progress is None else progress
    shared = {name: options[name] for name in ("precision", "nonfinite", "max_memory") if name in options}
    recording = {**shared, **(recording or {})}

    def measured(data: Any) -> _cntlora.Statistics:
        statistics, without = _statistics(root, data, list(layers), recording, progress)
        left_out.update({name: reason for name, reason in without.items() if name in layers})
        return statistics

    if method in WITHOUT_DATA:
        statistics, source_statistics = placeholder(layers), None
    else:
        if method in ONLY_SOURCE:
            statistics, source_statistics = measured(source), None
        else:
            statistics = measured(moments if moments is not None else loader)
            source_statistics = None if source is None else measured(source)
        options = {name: value for name, value in options.items() if name not in ("precision", "nonfinite")}
    recorded = recorded_names(statistics, layers)
    for name in layers.keys() - recorded.keys() - left_out.keys():
        left_out[name] = "no rows of it were recorded: the data did not reach it"
    usable = {name: layer for name, layer in layers.items() if name in recorded and name not in left_out}
    if (strict and left_out) or not usable:
        raise ValueError(("strict: layers cannot" if usable else "no layer can") + f" be initialized: {_listed(left_out)}")

    request = Request(usable, statistics, source_statistics, recorded, method, {**options, "strict": strict}, progress)
    report, factors = compute(request)
    left_out.update({entry["name"]: entry["reason"] for entry in report["skipped"] if entry["name"] in usable})
    left_out.update({name: site["reason"] for site in report["unusable"] for name in site["modules"] if name in usable})
    if strict and left_out:
        raise ValueError("strict: layers cannot be initialized: " + _listed(left_out))
    if left_out:
        warnings.warn(f"{len(left_out)} layers keep PEFT's own initialization: {_listed(left_out)}", stacklevel=2)
    without_rank = {entry["module"] for entry in report["layers"] if entry["rank"] == 0}
    notes = write(model, config, usable, factors, [usable[name] for name in sorted(without_rank)], is_residual)
    left_out.update(dict.fromkeys(found.keys() - factors.keys() - without_rank - left_out.keys(), NOT_SELECTED))
    report["model"] = getattr(getattr(root, "config", None), "_name_or_path", "") or type(root).__name__
    content = {"class": type(root).__name__, "adapter": adapter_name, "notes": notes, "left_out": dict(sorted(left_out.items()))}
    return Report(report, content)


def _check_arguments(method: str, loader: Any, moments: Any, source: Any, options: dict[str, Any]) -> None:
    """Raises an error for arguments that contradict each other or have no effect."""
    for name in options:
        if name in REFUSED:
            raise TypeError(f"the option {name!r} has no effect: {REFUSED[name]}")
    if loader is not None and moments is not None:
        raise ValueError("give either a loader or moments, not both")
    if method in ONLY_SOURCE and not (loader is None and moments is None):
        raise ValueError(f"the method {method!r} does not use fine-tuning data: give pre-training data as source, and nothing else")
    if method in NEEDS_SOURCE and source is None:
        raise ValueError(f"the method {method!r} needs pre-training data: give a loader with batches of them, or their moments, as source")
    if method not in WITHOUT_DATA and method not in ONLY_SOURCE and loader is None and moments is None:
        raise ValueError(
            f"the method {method!r} needs data: give a loader with batches of your fine-tuning data, or moments=FILE. "
            f"These methods need none: {', '.join(WITHOUT_DATA)}"
        )


def _is_selected(name: str, options: dict[str, Any]) -> bool:
    """False if the options leave the layer out, so that it need not be recorded. The tool applies the same options again.

    Expressions that Python cannot read select everything: the tool reports them if they are wrong.
    """

    def values(option: str) -> list[str]:
        value = options.get(option) or []
        return [value] if isinstance(value, str) else list(value)

    def matches(patterns: list[str], otherwise: bool) -> bool:
        try:
            return any(re.search(pattern, name) for pattern in patterns)
        except re.error:
            return otherwise

    targets = [part for value in values("target") for part in value.split(",")]
    is_target = not targets or any(target in (name, "all-linear") or name.endswith("." + target) for target in targets)
    include, exclude = values("include"), values("exclude")
    return is_target and (not include or matches(include, True)) and not matches(exclude, False)


def _statistics(
    root: torch.nn.Module, data: Any, names: list[str], recording: dict[str, Any], progress: bool
) -> tuple[_cntlora.Statistics, dict[str, str]]:
    """Returns the statistics that an argument stands for, and the reasons against layers that were not recorded."""
    if isinstance(data, _cntlora.Statistics):
        return data, {}
    if isinstance(data, Recorder):
        return data.statistics, dict(data.left_out)
    if isinstance(data, (str, pathlib.Path)):
        data = [data]
    if isinstance(data, (list, tuple)) and data and all(isinstance(path, (str, pathlib.Path)) for path in data):
        return _cntlora.Statistics.load([str(path) for path in data]), {}
    recorder = Recorder(root, names, **recording)
    with shown(progress, "batches") as show:
        run(recorder, root, data, progress=show and (lambda done, total, _: show("recording", done, total)))
    return recorder.statistics, recorder.left_out


def _listed(reasons: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(reasons.items())[:8]]
    more = [f"and {len(reasons) - 8} more"] if len(reasons) > 8 else []
    return ", ".join(shown + more)
