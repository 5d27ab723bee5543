"""The files that `prepare` leaves for the runs. A stop leaves none of them half-written."""

import os
import pathlib

import torch


def from_environment(name, meaning):
    """Returns the path that an environment variable holds."""
    value = os.environ.get(name)
    if not value:
        raise RuntimeError(f"the environment variable {name} is not set; it names {meaning}")
    return pathlib.Path(value)


def folder():
    """Returns the folder of `prepare`."""
    return from_environment("CNTLORA_EVIDENCE", "the folder of `prepare`")


def save(content, path):
    """Writes tensors into a file whose name appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.rename(path)


def save_base(model, path):
    """Writes a checkpoint whose name appears only when it is complete."""
    part = path.with_suffix(".part")
    model.save_pretrained(part)
    part.rename(path)
