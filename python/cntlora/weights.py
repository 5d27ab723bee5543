"""The weights of adapted layers as the tensors of a checkpoint: `[outputs, inputs]`, one at a time, dequantized where needed."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type
from transformers.pytorch_utils import Conv1D

from .layers import Layer

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

# Inputs of one call that finds the weight of a quantized layer.
COLUMNS = 1024


class Weight(NamedTuple):
    """A tensor of the virtual checkpoint: in memory at an address, or made by a function when it is read."""

    name: str
    dtype: str
    shape: list[int]
    address: int | None
    load: Callable[[], torch.Tensor] | None


def weight_of(layer: Layer, recorded: str) -> Weight:
    """Returns the weight of a layer, under the name that the statistics have for it."""
    name = recorded if layer.is_experts else f"{recorded}.weight"
    weight = layer.weight
    if is_quantized(layer):
        shape = [layer.outputs, layer.inputs]
        return Weight(name, "F32", shape, None, lambda: dequantized(layer))
    shape = list(_oriented(layer, weight).shape)
    in_place = isinstance(weight, torch.nn.Parameter) and weight.device.type == "cpu" and _oriented(layer, weight).is_contiguous()
    if in_place:
        return Weight(name, DTYPES[weight.dtype], shape, weight.data_ptr(), None)
    return Weight(name, DTYPES[weight.dtype], shape, None, lambda: _oriented(layer, layer.weight.detach()).cpu().contiguous())


def check_is_whole(layer: Layer) -> None:
    """Raises ValueError if the weight is not in memory, or if it or the adapter is sharded over processes."""
    if layer.weight is not None and layer.weight.device.type == "meta":
        raise ValueError(
            f"the weight of {layer.name} is on the meta device, without numbers: load the model without offloading, so that it is in memory"
        )
    for what, tensor in ((f"the weight of {layer.name} is", layer.weight), (f"the factors of {layer.name} are", layer.factors()[0])):
        if hasattr(tensor, "ds_id") or hasattr(tensor, "placements"):
            raise ValueError(f"{what} sharded over processes: initialize the model before it is sharded")


def is_quantized(layer: Layer) -> bool:
    """True if the weight is not a tensor of floating-point numbers in one of the usual formats."""
    weight = layer.weight
    if not isinstance(weight, torch.Tensor) or hasattr(layer.base, "W_q") or get_bnb_param_type(weight):
        return True
    if type(weight).__module__.startswith("torchao.") or type(getattr(weight, "data", None)).__module__.startswith("torchao."):
        return True
    return weight.dtype not in DTYPES


def dequantized(layer: Layer) -> torch.Tensor:
    """Returns the weight of a quantized layer in f32, as `[outputs, inputs]` on the CPU."""
    base, weight = layer.base, layer.weight
    if isinstance(weight, torch.Tensor) and weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        found = _from_float8(base, weight)
    elif get_bnb_param_type(weight) == "8bit":
        # On the CPU, PEFT's own function takes the scales off the layer, which cannot run any more afterwards.
        scales = base.state.SCB if base.state.SCB is not None else weight.SCB
        found = (weight.data if base.state.CB is None else base.state.CB).float() * scales.float().view(-1, 1) / 127
    else:
        # On the CPU, 4-bit weights of bitsandbytes are packed anew in the first forward pass, which PEFT's function does not know.
        is_packed = get_bnb_param_type(weight) == "4bit" and weight.device.type == "cpu"
        has_weight = isinstance(weight, torch.Tensor) or hasattr(base, "W_q")
        found = dequantize_module_weight(base) if has_weight and not is_packed else None
        if found is None or not found.dtype.is_floating_point:
            found = _from_outputs(layer)
    found = found.detach().to("cpu", torch.float32)
    shape = (layer.outputs, layer.inputs)
    if tuple(found.shape) != shape:
        raise ValueError(f"the dequantized weight of {layer.name} has the shape {list(found.shape)}, expected {list(shape)}")
    return found.contiguous()


def _from_float8(base: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Multiplies numbers of 8 bits by the scales of their blocks, or by the scale of the tensor or of the row."""
    numbers = weight.detach().float()
    scale = next((s for name in ("weight_scale_inv", "weight_scale") if (s := getattr(base, name, None)) is not None), None)
    if scale is None:
        return numbers
    scale = scale.detach().float()
    if scale.dim() < 2 or 1 in scale.shape and scale.shape[0] in (1, numbers.shape[0]):
        return numbers * (scale.reshape(-1, 1) if scale.numel() == numbers.shape[0] else scale)
    # The block comes from the configuration of the layer, because sizes need not be multiples of it.
    size = getattr(base, "block_size", None) or [-(-n // s) for n, s in zip(numbers.shape, scale.shape)]
    for axis in (0, 1):
        scale = scale.repeat_interleave(size[axis], dim=axis).narrow(axis, 0, numbers.shape[axis])
    return numbers * scale


@torch.no_grad()
def _from_outputs(layer: Layer) -> torch.Tensor:
    """Returns the outputs of the layer for unit vectors, without its bias: the weight of any linear layer."""
    base, inputs = layer.base, layer.inputs
    tensors = [*base.parameters(), *base.buffers()]
    dtype = next((tensor.dtype for tensor in tensors if tensor.dtype in DTYPES), torch.float32)
    device = tensors[0].device if tensors else "cpu"
    bias = getattr(base, "bias", None)
    if bias is not None:
        base.bias = None
    try:
        columns = [
            base(torch.eye(inputs, dtype=dtype, device=device)[first : first + COLUMNS]).float().cpu().T
            for first in range(0, inputs, COLUMNS)
        ]
    finally:
        if bias is not None:
            base.bias = bias
    return torch.cat(columns, dim=1)


def _oriented(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Returns a view of a weight with its outputs before its inputs."""
    if isinstance(layer.base, Conv1D):
        return weight.T
    if layer.is_experts and not layer.module._did_swap_in_out_features:
        return weight.transpose(1, 2)
    return weight
