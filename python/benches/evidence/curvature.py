"""A bound of the curvature that a start gives to the loss, from quantities that an initialization knows.

An adapted layer computes y = W x + s B A x. If the loss curves by at most h along its outputs, it curves by at most
h s² λmax(A C Aᵀ) along B, and by at most h s² |B|² λmax(C) along A, where C = E[x xᵀ] and |B| is the spectral norm. The factor h is the
same for every start on the same task, so it drops out when two starts are compared.
"""

import json

import torch
from cntlora.comparison.starts import Task
from starts import second_moments, start_of

# The seeds are not used by any run.
SEEDS = (100, 101)


@torch.no_grad()
def bound(model, batches):
    """Returns the sums over all layers of s² λmax(A C Aᵀ), and of s² |B|² λmax(C)."""
    along_b = along_a = 0.0
    for layer, moment in second_moments(model, batches).values():
        a, b = (weights.double() for weights in layer.factors())
        along_b += layer.scale**2 * torch.linalg.eigvalsh(a @ moment @ a.T)[-1].item()
        along_a += layer.scale**2 * torch.linalg.matrix_norm(b, 2).item() ** 2 * torch.linalg.eigvalsh(moment)[-1].item()
    return along_b, along_a


def measure(task, starts, path):
    """Writes the bound of each start, as the mean over two seeds, as JSON."""
    torch.set_num_threads(1)
    found = {}
    for start in map(start_of, starts):
        try:
            values = [one(task, start, seed) for seed in SEEDS]
        except ValueError as error:
            print(f"{start.name}: left out: {error}")
            continue
        along_b, along_a = (sum(part) / len(values) for part in zip(*values))
        found[start.name] = {"along_b": along_b, "along_a": along_a}
        print(f"{start.name:10} {along_b:12.4g} {along_a:12.4g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def one(task, start, seed):
    torch.manual_seed(seed)
    base = task.make_model(seed).eval()
    made = Task(base, task.config(), task.loader, task.source, task.loss)
    model = start.prepare(made).eval()
    return bound(model, task.loader())
