"""Small models with adapters, and what tests ask of them."""

import copy

import torch
from models import make
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

ATTENTION = ["q_proj", "v_proj"]


def adapted(name="llama", targets=ATTENTION, dtype=torch.float32, **config):
    """Returns a model with an adapter, the same model without one, and a batch."""
    model, batch = make(name)
    model = model.to(dtype)
    config = {"r": 4, "lora_alpha": 8, "target_modules": targets, **config}
    return get_peft_model(copy.deepcopy(model), LoraConfig(**config)).eval(), model, batch


def lora_layers(model, adapter="default"):
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer) and adapter in module.r}


def updates(model, adapter="default"):
    """Returns the update of each layer, computed by PEFT."""
    return {name: layer.get_delta_weight(adapter) for name, layer in lora_layers(model, adapter).items()}


def output(model, batch):
    """Returns the logits, the sample or the hidden states of a model. Only encoders and decoders need labels for them."""
    is_pair = getattr(model.config, "is_encoder_decoder", False)
    with torch.no_grad():
        found = model(**{name: tensor for name, tensor in batch.items() if name != "labels" or is_pair})
    for name in ("logits", "logits_per_text"):
        if name in found:
            return found[name]
    return found[0]


def distance(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()
