"""Factors of an adapter folder by the names of the adapted modules."""

from __future__ import annotations

import json
import pathlib
import re

import torch
from safetensors.torch import load_file

PREFIX = "base_model.model."
PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}

# The tool orders the parameters of one module in this way, and PEFT wraps the first one innermost.
EXPERTS = ("gate_up_proj", "up_proj", "down_proj")


def read_factors(folder: pathlib.Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns A and B of every module of a folder that the tool wrote."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, a in tensors.items():
        for down, up in PAIRS.items():
            if key.endswith(down):
                module = key.removeprefix(PREFIX).removesuffix(down)
                found[_parameter_of(module, config.get("target_parameters") or [])] = a, tensors[key.removesuffix(down) + up]
    return found


def module_of(key: str) -> str | None:
    """Returns the module of a tensor of an adapter, as the model names it, or None if the tensor is not a factor."""
    match = re.fullmatch(r"(?:base_model\.model\.)?(.*)\.(?:lora_\w+)(?:\.weight|\.bias)?", key)
    return match and re.sub(r"\.base_layer(?=\.|$)", "", match[1])


def _parameter_of(module: str, targets: list[str]) -> str:
    """Returns the parameter that PEFT wraps under this name; other names stay as they are."""
    parent = module
    while parent.endswith(".base_layer"):
        parent = parent.removesuffix(".base_layer")
    siblings = [target for target in targets if target.rpartition(".")[0] == parent]
    if not siblings:
        return module
    siblings.sort(key=lambda name: EXPERTS.index(last) if (last := name.rpartition(".")[2]) in EXPERTS else 0)
    return siblings[-1 - module.count(".base_layer")]
