"""The engine on weights and statistics in memory: its factors are those of the tool on files."""

import json
import os
import signal
import threading
import warnings
from typing import NamedTuple

import numpy
import pytest
from test_statistics import add, exact, messages, numbers, sites, tokens, write_safetensors

import cntlora._cntlora as cntlora

WIDTH, INNER, VOCABULARY = 16, 24, 11
#: Module, shape of its weight, site.
MODULES = {
    "layer.q": ((WIDTH, WIDTH), "attention"),
    "layer.k": ((8, WIDTH), "attention"),
    "layer.up": ((INNER, WIDTH), "up"),
    "layer.down": ((WIDTH, INNER), "down"),
}
WIDTHS = {"attention": WIDTH, "up": WIDTH, "down": INNER}
ROWS = 900


class Weight(NamedTuple):
    name: str
    dtype: str
    shape: list
    address: int | None = None
    load: object = None


class Tensor:
    """A tensor as torch has it, of which the engine uses these attributes."""

    def __init__(self, array):
        self.array, self.nbytes, self.is_cpu = array, array.nbytes, True

    def data_ptr(self):
        return self.array.ctypes.data

    def is_contiguous(self):
        return self.array.flags.c_contiguous


class Model:
    """A small model, its weights, and the inputs of its layers."""

    def __init__(self, dtype="F32"):
        self.dtype = dtype
        self.arrays = {
            name: numbers(dtype, *shape, seed=number) for number, (name, (shape, _)) in enumerate(MODULES.items())
        }
        self.rows = {name: numbers(dtype, ROWS, width, seed=9 + number) for number, (name, width) in enumerate(WIDTHS.items())}
        self.source = {name: numbers(dtype, ROWS, width, seed=90 + number) for number, (name, width) in enumerate(WIDTHS.items())}

    def weights(self, loads=None):
        """Returns the weights at their addresses, or with functions that note their calls in `loads`."""
        made = []
        for name, array in self.arrays.items():
            weight = Weight(f"{name}.weight", self.dtype, list(array.shape), array.ctypes.data)
            if loads is not None:

                def load(name=name, array=array):
                    loads.append(name)
                    return Tensor(array.copy())

                weight = weight._replace(address=None, load=load)
            made.append(weight)
        return made

    def readers(self, site):
        return [name for name, (_, of) in MODULES.items() if of == site]

    def statistics(self, rows, **options):
        statistics = cntlora.Statistics(**options)
        for site, array in rows.items():
            statistics.declare(site, self.readers(site), WIDTHS[site])
            for piece in numpy.array_split(array, 5):
                add(statistics, self.dtype, piece, site)
        return statistics

    def write(self, folder):
        """Writes the model and its activations. Returns the inputs as words of the command line."""
        (folder / "model").mkdir()
        tensors = {f"{name}.weight": (self.dtype, array) for name, array in self.arrays.items()}
        write_safetensors(folder / "model" / "model.safetensors", tensors, {})
        (folder / "model" / "config.json").write_text("{}")
        metadata = sites(**{site: self.readers(site) for site in WIDTHS})
        for kind, rows in [("target", self.rows), ("source", self.source)]:
            write_safetensors(folder / f"{kind}.safetensors", {site: (self.dtype, array) for site, array in rows.items()}, metadata)
        return [str(folder / "model"), "--activations", str(folder / "target.safetensors")]


@pytest.fixture
def model():
    return Model()


OPTIONS = {
    "the default": ["--rank", "8"],
    "a small rank, another seed": ["--rank", "4", "--seed", "3"],
    "an update": ["--rank", "4", "--start", "update", "--max-shift", "0.1"],
    "a budget": ["--rank", "4", "--budget"],
    "energy": ["--energy", "0.5"],
    "eva": ["--method", "eva", "--rank", "3"],
    "corda-kpm": ["--method", "corda-kpm", "--rank", "3"],
    "corda-ipm": ["--method", "corda-ipm", "--rank", "3"],
    "pissa": ["--method", "pissa", "--rank", "3", "--start", "residual"],
    "olora": ["--method", "olora", "--rank", "3"],
    "milora": ["--method", "milora", "--rank", "3"],
    "olora-tail": ["--method", "olora-tail", "--rank", "3"],
    "mica": ["--method", "mica", "--rank", "3"],
    "astra": ["--method", "astra", "--rank", "3"],
    "orthogonal": ["--method", "orthogonal", "--rank", "4"],
    "gaussian": ["--method", "gaussian", "--rank", "4"],
    "some layers": ["--rank", "4", "--target", "up,down"],
    "bf16 factors": ["--rank", "4", "--dtype", "bf16", "--threads", "1"],
}


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS.keys())
def test_factors_are_those_of_files(words, model, tmp_path):
    """A run in the training program has the same result as the tool: the same factors, to the bit, and the same report."""
    inputs = model.write(tmp_path)
    assert cntlora.main(["init", *inputs, "--out", str(tmp_path / "files"), "--quiet", "--json", *words]) == 0
    out = tmp_path / "memory"
    report = json.loads(
        cntlora.initialize(words, model.weights(), str(out), statistics=model.statistics(model.rows), config="{}")
    )
    factors = "adapter_model.safetensors"
    assert (out / factors).read_bytes() == (tmp_path / "files" / factors).read_bytes()
    of_files = json.loads((tmp_path / "files" / "report.json").read_text())
    for layer, other in zip(report["layers"], of_files["layers"], strict=True):
        assert [layer[key] for key in ["module", "rank", "singular_values"]] == [other[key] for key in ["module", "rank", "singular_values"]]
    # The weights stay as they are, and no base is written.
    files = sorted(path.name for path in (tmp_path / "files").iterdir() if path.is_file())
    assert sorted(path.name for path in out.iterdir()) == files


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_every_number_format_gives_the_factors_of_files(dtype, tmp_path):
    model = Model(dtype)
    inputs = model.write(tmp_path)
    words = ["--rank", "4"]
    assert cntlora.main(["init", *inputs, "--out", str(tmp_path / "files"), "--quiet", *words]) == 0
    cntlora.initialize(words, model.weights(), str(tmp_path / "memory"), statistics=model.statistics(model.rows), config="{}")
    factors = "adapter_model.safetensors"
    assert (tmp_path / "memory" / factors).read_bytes() == (tmp_path / "files" / factors).read_bytes()


def test_pretraining_statistics_and_files_of_moments(model, tmp_path):
    """The source of the map between statistics can be in memory or in a file, in any combination with the target."""
    inputs = model.write(tmp_path)
    words = ["--rank", "4", "--coupling", "transport"]
    given = [*inputs, "--source", str(tmp_path / "source.safetensors")]
    assert cntlora.main(["init", *given, "--out", str(tmp_path / "files"), "--quiet", *words]) == 0
    target, source = model.statistics(model.rows), model.statistics(model.source)
    target.save(tmp_path / "t.moments.safetensors", "target")
    source.save(tmp_path / "s.moments.safetensors", "source")
    combinations = [
        {"statistics": target, "source": source},
        {"moments": [tmp_path / "t.moments.safetensors"], "source": source},
        {"statistics": target, "source_moments": [tmp_path / "s.moments.safetensors"]},
        {"moments": [tmp_path / "t.moments.safetensors"], "source_moments": [tmp_path / "s.moments.safetensors"]},
    ]
    wanted = (tmp_path / "files" / "adapter_model.safetensors").read_bytes()
    for number, combination in enumerate(combinations):
        out = tmp_path / f"out{number}"
        cntlora.initialize(words, model.weights(), out, config="{}", **combination)
        assert (out / "adapter_model.safetensors").read_bytes() == wanted
    # Statistics that are in use for a computation can be used again, and grow afterwards.
    add(target, "F32", model.rows["up"], "up")
    assert target.sites()["up"].rows == 2 * ROWS


def test_weights_are_loaded_when_they_are_needed(model, tmp_path):
    """A dequantized weight is as large as the model has no room for: one is in memory at a time."""
    loads = []
    words = ["--rank", "4"]
    cntlora.initialize(words, model.weights(loads), tmp_path / "lazy", statistics=model.statistics(model.rows), config="{}")
    assert sorted(loads) == sorted(MODULES)
    cntlora.initialize(words, model.weights(), tmp_path / "eager", statistics=model.statistics(model.rows), config="{}")
    factors = "adapter_model.safetensors"
    assert (tmp_path / "lazy" / factors).read_bytes() == (tmp_path / "eager" / factors).read_bytes()
    loads.clear()
    cntlora.initialize([*words, "--target", "up"], model.weights(loads), tmp_path / "one", statistics=model.statistics(model.rows))
    assert loads == ["layer.up"]


def test_methods_without_data_need_no_rows(model, tmp_path):
    """PiSSA and the like take the names of the layers from sites without rows, or from the options."""
    statistics = cntlora.Statistics()
    for site in WIDTHS:
        statistics.declare(site, model.readers(site), WIDTHS[site])
    statistics.declare("tokens", ["embed"], VOCABULARY, tokens=True)
    table = numbers("F32", VOCABULARY, WIDTH)
    weights = [*model.weights(), Weight("embed.weight", "F32", [VOCABULARY, WIDTH], table.ctypes.data)]
    words = ["--method", "pissa", "--rank", "3"]
    report = json.loads(cntlora.initialize(words, weights, tmp_path / "a", statistics=statistics))
    adapted = [layer["module"] for layer in report["layers"]]
    assert set(MODULES) <= set(adapted)
    named = json.loads(cntlora.initialize([*words, "--target", "all-linear"], model.weights(), tmp_path / "b"))
    assert sorted(layer["module"] for layer in named["layers"]) == sorted(MODULES)
    refusal = messages(cntlora.initialize, ["--rank", "4"], model.weights(), tmp_path / "c")
    assert refusal == (
        "usage: the method cntlora needs the inputs of the layers\n  help: give the recorded statistics, or their files"
    )


def test_embeddings_convolutions_and_experts(tmp_path):
    """All kinds of weights that the tool adapts have a place in memory: the rows of convolutions are patches of all groups."""
    outputs, groups, channels, kernel, experts = 6, 2, 4, 3, 3
    arrays = {
        "embed.weight": numbers("F32", VOCABULARY, WIDTH),
        "conv.weight": numbers("F32", outputs, channels * kernel).reshape(outputs, channels, kernel),
        "grouped.weight": numbers("F32", outputs, channels // groups * kernel).reshape(outputs, channels // groups, kernel),
        "experts.up_proj": numbers("F32", experts * INNER, WIDTH).reshape(experts, INNER, WIDTH),
    }
    weights = [Weight(name, "F32", list(array.shape), array.ctypes.data) for name, array in arrays.items()]
    statistics = cntlora.Statistics()
    statistics.declare("embed", ["embed"], VOCABULARY, tokens=True)
    tokens(statistics, numpy.arange(200) ** 2 % VOCABULARY, "embed")
    patches = numbers("F32", ROWS, channels * kernel, seed=4)
    statistics.declare("image", ["conv", "grouped"], channels * kernel)
    add(statistics, "F32", patches, "image")
    for expert in range(experts):
        statistics.declare(f"expert{expert}", [f"experts.up_proj.{expert}"], WIDTH)
        add(statistics, "F32", numbers("F32", ROWS, WIDTH, seed=expert), f"expert{expert}")
    report = json.loads(cntlora.initialize(["--rank", "4"], weights, tmp_path / "a", statistics=statistics, config="{}"))
    adapted = {layer["module"] for layer in report["layers"]}
    assert adapted == {"embed", "conv", "grouped", "experts.up_proj"} and report["skipped"] == []
    assert cntlora.main(["verify", str(tmp_path / "a"), "--quiet"]) == 0
    # The layout of fused experts depends on the type of the model: here [experts, inputs, outputs].
    turned = numpy.ascontiguousarray(arrays["experts.up_proj"].transpose(0, 2, 1))
    weights[3] = Weight("experts.up_proj", "F32", list(turned.shape), turned.ctypes.data)
    config = json.dumps({"model_type": "gpt_oss"})
    again = json.loads(cntlora.initialize(["--rank", "4"], weights, tmp_path / "b", statistics=statistics, config=config))
    values = [[layer["singular_values"] for layer in one["layers"] if layer["module"] == "experts.up_proj"] for one in [report, again]]
    numpy.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    # A residual start changes the weights, which a group of a convolution cannot hold.
    residual = ["--rank", "4", "--start", "residual", "--method", "corda-ipm"]
    assert "a changed base cannot hold the update of a convolution in groups" in messages(
        cntlora.initialize, residual, weights, tmp_path / "c", statistics=statistics, config="{}"
    )


def test_square_weights_are_not_taken_for_transposed_ones(tmp_path):
    """The files of GPT-2 hold transposed weights; in memory all weights are [outputs, inputs], whatever the configuration says."""
    array, rows = numbers("F32", WIDTH, WIDTH), numbers("F32", ROWS, WIDTH)
    statistics = cntlora.Statistics()
    statistics.declare("s", ["h.0.attn.c_proj"], WIDTH)
    add(statistics, "F32", rows, "s")
    values = []
    for number, config in enumerate([json.dumps({"model_type": "gpt2"}), "{}", None]):
        weight = Weight("h.0.attn.c_proj.weight", "F32", [WIDTH, WIDTH], array.ctypes.data)
        report = cntlora.initialize(["--rank", "4"], [weight], tmp_path / f"{number}", statistics=statistics, config=config)
        values.append(json.loads(report)["layers"][0]["singular_values"])
        factors = json.loads((tmp_path / f"{number}" / "adapter_config.json").read_text())
        assert not factors.get("fan_in_fan_out")
    assert values[0] == values[1] == values[2]


def test_sites_that_cannot_be_used_are_left_out(model, tmp_path):
    """A layer whose rows are all equal gets no adapter, and the report names it."""
    rows = {**model.rows, "up": numpy.ones_like(model.rows["up"])}
    report = json.loads(
        cntlora.initialize(["--rank", "4"], model.weights(), tmp_path / "a", statistics=model.statistics(rows), config="{}")
    )
    assert [(site["name"], site["modules"]) for site in report["unusable"]] == [("up", ["layer.up"])]
    strict = ["--rank", "4", "--strict"]
    assert messages(cntlora.initialize, strict, model.weights(), tmp_path / "b", statistics=model.statistics(rows)).startswith("data: ")


def test_every_refusal_has_a_message(model, tmp_path):
    statistics = model.statistics(model.rows)

    def refused(words=("--rank", "4"), weights=None, out=tmp_path / "never", **options):
        weights = model.weights() if weights is None else weights
        return messages(cntlora.initialize, list(words), weights, out, **{"statistics": statistics, **options})

    assert refused(["--rank", "x"]) == "usage: invalid value 'x' for '--rank <R>': invalid digit found in string"
    assert refused(["--rnak", "8"]) == "usage: unexpected argument '--rnak' found\n  help: a similar argument exists: '--rank'"
    assert refused(["word"]).startswith("usage: unexpected argument 'word' found")
    assert refused(["--rank", "7", "--start", "mirrored"]).startswith("usage: ")
    assert refused(["--target", "upp"]) == (
        'usage: --target: no module is named "upp"; similar names are "up", "k", "q"\n  help: give the name of a module, or the end of its name, '
        "such as q_proj or self_attn.q_proj"
    )
    assert refused(["--moments", "m", "--base-out", "b", "-v"]) == (
        "usage: --moments has no effect inside a program\n  help: give the recorded statistics, or their files\n"
        "--base-out has no effect inside a program\n  help: the factors go to the model in memory\n"
        "--verbose has no effect inside a program\n  help: the program shows the warnings\n3 problems were found"
    )
    assert refused(["--coupling", "paired"]).startswith("usage: the coupling paired needs")
    assert refused(moments=["a"]) == (
        "usage: statistics and moments files were given for the same activations\n  help: merge them first, or give one of them"
    )
    assert refused(statistics=None, moments=["missing"]).startswith("io: missing: cannot open: ")
    assert refused(["--rank", "4"], source=model.statistics({"up": model.source["up"]})).startswith(
        'data: the pre-training activations have no site "attention"'
    )
    assert refused(config="{").startswith("data: config.json: ")
    assert refused(["--precision", "bf16"]).startswith("usage: ")

    some = [weight for weight in model.weights() if weight.name != "layer.up.weight"]
    assert 'layer.up' in refused(weights=some)
    first, *others = model.weights()
    assert refused(weights=[first, first]) == 'usage: weight "layer.q.weight": is given twice'
    assert refused(weights=[first._replace(address=0)]) == 'usage: weight "layer.q.weight": the address is zero'
    assert refused(weights=[first._replace(address=None)]) == (
        'usage: weight "layer.q.weight": give either its address or a function that loads it'
    )
    assert "unknown number format" in refused(weights=[first._replace(dtype="F33"), *others])
    wide = first._replace(shape=[WIDTH, WIDTH + 1], address=None, load=lambda: Tensor(numpy.zeros((WIDTH, WIDTH + 1), numpy.float32)))
    # In a file this would be a weight of [inputs, outputs].
    assert f"expected {WIDTH + 1} numbers in each row of site" in refused(weights=[wide, *others])
    short = first._replace(address=None, load=lambda: Tensor(numpy.zeros(3, numpy.float32)))
    assert refused(weights=[short, *others]) == (
        f'usage: weight "layer.q.weight": expected {4 * WIDTH * WIDTH} bytes for F32 of shape [{WIDTH}, {WIDTH}], found 12'
    )
    turned = first._replace(address=None, load=lambda: Tensor(numpy.zeros((WIDTH, WIDTH), numpy.float32, order="C")[::-1]))
    assert refused(weights=[turned, *others]) == 'usage: weight "layer.q.weight": expected a tensor that is contiguous'
    assert not (tmp_path / "never").exists()

    cntlora.initialize(["--rank", "4"], model.weights(), tmp_path / "there", statistics=statistics)
    assert refused(["--rank", "4"], out=tmp_path / "there").startswith(f"usage: {tmp_path / 'there'}: ")


def test_exceptions_of_the_program_are_raised(model, tmp_path):
    """An exception in a function of the program must arrive as it is, and end the run."""
    first, *others = model.weights()

    class Own(Exception):
        pass

    def fail(*_):
        raise Own("from the program")

    statistics = model.statistics(model.rows)
    weights = [first._replace(address=None, load=fail), *others]
    with pytest.raises(Own, match="from the program"):
        cntlora.initialize(["--rank", "4"], weights, tmp_path / "a", statistics=statistics)
    with pytest.raises(Own, match="from the program"):
        cntlora.initialize(["--rank", "4"], model.weights(), tmp_path / "b", statistics=statistics, progress=fail)
    with pytest.raises(AttributeError):
        cntlora.initialize(["--rank", "4"], [object()], tmp_path / "c", statistics=statistics)


def test_progress_counts_the_layers(model, tmp_path):
    seen = []
    thread = threading.get_ident()

    def progress(layer, done, total):
        assert threading.get_ident() == thread
        seen.append((layer, done, total))

    cntlora.initialize(["--rank", "4"], model.weights(), tmp_path / "a", statistics=model.statistics(model.rows), progress=progress)
    assert [(done, total) for _, done, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(layer for layer, *_ in seen) == sorted(MODULES)


def test_an_interrupt_stops_the_run(model, tmp_path):
    """Ctrl-C in a notebook must stop a computation of many layers."""
    os_kill = lambda *_: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        cntlora.initialize(
            ["--rank", "4", "--threads", "1"], model.weights(), tmp_path / "a", statistics=model.statistics(model.rows), progress=os_kill
        )
    cntlora.initialize(["--rank", "4"], model.weights(), tmp_path / "b", statistics=model.statistics(model.rows))


def test_statistics_do_not_change_while_they_are_used(model, tmp_path):
    """Rows that arrive on another thread during a run would make a result that belongs to no data."""
    statistics = model.statistics(model.rows)
    refusals = []

    def progress(*_):
        refusals.append(messages(add, statistics, "F32", model.rows["up"], "up"))

    cntlora.initialize(["--rank", "4"], model.weights(), tmp_path / "a", statistics=statistics, progress=progress)
    assert set(refusals[:1]) == {
        "usage: the statistics are in use by a computation on another thread\n  help: add rows before or after it"
    }


def test_warnings_are_those_of_python(tmp_path):
    """The tool warns of sites with few rows. In a program the warning is one of Python."""
    model = Model()
    few = {site: rows[:3] for site, rows in model.rows.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cntlora.initialize(["--rank", "2"], model.weights(), tmp_path / "a", statistics=model.statistics(few))
    assert any("rows" in str(warning.message) for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            cntlora.initialize(["--rank", "2"], model.weights(), tmp_path / "b", statistics=model.statistics(few))


def test_reports_as_text_and_page(model, tmp_path, capfd):
    page = tmp_path / "page.html"
    words = ["--rank", "4", "--report", str(page)]
    report = cntlora.initialize(words, model.weights(), tmp_path / "a", statistics=model.statistics(model.rows))
    assert "layer.down" in cntlora.report_text(report)
    assert cntlora.report_html(report) == page.read_text()
    assert page.read_text().startswith("<!")
    refusal = messages(cntlora.report_text, "{}")
    assert refusal.startswith("data: expected a report of this version of cntlora: ")
    assert refusal.endswith("help: give the text that initialize() returned")
    assert json.loads(report) == json.loads((tmp_path / "a" / "report.json").read_text())


def test_numbers_are_read_exactly():
    """The helpers of these tests must read bf16 as it is."""
    assert exact("BF16", numpy.array([0x3FC0], numpy.uint16)).tolist() == [1.5]
