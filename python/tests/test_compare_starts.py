"""The starts of a comparison."""

import functools

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from cntlora.comparison.plan import digest_of
from cntlora.comparison.starts import BUILT_IN, Start, Task


def base():
    torch.manual_seed(1)
    shape = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def batches(seed, count=6):
    torch.manual_seed(seed)
    tokens = [torch.randint(0, 60, (4, 16)) for _ in range(count)]
    return [dict(input_ids=ids, labels=ids) for ids in tokens]


def task(**changes):
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"])
    parts = dict(base=base(), config=config, loader=batches(2), source=lambda: batches(3))
    return Task(**{**parts, **changes})


def loss(model):
    with torch.no_grad():
        return float(sum(model(**batch).loss for batch in batches(4, 2)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILT_IN)
def test_no_start_changes_the_model_before_training(name):
    one = task()
    before = loss(one.base)
    model = BUILT_IN[name].prepare(one)
    assert loss(model) == pytest.approx(before, abs=2e-4)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all("lora_" in key for key, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["eva", "corda", "lora-ga", "cntlora", "astra"])
def test_starts_that_need_data_use_the_loader_of_the_task(name):
    def first_factors(data, start=BUILT_IN[name]):
        model = start.prepare(task(loader=data))
        return torch.cat([value.flatten() for key, value in sorted(model.named_parameters()) if "lora_A" in key])

    few = Start("few", BUILT_IN[name].config, BUILT_IN[name].options, batches=2)
    with_two, first_two = first_factors(batches(2)[:2]), first_factors(batches(2), few)
    assert torch.allclose(with_two, first_two, atol=1e-5)
    one, same, other = first_factors(batches(2)), first_factors(lambda: batches(2)), first_factors(batches(7))
    assert one.shape != other.shape or not torch.allclose(one, other, atol=1e-3)
    assert torch.allclose(one, same, atol=1e-5)
    with pytest.raises(ValueError, match="needs fine-tuning data: give a loader"):
        first_factors(None)


@pytest.mark.parametrize("start", [BUILT_IN["sc-lora"], BUILT_IN["lora-null"], Start("mine", options=dict(source=True))])
def test_starts_that_need_pre_training_data_say_so(start):
    with pytest.raises(ValueError, match=f"the start '{start.name}' needs pre-training data: give a source"):
        start.prepare(task(source=None))


def test_the_rank_doubles_at_the_same_scale():
    layers = [module for module in BUILT_IN["lora-2r"].prepare(task()).modules() if hasattr(module, "lora_A")]
    assert {(layer.r["default"], layer.scaling["default"]) for layer in layers} == {(8, 1.0)}


def test_a_change_gets_the_initialized_model_and_the_task():
    seen = []

    def change(model, one):
        seen.append((type(model).__name__, one))

    one = task()
    Start("changed", options={}, change=change).prepare(one)
    assert seen == [("PeftModel", one)]


def test_the_configuration_of_the_task_stays_as_it_is():
    one = task()
    BUILT_IN["rslora"].prepare(one)
    assert not one.config.use_rslora


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="sets the field 'rsLoRA', which a LoraConfig does not have"):
        Start("wrong", config=dict(rsLoRA=True)).prepare(task())


def test_a_batch_without_labels_gives_no_loss():
    without = [dict(input_ids=torch.zeros(1, 4, dtype=torch.long))]
    with pytest.raises(ValueError, match="add labels to the batches, or give a function as loss"):
        BUILT_IN["lora-ga"].prepare(task(loader=without))


@pytest.mark.filterwarnings("ignore")
def test_eva_reads_batches_with_one_label_for_each_text():
    torch.manual_seed(1)
    shape = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    model = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=3, pad_token_id=0)).eval()
    labelled = [dict(input_ids=batch["input_ids"], labels=torch.tensor([0, 1, 2, 0])) for batch in batches(2)]
    prepared = BUILT_IN["eva"].prepare(task(base=model, loader=labelled))
    assert any("lora_A" in name for name, _ in prepared.named_parameters())


def test_digests_follow_the_settings_and_not_the_name():
    digest = functools.partial(digest_of, config=LoraConfig())
    assert digest(Start("a", options=dict(rank=4))) == digest(Start("b", options=dict(rank=4)))
    changed = [Start("a", change=loss), Start("a", change=functools.partial(loss, 1)), Start("a", change=functools.partial(loss, 2))]
    different = [Start("a"), Start("a", ratio=2), Start("a", batches=2), Start("a", options={}), Start("a", config=dict(r=2)), *changed]
    assert len({digest(start) for start in different}) == len(different)
    # Runs with another default are other runs.
    assert digest(Start("a", options={})) == digest(Start("a", options=dict(start="zero"))) != digest(Start("a", options=dict(start="mirrored")))
