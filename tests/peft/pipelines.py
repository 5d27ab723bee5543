"""A small UNet, and whether diffusers reads adapters of one file: python pipelines.py make DIR, python pipelines.py check DIR.

`check` compares the products of the factors that diffusers loaded from DIR/diffusers and DIR/kohya with those of DIR/peft.
"""
import json
import pathlib
import sys

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import load_file

folder = pathlib.Path(sys.argv[2])
if sys.argv[1] == "make":
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")
    sys.exit()

config = json.loads((folder / "peft/adapter_config.json").read_text())
tensors = load_file(folder / "peft/adapter_model.safetensors")
wanted = {}
for key, a in tensors.items():
    if ".lora_A." in key:
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        wanted[module] = config["lora_alpha"] / config["r"] * tensors[key.replace("lora_A", "lora_B")] @ a
for name, file in [("diffusers", "pytorch_lora_weights.safetensors"), ("kohya", "lora.safetensors")]:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    loader = StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(folder / name, weight_name=file, unet_config=unet.config)
    loader.load_lora_into_unet(state, alphas, unet, adapter_name="default")
    modules, worst = dict(unet.named_modules()), 0.0
    for module, product in wanted.items():
        layer = modules[module]
        found = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        worst = max(worst, ((found - product).norm() / product.norm()).item())
    assert worst <= 1e-5, f"{name}: a product differs by {worst:.1e}"
    print(f"{name}: {len(wanted)} layers, to {worst:.1e}")
