"""A thread that works beside the caller."""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable


class Worker:
    """Does pieces of work in order, on a thread of its own.

    At most `most` pieces wait or run: the caller waits before it adds more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pending: deque[concurrent.futures.Future[None]] = deque()
        # Made when it is needed. It has one thread, which ends with it.
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None

    def __bool__(self) -> bool:
        """True if work is pending."""
        return bool(self._pending)

    def do(self, work: Callable[[], None]) -> None:
        """Adds a piece of work. Raises the error of an earlier one."""
        while len(self._pending) >= self._most:
            self._pending.popleft().result()
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="cntlora")
        self._pending.append(self._executor.submit(work))

    def wait(self) -> None:
        """Waits for all work. Raises its first error."""
        concurrent.futures.wait(self._pending)
        pending, self._pending = self._pending, deque()
        for piece in pending:
            piece.result()
