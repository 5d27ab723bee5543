"""Loading adapter folders: every layer must be found, and nothing is undone without a word."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import cntlora
from cntlora import _cntlora
from adapted import output
from models import batches, make


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a model without a head, the same with a head, and adapters that the tool computed for both."""
    folder = tmp_path_factory.mktemp("load")
    for name in ("bert", "bert_head"):
        model, batch = make(name)
        model.save_pretrained(folder / name)
        targets = r".*(query|value|output\.dense|intermediate\.dense)"
        cntlora.record(model, batches(batch), targets=targets).save(str(folder / f"{name}.moments.safetensors"), "a test")
        adapter(folder, name)
    return folder


def adapter(folder, name, out=None, *words):
    """Computes an adapter with the tool. Returns its folder."""
    out = folder / (out or f"{name}-adapter")
    moments = folder / f"{name}.moments.safetensors"
    arguments = ["init", str(folder / name), "--moments", str(moments), "--out", str(out), "--rank=4", "--force", "-q", *words]
    assert _cntlora.main(arguments) == 0
    return out


def test_every_layer_is_loaded(folders):
    """The factors in the model are those of the folder, and can be trained; without training the output is that of the base."""
    base, batch = make("bert")
    wanted = output(base, batch)
    model = cntlora.load_adapter(base, folders / "bert-adapter")
    tensors, found = load_file(folders / "bert-adapter" / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    assert tensors.keys() == found.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)
    assert ((output(model.eval(), batch) - wanted).norm() / wanted.norm()).item() < 1e-5
    frozen = cntlora.load_adapter(make("bert")[0], str(folders / "bert-adapter"), is_trainable=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters()) and not frozen.training


def test_another_class_is_an_error_that_names_both(folders):
    """PEFT would train plain LoRA without a word: the names of the layers begin with another prefix."""
    model, batch = make("bert_head")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        cntlora.load_adapter(model, folders / "bert-adapter")
    message = str(caught.value)
    assert "made for BertModel, are not in the model, a BertForSequenceClassification" in message
    assert "10 of 10 layers" in message and "encoder.layer.0.attention.self.query" in message and "begin with 'bert.'" in message
    assert before.keys() == model.state_dict().keys() and all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="do not begin with 'bert.'"):
        cntlora.load_adapter(make("bert")[0], folders / "bert_head-adapter")
    with pytest.raises(ValueError, match="made for BertModel, are not in the model, a LlamaForCausalLM"):
        cntlora.load_adapter(make("llama")[0], folders / "bert-adapter")


def test_adapters_of_peft_name_their_class(tmp_path):
    """A folder that PEFT saved names the class itself, or the model on the disk does."""
    model, _ = make("bert")
    get_peft_model(model, LoraConfig(r=4, target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="made for BertModel, are not in the model, a BertForSequenceClassification"):
        cntlora.load_adapter(make("bert_head")[0], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["auto_mapping"] = None
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="made for a class that its folder does not name"):
        cntlora.load_adapter(make("bert_head")[0], tmp_path)


def test_layers_without_factors_are_an_error(folders, tmp_path):
    """The configuration adapts more layers than the folder has factors for. The model is afterwards as it was."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((folders / "bert-adapter" / name).read_bytes())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if "layer.1.attention.self.query" not in key}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    model, _ = make("bert")
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="has no factors for layers .* in BertModel: encoder.layer.1.attention.self.query$"):
        cntlora.load_adapter(model, tmp_path)
    assert set(model.state_dict()) == names
    wrong = {key: torch.zeros(2, 2) if "query.lora_A" in key else tensor for key, tensor in tensors.items()}
    save_file(wrong, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="another shape than in BertModel"):
        cntlora.load_adapter(model, tmp_path)
    assert set(model.state_dict()) == names


def test_a_head_is_trained_whole(folders, tmp_path):
    """The folder of the tool has no head. The head of the model is trained and saved with the adapter."""
    model, batch = make("bert_head")
    base = copy.deepcopy(model)
    model = cntlora.load_adapter(model, folders / "bert_head-adapter", modules_to_save=["classifier"], task_type="SEQ_CLS", lora_dropout=0.1)
    assert model.peft_config["default"].lora_dropout == 0.1 and type(model).__name__ == "PeftModelForSequenceClassification"
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    assert sorted(trained) == [f"base_model.model.classifier.modules_to_save.default.{last}" for last in ("bias", "weight")]
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = cntlora.load_adapter(base, tmp_path, is_trainable=False)
    assert torch.equal(output(again, batch), output(model, batch))
    with pytest.raises(TypeError, match="a LoraConfig has no field 'dropout'"):
        cntlora.load_adapter(make("bert_head")[0], folders / "bert_head-adapter", dropout=0.1)


def test_a_residual_start_needs_its_base(folders):
    """An adapter whose update was taken off the base is refused on any other base."""
    out = adapter(folders, "bert", "residual", "--method=pissa")
    base, batch = make("bert")
    wanted = output(base, batch)
    with pytest.raises(ValueError, match="has a residual start: it works only with the weights in .*base"):
        cntlora.load_adapter(base, out)
    changed = type(base).from_pretrained(out / "base").eval()
    # The path is not the only sign: the weights count.
    for path in (str(out / "base"), "moved elsewhere"):
        one = copy.deepcopy(changed)
        one.config._name_or_path = path
        model = cntlora.load_adapter(one, out).eval()
        assert ((output(model, batch) - wanted).norm() / wanted.norm()).item() < 1e-5


def test_the_minor_components_are_not_overlooked(folders):
    """MiLoRA takes little off the weights, so that a comparison with a tolerance would not see it."""
    out = adapter(folders, "bert", "minor", "--method=milora")
    with pytest.raises(ValueError, match="has a residual start"):
        cntlora.load_adapter(make("bert")[0], out)


def test_an_anchor_is_loaded_too(folders, tmp_path):
    """The second adapter, which takes the update away, is active and frozen, also after saving and loading."""
    out = adapter(folders, "bert", "anchored", "--method=corda-ipm", "--residual=anchor")
    base, batch = make("bert")
    wanted = output(base, batch)
    model = cntlora.load_adapter(base, out).eval()
    assert model.active_adapters == ["default", "anchor"]
    assert ((output(model, batch) - wanted).norm() / wanted.norm()).item() < 1e-5
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and not any("anchor" in name for name in trained)
    assert len(trained) == len(get_peft_model_state_dict(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter += 0.01
    model.save_pretrained(tmp_path)
    again = cntlora.load_adapter(make("bert")[0], tmp_path).eval()
    assert again.active_adapters == ["default", "anchor"]
    assert torch.equal(output(again, batch), output(model, batch))


def test_several_adapters(folders):
    model = cntlora.load_adapter(make("bert")[0], folders / "bert-adapter")
    model = cntlora.load_adapter(model, folders / "bert-adapter", adapter_name="second")
    assert set(model.peft_config) == {"default", "second"} and model.active_adapters == ["second"]
    with pytest.raises(ValueError, match="already has an adapter 'second'"):
        cntlora.load_adapter(model, folders / "bert-adapter", adapter_name="second")


def test_folders_without_an_adapter(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no adapter: expected adapter_config.json"):
        cntlora.load_adapter(make("bert")[0], tmp_path)


def test_peft_loads_the_same(folders):
    """`PeftModel.from_pretrained` and `load_adapter` give the same model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        one = PeftModel.from_pretrained(make("bert")[0], folders / "bert-adapter", is_trainable=True)
        two = cntlora.load_adapter(make("bert")[0], folders / "bert-adapter")
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(one.state_dict()[key], tensor) for key, tensor in two.state_dict().items())
    trained = [{name for name, parameter in model.named_parameters() if parameter.requires_grad} for model in (one, two)]
    assert trained[0] == trained[1]
