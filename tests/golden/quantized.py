"""Writes the folders of `quantized/`: small quantized checkpoints in each format, with the weights that they stand for.

    pip install torch==2.15.0 transformers==5.24.0 bitsandbytes==0.50.2 safetensors==0.8.0
    pip install --no-deps compressed-tensors==0.20.1 loguru autoawq==0.2.9 auto-gptq==0.7.1
    python3 quantized.py

Each folder is a checkpoint: `model.safetensors` and `config.json`. `expected.safetensors` has the weights in F32, under their plain names.
Public packages do the work, where they run on a processor:

- bitsandbytes quantizes and dequantizes NF4, FP4 and INT8. Its generic code dequantizes 4 bits: the one for processors begins a block at each
  row, although blocks go on across rows, so that rows that are no whole number of blocks come out wrong;
- transformers dequantizes FP8 with blocks and MXFP4; for sizes that are not multiples of a block, which its function refuses, each block
  is dequantized alone;
- compressed-tensors compresses and decompresses its formats, except for a listed order of inputs (`weight_g_idx`), which this version does
  not write any more: there the groups of the inputs are permuted here;
- AutoGPTQ packs GPTQ, and the zero points of "gptq_v2", which are larger by 1, are those of numbers larger by 1;
- AWQ is packed here and dequantized by AutoAWQ, whose packing needs packages that do not install with these versions.

The tests read the files; nothing but this script needs Python.
"""
import importlib.util
import json
import pathlib
import sys
import warnings

import torch
from safetensors.torch import save_file

warnings.simplefilter("ignore")
HERE = pathlib.Path(__file__).parent / "quantized"


def write(name, tensors, expected, config):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}, indent=1) + "\n")
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    expected = {key: value.float().contiguous() for key, value in expected.items()}
    for key, value in expected.items():
        assert value.isfinite().all() and value.std() > 0.01, (name, key, value)
    save_file(expected, folder / "expected.safetensors")


def module(path):
    """Loads one file of an installed package, without the rest of it."""
    package, rest = path.split("/", 1)
    root = pathlib.Path(importlib.util.find_spec(package).origin).parent
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), root / f"{rest}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def bitsandbytes():
    import bitsandbytes.functional as f
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    plain = torch.randn(5, 16)
    for kind in ("nf4", "fp4"):
        tensors, expected = {"layers.0.plain.weight": plain}, {"layers.0.plain.weight": plain}
        # Rows that are no whole number of blocks; an odd number of weights; more than 256 blocks, for nested scales.
        shapes = [("up", (40, 72), False), ("odd", (7, 9), False), ("down", (72, 240), True), ("gate", (4, 128), False)]
        for name, shape, nested in shapes:
            weight = torch.randn(*shape)
            codes, state = f.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=64)
            key = f"layers.0.{name}.weight"
            tensors[key] = codes
            tensors |= {f"{key}.{end}": value for end, value in state.as_dict(packed=True).items()}
            scales = f.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
            expected[key] = _dequantize_4bit_compute(codes.reshape(-1), scales, state.code, 64, weight.shape, torch.float32)
            assert (expected[key] - weight).norm() < 0.2 * weight.norm()
            if shape[1] % 64 == 0:
                assert torch.allclose(expected[key], f.dequantize_4bit(codes, state), rtol=1e-6)
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        write(kind, tensors, expected, {"quantization_config": config})
    weight = torch.randn(40, 24)
    codes, scales, _ = f.int8_vectorwise_quant(weight.half())
    name = "layers.0.up"
    tensors = {f"{name}.weight": codes, f"{name}.SCB": scales, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    expected = f.int8_vectorwise_dequant(codes, scales)
    assert (expected - weight).norm() < 0.02 * weight.norm()
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    write("bitsandbytes-int8", tensors, {f"{name}.weight": expected}, {"quantization_config": config})


def in_blocks(weight, block, scale_dtype):
    """Returns codes and scales of FP8 with one scale for each block, and the weight that they stand for."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    rows, columns = weight.shape
    grid = [-(-rows // block[0]), -(-columns // block[1])]
    codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.zeros(grid, dtype=scale_dtype)
    expected = torch.zeros(rows, columns)
    dequantize = Fp8Dequantize(None)._dequantize_one
    for i in range(grid[0]):
        for j in range(grid[1]):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = (weight[place].abs().max() / 448).to(scale_dtype)
            codes[place] = (weight[place] / scales[i, j].float()).clamp(-448, 448).to(torch.float8_e4m3fn)
            expected[place] = dequantize(codes[place], scales[i : i + 1, j : j + 1].float(), torch.float32)
    return codes, scales, expected


def fp8():
    tensors, expected = {}, {}
    # 40 × 72 in blocks of 16 × 16 are 3 × 5 blocks. Blocks of 14 × 15 would give the same grid.
    for name, scale_dtype in [("up", torch.float32), ("down", torch.float8_e8m0fnu), ("gate", torch.bfloat16)]:
        key = f"layers.0.{name}.weight"
        tensors[key], tensors[f"{key}_scale_inv"], expected[key] = in_blocks(torch.randn(40, 72), [16, 16], scale_dtype)
    key = "layers.0.experts.up_proj"
    experts = [in_blocks(torch.randn(24, 40), [16, 16], torch.float32) for _ in range(2)]
    tensors[key], tensors[f"{key}_scale_inv"], expected[key] = (torch.stack(part) for part in zip(*experts))
    config = {"quant_method": "fp8", "weight_block_size": [16, 16], "modules_to_not_convert": ["lm_head"]}
    plain = torch.randn(8, 40).bfloat16()
    write("fp8-blocks", tensors | {"layers.0.plain.weight": plain}, expected | {"layers.0.plain.weight": plain}, {"quantization_config": config})


def mxfp4():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, expected = {}, {}
    for name, outputs, groups in [("gate_up_proj", 20, 2), ("down_proj", 64, 2)]:
        key = f"model.layers.0.mlp.experts.{name}"
        blocks = torch.randint(0, 256, (3, outputs, groups, 16), dtype=torch.uint8)
        scales = torch.randint(120, 130, (3, outputs, groups), dtype=torch.uint8)
        tensors[f"{key}_blocks"], tensors[f"{key}_scales"] = blocks, scales
        tensors[f"{key}_bias"] = torch.randn(3, outputs).bfloat16()
        expected[key] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    write("mxfp4", tensors, expected, {"model_type": "gpt_oss", "quantization_config": config})


def compressed():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.mx_utils import decompress_mx_scale
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams

    def scales_of(weight, args):
        rows, columns = weight.shape
        if args.strategy == "tensor":
            low, high = weight.min().reshape(1), weight.max().reshape(1)
        elif args.strategy == "block":
            height, width = args.block_structure
            grid = [-(-rows // height), -(-columns // width)]
            cells = [[weight[i * height : (i + 1) * height, j * width : (j + 1) * width] for j in range(grid[1])] for i in range(grid[0])]
            low, high = (torch.tensor([[getattr(cell, way)() for cell in row] for row in cells]) for way in ("min", "max"))
        else:
            groups = weight.reshape(rows, -1, args.group_size or columns)
            low, high = groups.amin(-1), groups.amax(-1)
        if args.num_bits == 4 and args.type == "float":
            global_scale = torch.tensor([448 * 6 / weight.abs().max()]) if args.group_size == 16 else None
            return *calculate_qparams(low, high, args, global_scale=global_scale), global_scale
        return *calculate_qparams(low, high, args), None

    def compress(form, weight, **options):
        args = QuantizationArgs(**options)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.get_value_from_registry(form)
        scale, zero, global_scale = scales_of(weight, args)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero, "weight_global_scale": global_scale}
        state = {key: value for key, value in state.items() if value is not None}
        stored = compressor.compress(state, scheme)
        if args.num_bits == 4 and args.type == "float":
            # Its own function rounds to bf16.
            numbers = unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, torch.float32)
            scale = stored["weight_scale"]
            scale = decompress_mx_scale(scale).float() if scale.dtype == torch.uint8 else scale.float()
            back = dequantize(numbers, scale, args=args, dtype=torch.float32, global_scale=stored.get("weight_global_scale"))
        else:
            back = compressor.decompress(dict(stored), scheme)["weight"]
        bound = {1: 1.2, 2: 0.8, 3: 0.4}.get(options["num_bits"], 0.2)
        assert (back - weight).norm() < bound * weight.norm(), (form, options, (back - weight).norm() / weight.norm())
        return stored, back, {"weights": args.model_dump(mode="json"), "targets": ["Linear"]}

    def case(folder, form, layers):
        tensors, expected, groups = {}, {}, {}
        for number, (name, weight, options) in enumerate(layers):
            stored, back, group = compress(form, weight, **options)
            groups[f"group_{number}"] = group
            tensors |= {f"layers.0.{name}.{end}": value for end, value in stored.items()}
            expected[f"layers.0.{name}.weight"] = back
        config = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
        return folder, tensors, expected, {"quantization_config": config}

    integers = []
    for bits in range(1, 9):
        options = dict(num_bits=bits, type="int")
        # All numbers of a symmetric bit would be rounded to 0.
        if bits > 1:
            integers.append((f"rows{bits}", torch.randn(9, 40), options | dict(symmetric=True, strategy="channel")))
        options |= dict(symmetric=False, strategy="group", group_size=20)
        integers.append((f"zeros{bits}", torch.randn(9, 40) + 0.5, options))
    integers.append(("whole", torch.randn(9, 40), dict(num_bits=4, type="int", symmetric=True, strategy="tensor")))
    folder, tensors, expected, config = case("compressed-integers", "pack-quantized", integers)
    # The groups of inputs in another order.
    order = torch.randperm(40)
    stored, _, _ = compress("pack-quantized", torch.randn(9, 40), num_bits=4, type="int", symmetric=True, strategy="group", group_size=10)
    g_idx = (order // 10).to(torch.int32)
    tensors |= {f"layers.0.ordered.{end}": value for end, value in stored.items()} | {"layers.0.ordered.weight_g_idx": g_idx}
    numbers = unpack_from_int32(stored["weight_packed"], 4, torch.Size([9, 40])).float()
    expected["layers.0.ordered.weight"] = numbers * stored["weight_scale"][:, g_idx.long()]
    write(folder, tensors, expected, config)

    eight = dict(num_bits=8, type="int")
    write(*case("compressed-int8", "int-quantized", [
        ("rows", torch.randn(9, 40), eight | dict(symmetric=True, strategy="channel")),
        ("zeros", torch.randn(9, 40) + 0.5, eight | dict(symmetric=False, strategy="channel")),
        ("whole", torch.randn(9, 40), eight | dict(symmetric=True, strategy="tensor")),
    ]))
    float8 = dict(num_bits=8, type="float", symmetric=True)
    write(*case("compressed-float8", "float-quantized", [
        ("rows", torch.randn(9, 40), float8 | dict(strategy="channel")),
        ("whole", torch.randn(9, 40), float8 | dict(strategy="tensor")),
        ("blocks", torch.randn(40, 72), float8 | dict(strategy="block", block_structure=[16, 16])),
        ("groups", torch.randn(9, 40), float8 | dict(strategy="group", group_size=10)),
    ]))
    float4 = dict(num_bits=4, type="float", symmetric=True)
    write(*case("compressed-nvfp4", "nvfp4-pack-quantized", [
        ("up", torch.randn(6, 48), float4 | dict(strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn)),
    ]))
    write(*case("compressed-mxfp4", "mxfp4-pack-quantized", [
        ("up", torch.randn(6, 64), float4 | dict(strategy="group", group_size=32, scale_dtype=torch.uint8, zp_dtype=torch.uint8)),
    ]))


def gptq():
    packer = module("auto_gptq/nn_modules/qlinear/qlinear_cuda")
    inputs, outputs, group = 64, 32, 32
    for form, offset in [("gptq", 0), ("gptq_v2", 1)]:
        tensors, expected = {}, {}
        for bits in (2, 3, 4, 8):
            for ordered in (False, True):
                linear = torch.nn.Linear(inputs, outputs, bias=False)
                # Zero points from 1 on: the packing of 0 damages its neighbours in the first format.
                numbers = torch.randint(0, 2**bits, (inputs, outputs)).float()
                zeros = torch.randint(1, 2**bits, (inputs // group, outputs)).float()
                scales = (torch.rand(inputs // group, outputs) * 0.1 + 0.01).half().float()
                g_idx = (torch.randperm(inputs) if ordered else torch.arange(inputs)) // group
                weight = scales[g_idx] * (numbers - zeros[g_idx])
                linear.weight.data = weight.T.contiguous()
                layer = packer.QuantLinear(bits, group, inputs, outputs, bias=False, weight_dtype=torch.float32)
                # The packing subtracts 1 from the zero points, which "gptq_v2" does not.
                layer.g_idx = g_idx.to(torch.int32)
                stored_zeros = zeros + offset
                if offset:
                    fits = stored_zeros <= 2**bits
                    assert fits.all()
                layer.pack(linear, scales.T.contiguous(), zeros.T.contiguous(), layer.g_idx)
                qzeros = layer.qzeros
                if offset:
                    other = packer.QuantLinear(bits, group, inputs, outputs, bias=False, weight_dtype=torch.float32)
                    other.g_idx = layer.g_idx
                    other.pack(linear, scales.T.contiguous(), stored_zeros.T.contiguous(), layer.g_idx)
                    qzeros = other.qzeros
                name = f"layers.0.{'ordered' if ordered else 'even'}{bits}"
                tensors |= {f"{name}.qweight": layer.qweight, f"{name}.qzeros": qzeros, f"{name}.scales": scales.half()}
                if ordered:
                    tensors[f"{name}.g_idx"] = layer.g_idx
                expected[f"{name}.weight"] = linear.weight.data
        config = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": True, "checkpoint_format": form}
        write(form.replace("_", "-"), tensors, expected, {"quantization_config": config})


def awq():
    packing = module("awq/utils/packing_utils")
    inputs, outputs, group = 40, 24, 20
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(numbers):
        words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int32)
        for place, column in enumerate(order):
            words |= numbers[:, column::8].to(torch.int32) << (4 * place)
        return words

    numbers = torch.randint(0, 16, (inputs, outputs))
    zeros = torch.randint(0, 16, (inputs // group, outputs))
    scales = (torch.rand(inputs // group, outputs) * 0.1 + 0.01).half()
    qweight, qzeros = packed(numbers), packed(zeros)
    weight = packing.dequantize_gemm(qweight, qzeros, scales.float(), 4, group)
    assert torch.equal(weight, (numbers - zeros.repeat_interleave(group, 0)) * scales.float().repeat_interleave(group, 0))
    name = "layers.0.up"
    tensors = {f"{name}.qweight": qweight, f"{name}.qzeros": qzeros, f"{name}.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    write("awq", tensors, {f"{name}.weight": weight.T}, {"quantization_config": config})


if __name__ == "__main__":
    for work in (bitsandbytes, fp8, mxfp4, compressed, gptq, awq):
        torch.manual_seed(7)
        work()
        print(work.__name__, file=sys.stderr)
