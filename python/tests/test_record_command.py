"""The command `cntlora record`: from a model and a file of data to moments or activations, and its errors."""

import errno
import io
import json
import pathlib
import sys

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import models
import oracle
from cntlora.bar import Bar
from cntlora.recorder import Recorder
from cntlora.record_command import main

WORDS = [f"word{number}" for number in range(56)]
LINES = [" ".join(WORDS[(7 * line + 3 * place) % 56] for place in range(4 + line % 6)) for line in range(20)]
TEMPLATE = "<s>{% for one in messages %}{{ one.role }} {{ one.content }} {% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small models, a tokenizer that knows words, and data."""
    folder = tmp_path_factory.mktemp("record")
    for name in ("llama", "bert_head", "resnet", "unet", "mixtral"):
        model, batch = models.make(name)
        model.save_pretrained(folder / name)
        save_file({key: tensor.contiguous() for key, tensor in batch.items()}, folder / f"{name}.safetensors")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    options = dict(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    PreTrainedTokenizerFast(**options).save_pretrained(folder / "llama")
    (folder / "text.txt").write_text("\n\n".join(LINES) + "\n")
    (folder / "template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Runs the command in the folder of data. Returns the exit code, and the lines of stdout and of stderr."""
    home = folder

    def run(*words, folder=home):
        monkeypatch.chdir(folder)
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


def refused(result, code, *lines):
    assert (result[0], result[1], result[2]) == (code, [], list(lines))


def jsonl(path, *contents):
    path.write_text("".join(f"{content if isinstance(content, str) else json.dumps(content)}\n" for content in contents))
    return path


def rows_of_texts(folder, texts):
    """Returns the number of tokens of texts, with the first token that the tokenizer adds."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    return sum(len(tokenizer(text).input_ids) for text in texts)


def test_text_becomes_moments(run, folder, tmp_path):
    """The file has the sums of the model that runs on the same tokens, without padding."""
    out = tmp_path / "x.moments.safetensors"
    code, said, errors = run("llama", "--text", "text.txt", "--target", "q_proj,v_proj", "--out", out, "--batch-size", 3)
    rows = rows_of_texts(folder, LINES)
    assert (code, said, errors) == (0, [f"4 layers at 2 sites, at most {rows} rows, in {out}"], [])
    found, sites, _ = oracle.saved(out)
    assert [sorted(name.rpartition(".")[2] for name in modules) for modules in sites.values()] == [["q_proj", "v_proj"]] * 2
    model, _ = models.make("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    with Recorder(model, ["q_proj"]) as recorder, torch.no_grad():
        for line in LINES:
            model(input_ids=torch.tensor([tokenizer(line).input_ids]))
    recorder.save(tmp_path / "y.moments.safetensors")
    for site, expected in oracle.saved(tmp_path / "y.moments.safetensors")[0].items():
        assert found[site]["count"] == expected["count"] == rows
        assert oracle.close(found[site]["gram"], expected["gram"])


def test_long_texts_are_cut_and_recording_ends_early(run, tmp_path):
    out = tmp_path / "x.moments.safetensors"
    assert run("llama", "--text", "text.txt", "--out", out, "--length", 4, "--batch-size", 2, "--tokens", 9)[0] == 0
    assert {site["count"] for site in oracle.saved(out)[0].values()} == {16}


def test_lines_of_json(run, folder, tmp_path):
    """Texts, conversations, and prompts with completions. The chat template writes the special tokens itself."""
    out = tmp_path / "x.moments.safetensors"
    messages = [dict(role="word1", content="word2 word3"), dict(role="word4", content="word5")]
    data = jsonl(
        tmp_path / "x.jsonl",
        dict(text="word1 word2"), "", dict(prompt="word1 ", completion="word2 word3", other=1), dict(messages=messages),
        dict(prompt=messages[:1], completion=messages[1:]),
    )
    code, said, errors = run("llama", "--dataset", data, "--chat-template", "template.jinja", "--target", "embed_tokens,q_proj", "--out", out)
    assert (code, errors) == (0, [])
    found = oracle.saved(out)[0]
    counts = found["model.embed_tokens"]["tokens"]
    # One <s> for each example, and no unknown word.
    assert (counts[1], counts[3]) == (4, 0)
    assert found["model.layers.0.self_attn.q_proj"]["count"] == counts.sum() == 3 + 4 + 6 + 6


def test_tensors_of_a_model_with_a_head(run, tmp_path):
    out = tmp_path / "x.moments.safetensors"
    code, said, errors = run("bert_head", "--inputs", "bert_head.safetensors", "--out", out)
    reason = "it belongs to a head with few outputs, which is usually trained whole: name it to record it"
    assert (code, errors) == (0, [f'left out: "classifier": {reason}'])
    found = oracle.saved(out)[0]
    assert found["bert.encoder.layer.1.output.dense"]["count"] == 90 and "classifier" not in found
    code, said, errors = run("bert_head", "--inputs", "bert_head.safetensors", "--out", out, "--force", "--target", "all-linear,classifier")
    assert (code, errors) == (0, [])
    again = oracle.saved(out)[0]
    assert again["classifier"]["count"] == 12 and again.keys() - found.keys() == {"classifier"}
    other = run("bert_head", "--inputs", "llama.safetensors", "--out", tmp_path / "y.safetensors", "--model-class", "BertForMaskedLM")
    assert (other[0], other[2]) == (0, [])
    assert "classifier" not in oracle.saved(tmp_path / "y.safetensors")[0]


def test_the_output_head_is_recorded_if_it_is_named(run, tmp_path):
    out = tmp_path / "x.moments.safetensors"
    for targets, layers in (("lm_head", 1), ("lm_head,q_proj", 3), ("all-linear", 14), ("all-linear,lm_head", 15)):
        code, said, errors = run("llama", "--inputs", "llama.safetensors", "--target", targets, "--out", out, "--force")
        assert (code, errors) == (0, [])
        found, sites, _ = oracle.saved(out)
        assert sum(map(len, sites.values())) == layers
        assert ("lm_head" in found) == ("lm_head" in targets)


def test_a_model_of_diffusers(run, tmp_path):
    out = tmp_path / "x.moments.safetensors"
    code, said, errors = run("unet", "--inputs", "unet.safetensors", "--target", "to_k,conv1", "--out", out)
    assert (code, errors) == (0, [])
    assert len(oracle.saved(out)[2]) == 16


def test_rows_become_activations(run, folder, tmp_path):
    """Several files, with the sites and the convolutions in their metadata. The rows are those of the model, in bf16."""
    out = tmp_path / "activations"
    code, said, errors = run("resnet", "--inputs", "resnet.safetensors", "--rows", "--out", out)
    assert (code, errors) == (0, [])
    assert said[0].endswith(f"sites, at most 12 rows, in {out}")
    (path,) = out.iterdir()
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["cntlora"])
        site = "embedder.embedder.convolution"
        assert content["format"] == "activations" and content["version"] == 1
        assert content["convolutions"][site] == dict(kernel=[7, 7], stride=[2, 2], padding=[3, 3], groups=1)
        assert content["sites"][site] == [site]
        expected = models.make("resnet")[1]["pixel_values"].bfloat16()
        assert torch.equal(file.get_tensor(site), expected)
    assert not list(tmp_path.glob(".*"))


def test_files_of_activations_begin_anew_after_a_number_of_rows(tmp_path):
    """Rows, shared sites and counts of tokens in all files together are those of the model."""
    from cntlora.recorder import run
    from cntlora.sinks import Files

    model, batch = models.make("llama")
    recorder = Recorder(model, ["q_proj", "k_proj", "embed_tokens"])
    files = Files(tmp_path / "x", most_rows=40)
    run(recorder, model, models.batches(batch), sink=files)
    files.write()
    paths = sorted((tmp_path / "x").iterdir())
    assert [path.name for path in paths] == ["part-00001.safetensors", "part-00002.safetensors"]
    rows, counts, metadata = [], 0, []
    for path in paths:
        with safe_open(path, "pt") as file:
            metadata.append(json.loads(file.metadata()["cntlora"])["sites"])
            rows.append(file.get_tensor("model.layers.1.self_attn.q_proj"))
            counts = counts + file.get_tensor("model.embed_tokens")
    assert metadata[0] == metadata[1] and len(metadata[0]) == 3
    inputs, _ = oracle.inputs(model, ["model.layers.1.self_attn.q_proj"], lambda: [model(**part) for part in models.batches(batch)])
    masks = [part["attention_mask"] for part in models.batches(batch)]
    expected = oracle.rows(inputs["model.layers.1.self_attn.q_proj"], masks)
    assert torch.equal(torch.cat(rows), torch.from_numpy(expected).float().bfloat16())
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    assert torch.equal(counts, torch.bincount(ids, minlength=64))


def test_sites_of_activations_cannot_be_separated(tmp_path):
    """The files of one recording must agree, so a layer that leaves its site is an error."""
    from cntlora.errors import Error
    from cntlora.sinks import Files

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x, factor):
            return self.a(x), self.b(x if factor == 1 else factor * x)

    model = Model()
    with pytest.raises(Error, match='"b" and the other modules of the site "a" read one input at first'):
        with Recorder(model).into(Files(tmp_path / "x")):
            model(torch.randn(2, 3), 1)
            model(torch.randn(2, 3), 2)


def test_experts_and_layers_that_are_left_out_are_named(run, tmp_path):
    out = tmp_path / "x.moments.safetensors"
    code, said, errors = run("mixtral", "--inputs", "mixtral.safetensors", "--target", "down_proj", "--per-expert", "--out", out)
    assert (code, errors) == (0, [])
    assert len(oracle.saved(out)[0]) == 8
    torch.manual_seed(0)
    save_file(dict(input_ids=torch.tensor([[5]])), tmp_path / "one.safetensors")
    code, said, errors = run("mixtral", "--inputs", tmp_path / "one.safetensors", "--target", "down_proj", "--per-expert", "--out", out, "--force")
    assert code == 0 and said == [f"4 layers at 4 sites, at most 1 rows, in {out}"]
    (line,) = errors
    assert line.startswith('left out: "model.layers.0.mlp.experts.down_proj.') and line.endswith("and 1 others: no forward pass reached it")


def test_several_passes_give_the_same_file(run, tmp_path):
    first, second = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    words = ("llama", "--text", "text.txt", "--dtype", "f32", "--threads", 1)
    assert run(*words, "--out", first)[0] == 0
    limit = Recorder(models.make("llama")[0], ["down_proj"], max_memory="1GB").passes[0].memory
    assert run(*words, "--out", second, "--max-memory", limit)[0] == 0
    (found, sites, _), (expected, other, _) = oracle.saved(second), oracle.saved(first)
    assert sites == other
    for site in expected:
        assert oracle.close(found[site]["gram"], expected[site]["gram"])


def test_number_formats_of_the_model(run, tmp_path):
    for dtype in ("bf16", "f16", "auto"):
        assert run("llama", "--text", "text.txt", "--dtype", dtype, "--out", tmp_path / "x.safetensors", "--force")[0] == 0


# Errors


def test_missing_targets_have_similar_names(run, tmp_path):
    refused(
        run("llama", "--text", "text.txt", "--target", "q_porj", "--out", tmp_path / "x.safetensors"), 2,
        'error: targets: no layer is named "q_porj"; similar names are "q_proj", "v_proj", "o_proj"',
    )


@pytest.mark.parametrize("words, code, lines", [
    (["llama", "--out", "x.safetensors"], 2, [
        "error: one of the arguments --text --dataset --inputs is required", "  help: see `cntlora record --help`",
    ]),
    (["llama", "--text", "text.txt"], 2, ["error: the following arguments are required: --out", "  help: see `cntlora record --help`"]),
    (["llama", "--text", "text.txt", "--out", "x.safetensors", "--length", "-1"], 2, [
        "error: argument --length: expected a whole number from 1, found -1", "  help: see `cntlora record --help`",
    ]),
    (["llama", "--text", "text.txt", "--out", "x.safetensors", "--max-memory", "many"], 2, [
        "error: max_memory: expected a number of bytes such as 4GB, found 'many'",
    ]),
    (["llama", "--text", "text.txt", "--out", "x", "--rows", "--max-memory", "1GB"], 2, [
        "error: --max-memory limits moments, but --rows writes activations", "  help: remove one of the two",
    ]),
    (["llama", "--text", "text.txt", "--out", "x", "--rows", "--precision", "bf16"], 2, [
        "error: --precision and --nonfinite are for moments, but --rows writes activations", "  help: give them to `cntlora init`",
    ]),
    (["llama", "--text", "text.txt", "--out", "x.safetensors", "--chat-template", "template.jinja"], 2, [
        "error: --chat-template is for the messages of --dataset", "  help: remove it",
    ]),
    (["llama", "--text", "text.txt", "--out", "x.safetensors", "--target", ","], 2, [
        "error: --target: no name was given", "  help: give names of layers, separated by commas",
    ]),
    (["llama", "--text", "text.txt", "--out", "x"], 2, [
        "error: x: expected the name of a moments file", "  help: give --out x.moments.safetensors, or --rows for a folder",
    ]),
    (["llama", "--text", "text.txt", "--out", "nowhere/x.safetensors"], 3, [
        "error: nowhere/x.safetensors: its folder does not exist", "  help: make the folder first",
    ]),
    (["llama", "--text", "text.txt", "--out", "llama.safetensors"], 2, [
        "error: llama.safetensors: the output exists", "  help: give --force to replace it, or another --out",
    ]),
    (["llama", "--text", "text.txt", "--out", "llama.safetensors", "--rows", "--force"], 2, [
        "error: llama.safetensors: --force replaces a folder, found a file",
    ]),
    (["llama", "--text", "none.txt", "--out", "x.safetensors"], 3, ["error: none.txt: No such file or directory"]),
    (["llama", "--text", "unet.safetensors", "--out", "x.safetensors"], 1, None),
    (["llama", "--inputs", "none.safetensors", "--out", "x.safetensors"], 3, None),
    (["llama", "--inputs", "text.txt", "--out", "x.safetensors"], 1, None),
    (["llama", "--text", "text.txt", "--out", "x.safetensors", "--device", "nowhere"], 2, [
        "error: --device: expected a device such as cpu, cuda:1 or auto, found nowhere",
    ]),
    (["llama", "--text", "text.txt", "--out", "x.safetensors", "--model-class", "Nothing"], 2, [
        "error: transformers or diffusers has no model of the class Nothing", "  help: give another class with --model-class",
    ]),
    (["unet", "--text", "text.txt", "--out", "x.safetensors"], 3, None),
    (["nowhere", "--inputs", "llama.safetensors", "--out", "x.safetensors"], 3, None),
    (["resnet", "--inputs", "llama.safetensors", "--out", "x.safetensors"], 1, None),
])
def test_errors(run, folder, words, code, lines):
    """Exit code 1 is for data, 2 for the command, 3 for files and the environment. Nothing is left of the output."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = run(*words)
    assert (found[0], found[1]) == (code, []), found
    assert found[2][0].startswith("error: ") and len(found[2]) <= 2
    assert lines is None or found[2] == lines
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "x"} == before


def test_errors_in_data(run, tmp_path):
    """The line of a mistake is named."""
    out, data = tmp_path / "x.safetensors", tmp_path / "x.jsonl"
    fields = "  help: text is a string, messages is a list of objects with role and content, and prompt and completion are both of one of these kinds"
    for content, code, *lines in [
        ("{", 1, f"error: {data}: line 2: expected JSON, found expecting property name enclosed in double quotes at column 2"),
        ("[1]", 1, f"error: {data}: line 2: expected an object, found [1]"),
        (dict(words="a"), 1, f"error: {data}: line 2: expected the fields text, messages, or prompt and completion, found words", fields),
        (dict(prompt="a", completion=[]), 1, f"error: {data}: line 2: expected the fields text, messages, or prompt and completion, found prompt, completion", fields),
        (dict(messages=["a"]), 1, f'error: {data}: line 2: expected messages with role and content, found ["a"]'),
    ]:
        jsonl(data, dict(text="word1"), content)
        refused(run("llama", "--dataset", data, "--chat-template", "template.jinja", "--out", out), code, *lines)
    jsonl(data, dict(messages=[dict(role="word1", content="a")]))
    refused(
        run("llama", "--dataset", data, "--out", out), 2,
        f"error: {data}: line 1: the tokenizer has no chat template for messages", "  help: give a file with a template with --chat-template",
    )
    (tmp_path / "bad.jinja").write_text("{{ raise_exception('no system') }}")
    refused(
        run("llama", "--dataset", data, "--chat-template", tmp_path / "bad.jinja", "--out", out), 1,
        f"error: {data}: line 1: the chat template refuses the messages: no system",
    )
    data.write_text("\n")
    refused(run("llama", "--dataset", data, "--out", out), 1, f"error: {data}: the file has no examples", '  help: give a file with lines such as {"text": "…"}')
    refused(run("llama", "--text", data, "--out", out), 1, f"error: {data}: the file has no text", "  help: give a file with one example per line")
    inputs = tmp_path / "inputs.safetensors"
    for tensors, line in [
        (dict(a=torch.zeros(2, 3), b=torch.zeros(3)), "expected the same number of examples in all tensors, found 2 in a, 3 in b"),
        (dict(a=torch.tensor(1)), "the file has no tensors with a first axis of examples"),
        (dict(a=torch.zeros(0, 3)), "the tensors have no examples"),
    ]:
        save_file(tensors, inputs)
        refused(run("llama", "--inputs", inputs, "--out", out), 1, f"error: {inputs}: {line}")
    save_file(dict(input_ids=torch.full((2, 3), 99)), inputs)
    refused(
        run("llama", "--inputs", inputs, "--out", out), 1,
        "error: the model fails on its inputs: index out of range in self", "  help: check that the inputs are those of the model",
    )
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_warnings_have_the_words_of_the_tool(run, tmp_path):
    """Padding that cannot be told from tokens is announced. A failed forward pass is an error, and needs no warning."""
    save_file(dict(input_values=torch.randn(4, 64), attention_mask=(torch.arange(64) < torch.tensor([[64], [40]] * 2)).long()), tmp_path / "x")
    model, _ = models.make("wav2vec2")
    model.save_pretrained(tmp_path / "wav2vec2")
    code, said, errors = run("wav2vec2", "--inputs", "x", "--out", "x.safetensors", folder=tmp_path)
    assert code == 0
    assert any(line.startswith('warning: padding counts in the input of "feature_projection.projection"') for line in errors)


def test_interruption(run, tmp_path, monkeypatch):
    """Ctrl-C ends with the exit code of the tool, and leaves nothing."""
    from transformers import LlamaForCausalLM

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "forward", interrupted)
    refused(run("llama", "--text", "text.txt", "--out", tmp_path / "x.safetensors"), 130, "error: interrupted")
    assert list(tmp_path.iterdir()) == []


def failing(problem):
    def fail(*_, **__):
        raise problem

    return fail


@pytest.mark.parametrize("problem, line", [
    (MemoryError(), "error: not enough memory for a forward pass"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "error: the model fails on its inputs: CUDA out of memory. Tried to allocate 2 GiB"),
])
def test_too_little_memory(run, tmp_path, monkeypatch, problem, line):
    """A forward pass that needs too much memory is a problem of the environment, and the message says which options help."""
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", failing(problem))
    found = run("llama", "--text", "text.txt", "--out", tmp_path / "x.safetensors")
    refused(found, 3, line, "  help: use a smaller --batch-size or --length")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_the_machine_does_not_have(run, tmp_path, monkeypatch):
    """Torch reports a missing device in two ways, and only when the model moves there."""
    for problem in (AssertionError("Torch not compiled with CUDA enabled"), RuntimeError("no NVIDIA driver")):
        monkeypatch.setattr(transformers.LlamaForCausalLM, "to", failing(problem))
        found = run("llama", "--text", "text.txt", "--device", "cuda", "--out", tmp_path / "x.safetensors")
        refused(found, 3, f"error: --device cuda: {problem}")


def test_missing_packages(run, tmp_path, monkeypatch):
    """A missing package is named, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, said, errors = run("llama", "--text", "text.txt", "--out", tmp_path / "x.safetensors")
    assert (code, said) == (3, [])
    assert errors[0].startswith("error: cntlora record needs torch and transformers: ")
    assert errors[1:] == ["  help: pip install torch transformers"]


def test_an_output_that_cannot_be_written(run, tmp_path, monkeypatch):
    """Nothing is left of an output that cannot be moved to its place."""
    out = tmp_path / "x.safetensors"
    monkeypatch.setattr(pathlib.Path, "replace", failing(OSError(errno.ENOSPC, "No space left on device")))
    refused(run("llama", "--text", "text.txt", "--out", out), 3, f"error: {out}: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_help(run):
    code, said, _ = run("--help")
    assert code == 0 and any("--per-expert" in line for line in said)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_tokens_per_second_and_time_left():
    """It is shown on a terminal only, and is removed at the end."""
    seconds = iter([0, 10, 10.01, 20, 30])
    bar = Bar(Terminal(), lambda: next(seconds))
    bar(1, 4, 500)
    bar(2, 4, 900)
    bar(2, None, 1000)
    bar(4, 4, 2000)
    bar.close()
    shown = bar.out.getvalue().split("\r")
    assert shown == [
        "",
        "[#######.......................] 1/4 batches, 500 tokens, 50 tokens/s, 0:30 left\x1b[K",
        "1000 tokens, 50 tokens/s\x1b[K",
        "[##############################] 4/4 batches, 2000 tokens, 67 tokens/s, 0:00 left\x1b[K",
        "\x1b[K",
    ]
    silent = Bar(io.StringIO())
    silent(1, 4, 500)
    silent.close()
    assert silent.out.getvalue() == ""
