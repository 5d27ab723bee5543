"""One run of a comparison: makes the model, starts the adapter, trains it, and takes the measurements."""

from __future__ import annotations

import math
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig

from .plan import DIVERGED, START_FAILED, TRAINING_FAILED, Key
from .runs import Run, rounded
from .starts import Start, Task


class TaskError(ValueError):
    """The functions or the data of a comparison cannot be used. It stops the comparison, because all runs would fail."""


@dataclass(frozen=True)
class Job:
    """What all runs of a comparison share. Processes get a copy of it."""

    make_model: Callable[[int], torch.nn.Module]
    train: Callable[[torch.nn.Module, list[dict[str, Any]], int], Iterable[Any]]
    config: LoraConfig
    loader: Any
    source: Any
    loss: Callable[[torch.nn.Module, Any], torch.Tensor] | None
    measure: str
    starts: dict[str, Start]
    digests: dict[str, str]


@dataclass(frozen=True)
class _Missing:
    """Stands for data that were not given. Starts that read them stop the comparison."""

    start: str
    argument: str
    kind: str

    def __call__(self) -> Iterable[Any]:
        raise TaskError(
            f"the start {self.start!r} needs {self.kind} data: give a list of batches, or a function that returns one, as {self.argument}"
        )


def run(job: Job, key: Key) -> tuple[Run, str | None]:
    """Makes a run. Returns its line, and the traceback if the training raised an error.

    Raises TaskError if the functions or the data cannot be used, whatever the start.
    """
    start = job.starts[key.start]
    line = empty(job, key)
    set_seed(key.seed)
    try:
        base = job.make_model(key.seed)
    except Exception as problem:
        raise TaskError(f"make_model({key.seed}) failed:\n{traceback.format_exc().rstrip()}") from problem
    if not isinstance(base, torch.nn.Module):
        raise TaskError(f"expected a torch.nn.Module from make_model, found {type(base).__name__}")
    loader = _Missing(key.start, "loader", "fine-tuning") if job.loader is None else job.loader
    source = _Missing(key.start, "source", "pre-training") if job.source is None else job.source
    begin = time.perf_counter()
    try:
        model = start.prepare(Task(base=base, config=job.config, loader=loader, source=source, loss=job.loss))
        line["seconds_start"] = rounded(time.perf_counter() - begin)
        groups = groups_of(model, key.rate, start.ratio)
    except TaskError:
        raise
    except Exception as problem:
        line["error"] = f"{START_FAILED}: {_shown(problem)}"
        return line, None
    line["parameters"] = sum(weight.numel() for group in groups for weight in group["params"])
    # The start has used random numbers, or has not: the order of the data must not depend on it.
    set_seed(key.seed)
    begin, failure = time.perf_counter(), None
    try:
        for measurement in _measured(job, job.train(model, groups, key.seed)):
            bad = [name for name, value in measurement.items() if not math.isfinite(value)]
            if bad:
                line["error"] = f"{DIVERGED} at step {measurement['step']:g}: {bad[0]} is {measurement[bad[0]]}"
                break
            line["measurements"].append(measurement)
    except TaskError:
        raise
    except Exception as problem:
        line["error"], failure = f"{TRAINING_FAILED}: {_shown(problem)}", traceback.format_exc()
    line["seconds_training"] = rounded(time.perf_counter() - begin)
    return line, failure


def empty(job: Job, key: Key) -> Run:
    """Returns a run in which nothing has happened."""
    return Run(
        start=key.start, settings=job.digests[key.start], phase=key.phase, rate=key.rate, seed=key.seed,
        measurements=[], seconds_start=None, seconds_training=None, parameters=None, error=None,
    )


def set_seed(seed: int) -> None:
    """Sets the seeds of torch, Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(seed)


def groups_of(model: torch.nn.Module, rate: float, ratio: float) -> list[dict[str, Any]]:
    """Returns the parameters that are trained, with their rates, as an optimizer takes them. `lora_B` has `ratio` times the rate."""
    parameters: dict[float, list[torch.nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            is_b = ".lora_B." in name or ".lora_embedding_B." in name
            parameters.setdefault(rate * ratio if is_b else rate, []).append(weight)
    if not parameters:
        raise ValueError("no parameter of its model is trained")
    return [{"params": weights, "lr": own} for own, weights in parameters.items()]


def _measured(job: Job, given: Any) -> Iterator[dict[str, float]]:
    """Yields the measurements that a training function gives, as dicts of numbers. Raises TaskError if they have a wrong form."""
    if not isinstance(given, Iterable):
        raise TaskError(f"expected an iterator of measurements from train, found {type(given).__name__}: let it yield them")
    last: dict[str, float] | None = None
    for count, value in enumerate(given, 1):
        measurement = _numbers(value, job.measure, count)
        if last is not None and measurement["step"] <= last["step"]:
            raise TaskError(f"the steps of train do not increase: {measurement['step']:g} comes after {last['step']:g}")
        last = measurement
        yield measurement
    if last is None:
        raise TaskError("train gave no measurement")
    if job.measure not in last:
        raise TaskError(f"the last measurement of train has no {job.measure!r}, which is to be compared. It has {', '.join(last)}")


def _numbers(value: Any, measure: str, count: int) -> dict[str, float]:
    values = value if isinstance(value, Mapping) else {"step": count, measure: value}
    if "step" not in values:
        raise TaskError(f"a measurement of train has no 'step'. It has {', '.join(map(str, values))}")
    found = {}
    for name, number in values.items():
        try:
            if isinstance(number, str):
                raise TypeError
            found[str(name)] = rounded(number.item() if isinstance(number, torch.Tensor) else float(number))
        except (TypeError, ValueError, RuntimeError):
            raise TaskError(
                f"expected numbers as measurements of train, found {type(number).__name__} for {str(name)!r}: "
                'let it yield a number, or a dict such as {"step": 40, "loss": 1.2}'
            ) from None
    if found["step"].is_integer():
        found["step"] = int(found["step"])
    return found


def _shown(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".rstrip(": ")
