"""Finds the layers of a model that can be recorded, by the names of its modules, and the reasons against the others."""

from __future__ import annotations

import difflib
import dis
import functools
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from . import convolutions, experts
from .errors import error, quoted

# Components of names that wrappers add.
WRAPPERS = ("base_layer", "original_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
# The modules that PEFT refuses to adapt, and the models in which it does.
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
MAMBA_MODULES = ("out_proj", "conv1d")
# The target that stands for all layers that are recorded without targets.
ALL = "all-linear"
SMALL_HEAD = "it belongs to a head with few outputs, which is usually trained whole: name it to record it"
# Attributes of layers that their adapted form does not have.
SHAPES = ("stride", "padding", "dilation", "kernel_size", "groups", "in_channels", "out_channels", "num_embeddings", "embedding_dim")

# A name, its module, and the modules around it.
Named = tuple[str, torch.nn.Module, list[torch.nn.Module]]


@dataclass(frozen=True)
class Layer:
    """A layer whose input is recorded."""

    name: str
    module: torch.nn.Module
    # "linear", "convolution", "embedding", or "experts" for one parameter of fused experts.
    kind: str
    # Numbers in a row, or tokens of the vocabulary.
    width: int
    # The parameter of fused experts.
    parameter: str = ""


@dataclass
class Found:
    """The layers to record, and the reason for each layer that is left out, by name."""

    layers: dict[str, Layer]
    left_out: dict[str, str]


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the model inside the wrappers of PEFT and of DistributedDataParallel. Module names are those of this model."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif {"PeftModel", "PeftMixedModel"}.intersection(one.__name__ for one in type(model).__mro__):
            model = model.base_model
        elif "BaseTuner" in (one.__name__ for one in type(model).__mro__):
            model = model.model
        else:
            return model


def is_adapted(module: torch.nn.Module) -> bool:
    """True for a layer of PEFT around a layer of the model."""
    return "base_layer" in module._modules and hasattr(module, "adapter_layer_names")


def is_saved(module: torch.nn.Module) -> bool:
    """True for the wrapper of PEFT around a part of the model that is trained whole."""
    return "modules_to_save" in module._modules and "original_module" in module._modules


def named_modules(model: torch.nn.Module) -> Iterator[Named]:
    """Yields the modules with the names of the base model, and the modules around each of them. Leaves adapters out."""
    seen: set[int] = set()

    def walk(name: str, module: torch.nn.Module, around: list[torch.nn.Module]) -> Iterator[Named]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module, around
        for child, inner in module._modules.items():
            if inner is None or is_adapted(module) and child != "base_layer" or is_saved(module) and child != "original_module":
                continue
            path = name if child in WRAPPERS else f"{name}.{child}" if name else child
            yield from walk(path, inner, [*around, module])

    return walk("", model, [])


def find(model: torch.nn.Module, targets: Sequence[str] | str | None) -> Found:
    """Finds the layers to record.

    `targets` are names of layers or their last parts, or a regular expression for whole names, as in PEFT. Without them, or with
    "all-linear", all layers except the output head, small heads and the embeddings are recorded; of a model with an adapter, the adapted
    layers. Names beside "all-linear" add layers.

    Raises an error of usage if a target names no layer, or if nothing is left to record.
    """
    bare = unwrapped(model)
    refuse_wrappers(bare)
    head = bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
    heads = [] if head is None else [head, getattr(head, "base_layer", None)]
    if targets == ALL or targets is not None and not isinstance(targets, str) and set(targets) == {ALL}:
        targets = None
    usual = targets is None or not isinstance(targets, str) and ALL in targets
    if targets is not None and usual:
        targets = [target for target in targets if target != ALL]
    everything = list(named_modules(bare))
    small = small_heads(bare)
    has_adapter = targets is None and any(is_adapted(module) for _, module, _ in everything)
    model_type = getattr(getattr(bare, "config", None), "model_type", None)
    found, reasons, names = {}, {}, set()
    for name, module, around in everything:
        for layer in layers_of(name, module):
            if not layer.name:
                continue
            names.add(layer.name)
            is_chosen_by_name = targets is not None and is_named(layer.name, targets)
            chosen = is_chosen_by_name or usual and layer.kind != "embedding" and module not in heads
            if has_adapter:
                adapted = [one for one in around if is_adapted(one)]
                chosen = any(layer.parameter in ("", getattr(one, "parameter_name", "")) for one in adapted)
            if chosen and layer.name not in found and layer.name not in reasons:
                is_small_head = not is_chosen_by_name and not has_adapter and layer.name.partition(".")[0] in small
                reason = SMALL_HEAD if is_small_head else reason_against(layer, around, model_type)
                if reason is None:
                    found[layer.name] = layer
                else:
                    reasons[layer.name] = reason
    check_targets(targets, names)
    if not found:
        if reasons:
            name, reason = next(iter(reasons.items()))
            others = f", and {len(reasons) - 1} other layers are left out" if len(reasons) > 1 else ""
            raise error("usage", f"no layer can be recorded: {quoted(name)}: {reason}{others}")
        raise error("usage", "the model has no layer to record", "record a model of linear layers or convolutions, or name an embedding")
    return Found(found, reasons)


def small_heads(model: torch.nn.Module) -> set[str]:
    """Returns the parts of a model of transformers beside its backbone that end in one number per label, or in one number.

    Such a head is usually trained whole, and most ranks exceed its outputs.
    """
    prefix, labels = getattr(model, "base_model_prefix", ""), getattr(getattr(model, "config", None), "num_labels", None)
    if not prefix or prefix not in model._modules:
        return set()

    def is_small(part: torch.nn.Module | None) -> bool:
        return part is not None and any(getattr(one, "out_features", None) in (1, labels) for one in part.modules())

    return {name for name, part in model._modules.items() if name != prefix and is_small(part)}


def layers_of(name: str, module: torch.nn.Module) -> Iterator[Layer]:
    """Yields the layer that a module is, or the parameters of fused experts that it holds. Their width is 0 if it is not known."""
    for parameter in experts.parameters(module):
        known = experts.reason_against(module) is None
        yield Layer(f"{name}.{parameter}", module, "experts", experts.width(module, parameter) if known else 0, parameter)
    if isinstance(module, torch.nn.Embedding):
        yield Layer(name, module, "embedding", module.num_embeddings)
    elif isinstance(module, convolutions.CONVOLUTIONS):
        yield Layer(name, module, "convolution", convolutions.width(module))
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx"):
        yield Layer(name, module, "linear", module.nx)
    elif not module._modules and all(isinstance(getattr(module, size, None), int) for size in ("in_features", "out_features")):
        # Linear layers, and those of packages for quantized models.
        yield Layer(name, module, "linear", module.in_features)


def is_named(name: str, targets: Sequence[str] | str) -> bool:
    """True if a name is a target or ends with one, or matches the regular expression."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def check_targets(targets: Sequence[str] | str | None, names: set[str]) -> None:
    """Refuses targets that name no layer."""
    if targets is None:
        return
    if not targets:
        raise error("usage", "targets: no name was given", "give names of layers or their last parts, or leave targets out")
    for target in [targets] if isinstance(targets, str) else targets:
        if any(is_named(name, targets if isinstance(targets, str) else [target]) for name in names):
            continue
        ends = {end for name in names for end in (name, name.rpartition(".")[2])}
        near = difflib.get_close_matches(target, sorted(ends), n=3, cutoff=0.0)
        verb = "matches" if isinstance(targets, str) else "is named"
        raise error("usage", f"targets: no layer {verb} {quoted(target)}; similar names are {quoted(near)}")


def refuse_wrappers(model: torch.nn.Module) -> None:
    """Refuses models whose forward passes cannot be recorded."""
    if is_compiled(model):
        raise error(
            "usage",
            "the model is compiled, and torch.compile ignores hooks that are added later",
            "record the model before it is compiled; of `compiled = torch.compile(model)`, record `model`",
        )
    if any(isinstance(module, torch.nn.DataParallel) for module in model.modules()):
        raise error("usage", "DataParallel runs copies of the model", "record the model inside it, or use DistributedDataParallel")


def is_compiled(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def reason_against(layer: Layer, around: list[torch.nn.Module], model_type: str | None) -> str | None:
    """Returns the reason why a layer cannot be recorded, or None."""
    module, last = layer.module, layer.name.rpartition(".")[2]
    if any(is_saved(one) for one in around):
        return "PEFT trains it whole, as one of modules_to_save"
    if model_type in MAMBA and last in MAMBA_MODULES:
        return f"PEFT does not adapt {last} of the model type {model_type}"
    if any(is_compiled(one) for one in (*around, module)):
        return "it is compiled, and torch.compile ignores hooks that are added later: record the model before it is compiled"
    if any(isinstance(one, torch.jit.ScriptModule) for one in (*around, module)):
        return "it is a script of torch.jit, which does not run hooks"
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "its shape is not known before the first forward pass"
    if is_sharded(module, around):
        return "its weight is divided among processes (FSDP, ZeRO-3 or tensor parallel): record the model before it is divided"
    if any(isinstance(one, torch.nn.MultiheadAttention) for one in around):
        return "torch.nn.MultiheadAttention reads its weight without calling it"
    if layer.kind == "experts":
        return experts.reason_against(module)
    if layer.kind == "convolution" and (reason := convolutions.reason_against(module)):
        return reason
    read = attributes_read(type(around[-1])).get(last) if around else None
    if layer.kind != "linear" and read is not None:
        return f"the model reads its `{read}`, which the adapted layer of PEFT does not have"
    return None


def is_sharded(module: torch.nn.Module, around: list[torch.nn.Module]) -> bool:
    """True if this process does not hold the whole weight of a module."""
    if any(type(one).__name__ == "FullyShardedDataParallel" for one in around):
        return True
    own = list(module.parameters(recurse=False))
    return any(hasattr(weight, "ds_id") or hasattr(weight, "device_mesh") or weight.numel() == 0 for weight in own)


@functools.cache
def attributes_read(cls: type) -> dict[str, str]:
    """Returns an attribute of each layer that the methods of a class read, such as `self.conv1.stride`, by the name of the layer."""
    found: dict[str, str] = {}
    methods = (method for one in cls.__mro__ if one is not torch.nn.Module for name, method in vars(one).items() if name != "__init__")
    for method in methods:
        code = getattr(inspect.unwrap(getattr(method, "__func__", method)), "__code__", None)
        names = [one.argval if one.opname == "LOAD_ATTR" else None for one in dis.get_instructions(code)] if code else []
        found.update({layer: attribute for layer, attribute in itertools.pairwise(names) if layer and attribute in SHAPES})
    return found
