"""A tiny model and its training, which processes can import."""

import pathlib
import time

import torch
from peft import LoraConfig


class Layers(torch.nn.Module):
    """Two layers with an activation between them."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.second = torch.nn.Linear(8, 4)

    def forward(self, rows):
        return self.second(torch.tanh(self.first(rows)))


def make_model(seed):
    torch.manual_seed(7)
    return Layers()


def config(rank=2, **fields):
    return LoraConfig(**{"r": rank, "lora_alpha": rank, "target_modules": ["first", "second"], **fields})


def loader():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 6, generator=generator) for _ in range(2)]


def train(model, groups, seed):
    """Moves the model towards another one. Yields the loss before training and after some steps."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(64, 6, generator=generator)
    with torch.no_grad():
        targets = torch.tanh(rows @ torch.linspace(-1, 1, 24).reshape(6, 4))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(13):
        loss = (model(rows) - targets).square().mean()
        if step % 4 == 0:
            yield {"step": step, "loss": loss.item(), "score": 1 / (1 + loss.item())}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def slow_train(model, groups, seed):
    time.sleep(0.2)
    yield from train(model, groups, seed)


def dying_train(model, groups, seed):
    """Ends its process at the seed 1."""
    if seed == 1:
        import os

        os._exit(3)
    yield from train(model, groups, seed)
