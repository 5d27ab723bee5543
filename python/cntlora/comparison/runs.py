"""The file of runs: one line of JSON for each run."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, TextIO, TypedDict

FILE = "runs.jsonl"


class Run(TypedDict):
    """A run as it lies in the file."""

    start: str
    settings: str
    phase: str
    rate: float
    seed: int
    # Each has the step and the numbers that the training function gave.
    measurements: list[dict[str, float]]
    seconds_start: float | None
    seconds_training: float | None
    # Number of parameters that are trained.
    parameters: int | None
    error: str | None


def rounded(value: float) -> float:
    """Returns a number rounded to 6 significant digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else value


def shown_rate(rate: float) -> str:
    """Returns a learning rate in a short form, such as 3e-4 and 0.01."""
    return f"{rate:.3g}" if rate >= 0.01 else f"{rate:.2e}".replace(".00e", "e").replace("0e", "e").replace("e-0", "e-")


def read(path: pathlib.Path) -> tuple[list[Run], int, bool]:
    """Returns the runs of a file, the number of bytes that they take, and True if a half-written last line follows them.

    A file that does not exist has no runs. Raises ValueError for another line that cannot be read.
    """
    content = path.read_bytes() if path.exists() else b""
    size = content.rfind(b"\n") + 1
    runs = []
    for number, line in enumerate(content[:size].decode("utf-8").splitlines(), 1):
        try:
            runs.append(_checked(json.loads(line)))
        except ValueError as problem:
            raise ValueError(f"{path}, line {number}: {problem}. Delete the line; its run will be made again") from None
    return runs, size, len(content) > size


def _checked(run: Any) -> Run:
    lacking = [name for name in Run.__annotations__ if not isinstance(run, dict) or name not in run]
    if lacking:
        raise ValueError(f"not a run: {', '.join(lacking)} missing")
    if not run["error"] and not run["measurements"]:
        raise ValueError("a run without measurements and without an error")
    return run


@contextlib.contextmanager
def appending(path: pathlib.Path, size: int) -> Iterator[TextIO]:
    """Opens a file of runs for further lines, and cuts it to `size` bytes. Raises ValueError if another process has it open so."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        _lock(file, path)
        file.truncate(size)
        yield file


def append(file: TextIO, run: Run) -> None:
    """Writes a run. A kill at any moment leaves whole lines, and at most a half-written last one."""
    file.write(json.dumps(run, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def _lock(file: TextIO, path: pathlib.Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks.
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another comparison is writing to {path}: wait for its end, or give another folder") from None
    except OSError:  # Some network file systems have no locks.
        return
