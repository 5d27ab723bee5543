"""Makes a small UNet, a CLIP text encoder and their activations, and checks that diffusers reads single-file adapters:

    python pipelines.py make DIR
    python pipelines.py check DIR METHOD...

For both parts, `check` loads the adapters in DIR/PART-METHOD-diffusers and DIR/PART-METHOD-kohya. It compares the output of every
adapted layer with W x + s B A x, where the factors are those of DIR/PART-METHOD-peft.
"""
import itertools
import json
import pathlib
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "peft"))

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from record import Recorder, wanted

TOLERANCE = 1e-5
UNET = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut")
TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FILES = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "lora.safetensors"}


def make(folder):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12,
        bos_token_id=1, eos_token_id=2,
    ))
    for model, part, targets in [(unet, "unet", UNET), (encoder, "text-encoder", TEXT_ENCODER)]:
        model.eval().save_pretrained(folder / part)
        recorder = Recorder(model, wanted(model, targets), folder / f"{part}-activations", 2**16, 2**30, False)
        with torch.no_grad():
            model(**inputs_of(part))
        recorder.close()


def inputs_of(part):
    torch.manual_seed(1)
    if part == "unet":
        return dict(sample=torch.randn(6, 4, 8, 8), timestep=torch.tensor(3), encoder_hidden_states=torch.randn(6, 5, 8))
    return dict(input_ids=torch.randint(3, 60, (12, 9)))


def products(folder):
    """Returns s B A of every module, read without PEFT. The shape is that of the weight, with the axes of a kernel flattened."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"):
        scale * tensors[key.replace("lora_A", "lora_B")].flatten(1) @ a.flatten(1)
        for key, a in tensors.items() if ".lora_A." in key
    }


def check(name, model, inputs, updates):
    """Compares the output of every adapted layer with the output of its base layer after the update is added to the weight."""
    worst, seen = 0.0, set()

    def hook(module_name):
        def compare(module, args, output):
            nonlocal worst
            base = module.base_layer
            weight, update = base.weight.data, updates[module_name]
            base.weight.data = weight + update.view_as(weight)
            expected = base(args[0])
            base.weight.data = weight
            # Some methods start from a product of zero, up to rounding.
            is_zero = update.norm() < 1e-5 * weight.norm()
            assert is_zero or not torch.allclose(expected, base(args[0]), rtol=1e-3), f"{name}: {module_name} adds nothing"
            worst = max(worst, ((output - expected).norm() / expected.norm()).item())
            seen.add(module_name)

        return compare

    adapted = {module_name: module for module_name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert set(adapted) == set(updates), f"{name}: {set(adapted) ^ set(updates)}"
    for module_name, module in adapted.items():
        module.register_forward_hook(hook(module_name))
    with torch.no_grad():
        model.eval()(**inputs)
    assert seen == set(updates), f"{name}: never reached: {set(updates) - seen}"
    assert worst <= TOLERANCE, f"{name}: a layer differs by {worst:.1e}"
    print(f"{name}: {len(seen)} layers compute W x + s B A x, to {worst:.1e}")


def load_unet(folder, file):
    unet = UNet2DConditionModel.from_pretrained(folder.parent / "unet")
    state, alphas = Loader.lora_state_dict(folder, weight_name=file, unet_config=unet.config)
    Loader.load_lora_into_unet(state, alphas, unet, adapter_name="default")
    return unet


def load_text_encoder(folder, file):
    encoder = CLIPTextModel.from_pretrained(folder.parent / "text-encoder")
    state, alphas = Loader.lora_state_dict(folder, weight_name=file)
    Loader.load_lora_into_text_encoder(state, alphas, encoder, prefix="text_encoder", adapter_name="default")
    return encoder


folder = pathlib.Path(sys.argv[2])
if sys.argv[1] == "make":
    make(folder)
else:
    for part, load in [("unet", load_unet), ("text-encoder", load_text_encoder)]:
        for method, (format, file) in itertools.product(sys.argv[3:], FILES.items()):
            updates = products(folder / f"{part}-{method}-peft")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = load(folder / f"{part}-{method}-{format}", file)
            check(f"{part}, {method}, {format}", model, inputs_of(part), updates)
