"""Processes that make the runs of a comparison."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from . import one_run
from .one_run import Job, TaskError
from .plan import PROCESS_ENDED, Key
from .runs import Run

PROCESS_NAME = "cntlora.compare"
IMPORTABLE = (
    "With processes greater than 1, every process imports the functions again: define them at the top level of a module or of the script, "
    'call cntlora.compare under `if __name__ == "__main__":`, or set processes=1'
)


@dataclass
class Worker:
    """A process, and the run that it makes at present."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    key: Key | None = None
    is_ready: bool = False


class Here:
    """Makes the runs in this process, with the interface of `Workers`."""

    def __init__(self, job: Job) -> None:
        self.job, self.key = job, None

    def free(self) -> bool:
        return self.key is None

    def running(self) -> list[Key]:
        return [] if self.key is None else [self.key]

    def begin(self, key: Key) -> None:
        self.key = key

    def finished(self) -> list[tuple[Run, str | None]]:
        key, self.key = self.key, None
        return [one_run.run(self.job, key)]


class Workers:
    """Up to `count` processes. Each makes one run after another."""

    def __init__(self, job: Job, count: int, threads: int) -> None:
        self.job, self.threads, self.count = job, threads, count
        self.content = _pickled(job)
        self.workers: list[Worker] = []

    def free(self) -> bool:
        """True if another run can begin."""
        return len(self.workers) < self.count or any(worker.key is None for worker in self.workers)

    def running(self) -> list[Key]:
        """Returns the runs that are being made."""
        return [worker.key for worker in self.workers if worker.key is not None]

    def begin(self, key: Key) -> None:
        """Begins a run."""
        worker = next((worker for worker in self.workers if worker.key is None), None) or self._added()
        worker.key = key
        if worker.is_ready:
            worker.connection.send(key)

    def finished(self) -> list[tuple[Run, str | None]]:
        """Waits until at least one process says something. Returns the runs that ended, each with the traceback of a failed training."""
        ended = []
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                ended.append(self._lost(worker))
                continue
            if kind == "ready":
                worker.is_ready = True
                connection.send(worker.key)
            elif kind == "refused":
                raise TaskError(content)
            else:
                worker.key = None
                ended.append(content)
        return ended

    def close(self, at_once: bool) -> None:
        """Ends all processes, those that make a run `at_once`. The others end by themselves when their connection closes."""
        for worker in self.workers:
            worker.connection.close()
            if at_once:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()

    def _added(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        own, other = context.Pipe()
        process = context.Process(target=work, args=(other, self.content, self.threads), name=PROCESS_NAME)
        process.start()
        other.close()
        worker = Worker(process, own)
        self.workers.append(worker)
        return worker

    def _lost(self, worker: Worker) -> tuple[Run, str | None]:
        """Removes a process that ended. Returns its run as a failed one, with the reason."""
        worker.process.join()
        self.workers.remove(worker)
        worker.connection.close()
        code, key = worker.process.exitcode, worker.key
        if not worker.is_ready:
            raise TaskError(f"a process could not begin: it ended with exit code {code}. Its own message is above. {IMPORTABLE}")
        reason = f"{PROCESS_ENDED} during the run, with exit code {code}" + (", which often means too little memory" if code == -9 else "")
        line = one_run.empty(self.job, key)
        line["error"] = reason
        return line, reason


@contextlib.contextmanager
def workers(job: Job, count: int, threads: int | None) -> Iterator[Here | Workers]:
    """Yields what makes the runs: this process for a count of 1, or processes of their own."""
    if count == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            yield Here(job)
        finally:
            torch.set_num_threads(before)
        return
    made = Workers(job, count, threads or max(1, (os.cpu_count() or 1) // count))
    try:
        yield made
    except BaseException:
        made.close(at_once=True)
        raise
    made.close(at_once=False)


def work(connection: Connection, content: bytes, threads: int) -> None:
    """Makes the runs that arrive, in a process of its own, until the other end closes."""
    # Ctrl-C reaches all processes of a terminal. The parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    # The threads of cntlora. Those of several processes would slow each other down.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    try:
        job = pickle.loads(content)
    except Exception:
        connection.send(("refused", f"a process cannot import the functions:\n{traceback.format_exc().rstrip()}\n{IMPORTABLE}"))
        return
    try:
        connection.send(("ready", None))
        while True:
            key = connection.recv()
            try:
                connection.send(("done", one_run.run(job, key)))
            except TaskError as problem:
                connection.send(("refused", str(problem)))
    except (EOFError, OSError):  # The parent has ended.
        return


def _pickled(job: Job) -> bytes:
    """Returns the job as bytes. Raises ValueError that names the argument which other processes cannot get."""
    try:
        return pickle.dumps(job)
    except Exception:
        for name in ("make_model", "train", "loss", "loader", "source", "config", "starts"):
            try:
                pickle.dumps(getattr(job, name))
            except Exception as problem:
                raise ValueError(f"{name} cannot be sent to other processes: {problem}. {IMPORTABLE}") from problem
        raise
