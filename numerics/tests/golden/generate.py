"""Writes reference.json: small problems solved by the numpy reference of the method.

    python3 generate.py PATH/TO/cntlora_reference.py > reference.json

Needs numpy. The tests read the JSON; nothing but this script needs Python.
"""
import importlib.util
import json
import sys

import numpy as np

spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def single(matrix):
    """Rounded to f32, so that both sides start from the same numbers."""
    return np.asarray(matrix, np.float32).astype(np.float64)


def rounded(matrix):
    return np.asarray(matrix, np.float64).tolist()


cases = []
rng = np.random.default_rng(20261123)
for index, (n, d, m, rank) in enumerate([(40, 6, 5, 2), (60, 9, 4, 3), (50, 7, 7, 4)]):
    X = single(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 0.5 + rng.normal(size=d))
    Z = single(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 0.5 + 0.3 * X)
    W = single(rng.normal(size=(m, d)))
    target, source = reference.moments(X), reference.moments(Z)
    for coupling in ["transport", "uncorrelated", "paired"]:
        for measured in [False, True]:
            if coupling == "paired" and not measured:
                continue
            for preserve in [0.0, 0.7]:
                for norm in ["activations", "weights"]:
                    given = source if measured else None
                    pair = (X, Z) if coupling == "paired" else None
                    Delta = reference.update(W, coupling, target, given, pair, rho=0.02, preserve=preserve)
                    C = target[2] if norm == "activations" else None
                    B, A, s = reference.low_rank(Delta, rank, C, rho=0.02)
                    cases.append(dict(
                        data=index, coupling=coupling, source=measured, preserve=preserve, norm=norm, rank=rank,
                        ridge=0.02, up=rounded(B), down=rounded(A), singular_values=rounded(s),
                        strength=float(reference.trust_region(W, B, A, target[2], 0.05)),
                    ))
    if index == 0:
        data = []
    data.append(dict(target=rounded(X), source=rounded(Z), weight=rounded(W)))

budgets = []
for trial in range(12):
    layers = int(rng.integers(1, 6))
    spectra = [sorted((rng.integers(0, 12, size=rng.integers(1, 9)) / 4.0).tolist(), reverse=True) for _ in range(layers)]
    params = [int(p) for p in rng.integers(5, 60, size=layers)]
    r_min, r_max = int(rng.integers(0, 2)), int(rng.integers(1, 9))
    budget = int(sum(params) * (r_min + rng.uniform(0.3, 4)))
    ranks = reference.ranks_by_energy(spectra, params, budget, r_min, r_max)
    if any(ranks):
        budgets.append(dict(spectra=spectra, params=params, budget=budget, min=r_min, max=r_max, ranks=ranks))

json.dump(dict(data=data, cases=cases, budgets=budgets), sys.stdout, indent=None, separators=(",", ":"))
print()
