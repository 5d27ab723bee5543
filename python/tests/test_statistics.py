"""Statistics: their sums, bits, messages and files; and the tool inside the process."""

import gc
import json
import os
import pickle
import signal
import struct
import threading
import time

import numpy
import pytest

import cntlora._cntlora as cntlora

WIDTH = 13
ROWS = 1500  # more than two blocks
DTYPES = {"F64": numpy.float64, "F32": numpy.float32, "F16": numpy.float16, "BF16": numpy.uint16}


def numbers(dtype, rows=ROWS, width=WIDTH, seed=0):
    """Returns rows in a number format. bf16 numbers are the upper halves of f32 numbers."""
    drawn = numpy.random.default_rng(seed).normal(1.5, 1.0, (rows, width))
    if dtype == "BF16":
        return (drawn.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
    return drawn.astype(DTYPES[dtype])


def exact(dtype, rows):
    """Returns rows in f64."""
    if dtype == "BF16":
        rows = (rows.astype(numpy.uint32) << 16).view(numpy.float32)
    return rows.astype(numpy.float64)


def add(statistics, dtype, rows, site="s"):
    strides = tuple(stride // rows.itemsize for stride in rows.strides)
    statistics.add_rows(site, rows.ctypes.data, rows.shape, strides, dtype)


def measured(dtype, pieces, width=WIDTH, **options):
    statistics = cntlora.Statistics(**options)
    statistics.declare("s", ["layer.q", "layer.k"], width)
    for piece in pieces:
        add(statistics, dtype, piece)
    return statistics


def tokens(statistics, ids, site="e"):
    ids = numpy.asarray(ids, numpy.int64)
    statistics.add_tokens(site, ids.ctypes.data, len(ids))


def write_safetensors(path, tensors, metadata):
    """Writes tensors, given by name as number format and array."""
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(numpy.ascontiguousarray(array).tobytes())


def read_safetensors(data):
    """Returns the metadata of a moments file, and the bytes of its tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["cntlora"])
    place = {name: entry["data_offsets"] for name, entry in header.items()}
    return metadata, {name: data[8 + length + first : 8 + length + end] for name, (first, end) in place.items()}


def sums(statistics):
    return read_safetensors(statistics.to_bytes())[1]


def sites(**sites):
    content = {"format": "activations", "version": 1, "sites": sites}
    return {"cntlora": json.dumps(content)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_those_of_numpy(dtype):
    """Everything that is computed from statistics depends on these sums."""
    rows = numbers(dtype)
    found = sums(measured(dtype, [rows]))
    wanted = exact(dtype, rows)
    assert struct.unpack("<Q", found["s/count"]) == (ROWS,)
    numpy.testing.assert_allclose(numpy.frombuffer(found["s/sum"]), wanted.sum(0), rtol=1e-6)
    gram = (wanted.T @ wanted)[numpy.triu_indices(WIDTH)]
    numpy.testing.assert_allclose(numpy.frombuffer(found["s/gram"]), gram, rtol=1e-6)
    numpy.testing.assert_array_equal(numpy.frombuffer(found["s/abs_max"], numpy.float32), abs(wanted).max(0).astype(numpy.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [0, 7])
def test_sums_have_the_bits_of_the_file_path(dtype, bad, tmp_path):
    """Factors in the training program must equal those of the tool on a recording of the same rows, also where rows are skipped."""
    rows = numbers(dtype)
    for row in range(0, bad * 200, 200):
        rows[row, row % WIDTH] = 0x7FC0 if dtype == "BF16" else numpy.nan
    nonfinite = "skip-rows" if bad else "refuse"
    statistics = measured(dtype, numpy.array_split(rows, [1, 2, 300, 939, 940, 1400]), nonfinite=nonfinite)
    write_safetensors(tmp_path / "a.safetensors", {"s": (dtype, rows)}, sites(s=["layer.k", "layer.q"]))
    out = tmp_path / "m.moments.safetensors"
    command = ["moments", str(tmp_path / "a.safetensors"), "--out", str(out), "--quiet", "--nonfinite", nonfinite]
    assert cntlora.main(command) == 0
    metadata, of_file = read_safetensors(out.read_bytes())
    assert sums(statistics) == of_file
    site = statistics.sites()["s"]
    assert (site.rows, site.skipped) == (ROWS - bad, bad)
    found = read_safetensors(statistics.to_bytes())[0]
    assert found["sites"] == metadata["sites"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_pieces_do_not_change_the_bits(dtype):
    """Activations arrive in batches of any size and with any strides."""
    rows = numbers(dtype)
    wanted = sums(measured(dtype, [rows]))
    wide = numpy.zeros((ROWS, 2 * WIDTH), rows.dtype)
    wide[:, ::2] = rows
    padded = numpy.zeros((ROWS, WIDTH + 3), rows.dtype)
    padded[:, :WIDTH] = rows
    backwards = rows[::-1].copy()
    for layout in [numpy.asfortranarray(rows), wide[:, ::2], padded[:, :WIDTH], backwards[::-1]]:
        assert not layout.flags.c_contiguous
        assert sums(measured(dtype, [layout])) == wanted
        assert sums(measured(dtype, numpy.array_split(layout, 11))) == wanted
    assert sums(measured(dtype, rows[:, None, :])) == wanted
    repeated = numpy.broadcast_to(rows[0], (700, WIDTH))
    assert sums(measured(dtype, [repeated])) == sums(measured(dtype, [repeated.copy()]))


def test_rows_of_no_numbers_and_no_rows_change_nothing():
    statistics = measured("F32", [numbers("F32")])
    before = statistics.to_bytes()
    add(statistics, "F32", numbers("F32")[:0])
    statistics.add_rows("s", 0, (0, WIDTH), (WIDTH, 1), "F32")
    statistics.declare("e", ["embed"], 5, tokens=True)
    statistics.add_tokens("e", 0, 0)
    assert statistics.to_bytes() == before


def test_threads_can_add_rows_to_different_sites():
    """The recorder of a model on several devices can have several threads."""
    names = [f"s{number}" for number in range(4)]
    statistics = cntlora.Statistics()
    for name in names:
        statistics.declare(name, [name], WIDTH)

    def work(number):
        for piece in numpy.array_split(numbers("F32", seed=number), 50):
            add(statistics, "F32", piece, names[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sums(statistics)
    for number, name in enumerate(names):
        wanted = sums(measured("F32", [numbers("F32", seed=number)]))
        assert all(found[f"{name}/{part}"] == wanted[f"s/{part}"] for part in ["count", "sum", "gram", "abs_max"])


def test_a_forked_process_can_add_rows():
    """A loader's worker or a launcher can fork after the first rows; the threads of the parent do not exist in the child."""
    rows = numbers("F32")
    wanted = measured("F32", [rows]).to_bytes()
    process = os.fork()
    if process == 0:
        os._exit(0 if measured("F32", [rows]).to_bytes() == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_tokens_are_counted():
    statistics = cntlora.Statistics()
    statistics.declare("e", ["embed"], 5, tokens=True)
    tokens(statistics, [0, 4, 4, 1])
    tokens(statistics, [4])
    assert numpy.frombuffer(sums(statistics)["e/counts"], numpy.uint64).tolist() == [1, 1, 0, 0, 3]
    site = statistics.sites()["e"]
    assert (site.rows, site.tokens, site.width, site.modules) == (5, True, 5, ["embed"])
    for wrong in [-1, 5]:
        with pytest.raises(cntlora.Error) as refused:
            tokens(statistics, [0, 0, wrong])
        assert str(refused.value) == (
            f'site "e": token {wrong} at place 2 is not in the vocabulary of 5 tokens\n'
            "  help: check that the tokenizer belongs to the model"
        )
        assert refused.value.category == "data"
    assert statistics.sites()["e"].rows == 5


def test_sites_are_declared_once_and_gain_modules():
    statistics = cntlora.Statistics()
    statistics.declare("s", ["b"], 3)
    statistics.declare("s", ["a", "b"], 3)
    assert statistics.sites()["s"].modules == ["a", "b"]
    assert repr(statistics.sites()["s"]) == 'Site(name="s", modules=["a", "b"], width=3, rows=0, skipped=0, tokens=False)'
    assert repr(statistics) == "<cntlora.Statistics: 1 sites, 0 rows>"
    # The sums, the rows that wait for a block, and a block that waits to be multiplied.
    assert statistics.memory() == 4 * 3 * 4 + 12 * 3 + 2 * 4 * 3 * 640
    statistics.remove("s")
    assert statistics.sites() == {} and statistics.memory() == 0


def messages(action, *arguments, **options):
    with pytest.raises(cntlora.Error) as refused:
        action(*arguments, **options)
    return f"{refused.value.category}: {refused.value}"


def test_every_refusal_has_a_message():
    statistics = measured("F32", [numbers("F32")])
    statistics.declare("e", ["embed"], 5, tokens=True)
    rows = numbers("F32")
    at = rows.ctypes.data

    def add_rows(site="s", address=at, shape=(1, WIDTH), strides=(WIDTH, 1), dtype="F32"):
        return messages(statistics.add_rows, site, address, shape, strides, dtype)

    assert add_rows(site="t") == 'usage: site "t": was not declared'
    assert add_rows(site="e") == 'usage: site "e": counts tokens, but rows of numbers were given'
    assert add_rows(shape=(1, 4)) == 'usage: site "s": width of the rows: expected 13, found 4'
    assert add_rows(dtype="I8") == "usage: unknown number format \"I8\": use one of F64, F32, F16, BF16"
    assert add_rows(address=0) == "usage: 0x0 is not the address of numbers of 4 bytes\n  help: give data_ptr() of a tensor on the CPU"
    assert add_rows(address=6).startswith("usage: 0x6 is not the address of numbers of 4 bytes")
    huge = add_rows(shape=(1 << 62, WIDTH))
    assert huge == f"usage: a tensor of shape ({1 << 62}, {WIDTH}) with strides ({WIDTH}, 1) is too large"
    assert messages(statistics.add_tokens, "s", at, 1) == 'usage: site "s": has rows of numbers, but tokens were given'
    assert messages(statistics.add_tokens, "e", 4, 1) == (
        "usage: 0x4 is not the address of 1 integers\n  help: give data_ptr() of a contiguous int64 tensor on the CPU"
    )
    assert messages(statistics.declare, "s", ["a"], 4) == (
        'usage: site "s": was declared with rows of 13 numbers before, and now with rows of 4 numbers'
    )
    assert messages(statistics.declare, "s", ["a"], 13, tokens=True) == (
        'usage: site "s": was declared with rows of 13 numbers before, and now with counts of 13 tokens'
    )
    assert messages(statistics.declare, "n", [], 4) == 'usage: site "n": no modules were given'
    assert messages(statistics.declare, "n", ["n"], 0) == 'usage: site "n": expected a width of at least 1, found 0'
    assert messages(statistics.declare, "n", ["n"], 1 << 25, tokens=True) == (
        'usage: site "n": expected a width of at least 1 and at most 16777216, found 33554432'
    )
    assert messages(cntlora.Statistics, precision="f8") == 'usage: unknown precision "f8": use one of f32, bf16'
    assert messages(cntlora.Statistics, nonfinite="no") == 'usage: unknown nonfinite "no": expected refuse or skip-rows'


def test_a_number_that_is_not_finite_is_named():
    rows = numbers("F32")
    rows[1000, 5] = numpy.inf
    statistics = measured("F32", [rows[:900]])
    refusal = messages(add, statistics, "F32", rows[900:])
    assert refusal == (
        'data: site "s": row 1000, column 5 is not a finite f32 number\n  help: find the inputs with which the model computes such '
        'numbers, or skip such rows with nonfinite="skip-rows"'
    )
    # The sums hold a part of these rows, so that they must not be used.
    for use in [lambda: add(statistics, "F32", rows[:5]), statistics.to_bytes, lambda: pickle.dumps(statistics)]:
        assert messages(use) == refusal


def test_files_are_those_of_the_tool(tmp_path, capfd):
    """Statistics that were saved are used by init, merge and inspect, and can be loaded again."""
    rows = numbers("F32")
    paths = [tmp_path / "a.moments.safetensors", tmp_path / "b.moments.safetensors"]
    halves = [rows[:800], rows[800:]]
    for path, half in zip(paths, halves):
        statistics = measured("F32", [half])
        statistics.declare("never", ["reached"], 4)
        statistics.declare("e", ["embed"], 5, tokens=True)
        tokens(statistics, [1, len(half) % 5])
        statistics.save(path, "training run")
    merged = tmp_path / "c.moments.safetensors"
    assert cntlora.main(["merge", *map(str, paths), "--out", str(merged), "--quiet"]) == 0
    assert cntlora.main(["inspect", str(merged)]) == 0
    assert "moments of 2 sites in precision f32" in capfd.readouterr().out
    metadata, of_file = read_safetensors(merged.read_bytes())
    assert sorted(metadata["sites"]) == ["e", "s"]
    assert [source["path"] for source in metadata["sources"]] == ["training run", "training run"]

    loaded = [cntlora.Statistics.load([path]) for path in paths]
    loaded[0].merge(loaded[1])
    both = cntlora.Statistics.load(paths)
    for statistics in [loaded[0], both, cntlora.Statistics.load([merged])]:
        assert sums(statistics) == of_file
        assert statistics.sites()["s"].rows == ROWS
    assert loaded[0].to_bytes() == both.to_bytes() == merged.read_bytes()

    twice = [str(paths[0]), str(paths[0]), "--out", str(tmp_path / "d.safetensors")]
    assert cntlora.main(["merge", *twice]) == 1
    assert "rows 0 to 1 of the recording" in capfd.readouterr().err
    refusal = messages(loaded[1].merge, cntlora.Statistics.load([paths[1]]))
    assert refusal == (
        'data: site "e": rows 0 to 1 of the recording "training run" are counted twice\n  help: every row must count once'
    )


def test_the_same_rows_have_the_same_identity():
    """Rows that two files count must be refused, and rows of different data must not."""

    def fingerprint(rows, pieces=1):
        return read_safetensors(measured("F32", numpy.array_split(rows, pieces)).to_bytes())[0]["sources"][0]["fingerprint"]

    rows = numbers("F32")
    assert fingerprint(rows) == fingerprint(rows, 7)
    changed = rows.copy()
    changed[3, 3] += 1
    assert len({fingerprint(rows), fingerprint(changed), fingerprint(rows[1:]), fingerprint(numbers("F32", seed=1))}) == 4


def test_rows_can_be_added_after_loading(tmp_path):
    """A recording that goes on another day counts all rows once, and its file has both sources."""
    rows, path = numbers("F32"), tmp_path / "a.moments.safetensors"
    measured("F32", [rows[:800]]).save(path, "monday")
    statistics = cntlora.Statistics.load([path])
    add(statistics, "F32", rows[800:])
    statistics.save(tmp_path / "b.moments.safetensors", "tuesday")
    metadata, found = read_safetensors((tmp_path / "b.moments.safetensors").read_bytes())
    assert [(source["path"], source["rows"]) for source in metadata["sources"]] == [
        ("monday", {"s": [[0, 800]]}),
        ("tuesday", {"s": [[0, 700]]}),
    ]
    assert struct.unpack("<Q", found["s/count"]) == (ROWS,)
    assert 'recording "monday" are counted twice' in messages(statistics.merge, cntlora.Statistics.load([path]))


def test_merging_is_that_of_files():
    first, second = numbers("F32"), numbers("F32", seed=1)
    statistics = measured("F32", [first])
    other = measured("F32", [second])
    other.declare("t", ["t"], 2)
    add(other, "F32", numbers("F32", width=2), "t")
    statistics.merge(other)
    assert statistics.sites()["s"].rows == 2 * ROWS and statistics.sites()["t"].rows == ROWS
    assert "are counted twice" in messages(statistics.merge, other)
    narrow = measured("F32", [numbers("F32", width=4)], width=4)
    assert messages(statistics.merge, narrow) == 'data: site "s": expected rows of 13 numbers as before, found rows of 4 numbers'
    named = cntlora.Statistics()
    named.declare("s", ["other"], WIDTH)
    assert messages(statistics.merge, named) == (
        'data: site "s": expected the modules "layer.k", "layer.q" as before, found "other"'
    )
    # A refused merge changes nothing.
    assert statistics.sites()["s"].rows == 2 * ROWS


def test_statistics_can_be_pickled():
    statistics = measured("F32", [numbers("F32")])
    again = pickle.loads(pickle.dumps(statistics))
    assert again.to_bytes() == statistics.to_bytes()
    assert pickle.loads(pickle.dumps(cntlora.Statistics())).sites() == {}
    assert messages(cntlora.Statistics.from_bytes, b"nothing of the kind").startswith("data: ")


def test_nothing_to_save_is_refused(tmp_path):
    path = tmp_path / "a.moments.safetensors"
    statistics = measured("F32", [])
    assert messages(statistics.save, path, "x") == (
        f"data: {path}: there is nothing to save: no rows were added\n  help: run the model while its inputs are recorded"
    )
    add(statistics, "F32", numbers("F32"))
    assert messages(statistics.save, tmp_path / "missing" / "a", "x").startswith("io: ")


def test_blocks_that_wait_count_like_those_that_were_multiplied():
    rows = numbers("F32", rows=700)

    def collected(multiply):
        statistics = cntlora.Statistics()
        for site in ("a", "b", "c"):
            statistics.declare(site, [site], rows.shape[1])
        for _ in range(3):
            for site in ("a", "b", "c"):
                add(statistics, "F32", rows, site)
            if multiply:
                statistics.multiply()
        return statistics

    waiting = collected(False)
    assert waiting.sites()["a"].rows == 2100
    before = waiting.to_bytes()
    waiting.multiply()
    assert before == waiting.to_bytes() == collected(True).to_bytes()


@pytest.mark.parametrize("layout", ["rows", "columns", "backwards"])
def test_selected_rows_are_those_of_the_selection(layout):
    """The sums have the bits of a tensor with only these rows, for runs of rows, single rows, and any order."""
    rows = numbers("F32", rows=2000)
    rows = dict(rows=rows, columns=numpy.asfortranarray(rows), backwards=rows[::-1])[layout]
    runs = [*range(3, 1500), 1700, 1702, 5, *range(1990, 2000)]
    for chosen in (runs, list(range(2000)), [7], []):
        selection = numpy.array(chosen, numpy.int64)
        statistics = measured("F32", [])
        strides = tuple(stride // rows.itemsize for stride in rows.strides)
        statistics.add_rows("s", rows.ctypes.data, rows.shape, strides, "F32", (selection.ctypes.data, len(selection)))
        expected = measured("F32", [numpy.ascontiguousarray(rows[chosen])] if chosen else [])
        assert statistics.sites()["s"].rows == len(chosen)
        assert statistics.to_bytes() == expected.to_bytes()


def test_tensors_without_rows_are_checked_too():
    rows = numbers("F32", rows=10)
    statistics = measured("F32", [])
    for shape, selection in (((0, WIDTH), None), ((10, WIDTH), (rows.ctypes.data, 0))):
        statistics.add_rows("s", rows.ctypes.data, shape, (WIDTH, 1), "F32", selection)
        assert messages(statistics.add_rows, "t", rows.ctypes.data, shape, (WIDTH, 1), "F32", selection).startswith("usage: ")
    assert statistics.sites()["s"].rows == 0


def test_rows_that_a_tensor_does_not_have_cannot_be_selected():
    rows = numbers("F32", rows=10)
    for row in (-1, 10):
        selection = numpy.array([2, row], numpy.int64)
        statistics = measured("F32", [])
        refused = messages(statistics.add_rows, "s", rows.ctypes.data, rows.shape, (WIDTH, 1), "F32", (selection.ctypes.data, 2))
        assert refused == f"usage: row {row} was selected from a tensor of 10 rows"
        assert statistics.sites()["s"].rows == 0


def test_small_pieces_need_no_growing_memory():
    """A long training run must not use more memory than a short one."""
    statistics = measured("F32", [])
    rows = numbers("F32", rows=100)
    for _ in range(50):
        add(statistics, "F32", rows)
    gc.collect()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for _ in range(3000):
        add(statistics, "F32", rows)
    assert resident() - before < 4 << 20


def test_the_tool_returns_its_exit_codes(tmp_path, capfd):
    """The command `cntlora` of the package is the tool itself."""
    assert cntlora.main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("cntlora ")
    assert cntlora.main(["--help"]) == 0
    assert "Compute an adapter from a checkpoint and activations" in capfd.readouterr().out
    assert cntlora.main(["init"]) == 2
    assert "error: " in capfd.readouterr().err
    assert cntlora.main(["inspect", str(tmp_path / "missing")]) == 3
    assert "No such file or directory" in capfd.readouterr().err
    (tmp_path / "a.safetensors").write_bytes(b"not a tensor file")
    assert cntlora.main(["inspect", str(tmp_path / "a.safetensors")]) == 1
    assert cntlora.main(["generate", "options", "--quiet"]) == 0
    assert "--max-memory" in capfd.readouterr().out


def test_log_levels_change_from_call_to_call(tmp_path, capfd):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"s": ("F32", numbers("F32"))}, sites(s=["q"]))
    for _ in range(2):
        assert cntlora.main(["inspect", str(path), "-v"]) == 0
        assert "opened" in capfd.readouterr().err
        assert cntlora.main(["inspect", str(path)]) == 0
        assert "opened" not in capfd.readouterr().err


def test_an_interrupt_saves_the_progress(tmp_path, capfd):
    """Ctrl-C in a notebook stops a command, and the same command continues later."""
    rows = numbers("F16", rows=2000, width=2048)
    write_safetensors(tmp_path / "a.safetensors", {f"s{number}": ("F16", rows) for number in range(16)}, sites())
    out = tmp_path / "m.moments.safetensors"
    command = ["moments", str(tmp_path / "a.safetensors"), "--out", str(out), "--threads", "1", "--progress", "none"]

    def interrupt():
        while not any(tmp_path.glob("*.partial/job.json")):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert cntlora.main(command) == 130
    assert "Saving the progress, then stopping" in capfd.readouterr().err
    assert not out.exists() and any(path.name.endswith(".partial") for path in tmp_path.iterdir())
    # The handler of Python is in place again.
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
