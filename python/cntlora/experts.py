"""Finds fused experts, and computes the inputs of each expert. Their weights are parameters with three axes, not modules."""

from __future__ import annotations

import inspect
from typing import Any

import torch

PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")


def parameters(module: torch.nn.Module) -> list[str]:
    """Returns the names of the parameters of a module that hold one matrix for each expert."""
    found = ((name, getattr(module, name, None)) for name in PARAMETERS)
    return [name for name, weight in found if isinstance(weight, torch.nn.Parameter) and weight.dim() == 3]


def reason_against(module: torch.nn.Module) -> str | None:
    """Returns the reason why the inputs of fused experts cannot be computed, or None."""
    if not all(hasattr(module, name) for name in ("_apply_gate", "is_transposed", "has_gate", "num_experts")):
        return f"the experts of the class {type(module).__name__} do not have the interface of fused experts of transformers"
    if set(parameters(module)) not in ({"gate_up_proj", "down_proj"}, {"up_proj", "down_proj"}):
        return f"the experts of the class {type(module).__name__} have other weights than up and down projections"
    return None


def width(module: torch.nn.Module, name: str) -> int:
    """Returns the numbers in a row that one expert's matrix reads."""
    return getattr(module, name).shape[1 if module.is_transposed else 2]


def routed(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows that reach a module of experts, and the experts of each row."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    values = dict(zip(names, args)) | kwargs
    hidden, chosen = (values[name] for name in names[:2])
    return hidden.detach().flatten(0, -2), chosen.detach().flatten(0, -2)


def apply(module: torch.nn.Module, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """Returns the output of one expert's matrix for its rows."""
    weight, bias = getattr(module, name)[expert], getattr(module, name + "_bias", None)
    rows = rows @ (weight if module.is_transposed else weight.T)
    return rows if bias is None else rows + bias[expert]


def inputs(module: torch.nn.Module, expert: int, rows: torch.Tensor, name: str) -> torch.Tensor:
    """Returns the rows that the parameter `name` of one expert reads, from the rows that reach the expert."""
    first = parameters(module)[0]
    if name == first:
        return rows
    inner = apply(module, first, expert, rows)
    return module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
