"""Writes subspaces.json: the methods of 2025 and 2026 that take a subspace, by their formulas, in numpy and float64.

    python3 subspaces.py > subspaces.json

    C, S   second moments of the fine-tuning and the pre-training rows        W   weight (m, d)
    SC-LoRA     Q: leading eigenvectors of (1 - beta) W C W' - beta W S W';   B = Q, A = Q' W
    Astra       SC-LoRA with beta = 0; effective rank: exp of the entropy of the eigenvalues' shares
    LoRA-Null   U: last eigenvectors of S;   X s Y' = svd(W U U');   B = X sqrt(s / scale), A = sqrt(s / scale) Y'
    OLoRA tail  U s V' = svd(W);   B = last columns of U, A = last rows of V'
    MiCA        B = last columns of U, A = 0
"""
import json
import sys

import numpy as np

rng = np.random.default_rng(20261130)
RANK, SCALE, BETAS = 3, 2.0, [0.0, 0.3, 0.5, 0.8, 1.0]


def stored(matrix):
    """Returns the numbers of a file: as many digits as an f32 has."""
    return [[float(f"{value:.7g}") for value in row] for row in matrix]


def moment(rows):
    return rows.T @ rows / len(rows)


def leading(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]


def case(name, m, d, rows, loud=()):
    """Channels and outputs have sizes of their own, so that no two directions are alike."""
    mixing = rng.normal(size=(d, d)) / d**0.5 + np.eye(d)
    x = rng.normal(size=(rows, d)) * 0.8 ** np.arange(d) @ mixing + rng.normal(size=d)
    z = rng.normal(size=(rows, d)) * 0.7 ** np.arange(d)[::-1] @ mixing
    for channel in loud:
        x[:, channel] *= 100
        z[:, channel] *= 80
    W = rng.normal(size=(m, d)) * (0.85 ** rng.permutation(m))[:, None]
    # The oracle sees the numbers of the file.
    x, z, W = (np.array(stored(matrix)).astype(np.float32).astype(np.float64) for matrix in (x, z, W))
    C, S = moment(x), moment(z)
    found = dict(name=name, target=stored(x), source=stored(z), weight=stored(W), sc_lora=[])
    for beta in BETAS:
        _, Q = leading((1 - beta) * W @ C @ W.T - beta * W @ S @ W.T)
        B = Q[:, :RANK]
        found["sc_lora"].append(dict(beta=beta, b=stored(B), a=stored(B.T @ W)))
    values, _ = leading(W @ C @ W.T)
    shares = values[values > 0] / values[values > 0].sum()
    found["effective_rank"] = float(np.exp(-(shares * np.log(shares)).sum()))
    U = np.linalg.eigh(S)[1][:, :RANK]
    X, s, Y = np.linalg.svd(W @ U @ U.T)
    root = (s[:RANK] / SCALE) ** 0.5
    found["lora_null"] = dict(b=stored(X[:, :RANK] * root), a=stored(Y[:RANK] * root[:, None]))
    U, s, V = np.linalg.svd(W, full_matrices=False)
    found["olora_tail"] = dict(b=stored(U[:, -RANK:]), a=stored(V[-RANK:]))
    return found


cases = [
    case("wide", 7, 10, 60),
    case("tall", 11, 6, 60),
    case("square", 8, 8, 40),
    case("few rows", 6, 9, 5),
    case("outliers", 9, 7, 80, loud=(2, 5)),
]
json.dump(dict(rank=RANK, scale=SCALE, cases=cases), sys.stdout, separators=(",", ":"))
print()
