"""The starts that the evidence compares: those of the field, and the choices inside cntlora."""

import dataclasses

import torch
from cntlora import Start
from cntlora.comparison.starts import BUILT_IN
from cntlora.layers import layers_of
from cntlora.running import call

PEERS = (
    *("lora", "lora-2r", "rslora", "lora+", "lora-ga"),
    # PEFT's own give the same adapters to 1e-4. They take up to a minute for each run of MiniLM, and refuse convolutions.
    *(Start(name, options=dict(method=method)) for name, method in dict(pissa="pissa", olora="olora", eva="eva", corda="corda-ipm").items()),
    *("sc-lora", "astra", "cntlora"),
)


@torch.no_grad()
def second_moments(model, batches):
    """Returns E[x xᵀ] of the inputs of every linear layer with an adapter, as f64, by name."""
    layers, _ = layers_of(model, "default")
    sums, hooks = {}, []

    def add(name):
        def hook(_, inputs):
            rows = inputs[0].flatten(0, -2).double()
            total, count = sums.get(name, (0, 0))
            sums[name] = total + rows.T @ rows, count + len(rows)

        return hook

    for name, layer in layers.items():
        if not (layer.is_convolution or layer.is_embedding):
            hooks.append(layer.base.register_forward_pre_hook(add(name)))
    for batch in batches:
        call(model, batch)
    for hook in hooks:
        hook.remove()
    return {name: (layers[name], total / count) for name, (total, count) in sums.items()}


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Multiplies both factors."""

    factor: float

    @torch.no_grad()
    def __call__(self, model, task):
        for layer in layers_of(model, "default")[0].values():
            for weights in layer.factors():
                weights.mul_(self.factor)


@torch.no_grad()
def balanced_on_activations(model, task):
    """Gives both parts of each unit the same size: |b|² = a C aᵀ. The product of each unit stays."""
    for layer, moment in second_moments(model, task.batches("balanced")).values():
        a, b = layer.factors()
        output = torch.einsum("ri,ij,rj->r", a.double(), moment, a.double()).clamp_min(1e-30).sqrt()
        factor = (b.double().norm(dim=0) / output).sqrt().clamp(1e-3, 1e3)
        a.mul_(factor.unsqueeze(1).to(a.dtype))
        b.div_(factor.to(b.dtype))


@torch.no_grad()
def decorrelated(model, task):
    """Makes the outputs of A uncorrelated on the data, each as large as the mean of plain LoRA: A C Aᵀ = tr(C) / (3 n) · I."""
    for layer, moment in second_moments(model, task.batches("decorrelated")).values():
        a, _ = layer.factors()
        values, vectors = torch.linalg.eigh(a.double() @ moment @ a.double().T)
        inverse = vectors @ torch.diag(values.clamp_min(1e-9 * values.max()).rsqrt()) @ vectors.T
        size = (moment.trace() / (3 * len(moment))).sqrt()
        a.copy_(size * inverse @ a.double())


MIRRORED = dict(start="mirrored")

CHOICES = (
    BUILT_IN["cntlora"],
    Start("coupling transport", options=dict(coupling="transport")),
    Start("with pre-training data", options=dict(source=True)),
    Start("transport with pre-training data", options=dict(coupling="transport", source=True)),
    Start("cut in the norm of weights", options=dict(norm="weights")),
    Start("A at half the size", options={}, change=Scaled(0.5)),
    Start("A at twice the size", options={}, change=Scaled(2.0)),
    Start("decorrelated", options={}, change=decorrelated),
    Start("eva, decorrelated", options=dict(method="eva"), change=decorrelated),
    Start("lora, decorrelated", change=decorrelated),
    Start("start mirrored", options=MIRRORED),
    Start("mirrored at half the size", options=MIRRORED, change=Scaled(0.5)),
    Start("mirrored at 0.71 of the size", options=MIRRORED, change=Scaled(0.5**0.5)),
    Start("mirrored at twice the size", options=MIRRORED, change=Scaled(2.0)),
    Start("mirrored, balanced on activations", options=MIRRORED, change=balanced_on_activations),
    Start("mirrored, transport with pre-training data", options=dict(MIRRORED, coupling="transport", source=True)),
    Start("start residual", options=dict(start="residual")),
    *(Start(f"start update, shift {shift}", options=dict(start="update", max_shift=shift)) for shift in (0.02, 0.05, 0.2)),
    Start("budget", options=dict(budget=True)),
    Start("energy 0.3", options=dict(energy=0.3, max_rank=32)),
    *(Start(f"ridge {ridge}", options=dict(ridge=ridge)) for ridge in (0.001, 0.1, 1.0)),
    *(Start(f"{count} batches", options={}, batches=count) for count in (1, 4)),
)


def start_of(one):
    """Returns a start from its name or itself."""
    return BUILT_IN[one] if isinstance(one, str) else one


PARTS = {"peers": (PEERS, "lora"), "choices": (CHOICES, "cntlora")}
"""The starts of each part, and the one that the others are compared with."""


def part(name, only=None):
    """Returns the starts of a part and the name of its baseline. With names in `only`, it returns these starts and the baseline.

    Raises ValueError for names that the part does not have.
    """
    starts, baseline = PARTS[name]
    known = {start_of(start).name: start for start in starts}
    if unknown := [start for start in only or () if start not in known]:
        raise ValueError(f"no start of the part {name} is named {', '.join(unknown)}; these are: {', '.join(known)}")
    return [start for start_name, start in known.items() if not only or start_name in (baseline, *only)], baseline
