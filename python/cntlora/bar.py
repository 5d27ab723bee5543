"""A progress bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30
# Seconds between two pictures.
INTERVAL = 0.1


class Bar:
    """Shows the share of batches that are done, the tokens per second and the time left. Shows nothing outside of a terminal."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = sys.stderr if out is None else out
        self.clock, self.started, self.shown = clock, clock(), -INTERVAL
        self.is_shown = self.out.isatty()

    def __call__(self, done: int, total: int | None, tokens: int) -> None:
        """Shows the progress after a batch."""
        now = self.clock() - self.started
        if not self.is_shown or now - self.shown < INTERVAL and done != total:
            return
        self.shown = now
        text = f"{tokens} tokens, {tokens / max(now, 1e-9):.0f} tokens/s"
        if total:
            filled = WIDTH * done // total
            left = max(0, round(now * (total - done) / done))
            text = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total} batches, {text}, {left // 60}:{left % 60:02} left"
        self.out.write(f"\r{text}\x1b[K")
        self.out.flush()

    def close(self) -> None:
        """Removes the bar."""
        if self.is_shown:
            self.out.write("\r\x1b[K")
            self.out.flush()
