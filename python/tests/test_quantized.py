"""Quantized bases: weights are dequantized one at a time, and residual starts are refused with the reason."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import nn

import cntlora
from cntlora.layers import layers_of
from cntlora.weights import dequantized, weight_of

WIDTH = 24


class Integers(nn.Linear):
    """A linear layer of 8-bit integers with a scale for each output."""

    def __init__(self, original):
        super().__init__(original.in_features, original.out_features)
        scales = original.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((original.weight / scales).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = original.bias

    def forward(self, rows):
        return nn.functional.linear(rows, self.weight * self.scales, self.bias)


class Packed(nn.Module):
    """A layer without a weight, as those of GPTQ and AWQ: its numbers are in other tensors, stored as [inputs, outputs]."""

    def __init__(self, original):
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        scales = original.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("qweight", (original.weight / scales).round().to(torch.int8).T.contiguous())
        self.register_buffer("scales", scales.T.contiguous())
        self.bias = original.bias

    def forward(self, rows):
        rows = rows @ (self.qweight * self.scales)
        return rows if self.bias is None else rows + self.bias


class Float8(nn.Linear):
    """A linear layer of 8-bit floating-point numbers with a scale for each block, as those of transformers. Sizes need not be multiples."""

    block_size = (16, 16)

    def __init__(self, original):
        super().__init__(original.in_features, original.out_features)
        rows, columns = -(-original.out_features // 16), -(-original.in_features // 16)
        scales = torch.rand(rows, columns) / 100 + 1e-3
        whole = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)[: original.out_features, : original.in_features]
        self.weight = nn.Parameter((original.weight / whole).to(torch.float8_e4m3fn), requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scales, requires_grad=False)
        self.bias = original.bias

    def forward(self, rows):
        whole = self.weight_scale_inv.repeat_interleave(16, 0).repeat_interleave(16, 1)[: self.out_features, : self.in_features]
        return nn.functional.linear(rows, self.weight.float() * whole, self.bias)


KINDS = [Integers, Packed, Float8]


class Model(nn.Module):
    def __init__(self, outer, inner, last):
        super().__init__()
        self.first, self.second, self.plain = nn.Linear(outer, inner), nn.Linear(inner, last), nn.Linear(last, outer)

    def forward(self, rows):
        return self.plain(self.second(self.first(rows).relu()).relu())


def quantized(kind, widths=(WIDTH, 40, 20)):
    """Returns a model with two quantized layers, and rows for it."""
    torch.manual_seed(0)
    model = Model(*widths)
    model.first, model.second = kind(model.first), kind(model.second)
    return model.requires_grad_(False).eval(), torch.randn(20, 10, widths[0])


def adapted(kind, **config):
    model, rows = quantized(kind)
    config = LoraConfig(r=4, target_modules=["first", "second", "plain"], **config)
    # PEFT adapts such layers only in models that name GPTQ in their configuration.
    config._register_custom_module({Packed: GPTQLoraLinear})
    return get_peft_model(copy.deepcopy(model), config).eval(), model, rows


def dense(model):
    """Returns the same model with the dequantized weights, found by unit vectors."""
    plain = copy.deepcopy(model)
    for name in ("first", "second"):
        layer = getattr(model, name)
        bias = layer(torch.zeros(1, layer.in_features))
        made = nn.Linear(layer.in_features, layer.out_features)
        made.weight.data, made.bias.data = (layer(torch.eye(layer.in_features)) - bias).T.contiguous(), bias[0]
        setattr(plain, name, made)
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_those_of_the_dequantized_model(kind):
    """An adapter on a quantized base gets the factors of the dequantized one, and the base stays as it is."""
    model, base, rows = adapted(kind)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    report = cntlora.initialize_lora_weights(model, [rows])
    assert not report.left_out
    reference = get_peft_model(dense(base), LoraConfig(r=4, target_modules=["first", "second", "plain"]))
    statistics = cntlora.record(base, [rows], targets=["first", "second", "plain"])
    cntlora.initialize_lora_weights(reference, moments=statistics)
    found, wanted = ({name: p for name, p in one.named_parameters() if "lora_" in name} for one in (model, reference))
    assert found.keys() == wanted.keys() and len(found) == 6
    for name in found:
        assert torch.allclose(found[name], wanted[name], atol=2e-3 * wanted[name].abs().max().item()), name
    for name, tensor in base.state_dict().items():
        assert torch.equal(before[name].view(torch.uint8), tensor.view(torch.uint8))
    with torch.no_grad():
        assert torch.allclose(model(rows), base(rows), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_starts_are_refused(kind):
    model, _, rows = adapted(kind)
    for method in ("pissa", "corda-ipm"):
        with pytest.raises(ValueError, match="the weight of first is quantized: give start='mirrored'"):
            cntlora.initialize_lora_weights(model, [rows], method=method)
        cntlora.initialize_lora_weights(model, [rows], method=method, start="mirrored")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_dequantized_when_they_are_read(kind):
    """A quantized weight has no address: the tool asks for it when it needs it, so that one is in memory at a time."""
    model, base, _ = adapted(kind)
    layers, _ = layers_of(model, "default")
    first, plain = weight_of(layers["first"], "first"), weight_of(layers["plain"], "plain")
    assert (first.dtype, first.shape, first.address) == ("F32", [40, WIDTH], None)
    assert plain.load is None and plain.address == layers["plain"].weight.data_ptr()
    wanted = dense(base).first.weight
    assert torch.allclose(first.load(), wanted, atol=1e-6)
    bias = layers["first"].base.bias
    dequantized(layers["first"])
    assert layers["first"].base.bias is bias


def test_scales_of_rows_and_of_the_tensor():
    """Other layouts of float8: one scale, one for each output, and none."""
    numbers = torch.randn(6, 4).to(torch.float8_e4m3fn)
    for scale in (torch.tensor(0.5), torch.rand(6), torch.rand(6, 1), torch.tensor([[0.25]])):
        layer = nn.Linear(4, 6)
        layer.weight = nn.Parameter(numbers, requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        from cntlora.weights import _from_float8

        wanted = numbers.float() * (scale.reshape(-1, 1) if scale.numel() == 6 else scale.flatten()[:1])
        assert torch.equal(_from_float8(layer, layer.weight), wanted)
    bare = nn.Linear(4, 6)
    assert torch.equal(_from_float8(bare, numbers), numbers.float())


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits):
    """The weights of bitsandbytes, on its own kernels for processors."""

    def kind(original):
        if bits == 4:
            made = bnb.nn.Linear4bit(original.in_features, original.out_features, quant_type="nf4", compute_dtype=torch.float32)
        else:
            made = bnb.nn.Linear8bitLt(original.in_features, original.out_features, has_fp16_weights=False)
        made.load_state_dict(original.state_dict())
        return made.to("cpu")

    base, rows = quantized(kind, widths=(64, 128, 64))
    base.is_loaded_in_4bit, base.is_loaded_in_8bit = bits == 4, bits == 8
    with torch.no_grad():
        wanted = base(rows)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["first", "second", "plain"])).eval()
    layers, _ = layers_of(model, "default")
    found, unit = dequantized(layers["first"]), torch.eye(64)
    with torch.no_grad():
        expected = (layers["first"].base(unit) - layers["first"].base(torch.zeros(1, 64))).T
    assert ((found - expected).norm() / expected.norm()).item() < 1e-2
    assert not cntlora.initialize_lora_weights(model, [rows], start="mirrored").left_out
    assert all(layer.factors()[1].norm() > 0 for layer in layers.values())
    with torch.no_grad():
        assert ((model(rows) - wanted).norm() / wanted.norm()).item() < 1e-3
    with pytest.raises(ValueError, match="the weight of first is quantized"):
        cntlora.initialize_lora_weights(model, method="pissa")
