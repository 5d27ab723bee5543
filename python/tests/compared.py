"""A tiny model and its training, which other processes can import, and runs made up for tests."""

import json
import os
import time

import torch
from peft import LoraConfig

import cntlora
from cntlora.comparison.plan import Plan, Runs


class Layers(torch.nn.Module):
    """Two layers with an activation between them."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.second = torch.nn.Linear(8, 4)

    def forward(self, rows):
        return self.second(torch.tanh(self.first(rows)))


def make_model(seed):
    generator = torch.Generator().manual_seed(7)
    model = Layers()
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 2
    return model


def config(rank=2, **fields):
    return LoraConfig(**{"r": rank, "lora_alpha": rank, "target_modules": ["first", "second"], **fields})


def loader():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 6, generator=generator) for _ in range(2)]


def train(model, groups, seed):
    """Moves the model towards another one. Yields the loss before training and after some steps."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(64, 6, generator=generator)
    targets = torch.tanh(rows @ torch.linspace(-1, 1, 24).reshape(6, 4))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(13):
        loss = (model(rows) - targets).square().mean()
        if step % 4 == 0:
            yield {"step": step, "loss": loss, "score": 1 / (1 + loss.item())}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def process_train(model, groups, seed):
    """Yields the number of its process, so that a test sees how many there are."""
    time.sleep(0.3)
    yield {"step": 0, "loss": groups[0]["lr"], "process": os.getpid(), "threads": torch.get_num_threads()}


def dying_train(model, groups, seed):
    """Ends its process at the seed 1."""
    if seed == 1:
        os._exit(3)
    yield 1.0


def failing_train(model, groups, seed):
    """Does not end well for high rates."""
    yield 1.0
    if groups[0]["lr"] > 0.05:
        raise ArithmeticError("too\nhigh")
    yield 0.5


def failing_make_model(seed):
    raise OSError("no such checkpoint")


FEW = dict(rates=(0.01, 0.1), tuning_seeds=(0,), seeds=(1, 2), extend=0)


def compare(folder, make_model=make_model, train=train, config=config(), loader=loader, **changes):
    """Makes eight runs, unless `changes` say otherwise."""
    return cntlora.compare(make_model, train, config, loader, folder=folder, **{**FEW, **changes})


def lines(folder):
    """Returns the runs in the file of a folder."""
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def made_runs(values, **changes):
    """Returns runs made up from `values[start][phase][rate][seed]`: a curve, or the text of an error.

    A curve is a list of numbers at the steps 0, 10, 20, ….
    """
    fields = dict(
        rates=(0.1, 1.0), measure="loss", better="lower", tuning_seeds=(0, 1), seeds=(2, 3, 4), baseline="lora", extend=0,
        starts={start: f"digest of {start}" for start in values},
    )
    lines = [
        made_run(start, phase, rate, seed, curve)
        for start, phases in values.items() for phase, rates in phases.items() for rate, seeds in rates.items()
        for seed, curve in seeds.items()
    ]
    return Runs(Plan(**{**fields, **changes}), lines)


def made_run(start, phase, rate, seed, curve):
    is_error = isinstance(curve, str)
    return dict(
        start=start, settings=f"digest of {start}", phase=phase, rate=rate, seed=seed,
        measurements=[] if is_error else [{"step": 10 * place, "loss": value} for place, value in enumerate(curve)],
        seconds_start=1.0 + seed, seconds_training=2.0, parameters=12, error=curve if is_error else None,
    )
