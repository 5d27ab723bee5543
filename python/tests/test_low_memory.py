"""Adapters that `get_peft_model(…, low_cpu_mem_usage=True)` leaves on the meta device, without numbers."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

import cntlora
from adapted import ATTENTION, adapted, distance, lora_layers, output
from models import batches, make


def empty(name="llama", targets=ATTENTION, **config):
    """Returns a model with an adapter without numbers, and a batch."""
    model, batch = make(name)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, **config})
    model = get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True).eval()
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    return model, batch


def has_numbers(model):
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "targets", "config", "options"),
    [
        ("llama", ATTENTION, {}, {}),
        ("llama", ATTENTION, {"use_dora": True}, {}),
        ("llama", ATTENTION, {"lora_bias": True}, {"rank": 8}),
        ("llama", ATTENTION, {}, {"method": "pissa"}),
        ("gpt2", ["wte", "c_attn"], {}, {}),
        ("unet", ["conv1", "to_q"], {}, {}),
        ("mixtral", ["q_proj"], {"target_parameters": ["mlp.experts.down_proj"]}, {}),
    ],
)
def test_the_factors_are_those_of_an_adapter_in_memory(name, targets, config, options):
    wanted, _, batch = adapted(name, targets, **config)
    cntlora.initialize_lora_weights(wanted, batches(batch), **options)
    wanted = get_peft_model_state_dict(wanted)
    model, batch = empty(name, targets, **config)
    cntlora.initialize_lora_weights(model, batches(batch), **options)
    found = get_peft_model_state_dict(model)
    assert has_numbers(model) and found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert trained and all(parameter.requires_grad for parameter in trained)


@pytest.mark.parametrize("config", [{}, {"use_dora": True}])
def test_layers_that_are_left_out_start_as_peft_starts_them(config):
    model, batch = empty(**config)
    report = cntlora.initialize_lora_weights(model, batches(batch), exclude="v_proj")
    assert all(name.endswith("v_proj") for name in report.left_out) and report.left_out
    assert has_numbers(model)
    left_out = [layer for name, layer in lora_layers(model).items() if name.endswith("v_proj")]
    for layer in left_out:
        assert layer.lora_A["default"].weight.abs().max() > 0 and layer.lora_B["default"].weight.abs().max() == 0
    if config:
        magnitudes = [layer.lora_magnitude_vector["default"].weight for layer in left_out]
        norms = [layer.get_base_layer().weight.norm(dim=1) for layer in left_out]
        assert left_out and all(torch.allclose(found, norm) for found, norm in zip(magnitudes, norms))


def test_units_beyond_the_size_of_a_weight():
    """They are PEFT's own, so they need numbers before the others are written."""
    model, batch = empty("mixtral", ["q_proj"], r=40, target_parameters=["mlp.experts.down_proj"])
    base, _ = make("mixtral")
    cntlora.initialize_lora_weights(model, batches(batch), method="pissa")
    assert has_numbers(model) and distance(output(model, batch), output(base.eval(), batch)) < 2e-5


def test_parts_of_the_adapter_that_need_numbers_are_refused():
    model, batch = empty(trainable_token_indices={"embed_tokens": [1, 2]})
    with pytest.raises(ValueError, match="trainable_token_indices needs its numbers: make the adapter without low_cpu_mem_usage"):
        cntlora.initialize_lora_weights(model, batches(batch))
    model, batch = empty("tied", ["embed_tokens", "lm_head", "q_proj"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match="ensure_weight_tying needs its numbers"):
        cntlora.initialize_lora_weights(model, batches(batch))
