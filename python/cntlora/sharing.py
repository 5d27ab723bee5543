"""Finds modules that read the same input, so that it is counted once.

Inputs are the same if they are the same memory with the same content within one forward pass. Modules are joined when both are
reached for the first time. Afterwards, an input is counted when all of its modules have read it. So modules that read different
inputs in a later forward pass can still be separated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from .errors import error, quoted


@dataclass
class Site:
    """Modules that have read the same inputs so far."""

    name: str
    modules: list[str]
    # The forward pass in which it was found, and the number of its inputs.
    born: int
    inputs: int = 0


@dataclass
class Reading:
    """One input, and the modules that have read it."""

    site: Site
    content: Hashable
    # The tensor whose memory this is. If it is gone, the memory can hold something else.
    owner: Callable[[], torch.Tensor | None]
    readers: set[str]
    # Counts the rows at a site, while they are not counted.
    count: Callable[[str], None] | None
    kept: torch.Tensor | None = field(default=None, repr=False)


def content_of(tensor: torch.Tensor) -> Hashable:
    """Returns a value that changes with the content of a tensor.

    This is the number of changes that torch counts. In inference mode it does not count them. There, these are sums over rows and
    columns of the bits.
    """
    if not tensor.is_inference():
        return tensor._version
    if tensor.numel() == 0:
        return 0
    bits = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.dim() > 1 else 1).contiguous()
    bits = bits.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
    sums = []
    for axis in (0, 1):
        part = bits.sum(axis, dtype=torch.int64)
        weights = torch.arange(1, 2 * len(part), 2, device=part.device)
        sums.append(int((part * weights * weights).sum()))
    return tuple(sums)


class Sharing:
    """The sites of modules, and the inputs of the forward pass that runs.

    `declare` makes a site known with a module, and `split` gives some modules of a site a new one with the same sums.
    """

    def __init__(self, declare: Callable[[str, str], None], split: Callable[[str, list[str], str], None]) -> None:
        self.declare, self.split = declare, split
        self.site_of: dict[str, Site] = {}
        self.forward_pass = 0
        self.readings: dict[Hashable, list[Reading]] = {}

    def read(self, module: str, tensor: torch.Tensor, layout: Hashable, count: Callable[[str], None]) -> None:
        """Counts the input of a module, unless it is counted for another module.

        `layout` tells which rows of the memory these are. `count` adds them to the sums of a site.
        """
        place = (tensor.data_ptr(), tensor.dtype, str(tensor.device), layout)
        content = content_of(tensor)
        site = self.site_of.get(module)
        for reading in self.readings.get(place, ()):
            if reading.content != content or reading.owner() is None:
                continue
            if site is None:
                if reading.site.born == self.forward_pass and reading.site.inputs == 1 and reading.count is None:
                    reading.site.modules.append(module)
                    reading.readers.add(module)
                    self.site_of[module] = reading.site
                    self.declare(reading.site.name, module)
                    return
            elif reading.site is site and reading.count is not None and module not in reading.readers:
                reading.readers.add(module)
                self.count_complete(reading)
                return
        if site is None:
            site = self.site_of[module] = Site(module, [module], self.forward_pass)
            self.declare(module, module)
        site.inputs += 1
        base = tensor._base if tensor._is_view() and tensor._base is not None else tensor
        reading = Reading(site, content, weakref.ref(base), {module}, count, tensor)
        self.readings.setdefault(place, []).append(reading)
        self.count_complete(reading)

    def count_complete(self, reading: Reading) -> None:
        """Counts an input that all modules of its site have read."""
        if reading.readers.issuperset(reading.site.modules):
            reading.count(reading.site.name)
            reading.count = reading.kept = None

    def end(self, is_complete: bool) -> None:
        """Ends a forward pass. Inputs that only some modules of a site have read separate these modules from the others.

        A forward pass that failed counts no such inputs.
        """
        readings = [one for several in self.readings.values() for one in several if one.count is not None]
        self.readings = {}
        self.forward_pass += 1
        for reading in readings if is_complete else ():
            if reading.kept is not None and content_of(reading.kept) != reading.content:
                raise error(
                    "data",
                    f"the input of {quoted(sorted(reading.readers))} was changed in place before the other modules of the same "
                    "input were called, unlike in the first forward pass",
                    "record these modules with a recorder of their own",
                )
            self.count_apart(reading)

    def count_apart(self, reading: Reading) -> None:
        """Counts an input for its readers only."""
        for site in {id(site): site for site in (self.site_of[name] for name in sorted(reading.readers))}.values():
            readers = [name for name in site.modules if name in reading.readers]
            if len(readers) < len(site.modules):
                rest = [name for name in site.modules if name not in reading.readers]
                # The site keeps its name if the module of that name stays.
                moved, stay = (readers, rest) if site.name in rest else (rest, readers)
                self.split(site.name, moved, moved[0])
                other = Site(moved[0], moved, site.born, site.inputs)
                site.modules = stay
                self.site_of.update(dict.fromkeys(moved, other))
                site = self.site_of[readers[0]]
            reading.count(site.name)

    def groups(self) -> list[list[str]]:
        """Returns the modules of each site."""
        return [site.modules for site in {id(site): site for site in self.site_of.values()}.values()]
