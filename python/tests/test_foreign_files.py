"""Adapters of PEFT with names and tensors as other programs save them: the tool refuses or converts them, and PEFT loads the result."""

import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from cntlora import _cntlora
from in_peft import warnings_are_errors

PREFIXES = ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", "0.auto_model."]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.tokens, self.query, self.score = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, words):
        return self.score(self.query(self.tokens(words)))


WORDS = torch.arange(7)[None]


def tool(*words):
    return _cntlora.main([*map(str, words), "-q"])


def trained(folder, **options):
    """Saves an adapter with random factors, and returns the output of its model."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["query"], init_lora_weights=False, **options)
    model = get_peft_model(Model(), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.manual_seed(len(name))
                parameter.add_(torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model(WORDS).detach()


def loaded(folder):
    with warnings_are_errors():
        return PeftModel.from_pretrained(Model(), folder).eval()(WORDS).detach()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapped_names_are_refused_and_peft_loads_the_converted_adapter(tmp_path, prefix):
    expected = trained(tmp_path / "plain")
    wrapped, tensors = tmp_path / "wrapped", tmp_path / "wrapped/adapter_model.safetensors"
    shutil.copytree(tmp_path / "plain", wrapped)
    plain = load_file(tensors)
    save_file({name.replace("base_model.model.", "base_model.model." + prefix, 1): tensor for name, tensor in plain.items()}, tensors)
    assert tool("verify", tmp_path / "plain") == 0
    assert tool("verify", wrapped) == 1
    assert tool("convert", wrapped, "--out", tmp_path / "converted") == 0
    assert torch.allclose(loaded(tmp_path / "converted"), expected, atol=1e-5)


@pytest.mark.parametrize("options", [
    dict(modules_to_save=["score"]),
    dict(lora_bias=True),
    dict(trainable_token_indices={"tokens": [1, 2]}),
    dict(modules_to_save=["score"], lora_bias=True, trainable_token_indices={"tokens": [3]}, alpha_pattern={"query": 3}),
], ids=["head", "bias", "tokens", "all"])
def test_tensors_that_are_not_factors_are_carried_through(tmp_path, options):
    """The model computes the same with the converted adapter. Without the further tensors it would not."""
    expected = trained(tmp_path / "trained", **options)
    assert tool("verify", tmp_path / "trained") == 0
    assert tool("convert", tmp_path / "trained", "--rank", 2, "--out", tmp_path / "converted") == 0
    assert torch.allclose(loaded(tmp_path / "converted"), expected, atol=1e-4)
    before, after = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "converted")]
    assert before.keys() == after.keys()


def test_dora_is_refused(tmp_path):
    trained(tmp_path / "dora", use_dora=True)
    assert tool("verify", tmp_path / "dora") == 1
    assert tool("convert", tmp_path / "dora", "--rank", 1, "--out", tmp_path / "converted") == 1
