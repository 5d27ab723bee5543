"""Quantized checkpoints on disk: the tool computes adapters from the files, PEFT loads them, and they give W x + s B A x.

bitsandbytes quantizes and runs on a processor. FP8 and MXFP4 are dequantized by transformers when it loads them there. The packages that
run GPTQ and AWQ need a graphics processor: these checkpoints are packed here, and PEFT loads the adapter on their dequantized weights.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM,
)

from in_peft import check_layers, factors, load
from models import DECODER, MODELS, tokens
from test_files import Files, tool

# The weights that are quantized, by the ends of their names.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def words(values, bits=4):
    """Returns integers of 32 bits, each with the values along the last axis, lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    packed = (values.long().unflatten(-1, (-1, 32 // bits)) << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def fp8(weight):
    rows, columns = weight.shape
    blocks = weight.unflatten(0, (rows // 16, 16)).unflatten(2, (columns // 16, 16))
    scales = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    plain = (codes.float() * scales[:, None, :, None]).reshape(rows, columns)
    return {"weight": codes.reshape(rows, columns), "weight_scale_inv": scales}, plain


def integers(weight, group=16):
    """Returns numbers from 0 to 15, zero points and scales, all as [inputs, outputs] and groups, and the weight that they stand for."""
    groups = weight.T.unflatten(0, (-1, group))
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    numbers = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    plain = ((numbers - zeros[:, None]) * scales[:, None]).flatten(0, 1).T
    return numbers.flatten(0, 1), zeros, scales, plain


def gptq(weight):
    numbers, zeros, scales, plain = integers(weight)
    stored = {"qweight": words(numbers.T).T, "qzeros": words(zeros - 1), "scales": scales.half()}
    return stored | {"g_idx": (torch.arange(weight.shape[1]) // 16).int()}, plain


def awq(weight):
    numbers, zeros, scales, plain = integers(weight)

    def ordered(values):
        return words(values.unflatten(-1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(-2))

    return {"qweight": ordered(numbers), "qzeros": ordered(zeros), "scales": scales.half()}, plain


def write(folder, source, tensors, config):
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    described = json.loads((source / "config.json").read_text()) | {"dtype": "float32", "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))


def check(files, quantized, base, plain):
    """Adapts a quantized checkpoint. `base` is the model that PEFT adapts, `plain` a model with the dequantized weights."""
    folder = files.folder
    plain.save_pretrained(folder / "plain", safe_serialization=True)
    config = folder / "plain" / "config.json"
    described = json.loads(config.read_text())
    described.pop("quantization_config", None)
    config.write_text(json.dumps(described))
    with torch.no_grad():
        logits = plain.eval()(**files.batch).logits
    for source in (quantized, folder / "plain"):
        tool("init", source, "--moments", files.moments, "-o", folder / f"of-{source.name}", "--rank", 4, "--start", "update")
    found, wanted = (factors(folder / f"of-{name}") for name in (quantized.name, "plain"))
    assert found.keys() == wanted.keys() and len(found) > 1
    for name, (a, b, scale) in found.items():
        product, expected = scale * b @ a, wanted[name][2] * wanted[name][1] @ wanted[name][0]
        assert (product - expected).norm() <= 1e-3 * expected.norm() > 0, name
    out = folder / f"of-{quantized.name}"
    tool("verify", out, "--base", quantized)
    assert check_layers(load(base, out).eval(), out, files.batch) == len(found)
    # A changed base is a plain model, on which the adapter gives the outputs of the quantized one.
    changed = folder / "changed"
    tool("init", quantized, "--moments", files.moments, "-o", changed, "--rank", 4, "--method", "pissa", "--base-dtype", "f32")
    model = AutoModelForCausalLM.from_pretrained(changed / "base").eval()
    assert not hasattr(model.config, "quantization_config")
    with torch.no_grad():
        again = load(model, changed).eval()(**files.batch).logits
    assert (again - logits).norm() <= 1e-4 * logits.norm()


@pytest.mark.parametrize("kind, nested", [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)])
def test_bases_of_bitsandbytes(tmp_path, monkeypatch, kind, nested):
    # On processors, bitsandbytes is right only for rows of whole blocks of 64 numbers.
    sizes = DECODER | dict(hidden_size=64, intermediate_size=128)
    monkeypatch.setitem(MODELS, "llama", lambda: (LlamaForCausalLM(LlamaConfig(**sizes)), tokens()))
    files = Files(tmp_path, "llama")
    four = dict(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=torch.float32)
    config = BitsAndBytesConfig(**(dict(load_in_8bit=True) if kind == "int8" else four))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", quantization_config=config, dtype=torch.float32)
    quantized = tmp_path / "quantized"
    model.save_pretrained(quantized)
    stored = load_file(quantized / "model.safetensors")
    ending = ".SCB" if kind == "int8" else f"bitsandbytes__{kind}"
    assert any(name.endswith(ending) for name in stored), sorted(stored)
    base = AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32).dequantize()
    check(files, quantized, base, plain)


@pytest.mark.parametrize("form", ["fp8", "gptq", "awq"])
def test_packed_bases(tmp_path, form):
    files = Files(tmp_path, "llama")
    stored = load_file(tmp_path / "llama" / "model.safetensors")
    tensors, weights = {}, {}
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        if not module.endswith(LINEAR):
            tensors[name] = tensor
            continue
        parts, weights[name] = {"fp8": fp8, "gptq": gptq, "awq": awq}[form](tensor.float())
        assert (weights[name] - tensor).norm() < 0.15 * tensor.norm()
        tensors |= {f"{module}.{end}": part for end, part in parts.items()}
    config = {
        "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq"},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"},
    }[form]
    quantized = tmp_path / "quantized"
    write(quantized, tmp_path / "llama", tensors, config)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    plain.load_state_dict(weights, strict=False)
    base = plain
    if form == "fp8":
        # Without a graphics processor, transformers dequantizes the weights when it loads them.
        base = AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32)
        for name, weight in base.named_parameters():
            assert name not in weights or torch.allclose(weight, weights[name], atol=1e-6), name
    check(files, quantized, base.eval(), plain.eval())


def test_experts_of_gpt_oss(tmp_path, monkeypatch):
    """MXFP4 experts are adapted as in the model in bf16, whose layout is the transpose."""
    # Groups have 32 inputs.
    sizes = DECODER | dict(intermediate_size=64, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    monkeypatch.setitem(MODELS, "gpt_oss", lambda: (GptOssForCausalLM(GptOssConfig(**sizes)), tokens(48)))
    files = Files(tmp_path, "gpt_oss")
    stored = load_file(tmp_path / "gpt_oss" / "model.safetensors")
    generator, tensors = torch.Generator().manual_seed(4), {}
    for name, tensor in stored.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        assert inputs % 32 == 0
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(119, 123, (experts, outputs, inputs // 32), generator=generator, dtype=torch.uint8)
    quantized = tmp_path / "quantized"
    write(quantized, tmp_path / "gpt_oss", tensors, {"quant_method": "mxfp4", "modules_to_not_convert": []})
    base, plain = (AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32).eval() for _ in range(2))
    assert any(name.endswith("experts.gate_up_proj") and weight.dtype == torch.float32 for name, weight in base.named_parameters())
    check(files, quantized, base, plain)
