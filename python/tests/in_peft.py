"""Checks of adapter folders in PEFT, against what the files say: read without PEFT, layer by layer."""

import contextlib
import json
import re
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file

TOLERANCE = 1e-5
EXPERTS = ("gate_up_proj", "up_proj", "down_proj")


def factors(folder):
    """Returns A, B and s of every module, read without PEFT."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")

    def pattern(name, module, default):
        matches = (value for key, value in config[name].items() if re.match(rf"(.*\.)?({key})$", module))
        return next(matches, default)

    found = {}
    for key, a in tensors.items():
        if key.endswith((".lora_A.weight", ".lora_embedding_A")):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").removesuffix(".lora_embedding_A")
            b = tensors[key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")]
            module, is_parameter = _parameter_of(module, config.get("target_parameters") or [])
            alpha = pattern("alpha_pattern", module, config["lora_alpha"])
            rank = pattern("rank_pattern", module, config["r"])
            assert is_parameter or rank == len(a), f"{module}: rank {rank} in the configuration, {len(a)} in the tensors"
            found[module] = a.float(), b.float(), alpha / rank
    return found


def _parameter_of(name, targets):
    """Returns the parameter of experts that PEFT wraps under this name, and True; or the name itself, and False.

    PEFT nests the wrappers of one module: the outermost wrapper is for the last parameter of the module.
    """
    parent = name
    while parent.endswith(".base_layer"):
        parent = parent.removesuffix(".base_layer")
    siblings = [last for last in EXPERTS if f"{parent}.{last}" in targets]
    if not siblings:
        return name, False
    return f"{parent}.{siblings[-1 - name.count('.base_layer')]}", True


def _expected(base, x, a, b, scale):
    """Returns W x + s B A x. For an embedding, x is a unit vector.

    Convolutions of one and two dimensions are computed from unfolded patches, those of three from the updated weight.
    """
    if a.dim() == 5:
        weight = base.weight + scale * (b.flatten(1) @ a.flatten(1)).view_as(base.weight)
        return torch.nn.functional.conv3d(x, weight, base.bias, base.stride, base.padding)
    y = base(x)
    if isinstance(base, torch.nn.Embedding):
        # Some models scale their embeddings, and PEFT scales its update in the same way.
        return y + scale * a.T[x] @ b.T * getattr(base, "embed_scale", 1)
    if a.dim() == 2:
        return y + scale * (x @ a.T) @ b.T
    kernel, padding, stride, images = base.kernel_size, base.padding, base.stride, x
    if a.dim() == 3:
        kernel, padding, stride, images = (1, *kernel), (0, *padding), (1, *stride), x.unsqueeze(2)
    patches = torch.nn.functional.unfold(images, kernel, padding=padding, stride=stride)
    # Each group reads its own part of the output of A.
    update = torch.nn.functional.conv1d(a.flatten(1) @ patches, b.flatten(1).unsqueeze(2), groups=base.groups)
    return y + scale * update.view_as(y)


def _with_experts(module, parts, args, kwargs):
    """Returns the output of a module of experts with `W + s B A` as each matrix. `parts` has A, B and s by parameter."""
    before = {}
    for name, (a, b, scale) in parts.items():
        weight = getattr(module, name)
        before[name] = weight.data
        a, b = a.reshape(module.num_experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, module.num_experts)
        update = torch.einsum("ore,eri->eoi", b, a)
        weight.data = weight.data + scale * (update.transpose(1, 2) if module.is_transposed else update)
    output = module(*args, **kwargs)
    for name, data in before.items():
        getattr(module, name).data = data
    return output


def check_layers(model, folder, batch):
    """Compares the output of every adapted layer with W x + s B A x from the files. Returns the number of layers."""
    worst, seen = 0.0, set()

    def difference(found, wanted):
        return ((found - wanted).norm() / wanted.norm()).item()

    def hook(name, a, b, scale):
        def compare(module, args, output):
            nonlocal worst
            worst = max(worst, difference(output, _expected(module.base_layer, args[0], a, b, scale)))
            seen.add(name)

        return compare

    def hook_experts(parts):
        def compare(module, args, kwargs, output):
            nonlocal worst
            by_parameter = {name.rpartition(".")[2]: part for name, part in parts.items()}
            worst = max(worst, difference(output, _with_experts(module.get_base_layer(), by_parameter, args, kwargs)))
            seen.update(parts)

        return compare

    found = factors(folder)
    modules = dict(model.base_model.model.named_modules())
    parents = {name.rpartition(".")[0] for name in found if name not in modules}
    handles = [modules[name].register_forward_hook(hook(name, *parts)) for name, parts in found.items() if name in modules]
    for parent in parents:
        parts = {name: part for name, part in found.items() if name.rpartition(".")[0] == parent}
        handles.append(modules[parent].register_forward_hook(hook_experts(parts), with_kwargs=True))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    assert seen == set(found), f"never reached: {sorted(set(found) - seen)}"
    assert worst <= TOLERANCE, f"a layer differs by {worst:.1e}"
    return len(seen)


@contextlib.contextmanager
def warnings_are_errors():
    """Turns warnings into errors, except those that PEFT gives for every adapter of such a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
        # PEFT still uses an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def load(base, folder, **options):
    """Returns the model with an adapter, loaded by PEFT. A warning is an error."""
    with warnings_are_errors():
        return PeftModel.from_pretrained(base, folder, **options)


def add_anchor(model, folder):
    """Loads a second, frozen adapter that subtracts the update."""
    with warnings_are_errors():
        model.load_adapter(folder, "anchor")
    model.base_model.set_adapter(["default", "anchor"])
    for name, parameter in model.named_parameters():
        # The factors of an embedding have no further part in their names.
        if ".anchor." in name or name.endswith(".anchor"):
            parameter.requires_grad = False


def train(model, batch, steps=2):
    """Trains a few steps on the mean square of the output. The loss must be finite."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    for _ in range(steps):
        loss = model(**batch)[0].square().mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
