"""Loads an adapter that cntlora wrote, checks that every layer computes W x + s B A x, trains a few steps, and saves.

    python train.py MODEL adapter --text examples.txt --steps 20 --out trained

An adapter from a residual start needs the changed base as MODEL, or its anchor with --anchor. A warning of PEFT during loading is an error.
"""
import argparse
import contextlib
import itertools
import json
import pathlib
import re
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file

import experts
from common import add_input_options, batches, load_model

TOLERANCE = 1e-5


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
            module, is_parameter = parameter_of(module, config.get("target_parameters") or [])
            alpha = pattern("alpha_pattern", module, config["lora_alpha"])
            rank = pattern("rank_pattern", module, config["r"])
            assert is_parameter or rank == len(a), f"{module}: rank {rank} in the configuration, {len(a)} in the tensors"
            found[module] = a.float(), b.float(), alpha / rank
    return found


def parameter_of(name, targets):
    """Returns the parameter of experts that PEFT wraps under this name, and True; or the name itself, and False.

    PEFT nests the wrappers of one module: the outermost wrapper is for the last parameter of the module.
    """
    parent = name
    while parent.endswith(".base_layer"):
        parent = parent.removesuffix(".base_layer")
    siblings = [last for last in experts.PARAMETERS if f"{parent}.{last}" in targets]
    if not siblings:
        return name, False
    return f"{parent}.{siblings[-1 - name.count('.base_layer')]}", True


def expected(base, x, a, b, scale):
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
    if a.dim() == 4:
        patches = torch.nn.functional.unfold(x, base.kernel_size, padding=base.padding, stride=base.stride)
        return y + scale * up_of(base, b, a.flatten(1) @ patches).view_as(y)
    patches = torch.nn.functional.unfold(
        x.unsqueeze(2), (1, *base.kernel_size), padding=(0, *base.padding), stride=(1, *base.stride)
    )
    return y + scale * up_of(base, b, a.flatten(1) @ patches).view_as(y)


def up_of(base, b, inner):
    """Returns B times the output of A, for a convolution. Each group reads its own part of the output of A."""
    return torch.nn.functional.conv1d(inner, b.flatten(1).unsqueeze(2), groups=base.groups)


def check_layers(model, adapter, batch):
    """Compares the output of every adapted layer with W x + s B A x from the files, on the inputs of one batch."""
    worst, seen = 0.0, set()

    def hook(name, a, b, scale):
        def compare(module, args, output):
            nonlocal worst
            wanted = expected(module.base_layer, args[0], a, b, scale)
            worst = max(worst, ((output - wanted).norm() / wanted.norm()).item())
            seen.add(name)

        return compare

    def hook_experts(parts):
        def compare(module, args, keywords, output):
            nonlocal worst
            by_parameter = {name.rpartition(".")[2]: part for name, part in parts.items()}
            wanted = experts.updated(module.get_base_layer(), by_parameter, args, keywords)
            worst = max(worst, ((output - wanted).norm() / wanted.norm()).item())
            seen.update(parts)

        return compare

    found = factors(adapter)
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
    print(f"{len(seen)} layers compute W x + s B A x, to {worst:.1e}")


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
    """Returns the model with an adapter."""
    with warnings_are_errors():
        return PeftModel.from_pretrained(base, folder, **options)


def add_anchor(model, folder):
    """Loads a second, frozen adapter that subtracts the update."""
    with warnings_are_errors():
        model.load_adapter(folder, "anchor")
    model.base_model.set_adapter(["default", "anchor"])
    for name, parameter in model.named_parameters():
        if ".anchor." in name:
            parameter.requires_grad = False


def check_whole(model, original, batch):
    """Compares the output of the model with the output of another model."""
    with torch.no_grad():
        found, wanted = model(**batch)[0], original(**batch)[0]
    difference = ((found - wanted).norm() / wanted.norm()).item()
    assert difference <= 10 * TOLERANCE, f"the output differs by {difference:.1e}"
    print(f"the output is that of the other model, to {difference:.1e}")


def loss_of(model, batch):
    """Returns the model's own loss on next tokens or, for a model without a head, the mean square of its output."""
    if "input_ids" in batch and model.get_output_embeddings() is not None:
        labels = batch["input_ids"]
        if "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
        return model(**batch, labels=labels).loss
    return model(**batch)[0].square().mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_options(parser)
    parser.add_argument("adapter", help="folder of the adapter")
    parser.add_argument("--anchor", help="folder of the anchor, with --residual anchor")
    parser.add_argument("--same-as", help="a model that must compute the same before training, such as the original of a changed base")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--out", help="folder for the trained adapter")
    args = parser.parse_args()

    base = load_model(args.model).eval()
    model = load(base, args.adapter, is_trainable=True)
    batch = next(batches(args))
    check_layers(model, pathlib.Path(args.adapter), batch)
    if args.anchor:
        add_anchor(model, args.anchor)
    if args.same_as:
        check_whole(model, load_model(args.same_as).eval(), batch)

    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate)
    steps = itertools.islice(itertools.cycle(list(batches(args))), args.steps)
    for step, batch in enumerate(steps, start=1):
        loss = loss_of(model, batch)
        assert torch.isfinite(loss), f"the loss of step {step} is {loss}"
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")
    if args.out:
        model.save_pretrained(args.out, selected_adapters=["default"])
        print(f"saved in {args.out}")


if __name__ == "__main__":
    main()
