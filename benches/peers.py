"""Compares ways to the Gram matrix of the columns: OpenBLAS and torch, and those of `cargo bench --bench peak_share`.

    benches/peers.sh [ROUNDS]

Each round runs that benchmark, and then the peers at the same shapes, each shape in a process of its own with the same number of threads.
So other load slows all of them. The numbers are exact in bf16. Prints the best of the rounds in GFLOP/s, counted as those of the triangle
for every way, and the share of the best FMA peak. See benches/README.md.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np

PEERS = ["OpenBLAS ssyrk", "torch f32", "torch bf16"]
# The names of the ways of peak_share.
OURS = {"faer_f32": "faer f32", "f32": "f32", "bf16": "bf16", "bf16_products": "bf16_products"}


def rows_of(width, rows):
    """Returns uniform numbers between -1 and 1, cut to bf16, in f32."""
    numbers = np.random.default_rng(0).uniform(-1, 1, (rows, width)).astype(np.float32)
    return (numbers.view(np.uint32) & 0xFFFF0000).view(np.float32)


def openblas(x):
    """Returns a function that computes the upper triangle by scipy's `ssyrk`, always in the same memory, and the version."""
    import scipy
    from scipy.linalg import blas

    library = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    result = np.zeros((x.shape[1], x.shape[1]), np.float32, order="F")

    # The transposed rows are a matrix in Fortran's order, which is not copied. Neither is the result.
    product = lambda: blas.ssyrk(1.0, x.T, c=result, overwrite_c=True)
    return product, f"scipy {scipy.__version__} with {library['name']} {library['version']}"


def by_torch(x, threads, dtype):
    """Returns a function that computes the whole square by torch, always in the same memory, and the version."""
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(x).to(dtype=getattr(torch, dtype))
    result = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
    return lambda: torch.mm(x.T, x, out=result), f"torch {torch.__version__}"


def check(name, result, x, tolerance):
    """Compares some elements of the upper triangle with float64."""
    rows, width = x.shape
    for i, j in [(0, 0), (0, width - 1), (1, width // 2), (width // 2, width - 1), (width - 1, width - 1)]:
        expected = float(x[:, i].astype(np.float64) @ x[:, j].astype(np.float64))
        # The squares of a column sum to a third of the rows.
        if not abs(float(result[i, j]) - expected) < tolerance * rows / 3:
            sys.exit(f"{name}, ({i}, {j}): {float(result[i, j])} in place of {expected}")


def measure(width, rows, threads):
    """Returns GFLOP/s of each peer, and their versions. A peer that is not installed is left out."""
    x = rows_of(width, rows)
    ways = {
        "OpenBLAS ssyrk": (lambda: openblas(x), 1e-4),
        "torch f32": (lambda: by_torch(x, threads, "float32"), 1e-4),
        # Its result is rounded to bf16.
        "torch bf16": (lambda: by_torch(x, threads, "bfloat16"), 1e-2),
    }
    rates, versions = {}, []
    for name, (prepare, tolerance) in ways.items():
        try:
            product, version = prepare()
        except ModuleNotFoundError:
            continue
        check(name, product(), x, tolerance)
        start = time.perf_counter()
        product()
        rates[name] = rows * width * (width + 1) / 1e9 / (time.perf_counter() - start)
        versions.append(version)
    return rates, versions


def run(command, **variables):
    """Returns what a command prints."""
    return subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, check=True, text=True).stdout


def ours():
    """Returns one row of `peak_share` for each width and number of threads: a cell for each name."""
    printed = run(["cargo", "bench", "--quiet", "--bench", "peak_share", "--", "1"])
    head, _, *lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    return [dict(zip(head, line)) for line in lines]


def main(rounds):
    best, versions = {}, {}
    for _ in range(rounds):
        for row in ours():
            width, threads, peak = row["width"], row["threads"], float(row["peak, GFLOP/s"])
            limits = dict.fromkeys(["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"], threads)
            rates, used = json.loads(run([sys.executable, __file__, width, row["rows"], threads], **limits))
            versions |= dict.fromkeys(used)
            # Cells are per cent of the peak: the median, and the best in brackets.
            rates |= {title: float(row[name].split()[0]) / 100 * peak for name, title in OURS.items() if name in row}
            found = best.setdefault((width, threads), {"FMA peak": 0})
            for title, rate in [("FMA peak", peak), *rates.items()]:
                found[title] = max(rate, found.get(title, 0))
    titles = ["FMA peak", *PEERS, *OURS.values()]
    print("|", " | ".join(["width", "threads", *titles]), "|\n" + "| --- " * (2 + len(titles)) + "|")
    for shape, found in best.items():
        peak = found["FMA peak"]
        cell = lambda rate: f"{rate:.0f} ({100 * rate / peak:.0f} %)"
        cells = [cell(found[title]) if title in found else "not installed" if title in PEERS else "none" for title in titles[1:]]
        print("|", " | ".join([*shape, f"{peak:.0f}", *cells]), "|")
    print("\n" + ", ".join([f"Best of {rounds} rounds", f"numpy {np.__version__}", *versions]))


if len(sys.argv) == 2:
    main(int(sys.argv[1]))
else:
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
