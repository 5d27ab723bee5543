"""From a model to a trained adapter: Trainer, saving, resuming, the classes of PEFT that load by themselves, and merging."""

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

import cntlora
from cntlora import _cntlora
from adapted import output
from models import batches, make


class Examples(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, index):
        return {name: tensor[index] for name, tensor in self.batch.items()}


def train(model, batch, folder, steps=4, resume=None):
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=5e-3, save_steps=2, report_to=[], use_cpu=True,
        disable_tqdm=True, seed=0, logging_strategy="no", dataloader_pin_memory=False, lr_scheduler_type="constant",
    )
    trainer = Trainer(model, arguments, train_dataset=Examples(batch))
    return trainer.train(resume_from_checkpoint=resume).training_loss


def headed(folder=None):
    model, batch = make("bert_head")
    if folder is not None:
        model.save_pretrained(folder)
        model = type(model).from_pretrained(folder)
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.0)
    return get_peft_model(model, config), batch


@pytest.mark.parametrize("options", [{}, {"budget": True}, {"method": "eva"}])
def test_a_classifier_is_trained_saved_resumed_and_loaded(options, tmp_path):
    """The way of a newcomer: a model with a new head, a loader, the Trainer, and the saved adapter. No file of activations is written."""
    model, batch = headed(tmp_path / "base")
    loader = torch.utils.data.DataLoader(Examples(batch), batch_size=4)
    report = cntlora.initialize_lora_weights(model, loader, **options)
    assert not report.left_out
    before = model(**batch).loss.item()
    train(model, batch, tmp_path / "run", steps=4)
    assert model.eval()(**batch).loss.item() < before
    wanted = output(model, batch)

    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3).eval()
    assert torch.equal(output(loaded, batch), wanted)

    # Training that continues from a checkpoint ends where uninterrupted training ends. The ranks come from the saved adapter.
    fresh, _ = headed(tmp_path / "base")
    cntlora.initialize_lora_weights(fresh, loader, **options)
    train(fresh, batch, tmp_path / "run", steps=4, resume=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.allclose(output(fresh.eval(), batch), wanted, atol=1e-5)

    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.allclose(output(merged.eval(), batch), wanted, atol=1e-5)


def test_language_models_load_by_themselves(tmp_path):
    model, batch = make("llama")
    model.save_pretrained(tmp_path / "base")
    model = get_peft_model(type(model).from_pretrained(tmp_path / "base"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    cntlora.initialize_lora_weights(model, batches(batch), energy=0.5)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(output(loaded, batch), output(model.eval(), batch))


@pytest.mark.parametrize("name, config", [
    ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    ("llama", {"target_modules": ["q_proj"], "use_dora": True}),
    ("resnet", {"target_modules": ["convolution"]}),
    ("mixtral", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
])
@pytest.mark.parametrize("method", ["cntlora", "pissa"])
def test_merging_gives_the_model_before(name, config, method):
    """Before training, the merged model computes what the pre-trained model computes, for every start that promises it."""
    base, batch = make(name)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, **config)).eval()
    cntlora.initialize_lora_weights(model, batches(batch, 48), method=method)
    merged = model.merge_and_unload()
    wanted = output(base, batch)
    assert ((output(merged, batch) - wanted).norm() / wanted.norm()).item() < 2e-5


@pytest.mark.parametrize("method", ["pissa", "corda-kpm"])
def test_a_residual_start_can_be_converted_for_the_original_weights(method, tmp_path):
    """The report says how: save the adapter before and after training, and convert the pair."""
    base, batch = make("llama")
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])).eval()
    report = cntlora.initialize_lora_weights(model, batches(batch), method=method)
    assert any("cntlora convert TRAINED --init INITIAL" in note for note in report.notes)
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "trained")
    words = ["convert", str(tmp_path / "trained"), "--init", str(tmp_path / "initial"), "--out", str(tmp_path / "plain"), "-q"]
    assert _cntlora.main(words) == 0
    plain = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "plain").eval()
    wanted = output(model, batch)
    assert ((output(plain, batch) - wanted).norm() / wanted.norm()).item() < 1e-4
    assert ((output(base, batch) - wanted).norm() / wanted.norm()).item() > 5e-3
