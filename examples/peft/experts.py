"""Finds fused experts, and computes the inputs of each expert. Their weights are parameters with three axes, not modules."""
import torch

PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")


def parameters(module):
    """Returns the parameters of a module that hold one matrix for each expert."""
    if not hasattr(module, "_apply_gate"):
        return []
    return [name for name in PARAMETERS if isinstance(getattr(module, name, None), torch.nn.Parameter)]


def apply(module, name, expert, rows):
    """Returns the output of one expert's matrix for its rows."""
    weight, bias = getattr(module, name)[expert], getattr(module, name + "_bias", None)
    rows = rows @ (weight if module.is_transposed else weight.T)
    return rows if bias is None else rows + bias[expert]


def inputs(module, hidden, chosen):
    """Returns, for each parameter, the input rows of each expert. `chosen` are the experts of each row of `hidden`."""
    first, last = parameters(module)[0], "down_proj"
    found = {first: [], last: []}
    for expert in range(module.num_experts):
        rows = hidden[(chosen == expert).any(-1)]
        found[first].append(rows)
        inner = apply(module, first, expert, rows)
        found[last].append(module._apply_gate(inner) if module.has_gate else module.act_fn(inner))
    return found


def updated(module, factors, arguments, keywords):
    """Returns the output of a module of experts with `W + s B A` as each matrix. `factors` has A, B and s by parameter."""
    before = {}
    for name, (a, b, scale) in factors.items():
        weight = getattr(module, name)
        before[name] = weight.data
        a, b = a.reshape(module.num_experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, module.num_experts)
        update = torch.einsum("ore,eri->eoi", b, a)
        weight.data = weight.data + scale * (update.transpose(1, 2) if module.is_transposed else update)
    output = module(*arguments, **keywords)
    for name, data in before.items():
        getattr(module, name).data = data
    return output
