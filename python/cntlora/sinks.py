"""The places to which recorded rows go: sums in memory, or files of activations."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Protocol

import torch

from . import convolutions
from ._cntlora import Statistics
from .errors import error, quoted
from .rows import DTYPES, blocks, flattened, is_elsewhere
from .sites import Layer
from .worker import Worker


class Sink(Protocol):
    """Takes the inputs of sites. `selection` holds the numbers of the rows that count; None counts all."""

    def declare(self, site: str, module: str, layer: Layer) -> None: ...
    def split(self, site: str, modules: list[str], new: str) -> None: ...
    def add_rows(self, site: str, rows: torch.Tensor, selection: torch.Tensor | None) -> None: ...
    def add_images(self, site: str, layer: Layer, tensor: torch.Tensor) -> None: ...
    def add_tokens(self, site: str, layer: Layer, tokens: torch.Tensor, selection: torch.Tensor | None) -> None: ...
    def wait(self) -> None: ...
    def end(self) -> None: ...


class Sums:
    """Adds rows to statistics. Rows of another device are added on a thread, while the model goes on."""

    # Blocks of rows, of at most 64 MiB each, that wait for that thread.
    MOST_WAITING = 4

    def __init__(self, statistics: Statistics, limit: int | None = None) -> None:
        self.statistics, self.limit = statistics, limit
        self.worker = Worker(self.MOST_WAITING)

    def declare(self, site: str, module: str, layer: Layer) -> None:
        self.statistics.declare(site, [module], layer.width, tokens=layer.kind == "embedding")

    def split(self, site: str, modules: list[str], new: str) -> None:
        # The rows before it count for all of these modules.
        self.wait()
        self.statistics.split(site, modules, new)

    def add_rows(self, site: str, rows: torch.Tensor, selection: torch.Tensor | None) -> None:
        if is_elsewhere(rows):
            for block in blocks(rows, selection):
                self.worker.do(functools.partial(self.add_block, site, block))
            return
        self.wait()
        if rows.dtype in DTYPES:
            self.add_block(site, rows.detach(), selection)
        else:
            for block in blocks(rows, selection):
                self.add_block(site, block)

    def add_block(self, site: str, block: torch.Tensor, selection: torch.Tensor | None = None) -> None:
        """Adds rows on the CPU."""
        chosen = None
        if selection is not None:
            selection = selection.to("cpu", torch.int64).contiguous()
            chosen = (selection.data_ptr(), len(selection))
        self.statistics.add_rows(site, block.data_ptr(), tuple(block.shape), block.stride(), DTYPES[block.dtype], chosen)

    def add_images(self, site: str, layer: Layer, tensor: torch.Tensor) -> None:
        for block in convolutions.patches(layer.module, tensor.detach()):
            self.add_rows(site, block, None)

    def add_tokens(self, site: str, layer: Layer, tokens: torch.Tensor, selection: torch.Tensor | None) -> None:
        tokens = selected_tokens(layer, tokens, selection)
        self.statistics.add_tokens(site, tokens.data_ptr(), len(tokens))

    def wait(self) -> None:
        """Waits for the rows that are added on the thread."""
        self.worker.wait()

    def end(self) -> None:
        """Ends a forward pass: multiplies the rows of all sites. Refuses sums that need more memory than was allowed."""
        self.wait()
        self.statistics.multiply()
        if self.limit is not None and self.statistics.memory() > self.limit:
            needed = self.statistics.memory()
            raise error("usage", f"the statistics need {needed} bytes, but max_memory allows {self.limit}", "allow more memory")


class Nothing:
    """Counts nothing: finds the modules that share an input."""

    def declare(self, site: str, module: str, layer: Layer) -> None: ...
    def split(self, site: str, modules: list[str], new: str) -> None: ...
    def add_rows(self, site: str, rows: torch.Tensor, selection: torch.Tensor | None) -> None: ...
    def add_images(self, site: str, layer: Layer, tensor: torch.Tensor) -> None: ...
    def add_tokens(self, site: str, layer: Layer, tokens: torch.Tensor, selection: torch.Tensor | None) -> None: ...
    def wait(self) -> None: ...
    def end(self) -> None: ...


class Files:
    """Writes rows to files of activations, as bf16. Inputs of convolutions stay as they are, with the kernel in the metadata.

    Begins a new file when a site has `most_rows` rows in memory, or all sites have `most_bytes`.
    """

    def __init__(self, folder: pathlib.Path, most_rows: int = 1 << 16, most_bytes: int = 1 << 30) -> None:
        self.folder, self.most_rows, self.most_bytes = folder, most_rows, most_bytes
        self.modules: dict[str, list[str]] = {}
        self.layers: dict[str, Layer] = {}
        self.rows: dict[str, list[torch.Tensor]] = {}
        self.files = 0
        # Rows of each site, and counted tokens.
        self.counts: dict[str, int] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def declare(self, site: str, module: str, layer: Layer) -> None:
        self.modules.setdefault(site, []).append(module)
        self.layers.setdefault(site, layer)

    def split(self, site: str, modules: list[str], new: str) -> None:
        raise error(
            "data",
            f"{quoted(modules)} and the other modules of the site {quoted(site)} read one input at first, and later different ones",
            "record moments, which can be separated, or record these modules in a run of their own",
        )

    def add_rows(self, site: str, rows: torch.Tensor, selection: torch.Tensor | None) -> None:
        for block in blocks(rows, selection):
            self.keep(site, block.to(torch.bfloat16, copy=True))

    def add_images(self, site: str, layer: Layer, tensor: torch.Tensor) -> None:
        self.keep(site, convolutions.images(layer.module, tensor.detach()).to("cpu", torch.bfloat16, copy=True))

    def add_tokens(self, site: str, layer: Layer, tokens: torch.Tensor, selection: torch.Tensor | None) -> None:
        tokens = torch.bincount(selected_tokens(layer, tokens, selection), minlength=layer.width)
        self.counts[site] = self.counts.get(site, 0) + int(tokens.sum())
        self.rows[site] = [sum(self.rows.get(site, []), tokens)]

    def keep(self, site: str, rows: torch.Tensor) -> None:
        self.rows.setdefault(site, []).append(rows)
        self.counts[site] = self.counts.get(site, 0) + len(rows)

    def wait(self) -> None: ...

    def end(self) -> None:
        """Ends a forward pass. Writes a file if there is enough in memory."""
        rows = (sum(len(part) for part in parts if part.dim() > 1) for parts in self.rows.values())
        size = sum(part.nbytes for parts in self.rows.values() for part in parts)
        if max(rows, default=0) >= self.most_rows or size >= self.most_bytes:
            self.write()

    def write(self) -> None:
        """Writes what is in memory."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not self.rows:
            return
        sites, kernels = {}, {}
        for site in self.rows:
            sites[site] = sorted(self.modules[site])
            layer = self.layers[site]
            if layer.kind == "convolution":
                kernel, stride, padding = convolutions.kind(layer.module)
                kernels[site] = dict(kernel=list(kernel), stride=list(stride), padding=list(padding), groups=layer.module.groups)
        content = dict(format="activations", version=1, sites=sites, convolutions=kernels)
        tensors = {site: torch.cat(parts).contiguous() for site, parts in self.rows.items()}
        self.files += 1
        path = self.folder / f"part-{self.files:05}.safetensors"
        try:
            save_file(tensors, path, metadata={"cntlora": json.dumps(content, sort_keys=True)})
        except (OSError, SafetensorError) as problem:
            raise error("io", f"{path}: {problem}") from None
        self.rows = {}


def selected_tokens(layer: Layer, tokens: torch.Tensor, selection: torch.Tensor | None) -> torch.Tensor:
    """Returns the tokens that count, as contiguous integers of 64 bits on the CPU. Refuses those that the vocabulary does not have."""
    tokens = flattened(tokens.unsqueeze(-1)).squeeze(-1).cpu().long().contiguous()
    if selection is not None:
        tokens = tokens[selection]
    if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) >= layer.width):
        found = f"{int(tokens.min())} to {int(tokens.max())}"
        raise error("data", f"{quoted(layer.name)}: expected tokens from 0 to {layer.width - 1}, found {found}")
    return tokens
