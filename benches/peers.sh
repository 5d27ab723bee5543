#!/usr/bin/env bash
# Compares ways to the Gram matrix on this machine, and prints one table: OpenBLAS, torch, faer, and cntlora. See peers.py.
#
#     PYTHON=venv/bin/python benches/peers.sh [ROUNDS]
#
# PYTHON (python3 by default) needs numpy. The columns of scipy and torch say "not installed" without these packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# Every library chooses its own kernels.
unset OPENBLAS_CORETYPE ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS ATEN_CPU_CAPABILITY
unset OMP_PROC_BIND OMP_PLACES KMP_AFFINITY GOMP_CPU_AFFINITY
exec "${PYTHON:-python3}" benches/peers.py "${1:-3}"
