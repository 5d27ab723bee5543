"""Brings the rows of inputs to the CPU, in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .errors import error

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# Bytes of a block that is copied.
BLOCK = 1 << 26


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """Returns an input as [rows, width]; without a copy where its layout allows."""
    return tensor.detach().reshape(-1, tensor.shape[-1])


def is_elsewhere(rows: torch.Tensor) -> bool:
    """Returns whether rows are copied because they are not in the memory of the CPU."""
    return rows.device.type != "cpu"


def blocks(rows: torch.Tensor, selection: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Yields the selected rows as blocks [rows, width] on the CPU. Rows on the CPU are copied only if some are left out."""
    if rows.is_complex() or not rows.is_floating_point():
        raise error("data", f"expected an input of floating-point numbers, found {rows.dtype}")
    rows = rows.detach()
    if not is_elsewhere(rows) and selection is None and rows.dtype in DTYPES:
        if len(rows):
            yield rows
        return
    count = max(1, BLOCK // max(1, rows.shape[1] * rows.element_size()))
    if selection is not None:
        selection = selection.to(rows.device)
    for first in range(0, len(rows) if selection is None else len(selection), count):
        part = rows[first : first + count] if selection is None else rows[selection[first : first + count]]
        yield (part if part.dtype in DTYPES else part.float()).cpu()
