"""The installed package: a clean installation, and the command `cntlora`."""

import json
import os
import pathlib
import shutil
import site
import subprocess
import sys

import pytest
import torch

PROJECT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Installs the package with pip into a fresh environment, which reads torch and PEFT from this one. Returns its folder of programs."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # The packages of this environment, also if it is layered over another one. This package must come from the fresh environment.
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = _python_with_pip()
    # maturin comes from this environment, so that nothing is downloaded.
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    pip = [python, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, PROJECT / "python"], check=True, env=environment)
    return folder / "bin"


def _python_with_pip():
    """Returns a Python that has pip: this one, or the one whose packages it reads."""
    folders = [pathlib.Path(path).parents[2] / "bin" for path in [*site.getsitepackages(), *sys.path] if path.endswith("site-packages")]
    for python in (pathlib.Path(sys.executable), *(folder / "python" for folder in folders)):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return python
    raise AssertionError("no Python with pip was found")


def run(program, *words, code=0, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_command_is_the_tool(installed, tmp_path):
    """`cntlora` of the package has the commands of the tool, with their exit codes, and `record`. Its help does not load torch."""
    tool = installed / "cntlora"
    shown = run(tool, "--help").stdout
    assert "init " in shown and "moments " in shown and "  record " in shown
    assert "--text" in run(tool, "record", "--help").stdout
    assert run(tool, "--version").stdout.startswith("cntlora ")
    run(tool, "init", code=2)
    run(tool, "inspect", tmp_path / "missing", code=3)
    run(tool, "record", code=2)
    script = "import sys, cntlora._cntlora, cntlora.__main__; print('torch' in sys.modules, cntlora.__file__)"
    loads_torch, place = run(installed / "python", "-c", script, cwd=tmp_path).stdout.split()
    assert loads_torch == "False" and pathlib.Path(place).is_relative_to(installed.parent)
    demo = run(tool, "demo", tmp_path / "demo")
    assert (tmp_path / "demo" / "report.html").is_file(), demo.stdout


def test_types_are_part_of_the_package(installed):
    packages = next(installed.parent.glob("lib/python*/site-packages/cntlora"))
    assert (packages / "py.typed").is_file() and (packages / "_cntlora.pyi").is_file()


def test_the_function_and_the_command_record_do_not_collide(installed, tmp_path):
    script = "import cntlora, cntlora.record_command; print(callable(cntlora.record), sorted(cntlora.__all__))"
    assert run(installed / "python", "-c", script, cwd=tmp_path).stdout.startswith("True")


def test_the_example_trains_a_classifier(installed, tmp_path):
    """The way of a newcomer, from the installed package to a trained adapter: `examples/peft/train.py`."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    import tokenizers

    words = [f"word{number}" for number in range(56)]
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    BertModel(BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40,
    )).save_pretrained(tmp_path / "model")
    lines = [
        {"text": " ".join(words[(7 * line + 3 * place) % 56] for place in range(4 + line % 6)), "label": line % 3} for line in range(40)
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    example = PROJECT / "examples" / "peft" / "train.py"
    done = run(installed / "python", example, "model", "examples.jsonl", "--out", "trained", "--rank", 4, cwd=tmp_path)
    assert "The factors of" in done.stdout
    assert {"adapter_config.json", "adapter_model.safetensors", "report.html"} <= {path.name for path in (tmp_path / "trained").iterdir()}
    config = json.loads((tmp_path / "trained" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and "classifier" in config["modules_to_save"]
    shutil.rmtree(tmp_path / "trained")
