"""Groups of layers whose statistics fit into a limit of memory."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ._cntlora import Statistics
from .errors import error
from .sinks import Sums

if TYPE_CHECKING:
    from .recorder import Recorder

UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}


class Pass:
    """A group of layers that are recorded in one pass over the data, and the bytes of their statistics. A context manager."""

    def __init__(self, recorder: Recorder, names: list[str], memory: int) -> None:
        self.names, self.memory = names, memory
        self.is_done = False
        # The recorder owns its passes. In a cycle, the model and the sums would stay in memory after their last use.
        self._of = weakref.ref(recorder)

    def __repr__(self) -> str:
        return f"Pass({len(self.names)} layers, {self.memory} bytes)"

    @property
    def _recorder(self) -> Recorder:
        recorder = self._of()
        if recorder is None:
            raise error("usage", "the recorder of this pass is gone", "keep the recorder in a variable")
        return recorder

    def __enter__(self) -> Recorder:
        recorder = self._recorder
        if self.is_done and len(recorder.passes) > 1:
            raise error("usage", "this pass over the data is done", "enter each of recorder.passes once")
        recorder._begin(self.names, Sums(recorder._statistics, recorder._limit))
        return recorder

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        recorder = self._recorder
        recorder._end()
        if len(recorder.passes) == 1:
            self.is_done = True
            return
        # The sums leave the memory. Those of a pass that failed are dropped, and the pass can be made again.
        statistics, recorder._statistics, recorder._sharing = recorder._statistics, recorder._new(), None
        if value is None:
            self.is_done = True
            recorder._store(statistics)


@functools.cache
def memory_of(new: Callable[[], Statistics], width: int, tokens: bool) -> int:
    """Returns the bytes of the statistics of a site."""
    statistics = new()
    statistics.declare("site", ["module"], width, tokens=tokens)
    return statistics.memory()


def parse_memory(memory: int | str | None) -> int | None:
    """Returns a number of bytes, also from text such as "4GB" or "500 MiB"."""
    if memory is None or isinstance(memory, int) and memory > 0:
        return memory
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(memory).upper())
    if not isinstance(memory, str) or found is None or found[2] not in UNITS or float(found[1]) * UNITS[found[2]] < 1:
        raise error("usage", f"max_memory: expected a number of bytes such as 4GB, found {memory!r}")
    return int(float(found[1]) * UNITS[found[2]])
