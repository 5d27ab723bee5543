"""Compares two models with adapters: python compare.py INPUTS BASE ADAPTER OTHER_BASE OTHER_ADAPTER [ANCHOR of ADAPTER]."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "peft"))

import torch
from safetensors.torch import load_file

from common import load_model
from train import add_anchor, load

inputs = load_file(sys.argv[1])


def outputs(base, adapter, anchor=None):
    model = load(load_model(base).eval(), adapter)
    if anchor:
        add_anchor(model, anchor)
    with torch.no_grad():
        return model(**inputs)[0]


found, wanted = outputs(sys.argv[2], sys.argv[3], *sys.argv[6:]), outputs(sys.argv[4], sys.argv[5])
difference = ((found - wanted).norm() / wanted.norm()).item()
assert difference <= 1e-5, f"the outputs differ by {difference:.1e}"
print(f"{sys.argv[5]}: the output of the trained model, to {difference:.1e}")
