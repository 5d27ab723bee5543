"""The page of the evidence: best rates between the rates of a grid, predictions, blocks, and the description of the machine."""

import json
import math
import pathlib
import pickle
import sys
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benches" / "evidence"))

import curvature  # noqa: E402
import machine  # noqa: E402
import page  # noqa: E402
import starts  # noqa: E402


def result(rate, *grid):
    entries = [SimpleNamespace(rate=at, mean=value, values=[value]) for at, value in grid]
    return SimpleNamespace(rate=rate, grid=entries)


def test_the_best_rate_is_the_vertex_of_the_parabola():
    """Values of a parabola over the logarithm of the rate, whose vertex is 10^-2.2, on rates that are not evenly spaced."""
    def value(rate):
        return 1 - (math.log10(rate) + 2.2) ** 2

    found = page.best_rate(result(0.005, *((rate, value(rate)) for rate in (0.001, 0.005, 0.02))))
    assert found == pytest.approx(10**-2.2, rel=1e-9)


def test_no_vertex_is_claimed_at_an_end_of_the_grid():
    assert page.best_rate(result(0.1, (0.01, 1.0), (0.1, 2.0))) is None
    assert page.best_rate(result(None, (0.01, 1.0), (0.1, 2.0))) is None


def test_beside_a_run_that_diverged_the_best_rate_is_that_of_the_grid():
    grid = result(0.1, (0.01, 1.0), (0.1, 2.0), (1.0, None))
    assert page.best_rate(grid) == 0.1
    assert page.best_rate(result(0.1, (0.01, 1.0), (0.1, 1.0), (1.0, 1.0))) == 0.1


def test_only_blocks_are_replaced(tmp_path):
    text = "# Title\n\n<!-- machines -->\nBefore.\n<!-- end -->\n\nProse.\n"
    (tmp_path / "evidence.md").write_text(text)
    one = {"processor": "P", "cores": 2, "python": "3.11", "cntlora": "0.1.0", "date": "2026-11-30"}
    (tmp_path / "results" / "task" / "peers").mkdir(parents=True)
    (tmp_path / "results" / "task" / "peers" / "machines.json").write_text(json.dumps([one, one]))
    page.write(tmp_path / "results", tmp_path)
    found = (tmp_path / "evidence.md").read_text()
    assert found.startswith("# Title\n\n<!-- machines -->\n| processor |") and found.endswith("<!-- end -->\n\nProse.\n")
    assert "Before." not in found and found.count("| P | 2 | 2026-11-30 | python 3.11, cntlora 0.1.0 |") == 1


def made(results, task, measure, better, values, rates=(0.1, 1.0), part="peers", baseline="lora"):
    """Writes runs made up for a task: `values[start]` has the ends of the report seeds at the rate 0.1, which is the best one."""
    from cntlora.comparison.plan import Plan
    from cntlora.comparison.runs import FILE

    folder = results / task / part
    folder.mkdir(parents=True)
    plan = Plan(
        starts={start: start for start in (page.NAMES if part == "peers" else values)}, rates=rates, measure=measure, better=better, tuning_seeds=(0, 1),
        seeds=(2, 3, 4), baseline=baseline, extend=0,
    )
    (folder / "comparison.json").write_text(plan.to_json())
    lines = []
    for start, ends in values.items():
        worse = -9 if better == "higher" else 9
        tuning = [("tuning", rate, seed, sum(ends) / 3 + (rate != 0.1) * worse) for rate in rates for seed in (0, 1)]
        for phase, rate, seed, end in tuning + [("report", 0.1, seed, end) for seed, end in zip((2, 3, 4), ends)]:
            lines.append(dict(
                start=start, settings=start, phase=phase, rate=rate, seed=seed, measurements=[{"step": 0, measure: 5.0}, {"step": 9, measure: end}],
                seconds_start=0.25, seconds_training=1.0, parameters=7, error=None,
            ))
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_verdicts_follow_the_runs(tmp_path):
    """On one task higher is better, and on the other lower. A start that is better by the same amount has the same sign on both."""
    equal, ahead = (1.0, 1.1, 1.2), (0.9, 1.01, 1.09)
    made(tmp_path, "digits", "score", "higher", {**dict.fromkeys(page.NAMES, equal), "lora": ahead, "pissa": ahead})
    made(tmp_path, "german", "loss", "lower", {**dict.fromkeys(page.NAMES, equal), "eva": ahead})
    lines = {line.split(" | ")[0]: line for line in page.verdicts(tmp_path, tmp_path).splitlines()}
    assert lines["| `lora`"] == "| `lora` | **-0.100** worse | +0.000 |"
    assert lines["| `eva`"] == "| `eva` | +0.000 | **+0.100** better |"
    assert "on 0 of 2 tasks." in page.verdicts(tmp_path, tmp_path)
    counts = {line.split(" | ")[0]: line for line in page.summary(tmp_path, tmp_path).splitlines()}
    assert counts["| `eva`"] == "| `eva` | 2 | 0 | 0 | 2 of 2 |"
    assert counts["| `pissa`"] == "| `pissa` | 0 | 2 | 0 | 0 of 2 |"
    section = page.task(tmp_path, tmp_path, "digits")
    assert section.startswith("## Vision transformer") and "| `eva` | 0.1 (end of the grid) | 1.100 ± 0.248 | **+0.100 ± 0.025** better |" in section
    assert (tmp_path / "digits.svg").read_text().startswith("<svg") and "This task was not run." in page.task(tmp_path, tmp_path, "code")


def test_predicted_rates_follow_the_bound(tmp_path):
    """All best rates are equal, and the bound of one start is 16 times that of plain LoRA: its rate would be a quarter, or a sixteenth."""
    made(tmp_path, "digits", "score", "higher", dict.fromkeys(page.NAMES, (1.0, 1.1, 1.2)), rates=(0.01, 0.1, 1.0))
    assert page.rates(tmp_path, tmp_path) == "No curvature was measured.\n"
    bounds = {"lora": {"along_a": 0.0, "along_b": 2.0}, "eva": {"along_a": 30.0, "along_b": 2.0}, "rslora": {"along_a": 0.0, "along_b": 3.0}}
    (tmp_path / "digits" / "curvature.json").write_text(json.dumps(bounds))
    text = page.rates(tmp_path, tmp_path)
    assert "| `eva` | 1.00 (0.25) |" in text and "| `rslora` | 1.00 (0.82) |" in text and "| `pissa` | – |" in text
    assert "1 of 2 by the square root of the bound, 1 of 2 by the bound itself." in text


def test_the_default_is_ahead_only_if_it_is_ahead_of_all(tmp_path):
    made(tmp_path, "digits", "score", "higher", {**dict.fromkeys(page.NAMES, (1.0, 1.1, 1.2)), "cntlora": (1.1, 1.21, 1.29)})
    assert "on 1 of 1 tasks: Vision transformer, handwritten digits." in page.verdicts(tmp_path, tmp_path)


def test_choices_name_the_command_that_repeats_them(tmp_path):
    names = [starts.start_of(start).name for start in starts.CHOICES]
    for task, chosen in (("digits", names), ("german", ["cntlora", "start mirrored", "lora, decorrelated"])):
        values = {**dict.fromkeys(chosen, (1.0, 1.1, 1.2)), "start mirrored": (2.0, 2.11, 2.19)}
        made(tmp_path, task, page.module(task).MEASURE, page.module(task).BETTER, values, part="choices", baseline="cntlora")
    text = page.choices(tmp_path, tmp_path)
    assert "python python/benches/evidence run digits --part choices\n" in text
    assert 'python python/benches/evidence run german --part choices --only "start mirrored" "lora, decorrelated"\n' in text
    verdicts = [line.split(" | ")[4] for line in text.splitlines() if line.startswith("| start mirrored |")]
    assert verdicts == ["better", "worse"] and text.count("| the default |") == 2


def test_blocks_with_unknown_names_are_refused(tmp_path):
    with pytest.raises(KeyError, match="wrong"):
        page.block("wrong", tmp_path, tmp_path)


def test_the_processor_is_named_with_its_instruction_sets():
    text = "processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: fpu avx2 avx512f amx_tile\n"
    assert machine.processor(text) == "Some Processor (AVX2, AVX-512, AMX)"
    assert machine.processor("") != ""


def test_a_machine_is_noted_once(tmp_path):
    path = tmp_path / "folder" / "machines.json"
    machine.note(path)
    machine.note(path)
    (noted,) = json.loads(path.read_text())
    assert noted["cores"] >= 1 and {"processor", "torch", "peft", "cntlora", "date"} <= noted.keys()


class Small:
    """A task with one linear layer of four inputs."""

    def __init__(self):
        import torch

        self.rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 2.0, 3.0, 0.5])

    def make_model(self, seed):
        import torch

        torch.manual_seed(7)
        return torch.nn.Sequential(torch.nn.Linear(4, 6))

    def config(self):
        from peft import LoraConfig

        return LoraConfig(r=2, lora_alpha=6, target_modules=["0"])

    def loader(self):
        return [self.rows[:32], self.rows[32:]]

    source = loader
    loss = None


def choice(name):
    return next(start for start in starts.CHOICES if start.name == name)


def prepared(start):
    from cntlora.comparison.starts import Task

    task = Small()
    made = Task(task.make_model(0), task.config(), task.loader, task.source)
    model = starts.start_of(start).prepare(made)
    layer = model.base_model.model[0]
    return task, model, layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()


def test_the_bound_is_that_of_its_formula():
    """Along A and along B, for a scale of 3, from eigenvalues that numpy computes."""
    import numpy as np

    task, model, a, b = prepared(choice("start mirrored"))
    a, b, rows = a.numpy(), b.numpy(), task.rows.double().numpy()
    moment = rows.T @ rows / len(rows)
    along_b, along_a = curvature.bound(model, task.loader())
    assert along_b == pytest.approx(9 * np.linalg.eigvalsh(a @ moment @ a.T).max(), rel=1e-6)
    assert along_a == pytest.approx(9 * np.linalg.svd(b)[1].max() ** 2 * np.linalg.eigvalsh(moment).max(), rel=1e-6)


def test_decorrelated_rows_are_uncorrelated_on_the_data():
    import torch

    task, _, a, b = prepared(choice("lora, decorrelated"))
    rows = task.rows.double()
    moment = rows.T @ rows / len(rows)
    assert torch.allclose(a @ moment @ a.T, moment.trace() / 12 * torch.eye(2).double(), rtol=1e-4, atol=1e-5)
    assert not b.any()


def test_balanced_units_have_two_parts_of_equal_size_and_the_same_product():
    import torch

    task, _, a, b = prepared(choice("mirrored, balanced on activations"))
    _, _, plain_a, plain_b = prepared(choice("start mirrored"))
    outputs = (task.rows.double() @ a.T).square().mean(0).sqrt()
    assert torch.allclose(outputs, b.norm(dim=0), rtol=1e-4)
    for unit in range(2):
        assert torch.allclose(torch.outer(b[:, unit], a[unit]), torch.outer(plain_b[:, unit], plain_a[unit]), atol=1e-5)


def test_a_scaled_pair_has_a_scaled_size():
    _, _, a, _ = prepared(choice("mirrored at twice the size"))
    assert (a / prepared(choice("start mirrored"))[2] - 2).abs().max() < 1e-5


def test_all_choices_differ_and_reach_other_processes():
    from cntlora.comparison.plan import digest_of
    from peft import LoraConfig

    assert pickle.loads(pickle.dumps(starts.CHOICES)) == starts.CHOICES
    digests = [digest_of(start, LoraConfig()) for start in starts.CHOICES]
    assert len(set(digests)) == len(digests)


def test_seeds_of_the_parts_do_not_overlap():
    import runpy

    main = runpy.run_path(str(pathlib.Path(starts.__file__).parent / "__main__.py"))
    seeds = [seed for sets in main["SEEDS"].values() for part in sets for seed in part] + list(curvature.SEEDS)
    assert len(set(seeds)) == len(seeds) and main["SEEDS"].keys() == starts.PARTS.keys()


def test_some_starts_of_a_part_can_be_chosen():
    chosen, baseline = starts.part("choices", ["start mirrored"])
    assert ([start.name for start in chosen], baseline) == (["cntlora", "start mirrored"], "cntlora")
    assert starts.part("peers") == (list(starts.PEERS), "lora")
    with pytest.raises(ValueError, match="no start of the part peers is named wrong; these are: lora, lora-2r, "):
        starts.part("peers", ["lora", "wrong"])
