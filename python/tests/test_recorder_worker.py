"""Rows of another device, which a thread adds while the model goes on. Here the CPU stands for that device."""

import threading
import time

import pytest
import torch

import models
from cntlora import sinks
from cntlora.errors import Error
from cntlora.recorder import Recorder
from cntlora.worker import Worker
from recording import Shared, hooks, run


@pytest.fixture
def elsewhere(monkeypatch):
    """Treats rows as those of another device: they are copied, and the names of the threads that add them are kept."""
    threads = []
    plain = sinks.Sums.add_block

    def add_block(self, site, block):
        threads.append(threading.current_thread().name)
        time.sleep(0.001)
        # A selection was applied when the rows were copied.
        plain(self, site, block)

    copies = sinks.blocks
    monkeypatch.setattr(sinks, "is_elsewhere", lambda rows: True)
    monkeypatch.setattr(sinks, "blocks", lambda rows, selection: (block.clone() for block in copies(rows, selection)))
    monkeypatch.setattr(sinks.Sums, "add_block", add_block)
    return threads


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_thread_does_not_change_a_bit(name, elsewhere, monkeypatch):
    model, batch = models.make(name)
    with Recorder(model) as recorder, torch.no_grad():
        model(**batch)
        model(**batch)
    found = recorder.statistics
    assert elsewhere and all(thread.startswith("cntlora") for thread in elsewhere)
    monkeypatch.undo()
    with Recorder(model) as recorder, torch.no_grad():
        model(**batch)
        model(**batch)
    expected = recorder.statistics
    assert [site.rows for site in found.sites().values()] == [site.rows for site in expected.sites().values()]
    # The names of the recorders differ, the sums do not.
    assert tensors(found) == tensors(expected)


def tensors(statistics):
    """Returns the bytes of the sums."""
    content = statistics.to_bytes()
    header = int.from_bytes(content[:8], "little")
    return content[8 + header :]


def test_sites_that_are_divided_have_all_rows_before(elsewhere):
    """A site is divided only when the rows that its modules have shared are counted."""
    model = Shared()
    rows = torch.randn(40, 5)
    with Recorder(model) as recorder, torch.no_grad():
        model(rows)
        model.step = lambda model, x: [model.a(x), model.b(x + 2), model.c(x + 1)]
        model(rows)
    assert {name: site.rows for name, site in recorder.statistics.sites().items()} == {"a": 80, "b": 80, "c": 80}


def test_an_error_of_the_thread_reaches_the_caller(elsewhere):
    model = Shared()
    with pytest.raises(Error, match="row 3, column 1 is not a finite f32 number"), Recorder(model) as recorder, torch.no_grad():
        rows = torch.randn(40, 5)
        rows[3, 1] = torch.nan
        model(rows)
    assert hooks(model) == 0
    with pytest.raises(Error, match="row 3, column 1"):
        recorder.save("never written")


def test_a_failed_forward_pass_waits_for_the_thread(elsewhere):
    model = Shared()

    def fail(model, x):
        model.a(x)
        raise ValueError("of the model")

    model.step = fail
    with pytest.warns(RuntimeWarning, match="a forward pass failed"), Recorder(model) as recorder, torch.no_grad():
        with pytest.raises(ValueError, match="of the model"):
            model(torch.randn(40, 5))
    assert recorder.statistics.sites()["a"].rows == 40


def test_rows_of_the_cpu_need_no_thread():
    before = set(threading.enumerate())
    model, batch = models.make("llama")
    recorder = run(model, batch)
    assert recorder.statistics.sites() and not set(threading.enumerate()) - before


def test_work_is_done_in_order_and_a_few_pieces_wait():
    worker, done, gate = Worker(2), [], threading.Event()

    def piece(number):
        gate.wait()
        done.append(number)

    worker.do(lambda: piece(0))
    worker.do(lambda: piece(1))
    assert worker and done == []
    threading.Timer(0.05, gate.set).start()
    # Waits for the first piece.
    worker.do(lambda: piece(2))
    assert done[0] == 0
    worker.wait()
    assert done == [0, 1, 2] and not worker


def test_the_first_error_is_raised_once_and_later_work_is_done():
    worker, done = Worker(8), []

    def fail(text):
        raise ValueError(text)

    worker.do(lambda: fail("first"))
    worker.do(lambda: fail("second"))
    worker.do(lambda: done.append(1))
    with pytest.raises(ValueError, match="first"):
        worker.wait()
    assert done == [1]
    worker.wait()
