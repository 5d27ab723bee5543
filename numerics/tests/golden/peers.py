"""Writes peers.json: what PEFT itself makes of small layers, for each of its methods that look at data or at the weight.

    python3 peers.py > peers.json

Needs torch and peft (written with PEFT 0.21.2). The tests read the JSON; nothing but this script needs Python.
"""
import copy
import json
import sys
import warnings

import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict

torch.manual_seed(20261124)
warnings.simplefilter("ignore")
RANK, ALPHA = 3, 6


class Model(torch.nn.Module):
    """q and v read one input, o another."""

    def __init__(self):
        super().__init__()
        self.q = torch.nn.Linear(6, 7, bias=False)
        self.v = torch.nn.Linear(6, 5, bias=False)
        self.o = torch.nn.Linear(8, 6, bias=False)

    def forward(self, x, z):
        return self.q(x).sum() + self.v(x).sum() + self.o(z).sum()


model = Model()
# Most of the variance of x is along one direction, and that of z along four: EVA shares ranks out unequally.
turn = torch.linalg.qr(torch.randn(6, 6)).Q
x = torch.randn(24, 6) * torch.tensor([4.0, 0.9, 0.6, 0.3, 0.2, 0.1]) @ turn + torch.randn(6)
z = torch.randn(24, 8) * torch.tensor([2.0, 1.7, 1.2, 1.0, 0.4, 0.3, 0.2, 0.1]) + torch.randn(8)


def rows(tensor):
    """As many digits as an f32 has."""
    return [[float(f"{value:.7g}") for value in row] for row in tensor.detach().tolist()]


def factors(init, **options):
    """A and B of every layer, with the base untouched elsewhere."""
    base = copy.deepcopy(model)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q", "v", "o"], init_lora_weights=init, **options)
    if init == "corda":
        preprocess_corda(base, config, run_model=lambda: base(x, z))
    adapted = get_peft_model(base, config).base_model.model
    return {
        name: dict(a=rows(layer.lora_A["default"].weight), b=rows(layer.lora_B["default"].weight))
        for name, layer in adapted.named_children()
    }


def eva(rho):
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=["q", "v", "o"], init_lora_weights="eva",
        eva_config=EvaConfig(rho=rho, use_label_mask=False),
    )
    found = get_eva_state_dict(
        copy.deepcopy(model), [dict(x=x, z=z)], config,
        forward_fn=lambda model, batch: model(**batch),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda layer_input, model_input, name: layer_input[0],
        show_progress_bar=False,
    )
    return {name: rows(tensor) for name, tensor in found.items()}


json.dump(
    dict(
        scale=ALPHA / RANK,
        rank=RANK,
        weights={name: rows(layer.weight) for name, layer in model.named_children()},
        activations=dict(x=rows(x), z=rows(z)),
        pissa=factors("pissa"),
        olora=factors("olora"),
        mica=factors("mica"),
        corda_ipm=factors("corda", corda_config=CordaConfig(corda_method="ipm")),
        corda_kpm=factors("corda", corda_config=CordaConfig(corda_method="kpm")),
        eva=[dict(rank=2, rho=rho, down=eva(rho)) for rho in [1.0, 1.5, 2.0]],
    ),
    sys.stdout, separators=(",", ":"),
)
print()
