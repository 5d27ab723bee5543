"""Comparisons whose runs are made in processes of their own, and scripts that start them."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
import torch

import cntlora
import compared
from compared import compare, lines


def test_processes_give_the_runs_of_one_process(tmp_path):
    """Only seconds and the order of lines differ."""
    one = compare(tmp_path / "one", threads=1)
    two = compare(tmp_path / "two", processes=2, threads=1)

    def plain(found):
        runs = [{name: value for name, value in run.items() if not name.startswith("seconds")} for run in found.runs]
        return sorted(runs, key=lambda run: (run["phase"], run["start"], run["rate"], run["seed"]))

    assert plain(one) == plain(two) and len(one.runs) == 8


def test_runs_are_spread_over_processes(tmp_path):
    threads = torch.get_num_threads()
    found = compare(tmp_path, train=compared.process_train, processes=2, threads=2)
    measured = [run["measurements"][0] for run in found.runs]
    assert len({one["process"] for one in measured}) == 2 and os.getpid() not in {one["process"] for one in measured}
    assert {one["threads"] for one in measured} == {2}
    here = compare(tmp_path / "here", train=compared.process_train, threads=threads + 1, rates=(0.1,), seeds=(1,), starts=("lora",))
    measured = [run["measurements"][0] for run in here.runs]
    assert {(one["process"], one["threads"]) for one in measured} == {(float(f"{os.getpid():.6g}"), threads + 1)}
    assert torch.get_num_threads() == threads


def test_a_process_that_dies_is_a_failed_run(tmp_path):
    found = compare(tmp_path, train=compared.dying_train, processes=2, starts=("lora",))
    errors = {run["seed"]: run["error"] for run in found.runs}
    assert errors == {0: None, 1: "the process ended during the run, with exit code 3", 2: None}
    assert found.missing == 0


def test_a_process_that_dies_at_once_stops_the_comparison(tmp_path):
    with pytest.raises(ValueError, match="the first run failed, with the start 'lora'; it was not recorded:\nthe process ended"):
        compare(tmp_path, train=compared.dying_train, processes=2, tuning_seeds=(1,), seeds=(2,))
    assert lines(tmp_path) == []


def test_errors_of_functions_in_processes_stop_the_comparison(tmp_path):
    with pytest.raises(ValueError, match=r"make_model\(0\) failed:\n(.|\n)*OSError: no such checkpoint"):
        compare(tmp_path, make_model=compared.failing_make_model, processes=2)


@pytest.mark.parametrize("name", ["make_model", "train", "loss", "loader"])
def test_functions_that_processes_cannot_import(tmp_path, name):
    wanted = f"{name} cannot be sent to other processes: .*at the top level .*`if __name__ == \"__main__\":`, or set processes=1"
    with pytest.raises(ValueError, match=wanted):
        compare(tmp_path, processes=2, **{name: lambda *arguments: None})


def script(folder, text):
    """Runs a script of a user in a folder of its own."""
    path = folder / "script.py"
    path.write_text(text)
    paths = os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, str(path)], cwd=folder, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )


def test_the_example_of_the_readme_runs(tmp_path):
    transformers = pytest.importorskip("transformers")
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Comparing starts on your own model")[1]
    example = section.split("```python\n")[1].split("```")[0]
    shape = dict(vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(tmp_path / "my-model")
    (tmp_path / "my_data.py").write_text(
        "import torch\n"
        "def batches(count, seed):\n"
        "    numbers = torch.Generator().manual_seed(seed)\n"
        "    ids = [torch.randint(3, 60, (4, 6), generator=numbers) for _ in range(count)]\n"
        "    return [dict(input_ids=one, attention_mask=torch.ones_like(one), labels=one[:, 0] % 4) for one in ids]\n"
        "training_batches, test_batches = batches(12, 1), batches(2, 2)\n"
    )
    process = script(tmp_path, example)
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    table = shown.splitlines()
    assert table[0].startswith("start ") and {line.split()[0] for line in table[1:5]} == {"lora", "cntlora", "pissa", "lora+"}
    assert (tmp_path / "comparison.html").is_file()
    loaded = cntlora.Comparison.load(tmp_path / "comparison")
    assert loaded.missing == 0 and not any(run["error"] for run in loaded.runs)
    assert loaded.runs[0]["measurements"][-1]["step"] == 12


CALL = (
    "cntlora.compare(make_model, train, config(), loader, rates=(0.01, 0.1), tuning_seeds=(0,), seeds=(1, 2), extend=0, processes=2)\n"
)


def test_functions_of_a_script_reach_its_processes(tmp_path):
    own = "def train(model, groups, seed):\n    yield 1.0\n"
    text = f"import cntlora\nfrom compared import *\n{own}if __name__ == '__main__':\n    {CALL}"
    process = script(tmp_path, text)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "leaked" not in errors, errors
    assert len(lines(tmp_path / "comparison")) == 8


def test_a_script_without_the_guard_is_told_so(tmp_path):
    """Its processes would start processes in turn."""
    process = script(tmp_path, f"import cntlora\nfrom compared import *\n{CALL}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "RuntimeError: a process of cntlora.compare called cntlora.compare when it imported the script" in errors
    assert "a process could not begin: it ended with exit code 1. Its own message is above" in errors.splitlines()[-1]
    assert 'under `if __name__ == "__main__":`' in errors.splitlines()[-1]


def test_functions_that_are_not_in_the_script_when_it_is_imported(tmp_path):
    """As in a notebook, whose functions other processes cannot see."""
    own = "    def own(model, groups, seed):\n        yield 1.0\n"
    text = f"import cntlora\nfrom compared import *\nif __name__ == '__main__':\n{own}    {CALL.replace('train', 'own')}"
    process = script(tmp_path, text)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "a process cannot import the functions:" in errors and "set processes=1" in errors.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interruption_keeps_the_finished_runs(tmp_path, processes):
    """Ctrl-C reaches all processes of the terminal. None of them stays, and a later call continues."""
    text = (
        "import cntlora\nfrom compared import *\nif __name__ == '__main__':\n"
        f"    cntlora.compare(make_model, process_train, config(), loader, rates=(.01, .1), tuning_seeds=range(9), processes={processes},\n"
        "        seeds=(9,), extend=0)\n"
    )
    process = script(tmp_path, text)
    shown = threading.Event()
    errors = []

    def read():
        for line in process.stderr:
            errors.append(line)
            if line.startswith("[2/"):
                shown.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert shown.wait(120), "".join(errors)
    os.killpg(process.pid, signal.SIGINT)
    # The pipe closes when no process has it any more.
    process.wait(60)
    reader.join(60)
    assert not reader.is_alive() and process.returncode != 0
    assert any(line.startswith("interrupted: the finished runs are kept") and "Call compare again to continue" in line for line in errors)
    runs = lines(tmp_path / "comparison")
    assert 2 <= len(runs) < 38 and not any(run["error"] for run in runs)
    loaded = cntlora.Comparison.load(tmp_path / "comparison")
    assert len(loaded.runs) == len(runs) and loaded.missing > 0
