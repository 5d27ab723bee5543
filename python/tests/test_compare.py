"""Comparisons of starts on a tiny model: the runs, their file, and every message."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig

import cntlora
import compared
from cntlora.comparison import runs as files
from cntlora.comparison.one_run import groups_of, set_seed
from cntlora.comparison.plan import digest_of
from cntlora.comparison.starts import BUILT_IN
from compared import compare, config, lines, loader, make_model, train

class Counted:
    """A training that counts its calls, and keeps the rates and seeds."""

    def __init__(self, train=train):
        self.calls, self.train = [], train

    def __call__(self, model, groups, seed):
        self.calls.append((groups[0]["lr"], seed))
        return self.train(model, groups, seed)


def test_a_comparison_of_two_starts(tmp_path, capsys):
    found = compare(tmp_path / "runs", rates=(0.03, 0.1, 0.3), tuning_seeds=(0, 1), seeds=(2, 3, 4))
    runs = lines(tmp_path / "runs")
    assert len(runs) == 2 * 3 * 2 + 2 * 3 and found.missing == 0 and found.runs == runs
    assert list(runs[0]) == [
        "start", "settings", "phase", "rate", "seed", "measurements", "seconds_start", "seconds_training", "parameters", "error",
    ]
    assert [entry["step"] for entry in runs[0]["measurements"]] == [0, 4, 8, 12] and runs[0]["error"] is None
    # Two layers of rank 2: (6 + 8) · 2 + (8 + 4) · 2.
    assert runs[0]["parameters"] == 52 and runs[0]["seconds_start"] > 0 and runs[0]["seconds_training"] > 0
    result = found.results["cntlora"]
    chosen = {run["rate"] for run in runs if run["start"] == "cntlora" and run["phase"] == "report"}
    assert chosen == {result.rate}
    ends = [run["measurements"][-1]["loss"] for run in runs if run["start"] == "cntlora" and run["phase"] == "report"]
    assert result.last.mean == pytest.approx(sum(ends) / 3) and result.others["score"].count == 3
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 18 and shown[0].startswith("[1/18] lora, tuning, rate 0.03, seed 0: loss ") and shown[-1].startswith("[18/18] ")


def test_runs_of_the_same_seed_differ_in_the_start_only(tmp_path):
    """Models before training are equal, and the order of the data does not depend on the random numbers that a start took."""
    numbers = []

    def random_train(model, groups, seed):
        numbers.append((seed, torch.rand(1).item()))
        yield from train(model, groups, seed)

    drawing = cntlora.Start("drawing", change=lambda model, task: torch.rand(5))
    compare(tmp_path, train=random_train, starts=("lora", drawing))
    assert len(numbers) == 8 and len(set(numbers)) == 3
    first = {run["measurements"][0]["loss"] for run in lines(tmp_path) if run["seed"] == 1}
    assert max(first) - min(first) < 1e-5
    # Another seed sets the random numbers of a new head.
    heads = []

    def with_head(seed):
        heads.append((seed, torch.rand(1).item()))
        return make_model(seed)

    compare(tmp_path / "heads", make_model=with_head)
    assert len(heads) == 8 and len(set(heads)) == 3


def test_all_random_numbers_are_set():
    numpy = pytest.importorskip("numpy")
    import random

    def numbers(seed):
        set_seed(seed)
        return torch.rand(1).item(), random.random(), numpy.random.random()

    assert numbers(3) == numbers(3)
    assert all(one != other for one, other in zip(numbers(3), numbers(4), strict=True))


def test_a_second_call_makes_missing_runs_only(tmp_path, capsys):
    counted = Counted()
    compare(tmp_path, train=counted)
    assert len(counted.calls) == 8
    again = Counted()
    found = compare(tmp_path, train=again)
    assert again.calls == [] and found.missing == 0 and len(found.runs) == 8
    capsys.readouterr()
    compare(tmp_path, train=again, seeds=(1, 2, 3))
    assert [seed for _, seed in again.calls] == [3, 3]
    # A start that is added needs its own runs.
    compare(tmp_path, train=again, starts=("lora", "cntlora", "pissa"))
    assert len(again.calls) == 2 + 4
    assert "pissa" in capsys.readouterr().err


def test_other_settings_are_other_runs(tmp_path, capsys):
    """A start of the same name with other settings, or another rank, must not give the runs of before."""
    mine = cntlora.Start("mine", options={"method": "pissa"})
    compare(tmp_path, starts=("lora", mine))
    capsys.readouterr()
    counted = Counted()
    found = compare(tmp_path, train=counted, starts=("lora", cntlora.Start("mine", options={"method": "olora"})))
    assert len(counted.calls) == 4 and len(lines(tmp_path)) == 12 and len(found.runs) == 8
    assert "the start 'mine' has other settings now; runs that are ignored: 4" in capsys.readouterr().err
    counted = Counted()
    compare(tmp_path, train=counted, config=config(rank=4), starts=("lora", mine))
    assert len(counted.calls) == 8
    # The first settings again.
    counted = Counted()
    compare(tmp_path, train=counted, starts=("lora", mine))
    assert counted.calls == []


def test_the_digest_is_that_of_the_settings():
    """Sets have no order, and PEFT writes its version and the name of the base into a configuration."""
    one = digest_of(BUILT_IN["lora"], LoraConfig(r=4, target_modules=["query", "value", "key"]))
    assert one == digest_of(BUILT_IN["lora"], LoraConfig(r=4, target_modules={"key", "value", "query"}, base_model_name_or_path="x"))
    assert one != digest_of(BUILT_IN["lora"], LoraConfig(r=4, target_modules=["query", "value"]))
    assert one != digest_of(BUILT_IN["lora+"], LoraConfig(r=4, target_modules=["query", "value", "key"]))
    program = (
        "from peft import LoraConfig; from cntlora.comparison.plan import digest_of; from cntlora.comparison.starts import BUILT_IN;"
        "print(digest_of(BUILT_IN['lora'], LoraConfig(r=4, target_modules=['query', 'value', 'key'])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    assert os.environ.get("PYTHONHASHSEED") != "1"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == one


def test_the_grid_grows(tmp_path):
    """The best rate is far above the grid: rates are added at the same ratio until the best one is inside."""
    found = compare(tmp_path, rates=(0.001, 0.004), extend=6)
    for result in found.results.values():
        rates = [entry.rate for entry in result.grid]
        assert rates == [0.001, 0.004, 0.016, 0.064, 0.256, 1.024][: len(rates)] and len(rates) > 3
        assert result.rate == rates[-2] and not result.is_at_end
    # A rate that was added once is not made again.
    counted = Counted()
    compare(tmp_path, train=counted, rates=(0.001, 0.004), extend=6)
    assert counted.calls == []
    stopped = compare(tmp_path, train=counted, rates=(0.001, 0.004), extend=1)
    assert all(result.rate == 0.016 and result.is_at_end for result in stopped.results.values())


def test_a_run_that_diverges(tmp_path):
    """It ends at the number that is not finite, counts as the worst, and is not repeated."""
    def diverging(model, groups, seed):
        yield {"step": 0, "loss": 1.0}
        yield {"step": 5, "loss": math.inf if groups[0]["lr"] > 0.05 else 0.5, "score": 1.0}
        assert groups[0]["lr"] < 0.05, "the training went on"
        yield {"step": 10, "loss": 0.4}

    found = compare(tmp_path, train=diverging)
    failed = [run for run in found.runs if run["error"]]
    assert [run["error"] for run in failed] == ["diverged at step 5: loss is inf"] * 2
    assert all(run["measurements"] == [{"step": 0, "loss": 1.0}] for run in failed)
    assert {result.rate for result in found.results.values()} == {0.01}
    counted = Counted(diverging)
    compare(tmp_path, train=counted)
    assert counted.calls == []


def test_a_start_that_fails_does_not_stop_the_others(tmp_path, capsys):
    odd = cntlora.Start("odd", options={"method": "pissa", "no_such_option": 3})
    found = compare(tmp_path, starts=("lora", odd, "cntlora"))
    assert {name: result.rate is not None for name, result in found.results.items()} == {"lora": True, "odd": False, "cntlora": True}
    [failed] = [run for run in found.runs if run["start"] == "odd"]
    assert failed["error"].startswith("the start failed: ") and "no-such-option" in failed["error"] and failed["seconds_training"] is None
    assert "No run of odd finished." in str(found) and "no-such-option" in str(found)
    counted = Counted()
    capsys.readouterr()
    compare(tmp_path, train=counted, starts=("lora", odd, "cntlora"))
    assert counted.calls == []
    assert "1 of the runs failed or diverged and are not repeated; delete their lines to make them again" in capsys.readouterr().err


def test_a_start_that_trains_nothing_fails(tmp_path):
    frozen = cntlora.Start("frozen", change=lambda model, task: model.requires_grad_(False))
    found = compare(tmp_path, starts=("lora", frozen))
    assert found.results["frozen"].failures == {"the start failed: ValueError: no parameter of its model is trained": 1}


def test_a_training_that_fails_at_some_rates(tmp_path):
    found = compare(tmp_path, train=compared.failing_train)
    assert [run["error"] for run in found.runs if run["error"]] == ["the training failed: ArithmeticError: too\nhigh"] * 2
    assert {result.rate for result in found.results.values()} == {0.01}
    assert "lora: 1 run: the training failed: ArithmeticError: too high" in str(found)


def test_a_training_that_fails_at_once_stops_the_comparison(tmp_path):
    """All runs would fail, and their lines would keep later calls from making them."""
    def broken(model, groups, seed):
        raise KeyError("input_ids")

    with pytest.raises(ValueError, match="the first run failed, with the start 'lora'; it was not recorded:\n(.|\n)*KeyError: 'input_ids'"):
        compare(tmp_path, train=broken)
    assert lines(tmp_path) == []
    with pytest.raises(ValueError, match=r"make_model\(0\) failed:\n(.|\n)*OSError: no such checkpoint"):
        compare(tmp_path, make_model=compared.failing_make_model)
    with pytest.raises(ValueError, match="expected a torch.nn.Module from make_model, found str"):
        compare(tmp_path, make_model=lambda seed: "model")


@pytest.mark.parametrize("given, message", [
    (None, "expected an iterator of measurements from train, found NoneType: let it yield them"),
    ([], "train gave no measurement"),
    ([{"loss": 1.0}], "a measurement of train has no 'step'. It has loss"),
    ([{"step": 1, "loss": 1.0}, {"step": 1, "loss": 0.5}], "the steps of train do not increase: 1 comes after 1"),
    ([{"step": 1, "score": 1.0}], "the last measurement of train has no 'loss', which is to be compared. It has step, score"),
    ([{"step": 1, "loss": "1.0"}], "expected numbers as measurements of train, found str for 'loss'"),
    ([torch.ones(3)], "expected numbers as measurements of train, found Tensor for 'loss'"),
])
def test_measurements_of_a_wrong_form_stop_the_comparison(tmp_path, given, message):
    with pytest.raises(ValueError) as raised:
        compare(tmp_path, train=lambda model, groups, seed: given)
    assert message in str(raised.value) and lines(tmp_path) == []


def test_measurements_can_be_numbers(tmp_path):
    found = compare(tmp_path, train=lambda model, groups, seed: [torch.tensor(3.0), 2.0000001, 1], measure="error rate")
    assert found.runs[0]["measurements"] == [{"step": step, "error rate": value} for step, value in ((1, 3.0), (2, 2.0), (3, 1.0))]


def test_groups_of_parameters():
    """Plain LoRA has one group. LoRA+ trains B at another rate; a new head has the rate of A."""
    rates = {}
    for name in ("lora", "lora+"):
        def seen(model, groups, seed, name=name):
            rates[name] = [(len(group["params"]), group["lr"]) for group in groups]
            heads = [weight for key, weight in model.named_parameters() if "modules_to_save" in key and weight.requires_grad]
            assert len(heads) == 2
            assert all(any(head is weight for weight in groups[0]["params"]) for head in heads)
            yield 1.0

        from cntlora.comparison.starts import Task
        model = BUILT_IN[name].prepare(Task(make_model(0), config(target_modules=["first"], modules_to_save=["second"])))
        list(seen(model, groups_of(model, 0.01, BUILT_IN[name].ratio), 0))
    assert rates == {"lora": [(4, 0.01)], "lora+": [(3, 0.01), (1, 0.16)]}


def test_rates_of_a_group_reach_the_training(tmp_path):
    found = compare(tmp_path, train=lambda model, groups, seed: [{"step": 0, "loss": 1, "b": groups[-1]["lr"]}], starts=("lora", "lora+"))
    assert {(run["start"], run["rate"], run["measurements"][0]["b"]) for run in found.runs} == {
        ("lora", 0.01, 0.01), ("lora", 0.1, 0.1), ("lora+", 0.01, 0.16), ("lora+", 0.1, 1.6),
    }


@pytest.mark.parametrize("start, missing, message", [
    ("cntlora", "loader", "the start 'cntlora' needs fine-tuning data: give a list of batches, or a function that returns one, as loader"),
    ("sc-lora", "source", "the start 'sc-lora' needs pre-training data: give a list of batches, or a function that returns one, as source"),
])
def test_data_that_a_start_needs(tmp_path, start, missing, message):
    """A run without data must not be recorded as failed: the user gives the data, and calls again."""
    data = {"loader": loader, "source": loader, missing: None}
    with pytest.raises(ValueError, match=message):
        compare(tmp_path, starts=("lora", start), **data)
    found = compare(tmp_path, starts=("lora", start), loader=loader(), source=loader)
    assert found.results[start].last is not None and not found.results[start].failures


@pytest.mark.parametrize("changes, message", [
    (dict(make_model="m"), "expected a function as make_model, found str"),
    (dict(train=None), "expected a function as train, found NoneType"),
    (dict(loss=3), "expected a function as loss, found int"),
    (dict(config={"r": 4}), "expected a peft.LoraConfig as config, found dict"),
    (dict(loader=iter([])), "loader can be read only once, but many runs read it: give a list of batches"),
    (dict(source={}), "expected a list of batches or a function that returns one as source, found dict"),
    (dict(starts="lora"), "expected a list of starts, found one: write starts=[\"lora\", 'lora']"),
    (dict(starts=["lora", "loar"]), "no start has the name 'loar'. The built-in starts are lora, lora-2r, "),
    (dict(starts=["lora", 3]), "expected a name or a cntlora.Start in starts, found int"),
    (dict(starts=["lora", cntlora.Start("lora")]), "two starts have the name 'lora': give them different names"),
    (dict(starts=["cntlora"]), "the baseline 'lora' is not one of the starts: cntlora"),
    (dict(starts=[]), "the baseline 'lora' is not one of the starts: there are none"),
    (dict(rates=[]), "expected positive numbers as rates, found []"),
    (dict(rates=[0.1, 0.0]), "expected positive numbers as rates, found [0.1, 0.0]"),
    (dict(rates=[0.1, math.nan]), "expected positive numbers as rates, found [0.1, nan]"),
    (dict(rates=0.1), "expected a list of numbers as rates, found 0.1"),
    (dict(rates=[0.1, 0.1]), "two rates are equal: 0.1, 0.1"),
    (dict(rates=[0.1], extend=1), "one rate does not say which rate comes next: give at least two rates, or extend=0"),
    (dict(measure="step"), "measure is the name of a measurement such as \"loss\", found 'step'"),
    (dict(measure=None), "measure is the name of a measurement such as \"loss\", found None"),
    (dict(better="more"), "better is \"lower\" or \"higher\", found 'more'"),
    (dict(seeds=(0, 1, 2)), "tuning_seeds and seeds overlap: 0. Results on seeds that chose the rate are too good"),
    (dict(seeds=()), "seeds holds no seed"),
    (dict(tuning_seeds=(0, 0)), "tuning_seeds holds a seed twice: 0, 0"),
    (dict(tuning_seeds=3), "expected a list of whole numbers as tuning_seeds, found 3"),
    (dict(seeds=(1.5,)), "expected a list of whole numbers as seeds, found (1.5,)"),
    (dict(seeds=(-1,)), "expected numbers from 0 to 4294967295 as seeds, found (-1,)"),
    (dict(processes=0), "expected a whole number from 1 as processes, found 0"),
    (dict(threads=0), "expected a whole number from 1 as threads, found 0"),
    (dict(extend=-1), "expected a whole number from 0 as extend, found -1"),
    (dict(minutes=0), "expected a positive number of minutes, found 0"),
])
def test_arguments_that_cannot_be_used(tmp_path, changes, message):
    """The message comes before the first run, and nothing is written."""
    with pytest.raises(ValueError) as raised:
        compare(tmp_path / "runs", **changes)
    assert message in str(raised.value) and not (tmp_path / "runs").exists()


def test_numbers_of_numpy_are_seeds(tmp_path):
    numpy = pytest.importorskip("numpy")
    found = compare(tmp_path, seeds=numpy.arange(1, 3), rates=numpy.array([0.01, 0.1]))
    assert found.missing == 0 and {run["seed"] for run in lines(tmp_path)} == {0, 1, 2}


def test_a_time_limit(tmp_path, capsys):
    def slow(model, groups, seed):
        time.sleep(0.15)
        yield 1.0

    counted = Counted(slow)
    found = compare(tmp_path, train=counted, minutes=0.3 / 60)
    assert 1 <= len(counted.calls) <= 3 and found.missing == 8 - len(counted.calls)
    assert f"stopped after 0.005 minutes: at least {found.missing} runs are missing" in capsys.readouterr().err
    assert f"at least {found.missing} runs are missing" in str(found)
    before = len(counted.calls)
    assert compare(tmp_path, train=counted).missing == 0 and len(counted.calls) == 8 and before < 8


def test_a_half_written_last_line(tmp_path, capsys):
    """A kill while a line is written: the line goes, its run is made again, and the next line does not stick to the rest."""
    compare(tmp_path)
    path = tmp_path / "runs.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert len(cntlora.Comparison.load(tmp_path).runs) == 7 and path.read_bytes() == whole[:-40]
    capsys.readouterr()
    counted = Counted()
    compare(tmp_path, train=counted)
    assert len(counted.calls) == 1 and len(lines(tmp_path)) == 8
    assert "the last line was half-written; it was removed, and its run will be made again" in capsys.readouterr().err


@pytest.mark.parametrize("line, message", [
    ("{broken", "runs.jsonl, line 9: .*Delete the line; its run will be made again"),
    ('{"start": "lora"}', "runs.jsonl, line 9: not a run: settings, phase, .* missing"),
    ("[1]", "runs.jsonl, line 9: not a run: start, "),
])
def test_a_line_that_cannot_be_read(tmp_path, line, message):
    compare(tmp_path)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        compare(tmp_path)
    with pytest.raises(ValueError, match=message):
        cntlora.Comparison.load(tmp_path)


def test_an_empty_run_is_refused(tmp_path):
    compare(tmp_path)
    path = tmp_path / "runs.jsonl"
    run = {**lines(tmp_path)[0], "measurements": []}
    path.write_text(json.dumps(run) + "\n")
    with pytest.raises(ValueError, match="line 1: a run without measurements and without an error"):
        compare(tmp_path)


def test_two_comparisons_cannot_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    with files.appending(tmp_path / "runs.jsonl", 0), pytest.raises(ValueError, match="another comparison is writing to .*runs.jsonl"):
        compare(tmp_path)
    assert compare(tmp_path).missing == 0


def test_a_comparison_from_its_folder(tmp_path):
    found = compare(tmp_path)
    loaded = cntlora.Comparison.load(str(tmp_path))
    assert str(loaded) == str(found) and loaded.json() == found.json() and loaded.runs == found.runs
    with pytest.raises(ValueError, match="none holds no comparison: it has no file comparison.json"):
        cntlora.Comparison.load(tmp_path / "none")
    (tmp_path / "comparison.json").write_text('{"rates": 3}')
    with pytest.raises(ValueError, match="comparison.json is not the plan of a comparison: "):
        cntlora.Comparison.load(tmp_path)
