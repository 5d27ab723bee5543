"""What the tests of the recorder share."""

import torch

import oracle
from cntlora.recorder import Recorder


def sums(recorder, tmp_path):
    """Returns the sums of a recorder by site."""
    recorder.save(tmp_path / "x.moments.safetensors")
    return oracle.saved(tmp_path / "x.moments.safetensors")[0]


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def run(model, batch, *contexts, **options):
    """Records one forward pass."""
    with Recorder(model, **options) as recorder, torch.no_grad():
        model(**batch)
    return recorder


def same(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for site, one in found.items():
        other = expected[site]
        assert one["count"] == other["count"], site
        assert oracle.close(one["gram"], other["gram"], tolerance), site


class Shared(torch.nn.Module):
    """Reads one input with two layers, until it is told to give them different inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(5, 3) for _ in range(3))
        self.step = lambda model, x: [model.a(x), model.b(x), model.c(x + 1)]

    def forward(self, x):
        return self.step(self, x)
