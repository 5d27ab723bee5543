"""Initialization of the user's own PEFT model: its factors, ranks, scales and weights."""

import copy
import json
import math
import warnings

import numpy
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file

import cntlora
from cntlora import _cntlora
from adapted import ATTENTION, adapted, distance, lora_layers, output, updates
from models import batches, make, tokens

METHODS = [
    "cntlora", "pissa", "milora", "olora", "olora-tail", "mica", "corda-ipm", "corda-kpm", "sc-lora", "astra", "lora-null", "eva", "lora",
    "gaussian", "orthogonal",
]
RESIDUAL = {"pissa", "milora", "olora", "olora-tail", "corda-ipm", "corda-kpm", "sc-lora", "astra", "lora-null"}
WITHOUT_DATA = {"pissa", "milora", "olora", "olora-tail", "mica", "lora", "gaussian", "orthogonal"}
NEEDS_SOURCE, ONLY_SOURCE = {"sc-lora", "lora-null"}, {"lora-null"}


def data_of(method, batch):
    """Returns the loader of a method, and its further arguments."""
    loader = Unreadable() if method in WITHOUT_DATA else None if method in ONLY_SOURCE else batches(batch)
    return loader, {"source": batches(tokens(seed=3))} if method in NEEDS_SOURCE else {}


def config_of(method):
    return {"init_lora_weights": "mica"} if method == "mica" else {}



class Unreadable:
    """A loader that must not be read."""

    def __iter__(self):
        raise AssertionError("the loader was read")


def test_the_factors_are_those_of_the_tool(tmp_path):
    """The factors in the model are, bit for bit, those of `cntlora init` from the same statistics and a saved checkpoint."""
    model, base, batch = adapted()
    base.save_pretrained(tmp_path / "model")
    statistics = cntlora.record(base, batches(batch), targets=ATTENTION)
    statistics.save(str(tmp_path / "rows.moments.safetensors"), "a test")
    words = ["--moments", str(tmp_path / "rows.moments.safetensors"), "--out", str(tmp_path / "adapter"), "--rank=4", "--scale=2", "-q"]
    assert _cntlora.main(["init", str(tmp_path / "model"), *words]) == 0
    wanted = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    cntlora.initialize_lora_weights(model, batches(batch))
    found = get_peft_model_state_dict(model)
    assert found.keys() == wanted.keys() and len(found) == 8
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_start(method):
    """Every start but `update` keeps the output of the model. Methods without data take no loader, and do not read one."""
    starts = {"cntlora": ["zero", "mirrored", "residual", "update"]}.get(method, ["residual", "mirrored"] if method in RESIDUAL else [None])
    for start in starts:
        model, base, batch = adapted(**config_of(method))
        loader, options = data_of(method, batch)
        options = options if start is None else {**options, "start": start}
        report = cntlora.initialize_lora_weights(model, loader, method=method, **options)
        assert sorted(entry["module"] for entry in report.layers) == sorted(
            f"model.layers.{layer}.self_attn.{last}" for layer in (0, 1) for last in ATTENTION
        )
        difference = distance(output(model, batch), output(base, batch))
        assert (1e-4 < difference < 0.5) if start == "update" else difference < 1e-5, start
        factors = [getattr(layer, "lora_B" if method == "mica" else "lora_A")["default"].weight for layer in lora_layers(model).values()]
        assert all(factor.norm() > 0 for factor in factors)
        is_residual = start == "residual"
        changed = [not torch.equal(layer.base_layer.weight, base.get_submodule(name.removeprefix("base_model.model.")).weight)
                   for name, layer in lora_layers(model).items()]
        assert changed == [is_residual] * 4
        assert any("taken off the weights" in note for note in report.notes) == is_residual


def test_methods_that_need_data_say_so():
    for method in METHODS:
        model, _, batch = adapted(**config_of(method))
        if method in WITHOUT_DATA:
            cntlora.initialize_lora_weights(model, method=method)
            continue
        needed = "needs pre-training data: give a loader" if method in NEEDS_SOURCE else "needs data: give a loader"
        with pytest.raises(ValueError, match=needed):
            cntlora.initialize_lora_weights(model, method=method)
        if method == "sc-lora":
            with pytest.raises(ValueError, match="needs data: give a loader"):
                cntlora.initialize_lora_weights(model, method=method, source=batches(batch))
        if method in ONLY_SOURCE:
            with pytest.raises(ValueError, match="does not use fine-tuning data"):
                cntlora.initialize_lora_weights(model, batches(batch), method=method, source=batches(batch))


def test_sc_lora_and_lora_null():
    """The factors follow from the inputs and the weight of each layer by the formulas, in numpy and float64, and from beta."""
    pretraining = tokens(seed=3)

    def moments(model, data, name):
        rows = []
        handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0][mask].double().numpy()))
        with torch.no_grad():
            for batch in batches(data):
                mask = batch["attention_mask"].bool()
                model(**batch)
        handle.remove()
        rows = numpy.concatenate(rows)
        return rows.T @ rows / len(rows)

    for method, beta in (("sc-lora", None), ("sc-lora", 0.8), ("sc-lora", 0.0), ("lora-null", None), ("astra", None)):
        model, base, batch = adapted()
        loader, options = data_of(method, batch)
        if beta is not None:
            options["beta"] = beta
        if method == "astra":
            options["rho"] = 1
        report = cntlora.initialize_lora_weights(model, loader, method=method, **options)
        assert json.loads(report.json())["method"].get("beta") == (None if method != "sc-lora" else 0.5 if beta is None else beta)
        for path, layer in lora_layers(model).items():
            name = path.removeprefix("base_model.model.")
            weight = base.get_submodule(name).weight.detach().double().numpy()
            target, source = moments(base, batch, name), moments(base, pretraining, name)
            if method == "lora-null":
                last = numpy.linalg.eigh(source)[1][:, :4]
                wanted = weight @ last @ last.T
            else:
                share = 0.0 if method == "astra" else 0.5 if beta is None else beta
                lead = numpy.linalg.eigh(weight @ ((1 - share) * target - share * source) @ weight.T)[1][:, -4:]
                wanted = 2 * lead @ lead.T @ weight
            found = layer.get_delta_weight("default").detach().double().numpy()
            # The sums over the inputs are in f32, and their last directions depend on rounding most.
            assert numpy.linalg.norm(found - wanted) <= 1e-4 * numpy.linalg.norm(wanted), (method, beta, name)


def test_mica_needs_a_config_that_keeps_b():
    """PEFT would train B too, without a word. With its own word in the config, it keeps B, also after saving and loading."""
    model, base, batch = adapted()
    with pytest.raises(ValueError, match="make the adapter with init_lora_weights='mica'"):
        cntlora.initialize_lora_weights(model, method="mica")
    with pytest.raises(ValueError, match="init_lora_weights='mica', which changes the model or freezes a factor"):
        cntlora.initialize_lora_weights(adapted(init_lora_weights="mica")[0], batches(batch))
    model, base, batch = adapted(init_lora_weights="mica")
    wanted = {name: layer.lora_B["default"].weight.clone() for name, layer in lora_layers(model).items()}
    for rank in (None, 2):
        cntlora.initialize_lora_weights(model, method="mica", **({} if rank is None else {"rank": rank}))
        assert model.peft_config["default"].init_lora_weights == "mica"
        for name, layer in lora_layers(model).items():
            found, expected = layer.lora_B["default"].weight, wanted[name][:, -(rank or 4):]
            assert distance(found * (found * expected).sum(0).sign(), expected) < 1e-4
            assert not layer.lora_A["default"].weight.any()
            assert layer.lora_A["default"].weight.requires_grad and not found.requires_grad
    model.set_adapter("default")
    assert not any("lora_B" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name, targets", [
    ("llama", ["embed_tokens", "down_proj"]),
    ("gemma3", ["embed_tokens", "q_proj"]),
    ("qwen3", "all-linear"),
    ("phi3", ["qkv_proj", "gate_up_proj"]),
    ("gpt2", ["c_attn", "c_proj", "c_fc"]),
    ("gpt2", ["wte", "c_attn"]),
    ("bert", r".*\.(query|dense)"),
    ("t5", ["q", "v", "wo"]),
    ("vit", "all-linear"),
    ("whisper", ["q_proj", "fc1"]),
    ("resnet", ["convolution"]),
    ("clip", ["q_proj", "fc1"]),
    ("unet", ["to_q", "to_out.0", "conv1"]),
    ("flux", ["to_q", "proj_mlp"]),
])
def test_kinds_of_layers(name, targets):
    """The default start, residual and mirrored starts keep the output, in every class of model and every kind of layer."""
    # In Gemma 3 and GPT-2 the embedding is also the output head, so that its weight cannot change.
    is_tied = targets[0] in ("embed_tokens", "wte") and name in ("gemma3", "gpt2")
    for options in ({}, {"start": "mirrored"}) if is_tied else ({}, {"method": "corda-ipm"}, {"method": "pissa"}):
        model, base, batch = adapted(name, targets)
        report = cntlora.initialize_lora_weights(model, batches(batch), **options)
        assert not report.left_out and len(report.layers) == len(lora_layers(model))
        assert distance(output(model, batch), output(base, batch)) < 2e-5, options
        residual = "method" in options
        assert all((update.norm() > 1e-5) == residual for update in updates(model).values())


@pytest.mark.parametrize("name, per_expert", [("mixtral", False), ("mixtral", True), ("gptoss", False)])
def test_fused_experts(name, per_expert):
    """Fused experts are adapted as parameters, stored as [outputs, inputs] or as [inputs, outputs]."""
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    for options in ({}, {"method": "pissa"}):
        model, base, batch = adapted(name, ["q_proj"], target_parameters=targets)
        recording = {"per_expert": True} if per_expert else None
        report = cntlora.initialize_lora_weights(model, batches(batch, 48), recording=recording, **options)
        assert not report.left_out
        assert len({entry["module"] for entry in report.layers}) == 6
        assert sum(entry["module"].endswith("experts.down_proj") for entry in report.layers) == 8
        assert distance(output(model, batch), output(base, batch)) < 2e-5
        expected = "method" in options
        assert all((update.norm() > 1e-5) == expected for update in updates(model).values())


def test_scale_and_rank_of_the_config(tmp_path):
    """B A times the scale of each layer is the update of the tool, for rsLoRA, for other ranks by pattern, and for other alphas."""
    update = None
    for config in ({"lora_alpha": 4}, {"lora_alpha": 3}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 32, "v_proj": 1}}):
        model, base, batch = adapted(**config)
        before = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in lora_layers(model).items()}
        cntlora.initialize_lora_weights(model, batches(batch), method="corda-ipm")
        assert before == {name: (layer.r["default"], layer.scaling["default"]) for name, layer in lora_layers(model).items()}
        found = updates(model)
        update = update or found
        assert all(distance(found[name], update[name]) < 1e-4 for name in update), config
        for layer in lora_layers(model).values():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert torch.allclose(a @ a.T, b.T @ b, atol=1e-5 * (a @ a.T).max().item() + 1e-6), "the factors are balanced"
    for method in ("cntlora", "milora", "lora"):
        model, base, batch = adapted(rank_pattern={"q_proj": 2, "layers.1.self_attn.v_proj": 6})
        report = cntlora.initialize_lora_weights(model, batches(batch), method=method)
        assert [entry["rank"] for entry in report.layers] == [2, 4, 2, 6]
        assert [layer.lora_A["default"].weight.shape[0] for layer in lora_layers(model).values()] == [2, 4, 2, 6]
        assert model.peft_config["default"].rank_pattern == {"q_proj": 2, "layers.1.self_attn.v_proj": 6}
        assert distance(output(model, batch), output(base, batch)) < 1e-5


def test_ranks_that_the_tool_chooses_are_saved(tmp_path):
    """After `rank`, `budget`, `energy`, `scale` or eva's sharing, saving and loading gives the same model, with the scale of the config."""
    choices = [dict(rank=6), dict(budget=True, rank_multiple=2), dict(energy=0.6), dict(method="eva"), dict(budget=600, max_rank=16), dict(scale=0.5)]
    for number, options in enumerate(choices):
        for config in ({}, {"use_rslora": True}):
            model, base, batch = adapted(targets="all-linear", **config)
            scales = {layer.scaling["default"] for layer in lora_layers(model).values()}
            kept = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
            report = cntlora.initialize_lora_weights(model, batches(batch), **options)
            layers = lora_layers(model)
            ranks = [layer.r["default"] for layer in layers.values()]
            assert ranks == [entry["rank"] for name in layers for entry in report.layers if name.endswith(entry["module"])]
            if "rank" in options:
                assert set(ranks) == {6} and model.peft_config["default"].r == 6
            elif "scale" not in options:
                assert len(set(ranks)) > 1
            wanted = {options.get("scale")} if "scale" in options else scales
            assert {round(layer.scaling["default"], 9) for layer in layers.values()} == {round(scale, 9) for scale in wanted}
            assert kept == {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
            with torch.no_grad():  # a product of zero could hide a wrong scale
                for layer in layers.values():
                    layer.lora_B["default"].weight.normal_()
            folder = tmp_path / f"{number}-{len(config)}"
            model.save_pretrained(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                again = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
            assert {name: (layer.r["default"], layer.scaling["default"]) for name, layer in lora_layers(again).items()} == {
                name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()
            }
            assert torch.equal(output(model, batch), output(again, batch)), options


def test_layers_of_rank_0_lose_the_adapter(tmp_path):
    """A small budget leaves layers out. They are again the layers of the base, and a saved adapter does not have them either."""
    for targets in ("all-linear", ATTENTION + ["o_proj", "down_proj"], r".*_proj"):
        model, base, batch = adapted(targets=targets)
        before = set(lora_layers(model))
        report = cntlora.initialize_lora_weights(model, batches(batch), budget=400, max_rank=8)
        after = set(lora_layers(model))
        assert 0 < len(after) < len(before)
        assert {entry["module"] for entry in report.layers if entry["rank"]} == {name.removeprefix("base_model.model.") for name in after}
        assert any("taken off layers of rank 0" in note for note in report.notes)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        assert set(lora_layers(again)) == after
        assert torch.equal(output(model, batch), output(again, batch))


def test_the_config_is_kept():
    """Dropout, bias, task type and heads stay, the parameters that train are the same, and so are the modes of all modules."""
    model, batch = make("bert_head")
    config = LoraConfig(r=4, target_modules=["query"], lora_dropout=0.5, bias="lora_only", task_type="SEQ_CLS", modules_to_save=["classifier"])
    model = get_peft_model(model, config)
    model.train()
    model.base_model.model.bert.encoder.layer[0].eval()
    trained = {name: id(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    modes = {name: module.training for name, module in model.named_modules()}
    kept = {name: value for name, value in vars(model.peft_config["default"]).items() if name != "runtime_config"}
    kept = copy.deepcopy(kept)
    cntlora.initialize_lora_weights(model, batches(batch))
    assert trained == {name: id(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert kept == {name: value for name, value in vars(model.peft_config["default"]).items() if name != "runtime_config"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_statistics_are_those_of_the_base():
    """The forward passes run with all adapters off and in evaluation mode, whatever the adapter and the mode were."""
    reference, _, batch = adapted(lora_dropout=0.5)
    cntlora.initialize_lora_weights(reference, batches(batch))
    other, _, _ = adapted(lora_dropout=0.5, init_lora_weights=False)
    other.train()
    cntlora.initialize_lora_weights(other, batches(batch))
    for name, layer in lora_layers(reference).items():
        assert torch.equal(layer.lora_A["default"].weight, lora_layers(other)[name].lora_A["default"].weight)


def test_dora(tmp_path):
    """The magnitudes follow the weight and the factors, so that every start keeps the output."""
    for name, targets in (("llama", ATTENTION), ("gpt2", ["c_attn"]), ("llama", ["embed_tokens"]), ("resnet", ["convolution"])):
        for method in ("cntlora", "pissa"):
            model, base, batch = adapted(name, targets, use_dora=True)
            cntlora.initialize_lora_weights(model, batches(batch), method=method)
            assert distance(output(model, batch), output(base, batch)) < 2e-5, (name, method)
            assert all(layer.lora_magnitude_vector["default"].weight.requires_grad for layer in lora_layers(model).values())


def test_bf16():
    """Weights in bf16 are taken as they are. A residual start rounds the changed weights, and says how much."""
    model, base, batch = adapted(dtype=torch.bfloat16)
    cntlora.initialize_lora_weights(model, batches(batch))
    assert {layer.lora_A["default"].weight.dtype for layer in lora_layers(model).values()} == {torch.float32}
    assert distance(output(model, batch).float(), output(base, batch).float()) < 1e-2
    model, base, batch = adapted(dtype=torch.bfloat16)
    report = cntlora.initialize_lora_weights(model, method="pissa")
    assert any(note.startswith("Rounding the changed weights to torch.bfloat16") for note in report.notes)
    for name, layer in lora_layers(model).items():
        original = base.get_submodule(name.removeprefix("base_model.model.")).weight.float()
        assert distance(layer.base_layer.weight.float() + layer.get_delta_weight("default"), original) < 4e-3


def test_factors_that_do_not_fit_the_number_format_are_refused():
    model, base, batch = adapted()
    layer = next(iter(lora_layers(model).values()))
    with torch.no_grad():
        layer.base_layer.weight *= 1e12
    model.half_factors = [layer.lora_A.half() and layer.lora_B.half() for layer in lora_layers(model).values()]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match="do not fit torch.float16"):
        cntlora.initialize_lora_weights(model, method="pissa")
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_tied_weights():
    """An embedding that is also the output head can be adapted, but a residual start would change both."""
    model, base, batch = adapted("tied", ["embed_tokens", "q_proj"])
    cntlora.initialize_lora_weights(model, batches(batch))
    assert distance(output(model, batch), output(base, batch)) < 1e-5
    model, base, batch = adapted("tied", ["embed_tokens", "q_proj"])
    with pytest.raises(ValueError, match="model.embed_tokens.weight share one weight|lm_head.weight and model.embed_tokens.weight"):
        cntlora.initialize_lora_weights(model, batches(batch), method="corda-ipm")
    # PEFT can also tie the factors of the head to those of the embedding.
    model, base, batch = adapted("tied", ["embed_tokens", "lm_head", "q_proj"], ensure_weight_tying=True)
    with pytest.warns(UserWarning, match="PEFT tied its factors"):
        report = cntlora.initialize_lora_weights(model, batches(batch), start="zero")
    assert list(report.left_out) == ["lm_head"]
    head, embedding = model.base_model.model.lm_head, model.base_model.model.model.embed_tokens
    assert torch.equal(head.lora_A["default"].weight, embedding.lora_embedding_B["default"].T)


def test_several_adapters():
    """Only the named adapter is initialized, from the base, whatever the other adapter does."""
    reference, _, batch = adapted()
    cntlora.initialize_lora_weights(reference, batches(batch))
    model, base, batch = adapted(init_lora_weights=False)
    model.add_adapter("second", LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION))
    first = {name: layer.lora_A["default"].weight.clone() for name, layer in lora_layers(model).items()}
    cntlora.initialize_lora_weights(model, batches(batch), adapter_name="second")
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.lora_A["default"].weight, first[name])
        assert torch.equal(layer.lora_A["second"].weight, lora_layers(reference)[name].lora_A["default"].weight)
    assert model.active_adapters == ["default"]
    with pytest.raises(ValueError, match="no adapter 'third'; it has 'default', 'second'"):
        cntlora.initialize_lora_weights(model, batches(batch), adapter_name="third")
    # A layer of rank 0 keeps its other adapter.
    cntlora.initialize_lora_weights(model, batches(batch), adapter_name="second", budget=200, max_rank=4)
    assert len(lora_layers(model)) == 4 > len(lora_layers(model, "second"))


def test_models_without_a_peft_wrapper():
    """Diffusers, and `add_adapter` of transformers, put the layers into the model itself."""
    model, batch = make("llama")
    base = copy.deepcopy(model)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=ATTENTION), model)
    report = cntlora.initialize_lora_weights(model, batches(batch), start="mirrored")
    assert len(report.layers) == 4
    assert distance(output(model, batch), output(base, batch)) < 1e-5
    assert lora_layers(model)["model.layers.0.self_attn.q_proj"].lora_B["default"].weight.norm() > 0


def test_ranks_beyond_the_size_of_a_weight():
    """A layer keeps the rank of the config. Units that no update can use start as in PEFT, and can be trained."""
    for method in ("cntlora", "pissa", "orthogonal", "lora"):
        model, base, batch = adapted("vit", ["classifier", "query"], r=8)
        report = cntlora.initialize_lora_weights(model, batches(batch), method=method)
        layer = model.base_model.model.classifier
        assert layer.r["default"] == 8 and layer.lora_A["default"].weight.shape == (8, 32)
        assert layer.lora_A["default"].weight.norm(dim=1).min() > 0
        assert distance(output(model, batch), output(base, batch)) < 1e-5
        found = [entry["rank"] for entry in report.layers if entry["module"] == "classifier"]
        assert found == [{"cntlora": 3, "pissa": 3, "orthogonal": 2, "lora": 3}[method]]
        assert any("beyond the size of a weight" in note and "classifier" in note for note in report.notes)
    padded, base, batch = adapted("mixtral", ["q_proj"], r=40, target_parameters=["mlp.experts.down_proj"])
    cntlora.initialize_lora_weights(padded, batches(batch), method="pissa")
    assert distance(output(padded, batch), output(base, batch)) < 2e-5


class Branches(torch.nn.Module):
    """A model of one's own: one layer is never reached, one is dilated, and one reads zeros only."""

    def __init__(self):
        super().__init__()
        self.used, self.never, self.zeros = (torch.nn.Linear(8, 8) for _ in range(3))
        self.dilated = torch.nn.Conv1d(8, 8, 3, dilation=2, padding=2)

    def forward(self, rows):
        rows = self.dilated(self.used(rows).transpose(1, 2)).transpose(1, 2)
        return rows + self.zeros(torch.zeros_like(rows))


def test_layers_that_cannot_be_initialized_keep_the_start_of_peft():
    """They are named with a warning, keep PEFT's own numbers, and `strict` refuses them."""
    torch.manual_seed(0)
    base, rows = Branches().eval(), torch.randn(4, 32, 8)
    config = LoraConfig(r=4, target_modules=["used", "never", "zeros", "dilated"])
    model = get_peft_model(copy.deepcopy(base), config)
    before = {name: layer.lora_A["default"].weight.clone() for name, layer in lora_layers(model).items()}
    with pytest.warns(UserWarning, match="3 layers keep PEFT's own initialization"):
        report = cntlora.initialize_lora_weights(model, [rows], start="mirrored")
    assert list(report.left_out) == ["dilated", "never", "zeros"]
    assert "dilation" in report.left_out["dilated"]
    assert "PEFT's own initialization" in str(report)
    for name, layer in lora_layers(model).items():
        changed = not torch.equal(before[name], layer.lora_A["default"].weight)
        assert changed == name.endswith("used")
        assert changed == bool(layer.lora_B["default"].weight.any())
    for options in (dict(), dict(exclude="dilated")):
        fresh = get_peft_model(copy.deepcopy(base), config)
        with pytest.raises((ValueError, cntlora.Error)):
            cntlora.initialize_lora_weights(fresh, [rows], strict=True, start="mirrored", **options)
        assert not any(layer.lora_B["default"].weight.any() for layer in lora_layers(fresh).values())
    # Layers that the user leaves out need no warning.
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=["used", "zeros"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = cntlora.initialize_lora_weights(model, [rows], exclude="zeros")
    assert report.left_out == {"zeros": "the options target, include and exclude leave it out"}


def test_moments(tmp_path):
    """Statistics come from a loader, a file, several files, `Statistics` or a `Recorder`, with the same result."""
    model, base, batch = adapted()
    cntlora.initialize_lora_weights(model, batches(batch))
    wanted = {name: layer.lora_A["default"].weight for name, layer in lora_layers(model).items()}
    with cntlora.Recorder(base, targets=["q_proj", "v_proj", "o_proj"]) as recorder, torch.no_grad():
        for part in batches(batch):
            base(**part)
    statistics = cntlora.record(base, batches(batch), targets=["q_proj", "v_proj", "o_proj"])
    statistics.save(str(tmp_path / "a.moments.safetensors"), "a test")
    path = tmp_path / "a.moments.safetensors"
    for moments in (str(path), path, [path], statistics, recorder):
        model, _, _ = adapted()
        report = cntlora.initialize_lora_weights(model, moments=moments)
        assert len(report.layers) == 4
        for name, layer in lora_layers(model).items():
            assert torch.equal(layer.lora_A["default"].weight, wanted[name])
    with pytest.raises(ValueError, match="either a loader or moments"):
        cntlora.initialize_lora_weights(model, batches(batch), moments=path)
    with pytest.raises(cntlora.Error):
        cntlora.initialize_lora_weights(model, moments=tmp_path / "missing")


def test_moments_of_another_class():
    """Statistics of the model without its head serve the model with a head, whose names begin with a prefix."""
    headless, batch = make("bert")
    statistics = cntlora.record(headless, batches(batch), targets=["query"])
    model, _ = make("bert_head")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))
    report = cntlora.initialize_lora_weights(model, moments=statistics)
    assert [entry["module"] for entry in report.layers] == [f"bert.encoder.layer.{layer}.attention.self.query" for layer in (0, 1)]
    model, _ = make("llama")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=ATTENTION))
    with pytest.raises(ValueError, match="no layer can be initialized"):
        cntlora.initialize_lora_weights(model, moments=statistics)


def test_source():
    """Pre-training data can be a loader too. It changes the result."""
    model, _, batch = adapted()
    cntlora.initialize_lora_weights(model, batches(batch), coupling="transport")
    other, _, _ = adapted()
    report = cntlora.initialize_lora_weights(other, batches(batch), source=batches(tokens(seed=3)), coupling="transport")
    assert report.json() and json.loads(report.json())["sites"][0]["source_rows"] == 90
    name, layer = next(iter(lora_layers(model).items()))
    assert not torch.equal(layer.lora_A["default"].weight, lora_layers(other)[name].lora_A["default"].weight)


def test_options_have_the_names_of_the_tool():
    model, base, batch = adapted()
    with pytest.raises(cntlora.Error, match="--rankk"):
        cntlora.initialize_lora_weights(model, batches(batch), rankk=3)
    with pytest.raises(cntlora.Error, match="even"):
        cntlora.initialize_lora_weights(model, batches(batch), rank=3, start="mirrored")
    with pytest.raises(TypeError, match="'dtype' has no effect: the factors have the number format"):
        cntlora.initialize_lora_weights(model, batches(batch), dtype="bf16")
    # These are in the LoraConfig of the model.
    configured = dict(uniform_rank=[True, 8], modules_to_save=[["head"]], task_type=["SEQ_CLS"], base_name=["org/model"])
    for name, value in ((name, value) for name, values in configured.items() for value in values):
        with pytest.raises(cntlora.Error, match=f"--{name.replace('_', '-')} has no effect inside a program"):
            cntlora.initialize_lora_weights(model, batches(batch), **{name: value})
    with pytest.raises(cntlora.Error, match="queri"):
        cntlora.initialize_lora_weights(model, batches(batch), target="queri")
    report = cntlora.initialize_lora_weights(
        model, batches(batch), include=["layers.0", "nothing"], ridge=0.1, shrinkage="oas", start="update", max_shift=0.01, seed=3, threads=1,
    )
    assert [entry["module"] for entry in report.layers] == [f"model.layers.0.self_attn.{last}" for last in ATTENTION]
    assert json.loads(report.json())["method"]["ridge"] == 0.1


def test_choices_over_all_layers_need_one_rank():
    """A budget, eva and the bound of the start `update` are about all layers together."""
    pattern = {"q_proj": 2}
    for options in (dict(budget=True), dict(method="eva"), dict(method="astra"), dict(start="update")):
        model, base, batch = adapted(rank_pattern=pattern)
        with pytest.raises(ValueError, match="give rank=R"):
            cntlora.initialize_lora_weights(model, batches(batch), **options)
        cntlora.initialize_lora_weights(model, batches(batch), rank=4, **options)
    # With one rank and different scales, the factors of each layer follow its own scale.
    pattern = {"q_proj": 32}
    found = []
    for config in ({}, {"alpha_pattern": pattern}):
        model, base, batch = adapted(**config)
        cntlora.initialize_lora_weights(model, batches(batch), start="update")
        found.append(updates(model))
    assert all(distance(found[1][name], found[0][name]) < 1e-5 for name in found[0])


def test_models_that_cannot_be_initialized():
    model, batch = make("llama")
    with pytest.raises(TypeError, match="expected a PEFT model, found LlamaForCausalLM without an adapter"):
        cntlora.initialize_lora_weights(model, batches(batch))
    with pytest.raises(TypeError, match="expected a PEFT model, found str"):
        cntlora.initialize_lora_weights("llama", batches(batch))
    with pytest.raises(TypeError, match="compiled: initialize it before"):
        cntlora.initialize_lora_weights(torch.compile(adapted()[0]), batches(batch))
    with pytest.raises(TypeError, match="wrapped in DataParallel"):
        cntlora.initialize_lora_weights(torch.nn.DataParallel(adapted()[0]), batches(batch))
    from peft import IA3Config

    other = get_peft_model(make("llama")[0], IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(TypeError, match="only LoRA can be initialized"):
        cntlora.initialize_lora_weights(other, batches(batch))
    with pytest.raises(ValueError, match="init_lora_weights='pissa', which changes the model"):
        cntlora.initialize_lora_weights(adapted(init_lora_weights="pissa")[0], batches(batch))
    merged = adapted()[0]
    merged.merge_adapter()
    with pytest.raises(ValueError, match="is merged into its weight: call unmerge_adapter"):
        cntlora.initialize_lora_weights(merged, batches(batch))
    with torch.device("meta"):
        empty = make("llama")[0]
    empty = get_peft_model(empty, LoraConfig(r=4, target_modules=ATTENTION))
    with pytest.raises(ValueError, match="on the meta device"):
        cntlora.initialize_lora_weights(empty, method="pissa")
    with pytest.raises(ValueError, match="on the meta device"):
        cntlora.initialize_lora_weights(empty, batches(batch))


def test_convolutions_in_groups():
    """The groups share the rank. A base cannot hold the update of a residual start."""
    model, base, batch = adapted("regnet", r".*layer\.1\.convolution", r=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = cntlora.initialize_lora_weights(model, batches(batch))
    assert report.layers and distance(output(model, batch), output(base, batch)) < 1e-5
    with pytest.raises(ValueError, match="a convolution in groups, cannot hold the update"):
        cntlora.initialize_lora_weights(model, batches(batch), method="pissa")


def test_scale_of_a_layer_with_rslora_is_its_own():
    model, _, batch = adapted(use_rslora=True)
    cntlora.initialize_lora_weights(model, batches(batch), rank=16)
    layer = next(iter(lora_layers(model).values()))
    assert layer.scaling["default"] == pytest.approx(8 / math.sqrt(4))
    assert layer.lora_alpha["default"] == pytest.approx(8 / math.sqrt(4) * math.sqrt(16))


def test_sharded_weights_are_refused():
    """ZeRO-3 and DTensor leave only a part of a weight in this process."""
    for attribute, of in (("ds_id", "weight of model.layers.0.self_attn.q_proj is"), ("placements", "factors of model.layers.0.self_attn.q_proj are")):
        model, _, batch = adapted()
        layer = next(iter(lora_layers(model).values()))
        tensor = layer.base_layer.weight if attribute == "ds_id" else layer.lora_A["default"].weight
        setattr(tensor, attribute, 1)
        with pytest.raises(ValueError, match=f"the {of} sharded over processes"):
            cntlora.initialize_lora_weights(model, batches(batch))


def test_progress(capsys):
    """The progress of the forward passes and of the layers is shown where it is asked for."""
    for progress in (True, False):
        model, _, batch = adapted()
        cntlora.initialize_lora_weights(model, batches(batch), progress=progress)
        shown = capsys.readouterr().err
        assert ("3/3" in shown and "4/4" in shown) == progress, shown


def test_layers_that_the_options_leave_out_are_not_recorded():
    """So the advice to leave a layer out helps where its weight is tied, on the meta device or read by nothing."""
    model, base, batch = adapted("tied", ["embed_tokens", "q_proj"])
    report = cntlora.initialize_lora_weights(model, batches(batch), method="corda-ipm", exclude="embed", strict=True)
    assert list(report.left_out) == ["model.embed_tokens"]
    assert distance(output(model, batch), output(base, batch)) < 1e-5
    for options in (dict(target="q_proj"), dict(target=["layers.0.self_attn.q_proj,1.self_attn.q_proj"]), dict(include=r"q_proj$"), dict(target="all-linear", exclude=["embed"])):
        model, _, _ = adapted("tied", ["embed_tokens", "q_proj"])
        assert len(cntlora.initialize_lora_weights(model, batches(batch), **options).layers) == 2
    with pytest.raises(cntlora.Error, match="regular expression"):
        cntlora.initialize_lora_weights(adapted()[0], batches(batch), exclude="(")


def test_ranks_of_the_config_stay_when_the_tool_is_asked_for_one_layer():
    """Layers that keep PEFT's own start also keep their rank and scale in the configuration."""
    model, base, batch = adapted(rank_pattern={"v_proj": 2})
    cntlora.initialize_lora_weights(model, batches(batch), target="q_proj", rank=6)
    assert {layer.r["default"] for name, layer in lora_layers(model).items() if "v_proj" in name} == {2}
    config = model.peft_config["default"]
    again = get_peft_model(copy.deepcopy(base), copy.deepcopy(config))
    found, wanted = (
        {name: (layer.r["default"], layer.scaling["default"]) for name, layer in lora_layers(one).items()} for one in (again, model)
    )
    assert found == wanted
