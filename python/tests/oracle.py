"""The sums over the inputs of layers, computed without the recorder: with hooks that keep whole inputs, and with numpy in f64."""

import json

import numpy as np
import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode


def array(tensor):
    return tensor.detach().to(torch.float64).cpu().numpy().copy()


def inputs(model, names, run):
    """Returns the inputs of modules and their addresses, in the order of the calls. All inputs are kept, so that addresses differ."""
    kept, addresses, alive, handles = {}, {}, [], []
    modules = dict(model.named_modules())
    for name in names:
        def keep(_, args, kwargs, name=name):
            tensor = (*args, *kwargs.values())[0]
            kept.setdefault(name, []).append(array(tensor))
            addresses.setdefault(name, []).append(tensor.data_ptr())
            alive.append(tensor)
        handles.append(modules[name].register_forward_pre_hook(keep, with_kwargs=True))
    run()
    for handle in handles:
        handle.remove()
    return kept, addresses


def rows(tensors, masks):
    """Joins the rows of inputs [..., width]. Each input has a mask of its leading axes, or None."""
    parts = []
    for tensor, mask in zip(tensors, masks, strict=True):
        flat = tensor.reshape(-1, tensor.shape[-1])
        parts.append(flat if mask is None else flat[np.asarray(mask, dtype=bool).reshape(-1)])
    return np.concatenate(parts)


def patches(tensors, kernel, stride, padding):
    """Joins the patches of the inputs of a convolution [images, channels, space…], one place after another."""
    found = []
    for tensor in tensors:
        tensor = np.pad(tensor, [(0, 0), (0, 0), *((size, size) for size in padding)])
        places = [range(0, size - k + 1, s) for size, k, s in zip(tensor.shape[2:], kernel, stride)]
        for image in tensor:
            for place in np.ndindex(*map(len, places)):
                window = tuple(slice(p[i], p[i] + k) for p, i, k in zip(places, place, kernel))
                found.append(image[(slice(None), *window)].reshape(-1))
    return np.stack(found)


class ExpertInputs(TorchFunctionMode):
    """Keeps the rows that each matrix of fused experts multiplies."""

    def __init__(self, parameters):
        super().__init__()
        self.parameters, self.kept = parameters, {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            for name, parameter in self.parameters.items():
                offset = args[1].data_ptr() - parameter.data_ptr()
                if args[1].untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
                    expert = offset // (parameter[0].numel() * parameter.element_size())
                    self.kept.setdefault(name, {}).setdefault(expert, []).append(array(args[0]))
        return function(*args, **(kwargs or {}))


def saved(path):
    """Reads a moments file: the sums of each site, its modules, and the site of each module."""
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        sites = {name: site["modules"] for name, site in json.loads(file.metadata()["cntlora"])["sites"].items()}
    found = {}
    for site in sites:
        if f"{site}/counts" in tensors:
            found[site] = dict(tokens=tensors[f"{site}/counts"])
            continue
        total = tensors[f"{site}/sum"]
        gram = np.zeros((len(total), len(total)))
        gram[np.triu_indices(len(total))] = tensors[f"{site}/gram"]
        found[site] = dict(
            count=int(tensors[f"{site}/count"]), sum=total, gram=np.triu(gram, 1).T + gram, abs_max=tensors[f"{site}/abs_max"]
        )
    return found, sites, {module: site for site, modules in sites.items() for module in modules}


def check(found, rows, name, tolerance=1e-5):
    """Compares the sums of a site with its rows. The tool adds products of f32 in blocks, and the blocks in f64."""
    assert found["count"] == len(rows), f"{name}: {found['count']} rows, expected {len(rows)}"
    gram = rows.T @ rows
    scale = np.abs(gram).max() + 1e-30
    assert np.abs(found["gram"] - gram).max() <= tolerance * scale, name
    assert np.abs(found["sum"] - rows.sum(0)).max() <= tolerance * np.abs(rows).sum(0).max(), name
    assert np.allclose(found["abs_max"], np.abs(rows).max(0), rtol=1e-6), name


def close(found, expected, tolerance=1e-5):
    """True if all numbers are equal up to a share of the largest one."""
    return np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
