"""Several processes of torch.distributed. They do not import transformers, which takes long."""

import os
import subprocess
import sys
import textwrap

import torch

import oracle
from recording import Shared, run, same, sums

PRELUDE = """
import sys, torch
from cntlora.errors import Error
from cntlora.recorder import Recorder, record
from recording import Shared
rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
model = Shared()
batches = torch.arange(60.0).sin().reshape(3, 4, 5)
"""

# A process whose group is still open when it ends can be aborted by a thread of gloo.
END = """
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def processes(tmp_path, body, count=2):
    """Runs a program in several processes of torch.distributed. Each of them has the same three batches."""
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(body) + END)
    # The package and these tests are where this process found them.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    running = [subprocess.Popen([sys.executable, path, str(rank), str(count), tmp_path], **pipes) for rank in range(count)]
    texts = [one.communicate(timeout=300)[0] for one in running]
    assert [one.returncode for one in running] == [0] * count, "\n".join(texts)


def test_processes_add_their_sums(tmp_path):
    """Layers share a site in one process and not in another one. In the end, all processes have the same sums, those of all rows."""
    processes(tmp_path, """
        if rank == 0:
            model.step = lambda model, x: [model.a(x), model.b(x), model.c(x)]
        statistics = record(model, list(batches[rank::count]))
        statistics.save(f"{folder}/{rank}.moments.safetensors", "test")
    """)
    rows = torch.arange(60.0).sin().reshape(3, 4, 5)
    apart = torch.cat([rows[0], rows[2], rows[1] + 1]).double().numpy()
    together = torch.cat([rows[0], rows[2], rows[1]]).double().numpy()
    for rank in range(2):
        found, sites, _ = oracle.saved(tmp_path / f"{rank}.moments.safetensors")
        assert sites == {"a": ["a", "b"], "c": ["c"]}
        oracle.check(found["a"], together, "a")
        oracle.check(found["c"], apart, "c")


def test_a_layer_that_one_process_never_reaches(tmp_path):
    """Its sums are those of the others, and it does not share a site with layers that more processes reach."""
    processes(tmp_path, """
        if rank == 1:
            model.step = lambda model, x: model.b(x)
        left_out = {}
        statistics = record(model, [batches[rank]], ["a", "b"], left_out=left_out)
        assert left_out == {}
        statistics.save(f"{folder}/{rank}.moments.safetensors", "test")
    """)
    rows = torch.arange(60.0).sin().reshape(3, 4, 5).double().numpy()
    for rank in range(2):
        found, sites, _ = oracle.saved(tmp_path / f"{rank}.moments.safetensors")
        assert sites == {"a": ["a"], "b": ["b"]}
        oracle.check(found["a"], rows[0], "a")
        oracle.check(found["b"], rows[:2].reshape(8, 5), "b")


def test_a_process_without_data(tmp_path):
    """There are fewer batches than processes."""
    processes(tmp_path, """
        statistics = record(model, [batches[0]] if rank == 1 else [])
        assert {site.name: (site.rows, site.modules) for site in statistics.sites().values()} == {"a": (4, ["a", "b"]), "c": (4, ["c"])}
    """)


def test_the_same_rows_in_two_processes_are_refused(tmp_path):
    """A loader that is not divided among the processes would count everything twice. All processes report it."""
    processes(tmp_path, """
        try:
            record(model, [batches[0]])
            raise SystemExit("the rows were counted twice")
        except Error as error:
            assert str(error).startswith("the sums of the processes cannot be added: "), error
            assert "are counted twice" in str(error), error
    """)


def test_sums_that_were_not_added_are_refused(tmp_path):
    """Without `reduce`, the sums of one process would pass for those of all. The file of each process can be merged by the tool."""
    processes(tmp_path, """
        with Recorder(model) as recorder:
            model(batches[rank])
        try:
            recorder.statistics
            raise SystemExit("the sums of one process were returned")
        except Error as error:
            assert "each process of torch.distributed has the sums of its own data" in str(error)
        recorder.save(f"{folder}/{rank}.moments.safetensors")
        with Recorder(model, ["a", "b"]) as recorder:
            model(batches[rank])
        recorder.reduce()
        assert recorder.statistics.sites()["a"].rows == 12
    """, 3)
    from cntlora._cntlora import Statistics

    merged = Statistics.load([str(tmp_path / f"{rank}.moments.safetensors") for rank in range(3)])
    merged.save(str(tmp_path / "y.moments.safetensors"), "test")
    model = Shared()
    same(oracle.saved(tmp_path / "y.moments.safetensors")[0], sums(run(model, dict(x=torch.arange(60.0).sin().reshape(12, 5))), tmp_path))


def test_layers_of_fsdp_are_left_out(tmp_path):
    """Both versions of FSDP, on a part of the model. The names of the layers have no component of the wrapper."""
    processes(tmp_path, """
        from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
        from torch.distributed.device_mesh import init_device_mesh
        model = torch.nn.ModuleDict(dict(first=Shared(), second=Shared()))
        fully_shard(model["first"], mesh=init_device_mesh("cpu", (1,)))
        recorder = Recorder(model)
        assert list(recorder.layers) == ["second.a", "second.b", "second.c"], recorder.layers
        assert list(recorder.left_out) == ["first.a", "first.b", "first.c"]
        assert all("divided among processes" in reason for reason in recorder.left_out.values())
        model["second"] = FullyShardedDataParallel(model["second"], device_id=torch.device("cpu"))
        for targets, name in [(None, "first.a"), (["second.b"], "second.b")]:
            try:
                Recorder(model, targets)
                raise SystemExit("nothing is left to record")
            except Error as error:
                assert f'no layer can be recorded: "{name}": its weight is divided among processes' in str(error), error
    """, 1)
