"""Records the inputs of a transformers model's layers, in the form that cntlora reads.

    python record.py MODEL --text examples.txt --target q_proj,v_proj --out activations

The script finds modules with the same input when they first run, and stores their input once. It leaves out rows of padding, by the
attention mask, or by decoder_attention_mask in a decoder. It stores numbers as bf16, and begins a new file after --shard-rows rows or
--shard-bytes bytes, whichever comes first. It stores inputs of convolutions as they are, with the kernel in the metadata. The rows of
all fused experts of a layer are one site; with --per-expert each expert has its own site. For an embedding, the script stores how
often each token occurred. It records embeddings only if --target names them.
"""
import argparse
import hashlib
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

import experts
from common import add_input_options, batches, load_model

# Names of the modules with which a decoder reads the output of its encoder.
CROSS_ATTENTION = ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn")
KEYS_AND_VALUES = ("k_proj", "v_proj", "k", "v", "key", "value")
CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def wanted(model, targets):
    """Returns the layers to record, by name: those whose name is a target or ends with one, or all layers except the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = {}

    def named(name):
        return any(name == target or name.endswith("." + target) for target in targets)

    def chosen(name):
        return not targets or named(name)

    for name, module in model.named_modules():
        found.update({f"{name}.{last}": module for last in experts.parameters(module) if chosen(f"{name}.{last}")})
        if isinstance(module, torch.nn.Embedding) and named(name):
            found[name] = module
        if not isinstance(module, (torch.nn.Linear, Conv1D, *CONVOLUTIONS)) or module is head:
            continue
        if isinstance(module, CONVOLUTIONS) and reason_against(module):
            print(f"left out: {name}: {reason_against(module)}")
        elif chosen(name):
            found[name] = module
    if not found:
        raise SystemExit(f"no layer is named {', '.join(targets)}" if targets else "the model has no layer to record")
    return found


def reason_against(convolution):
    """Returns the reason why a convolution cannot be adapted, or None."""
    if any(number != 1 for number in convolution.dilation):
        return "PEFT does not adapt dilated convolutions"
    if isinstance(convolution.padding, str) or convolution.padding_mode != "zeros":
        return "only numbers of zeros as padding are understood"
    return None


def counting(places, masks):
    """Returns a mask of the positions that count: the first of the masks that has the shape of the input, or else all positions.

    Some models put the tokens of all examples in one row before their layers read them.
    """
    for mask in masks:
        if places in (mask.shape, (mask.numel(),)):
            return mask.bool().reshape(places)
    return torch.ones(places, dtype=torch.bool)


def rows_of(tensor, masks, module):
    """Returns the rows that count, as [rows, width]. Inputs of convolutions stay as they are.

    For embeddings, returns how often each token occurred.
    """
    tensor = tensor.detach()
    if isinstance(module, torch.nn.Embedding):
        return torch.bincount(tensor[counting(tensor.shape, masks)], minlength=module.num_embeddings)
    if isinstance(module, CONVOLUTIONS):
        return tensor if tensor.dim() == len(module.kernel_size) + 2 else tensor.unsqueeze(0)
    return tensor[counting(tensor.shape[:-1], masks)]


def masks_of(batch, name, has_encoder):
    """Returns the masks that may mark the inputs of a module that count, the most likely one first."""
    attention, decoder = batch.get("attention_mask"), batch.get("decoder_attention_mask")
    parts = name.split(".")
    reads_encoder = parts[-1] in KEYS_AND_VALUES and any(part in CROSS_ATTENTION for part in parts)
    if not has_encoder:
        masks = [attention]
    elif "decoder" in parts and not reads_encoder:
        masks = [decoder]
    else:
        masks = [attention, decoder]
    return [mask for mask in masks if mask is not None]


class Recorder:
    """Collects the inputs of each layer, and writes them in shards."""

    def __init__(self, model, modules, out, shard_rows, shard_bytes, per_expert):
        self.has_encoder = getattr(model.config, "is_encoder_decoder", False)
        self.modules, self.out, self.per_expert = modules, pathlib.Path(out), per_expert
        self.shard_rows, self.shard_bytes = shard_rows, shard_bytes
        self.site_of, self.digests, self.rows = {}, {}, {}
        self.batch, self.shard = {}, 0
        self.out.mkdir(parents=True, exist_ok=True)
        self.handles = [
            module.register_forward_pre_hook(self.hook_experts(name, module))
            if experts.parameters(module)
            else module.register_forward_pre_hook(self.hook(name, module))
            for name, module in modules.items()
        ]

    def hook_experts(self, name, module):
        parent, _, parameter = name.rpartition(".")

        def keep(_, args):
            hidden, chosen = args[0].detach().flatten(0, -2), args[1]
            counts = counting(hidden.shape[:1], masks_of(self.batch, name, self.has_encoder))
            rows = experts.inputs(module, hidden[counts], chosen[counts])[parameter]
            sites = {f"{name}.{number}": part for number, part in enumerate(rows)} if self.per_expert else {name: torch.cat(rows)}
            for site, part in sites.items():
                if len(part) > 0:
                    self.site_of[site] = site
                    self.keep(site, part)

        return keep

    def hook(self, name, module):
        def keep(_, args):
            if self.site_of.get(name, name) != name:
                return
            rows = rows_of(args[0], masks_of(self.batch, name, self.has_encoder), module)
            if name not in self.site_of:
                # Convolutions with the same input may unfold it into different patches.
                kind = (tuple(module.kernel_size), tuple(module.stride), tuple(module.padding)) if isinstance(module, CONVOLUTIONS) else None
                if isinstance(module, torch.nn.Embedding):
                    kind = name  # equal counts do not mean equal tokens
                digest = hashlib.sha256(rows.float().contiguous().numpy().tobytes())
                self.site_of[name] = self.digests.setdefault((tuple(rows.shape), kind, digest.digest()), name)
                if self.site_of[name] != name:
                    return
            if isinstance(module, torch.nn.Embedding):
                self.rows[name] = [sum(self.rows.get(name, []), rows.cpu())]
            else:
                self.keep(name, rows)

        return keep

    def keep(self, site, rows):
        self.rows.setdefault(site, []).append(rows.to(torch.bfloat16).cpu())

    def after_batch(self):
        # Inputs that are equal in one batch can differ in the next, so only inputs of the same batch are compared.
        self.digests = {}
        rows = (sum(len(part) for part in parts if part.dim() > 1) for parts in self.rows.values())
        size = sum(part.nbytes for parts in self.rows.values() for part in parts)
        if max(rows, default=0) >= self.shard_rows or size >= self.shard_bytes:
            self.write()

    def never_reached(self):
        """Yields the layers without recorded rows and, with per_expert, each expert that received no row."""
        for name, module in self.modules.items():
            by_number = self.per_expert and experts.parameters(module)
            expected = [f"{name}.{number}" for number in range(module.num_experts)] if by_number else [name]
            yield from (site for site in expected if site not in self.site_of)

    def metadata(self):
        sites, convolutions = {}, {}
        for name in self.rows:
            sites[name] = [module for module, site in self.site_of.items() if site == name]
            module = self.modules.get(name)
            if isinstance(module, CONVOLUTIONS):
                convolutions[name] = dict(
                    kernel=list(module.kernel_size), stride=list(module.stride), padding=list(module.padding)
                )
        content = dict(format="activations", version=1, sites=sites, convolutions=convolutions)
        return {"cntlora": json.dumps(content, sort_keys=True)}

    def write(self):
        if not self.rows:
            return
        self.shard += 1
        tensors = {name: torch.cat(parts).contiguous() for name, parts in self.rows.items()}
        save_file(tensors, self.out / f"part-{self.shard:05}.safetensors", metadata=self.metadata())
        self.rows = {}

    def close(self):
        self.write()
        for handle in self.handles:
            handle.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_options(parser)
    parser.add_argument("--target", default="", help="names of layers, or their last parts, separated by commas; all without it")
    parser.add_argument("--out", required=True, help="folder for the activations")
    parser.add_argument("--shard-rows", type=int, default=65536, help="rows of a site, after which a file is written")
    parser.add_argument("--shard-bytes", type=int, default=2**30, help="bytes in memory, after which a file is written")
    parser.add_argument("--per-expert", action="store_true", help="a site for each expert, with the rows that reach it")
    args = parser.parse_args()
    model = load_model(args.model).eval()
    modules = wanted(model, [target for target in args.target.split(",") if target])
    recorder = Recorder(model, modules, args.out, args.shard_rows, args.shard_bytes, args.per_expert)
    with torch.no_grad():
        for batch in batches(args):
            recorder.batch = batch
            model(**batch)
            recorder.after_batch()
    recorder.close()
    for name in recorder.never_reached():
        print(f"never reached: {name}")
    sites = len(set(recorder.site_of.values()))
    print(f"{len(recorder.site_of)} layers at {sites} sites, {recorder.shard} files in {args.out}")


if __name__ == "__main__":
    main()
