"""Writes factors into the layers of a model, and takes the updates of residual starts off its weights."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig

from .engine import Factors
from .layers import Layer, is_mica, layers_of, remove, write_config
from .weights import is_quantized


def check_residual(root: torch.nn.Module, layers: dict[str, Layer]) -> None:
    """Raises ValueError if the update cannot be taken off a weight."""
    advice = "give start='mirrored', which leaves the weights as they are, or leave the layer out with exclude"
    owners: dict[int, list[str]] = {}
    for path, parameter in root.named_parameters(remove_duplicate=False):
        if parameter.device.type != "meta":
            owners.setdefault(parameter.data_ptr(), []).append(path)
    for name, layer in layers.items():
        if is_quantized(layer):
            raise ValueError(f"a residual start takes the update off the weights, but the weight of {name} is quantized: {advice}")
        if not isinstance(layer.weight, torch.nn.Parameter):
            raise ValueError(f"a residual start takes the update off the weights, but the weight of {name} is computed: {advice}")
        if layer.is_convolution and layer.base.groups > 1:
            raise ValueError(f"the weight of {name}, a convolution in groups, cannot hold the update of a residual start: {advice}")
        sharing = {re.sub(r"\.base_layer", "", path) for path in owners.get(layer.weight.data_ptr(), [])}
        if len(sharing) > 1:
            raise ValueError(
                f"a residual start takes the update off the weights, but {' and '.join(sorted(sharing))} share one weight: {advice}"
            )


@torch.no_grad()
def write(
    model: torch.nn.Module, config: LoraConfig, layers: dict[str, Layer], factors: dict[str, Factors], dropped: list[Layer], is_residual: bool
) -> list[str]:
    """Writes the factors into the layers, and takes the adapter off `dropped`. Returns what was done, in sentences.

    Raises ValueError before anything changes if the factors do not fit the number format of the adapter.
    """
    written = [layers[name] for name in sorted(factors)]
    for layer in written:
        for factor, parameter in zip((factors[layer.name].a, factors[layer.name].b), layer.factors()):
            if not factor.to(parameter.dtype).isfinite().all():
                raise ValueError(f"the factors of {layer.name} do not fit {parameter.dtype}: make the adapter in float32 or bfloat16")
    before = {layer.name: (layer.rank, layer.scale) for layer in written}
    for layer in written:
        made = factors[layer.name]
        layer.set_factors(made.a, made.b, made.rank, made.scale)
    notes = [f"The factors of {len(written)} layers were written into the adapter."]
    if is_residual:
        notes += _take_off(written)
    else:
        notes.append("The weights of the model stay as they are.")
    for layer in written:
        if layer.needs_magnitudes():
            layer.set_magnitudes(config)
    changed = [layer for layer in written if before[layer.name] != (layer.rank, layer.scale)]
    for layer in dropped:
        remove(model, layer)
    rest, others = layers_of(model, next(iter(layers.values())).adapter)
    rest = [*rest.values(), *(layer for layer, _ in others)]
    for layer in rest:
        if layer.is_without_numbers:
            layer.start_as_peft()
            if layer.needs_magnitudes():
                layer.set_magnitudes(config)
    # With "mica", PEFT keeps B as it is during training, also after the adapter is saved and loaded.
    if not is_mica(config):
        config.init_lora_weights = True
    if changed or dropped:
        write_config(config, rest, dropped)
    if changed:
        ranks = [layer.rank for layer in written]
        notes.append(
            f"Ranks or scales were changed in {len(changed)} layers, and in the LoraConfig. Ranks go from {min(ranks)} to {max(ranks)}."
        )
    if padded := [name for name, made in sorted(factors.items()) if made.is_padded]:
        notes.append(f"Units of rank beyond the size of a weight start as PEFT starts them, with zeros in B: {', '.join(padded)}.")
    if dropped:
        notes.append("The adapter was taken off layers of rank 0: " + ", ".join(layer.name for layer in dropped) + ".")
    return notes


def _take_off(layers: list[Layer]) -> list[str]:
    """Subtracts the update of each layer from its weight. Returns what was done, in sentences."""
    worst = 0.0
    for layer in layers:
        weight = layer.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        update = layer.module.get_delta_weight(layer.adapter).to(exact)
        wanted = weight.data.to(exact) - update
        # Weights that are mapped from a file would be copied page by page if they were changed in place.
        weight.data = wanted.to(weight.dtype)
        if weight.dtype != exact:
            worst = max(worst, ((weight.data.to(exact) - wanted).norm() / update.norm().clamp_min(1e-30)).item())
    notes = [
        f"The updates were taken off the weights of {len(layers)} layers, so that the model computes the same as before. "
        "The adapter works only with these weights: save them too, or save the adapter now and after training, and give both to "
        "`cntlora convert TRAINED --init INITIAL`, which makes an adapter for the original weights."
    ]
    if worst > 0:
        notes.append(f"Rounding the changed weights to {layers[0].weight.dtype} changed them by up to {worst:.1%} of an update.")
    return notes


