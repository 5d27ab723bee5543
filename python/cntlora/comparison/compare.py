"""Compares starts: runs starts × learning rates × seeds, and keeps the runs in a file."""

from __future__ import annotations

import math
import multiprocessing
import operator
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import torch
from peft import LoraConfig

from . import runs as files
from .one_run import Job, TaskError
from .plan import Plan, Runs, count_ahead, digest_of, missing
from .results import Comparison, save_plan
from .starts import BUILT_IN, Start
from .table import are_missing
from .workers import IMPORTABLE, PROCESS_NAME, Here, Workers, workers


def compare(
    make_model: Callable[[int], torch.nn.Module],
    train: Callable[[torch.nn.Module, list[dict[str, Any]], int], Iterable[Any]],
    config: LoraConfig,
    loader: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    source: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    loss: Callable[[torch.nn.Module, Any], torch.Tensor] | None = None,
    starts: Sequence[str | Start] = ("lora", "cntlora"),
    rates: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    measure: str = "loss",
    better: str = "lower",
    tuning_seeds: Sequence[int] = (0, 1),
    seeds: Sequence[int] = (2, 3, 4, 5, 6),
    baseline: str = "lora",
    folder: str | pathlib.Path = "comparison",
    processes: int = 1,
    threads: int | None = None,
    extend: int = 4,
    minutes: float | None = None,
) -> Comparison:
    """Compares starts of LoRA on a model and a training of your own, each at its own best learning rate.

    Trains every start at every rate on the tuning seeds, which choose the rate of each start. Then trains each start at its rate on the
    report seeds, which give the results. The runs lie in `folder`; a second call makes only the runs that are missing.

    - `make_model`: `make_model(seed)` returns the base without an adapter. The seed is for new heads.
    - `train`: `train(model, groups, seed)` trains the model and yields measurements: dicts such as `{"step": 40, "loss": 1.2}`, or numbers.
      `groups` are the parameters with their rates, for an optimizer: `torch.optim.AdamW(groups)`. The seed decides the order of the data.
      The first measurement may be before training. A number that is not finite ends the run: it diverged.
    - `config`: the LoraConfig of plain LoRA. The starts change it where they differ.
    - `loader`: batches of fine-tuning data for the starts that read them, as a list or a function that returns one.
    - `source`: the same for pre-training data.
    - `loss`: `loss(model, batch)` returns the loss as a tensor, for `lora-ga`. By default, it is `model(**batch).loss`.
    - `starts`: names of built-in starts, and `Start` objects.
    - `rates`: the learning rates. While the best rate of a start lies at an end, the next one is added, up to `extend` at each end.
    - `measure`, `better`: the measurement that decides, at the end of the training, and "lower" or "higher".
    - `tuning_seeds`, `seeds`: the two sets do not overlap, so that no result comes from runs that chose something.
    - `baseline`: the start with which the others are compared.
    - `processes`, `threads`: runs at the same time, each in a process of its own, and threads of torch for each.
    - `minutes`: no run begins after this time. A later call continues.

    A run that diverges or fails counts as the worst. A run whose start fails is not repeated, and does not stop the others. Use another
    folder when you change the functions or the data: the folder recognizes changes of the starts and of `config` only.

    Returns the `Comparison`. Raises ValueError if the arguments cannot be used, or if `make_model` or `train` fails whatever the start.
    """
    if multiprocessing.current_process().name == PROCESS_NAME:
        raise RuntimeError(f"a process of cntlora.compare called cntlora.compare when it imported the script. {IMPORTABLE}")
    chosen = _starts(starts, baseline)
    _check_functions(make_model=make_model, train=train, loss=loss)
    _check_data(loader=loader, source=source)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"expected a peft.LoraConfig as config, found {type(config).__name__}")
    if better not in ("lower", "higher"):
        raise ValueError(f"better is \"lower\" or \"higher\", found {better!r}")
    if not isinstance(measure, str) or not measure or measure == "step":
        raise ValueError(f"measure is the name of a measurement such as \"loss\", found {measure!r}")
    _check_numbers(processes, threads, extend, minutes)
    plan = Plan(
        starts={start.name: digest_of(start, config) for start in chosen}, rates=_rates(rates, extend), measure=measure, better=better,
        tuning_seeds=_seeds("tuning_seeds", tuning_seeds), seeds=_seeds("seeds", seeds), baseline=baseline, extend=extend,
    )
    if both := sorted(set(plan.tuning_seeds) & set(plan.seeds)):
        raise ValueError(f"tuning_seeds and seeds overlap: {', '.join(map(str, both))}. Results on seeds that chose the rate are too good")
    job = Job(make_model, train, config, loader, source, loss, measure, {start.name: start for start in chosen}, plan.starts)

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / files.FILE
    known, size, is_cut = files.read(path)
    with files.appending(path, size) as file:
        runs = Runs(plan, known)
        if is_cut:
            _say(f"{path}: the last line was half-written; it was removed, and its run will be made again")
        for name, count in runs.others.items():
            _say(f"{path}: the start {name!r} has other settings now; runs that are ignored: {count}")
        if failed := sum(bool(run["error"]) for run in runs.by_key.values()):
            _say(f"{path}: {failed} of the runs failed or diverged and are not repeated; delete their lines to make them again")
        save_plan(folder, plan)
        if missing(runs):
            with workers(job, processes, threads) as made:
                try:
                    _make(runs, made, file, minutes)
                except KeyboardInterrupt:
                    _say(f"interrupted: the finished runs are kept, {len(runs.by_key)} in all. Call compare again to continue")
                    raise
    return Comparison(plan, runs)


def _make(runs: Runs, made: Here | Workers, file: TextIO, minutes: float | None) -> None:
    """Makes the missing runs, and writes each when it ends."""
    begin = time.monotonic()
    has_trained = any(run["measurements"] for run in runs.by_key.values())
    while True:
        is_late = minutes is not None and time.monotonic() - begin >= 60 * minutes
        for key in missing(runs) if not is_late else ():
            if not made.free():
                break
            if key not in made.running():
                made.begin(key)
        if not made.running():
            break
        for run, failure in made.finished():
            if failure and not has_trained:
                raise TaskError(f"the first run failed, with the start {run['start']!r}; it was not recorded:\n{failure.rstrip()}")
            has_trained = has_trained or bool(run["measurements"])
            files.append(file, run)
            runs.add(run)
            _say(_progress(runs, run))
    if left := count_ahead(runs):
        _say(f"stopped after {minutes:g} minutes: {are_missing(left)}. Call compare again to continue")


def _progress(runs: Runs, run: files.Run) -> str:
    done = len(runs.by_key)
    value = runs.last(run)
    result = run["error"].splitlines()[0] if value is None else f"{runs.plan.measure} {value:.4g}"
    seconds = (run["seconds_start"] or 0) + (run["seconds_training"] or 0)
    place = f"{run['phase']}, rate {files.shown_rate(run['rate'])}, seed {run['seed']}"
    return f"[{done}/{done + count_ahead(runs)}] {run['start']}, {place}: {result} ({seconds:.1f} s)"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _starts(starts: Sequence[str | Start], baseline: str) -> list[Start]:
    """Returns the starts. Raises ValueError for names that do not exist or occur twice, and for a baseline that is not among them."""
    if isinstance(starts, (str, Start)):
        raise ValueError(f"expected a list of starts, found one: write starts=[\"lora\", {getattr(starts, 'name', starts)!r}]")
    found: dict[str, Start] = {}
    for entry in starts:
        if isinstance(entry, str) and entry not in BUILT_IN:
            names = ", ".join(BUILT_IN)
            raise ValueError(f"no start has the name {entry!r}. The built-in starts are {names}; others are cntlora.Start objects")
        if not isinstance(entry, (str, Start)):
            raise ValueError(f"expected a name or a cntlora.Start in starts, found {type(entry).__name__}")
        start = BUILT_IN[entry] if isinstance(entry, str) else entry
        if start.name in found:
            raise ValueError(f"two starts have the name {start.name!r}: give them different names")
        found[start.name] = start
    if baseline not in found:
        raise ValueError(f"the baseline {baseline!r} is not one of the starts: {', '.join(found) or 'there are none'}")
    return list(found.values())


def _check_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function) and not (name == "loss" and function is None):
            raise ValueError(f"expected a function as {name}, found {type(function).__name__}")


def _check_data(**arguments: Any) -> None:
    for name, data in arguments.items():
        if isinstance(data, Iterator):
            raise ValueError(f"{name} can be read only once, but many runs read it: give a list of batches, or a function that returns one")
        if data is not None and not callable(data) and (not isinstance(data, Iterable) or isinstance(data, (str, dict))):
            raise ValueError(f"expected a list of batches or a function that returns one as {name}, found {type(data).__name__}")


def _check_numbers(processes: Any, threads: Any, extend: Any, minutes: Any) -> None:
    for name, value, least in (("processes", processes, 1), ("threads", threads, 1), ("extend", extend, 0)):
        if name == "threads" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"expected a whole number from {least} as {name}, found {value!r}")
    if minutes is not None and not (isinstance(minutes, (int, float)) and minutes > 0):
        raise ValueError(f"expected a positive number of minutes, found {minutes!r}")


def _rates(rates: Sequence[float], extend: int) -> tuple[float, ...]:
    """Returns the rates in order. Raises ValueError unless they are different positive numbers, enough to be extended."""
    try:
        found = sorted(files.rounded(float(rate)) for rate in rates)
    except (TypeError, ValueError):
        raise ValueError(f"expected a list of numbers as rates, found {rates!r}") from None
    if not found or not all(math.isfinite(rate) and rate > 0 for rate in found):
        raise ValueError(f"expected positive numbers as rates, found {rates!r}")
    if len(set(found)) < len(found):
        raise ValueError(f"two rates are equal: {', '.join(f'{rate:g}' for rate in found)}")
    if len(found) == 1 and extend:
        raise ValueError("one rate does not say which rate comes next: give at least two rates, or extend=0")
    return tuple(found)


def _seeds(name: str, seeds: Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds. Raises ValueError unless they are different whole numbers that numpy takes as seeds."""
    try:
        found = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(f"expected a list of whole numbers as {name}, found {seeds!r}") from None
    if not all(0 <= seed < 2**32 for seed in found):
        raise ValueError(f"expected numbers from 0 to 4294967295 as {name}, found {seeds!r}")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name} holds no seed" if not found else f"{name} holds a seed twice: {', '.join(map(str, found))}")
    return found
