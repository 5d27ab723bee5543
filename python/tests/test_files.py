"""Adapters of the tool, computed from files: PEFT loads them without a warning, computes W x + s B A x, and trains them.

The models have linear layers, GPT-2's Conv1D, convolutions of one to three dimensions and in groups, embeddings and fused experts.
Diffusers reads its own format and that of kohya's scripts.
"""

import inspect
import json
import pathlib
import re
import warnings

import pytest
import torch
from peft import (
    AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model,
)
from safetensors.torch import load_file, save_file

import cntlora
from adapted import output
from cntlora import _cntlora
from in_peft import TOLERANCE, add_anchor, check_layers, factors, load, train, warnings_are_errors
from models import batches, make

METHODS = [
    "cntlora", "pissa", "milora", "olora", "olora-tail", "mica", "corda-ipm", "corda-kpm", "sc-lora", "astra", "lora-null", "eva", "lora",
    "gaussian", "orthogonal",
]
RESIDUAL = {"pissa", "milora", "olora", "olora-tail", "corda-ipm", "corda-kpm", "sc-lora", "astra", "lora-null"}
STARTS = {
    "cntlora": ["zero", "mirrored", "update", "residual"],
    **{method: ["residual", "mirrored"] for method in RESIDUAL},
}
# Token counts have no directions, so that these methods do not adapt embeddings.
NO_EMBEDDINGS = {"eva", "orthogonal", "lora-null"}
# Methods that need pre-training activations, and the one that needs no others.
NEEDS_SOURCE, ONLY_SOURCE = {"sc-lora", "lora-null"}, {"lora-null"}
# Methods that share ranks out among the layers.
SHARES_RANKS = {"eva", "astra"}


def tool(*words):
    assert _cntlora.main([*map(str, words), "-q"]) == 0, words


class Files:
    """A saved model, and moments of its layers."""

    def __init__(self, folder, name, targets=None, **options):
        self.folder, self.name = folder, name
        self.model, self.batch = make(name)
        self.batch.pop("labels", None) if "decoder_input_ids" in self.batch else None
        self.model.save_pretrained(folder / name)
        self.moments = folder / f"{name}.moments.safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cntlora.record(self.model, batches(self.batch), targets=targets, **options).save(str(self.moments), "a test")
            self.source = folder / f"{name}.source.safetensors"
            cntlora.record(self.model, list(batches(self.batch))[:1], targets=targets, **options).save(str(self.source), "a test")

    def inputs(self, method):
        """Returns the moments that a method uses."""
        words = [] if method in ONLY_SOURCE else ["--moments", self.moments]
        return words + (["--source-moments", self.source] if method in NEEDS_SOURCE else [])

    def base(self, folder):
        model = type(self.model).from_pretrained(folder)
        return model.eval()

    def adapt(self, method, *words, start=None):
        """Computes an adapter, verifies it, checks it in PEFT and trains it. After a residual start, converts it for the original base."""
        start = start or STARTS.get(method, ["zero"])[0]
        out = self.folder / f"{self.name}-{method}"
        chosen = ["--start", start] if method in STARTS else []
        tool("init", self.folder / self.name, *self.inputs(method), "-o", out, "--rank", 4, "--method", method, *chosen, "--force", *words)
        tool("verify", out, "--base", self.folder / self.name)
        is_anchored = "anchor" in words
        changed = start == "residual" and not is_anchored
        model = load(self.base(out / "base" if changed else self.folder / self.name), out, is_trainable=True).eval()
        assert check_layers(model, out, self.batch) > 0
        if is_anchored:
            add_anchor(model, out / "anchor")
        wanted = output(self.model, self.batch)
        if start != "update":
            assert ((output(model, self.batch) - wanted).norm() / wanted.norm()).item() <= 10 * TOLERANCE
        ups = {name: up.clone() for name, up in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name}
        train(model, self.batch)
        # PEFT keeps B if the adapter is one of MiCA.
        kept = {torch.equal(up, model.get_parameter(name)) for name, up in ups.items()}
        assert kept == {True} if method == "mica" else False in kept
        trained, plain = out.with_name(out.name + "-trained"), out.with_name(out.name + "-plain")
        model.save_pretrained(trained, selected_adapters=["default"])
        tool("verify", trained)
        if start == "residual" and method in ("pissa", "corda-ipm"):
            tool("convert", trained, "--init", out, "--out", plain, "--force")
            converted = output(load(self.base(self.folder / self.name), plain).eval(), self.batch)
            found = output(model.eval(), self.batch)
            assert ((found - converted).norm() / converted.norm()).item() <= 10 * TOLERANCE


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("files"), {}

    def get(name, *targets, **options):
        return made.setdefault((name, targets), Files(folder, name, list(targets) or None, **options))

    return get


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_start_on_a_language_model(files, method):
    for start in STARTS.get(method, [None]):
        files("llama").adapt(method, "--scale", 2, start=start)


def test_mica_is_that_of_peft(files):
    """The factors are those that PEFT makes, up to the signs of the columns of B, and PEFT freezes the same parameters."""
    one = files("llama")
    out = one.folder / "mica-of-the-tool"
    tool("init", one.folder / "llama", "--moments", one.moments, "-o", out, "--rank", 4, "--method", "mica", "--target", "q_proj,v_proj", "--force")
    assert json.loads((out / "adapter_config.json").read_text())["init_lora_weights"] == "mica"
    wanted = get_peft_model(one.base(one.folder / "llama"), LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights="mica"))
    for low_memory in (False, True):
        model = load(one.base(one.folder / "llama"), out, is_trainable=True, low_cpu_mem_usage=low_memory)
        trained = [{name for name, parameter in each.named_parameters() if parameter.requires_grad} for each in (model, wanted)]
        assert trained[0] == trained[1] and len(trained[0]) == 4 and all("lora_A" in name for name in trained[0])
        for name, parameter in wanted.named_parameters():
            if "lora_B" in name:
                found = model.get_parameter(name)
                signs = (found * parameter).sum(0).sign()
                assert (found * signs - parameter).norm() <= 1e-4 * parameter.norm()
            elif "lora_A" in name:
                assert not parameter.any() and not model.get_parameter(name).any()


def test_anchors_budgets_and_text_models(files):
    files("llama").adapt("pissa", "--residual", "anchor")
    files("llama").adapt("cntlora", "--budget")
    for name in ("bert", "vit"):
        for method in ("cntlora", "corda-ipm"):
            files(name).adapt(method, *(["--exclude", "classifier"] if name == "vit" else []))


@pytest.mark.parametrize("name", ["gpt2", "resnet", "regnet", "videomae", "wav2vec2"])
def test_conv1d_and_convolutions(files, name):
    # wav2vec2 has a convolution whose weight is stored in two factors. The targets leave it out.
    targets = ("conv_layers.0.conv", "conv_layers.1.conv", "q_proj", "out_proj") if name == "wav2vec2" else ()
    # PEFT keeps B in linear layers and embeddings only.
    for method in METHODS if name in ("gpt2", "videomae", "wav2vec2") else [one for one in METHODS if one != "mica"]:
        # A changed base cannot hold the residual of a convolution in groups.
        words = ["--residual", "anchor"] if name == "regnet" and method in RESIDUAL else []
        files(name, *targets).adapt(method, *words)


@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
def test_fused_experts(files, name):
    """The checkpoint stores the experts one by one, or in one tensor of shape [inputs, outputs]."""
    one = files(name, per_expert=name == "gptoss")
    for method in METHODS:
        # All experts get the same rank: PEFT applies rank patterns to experts, but still warns about them.
        one.adapt(method, *(["--rho", 1] if method in SHARES_RANKS else []))
    one.adapt("pissa", "--residual", "anchor")
    if name == "mixtral":
        one.adapt("cntlora", "--budget", "--exclude", "experts")


@pytest.mark.parametrize("name, targets", [
    ("llama", ("embed_tokens", "q_proj")), ("bert", ("word_embeddings", "query")), ("tied", ("embed_tokens", "q_proj")),
    ("gemma3", ("embed_tokens", "q_proj")),
])
def test_embeddings(files, name, targets):
    """Their activations are counts of tokens. Some models share the embedding with the output head, or multiply it."""
    one = files(name, *targets)
    if name in ("tied", "gemma3"):
        one.adapt("pissa", "--residual", "anchor")
        return
    for method in METHODS if name == "llama" else ("cntlora", "corda-ipm"):
        if method not in NO_EMBEDDINGS:
            for start in STARTS.get(method, [None]) if name == "llama" else [None]:
                one.adapt(method, start=start)


PARTS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut"),
    "text-encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
SINGLE_FILES = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "lora.safetensors"}


@pytest.mark.parametrize("part", PARTS)
def test_diffusers_reads_adapters_of_one_file(part, tmp_path):
    """Diffusers' own format and that of kohya's scripts give the layers of the adapter in the format of PEFT."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
    from transformers import CLIPTextConfig, CLIPTextModel

    if part == "unet":
        model, batch = make("unet")
    else:
        torch.manual_seed(0)
        model = CLIPTextModel(CLIPTextConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12,
            bos_token_id=1, eos_token_id=2,
        )).eval()
        batch = dict(input_ids=torch.randint(3, 60, (12, 9)))
    model.save_pretrained(tmp_path / part)
    moments = tmp_path / "part.moments.safetensors"
    cntlora.record(model, [batch], targets=list(PARTS[part])).save(str(moments), "a test")
    source = tmp_path / "source.moments.safetensors"
    half = {key: value[: len(value) // 2] if isinstance(value, torch.Tensor) and value.dim() else value for key, value in batch.items()}
    cntlora.record(model, [half], targets=list(PARTS[part])).save(str(source), "a test")
    # Only adapters of PEFT tell that B is to be kept.
    for method in [one for one in METHODS if one != "mica"]:
        for form in ("peft", *SINGLE_FILES):
            # All layers get the same rank: versions of diffusers before August 2026 read different ranks at wrong scales.
            words = ["--rank", 2, "--scale", 3, "--format", form, *(["--rho", 1] if method in SHARES_RANKS else [])]
            words += [] if method in ONLY_SOURCE else ["--moments", moments]
            words += ["--source-moments", source] if method in NEEDS_SOURCE else []
            words += ["--residual", "anchor"] if method in RESIDUAL else []
            words += ["--component", part] if form != "peft" else []
            out = tmp_path / f"{method}-{form}"
            tool("init", tmp_path / part, "--method", method, "-o", out, *words)
            tool("verify", out, "--base", tmp_path / part)
        updates = products(tmp_path / f"{method}-peft")
        for form, file in SINGLE_FILES.items():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                folder = tmp_path / f"{method}-{form}"
                if part == "unet":
                    fresh = UNet2DConditionModel.from_pretrained(tmp_path / part)
                    state, alphas = Loader.lora_state_dict(folder, weight_name=file, unet_config=fresh.config)
                    Loader.load_lora_into_unet(state, alphas, fresh, adapter_name="default")
                else:
                    fresh = CLIPTextModel.from_pretrained(tmp_path / part)
                    state, alphas = Loader.lora_state_dict(folder, weight_name=file)
                    Loader.load_lora_into_text_encoder(state, alphas, fresh, prefix="text_encoder", adapter_name="default")
            check_updates(f"{method}, {form}", fresh.eval(), batch, updates)


def products(folder):
    """Returns s B A of every module, read without PEFT. The shape is that of the weight, with the axes of a kernel flattened."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"):
        scale * tensors[key.replace("lora_A", "lora_B")].flatten(1) @ a.flatten(1)
        for key, a in tensors.items() if ".lora_A." in key
    }


def check_updates(name, model, batch, updates):
    """Compares the output of every adapted layer with the output of its base layer after the update is added to the weight."""
    worst, seen = 0.0, set()

    def hook(module_name):
        def compare(module, args, found):
            nonlocal worst
            base = module.base_layer
            weight, update = base.weight.data, updates[module_name]
            base.weight.data = weight + update.view_as(weight)
            expected = base(args[0])
            base.weight.data = weight
            # Some methods start from a product of zero, up to rounding.
            is_zero = update.norm() < 1e-5 * weight.norm()
            assert is_zero or not torch.allclose(expected, base(args[0]), rtol=1e-3), f"{name}: {module_name} adds nothing"
            worst = max(worst, ((found - expected).norm() / expected.norm()).item())
            seen.add(module_name)

        return compare

    adapted = {module_name: module for module_name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert set(adapted) == set(updates), f"{name}: {set(adapted) ^ set(updates)}"
    for module_name, module in adapted.items():
        module.register_forward_hook(hook(module_name))
    with torch.no_grad():
        model(**batch)
    assert seen == set(updates), f"{name}: never reached: {set(updates) - seen}"
    assert worst <= TOLERANCE, f"{name}: a layer differs by {worst:.1e}"


def test_padded_adapters_compute_the_same_in_peft(files, tmp_path):
    """All layers have one rank and one alpha, without patterns. PEFT gives the same outputs, and no step of training changes the zeros."""
    one = files("llama")
    words = ["--moments", one.moments, "--rank", 4, "--budget", "--scale", 2]
    tool("init", one.folder / "llama", *words, "--start", "update", "-o", tmp_path / "mixed")
    tool("init", one.folder / "llama", *words, "--start", "update", "--uniform-rank", "-o", tmp_path / "init")
    tool("convert", tmp_path / "mixed", "--uniform-rank=32", "-o", tmp_path / "convert")
    ranks = {len(a) for a, _, _ in factors(tmp_path / "mixed").values()}
    assert len(ranks) > 1
    wanted = output(load(one.base(one.folder / "llama"), tmp_path / "mixed").eval(), one.batch)
    for name, rank in (("init", max(ranks)), ("convert", 32)):
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (rank, 2 * rank, {}, {})
        tool("verify", tmp_path / name, "--base", one.folder / "llama")
        model = load(one.base(one.folder / "llama"), tmp_path / name, is_trainable=True).eval()
        assert check_layers(model, tmp_path / name, one.batch) == 14
        assert ((output(model, one.batch) - wanted).norm() / wanted.norm()).item() <= TOLERANCE
        own = {module: len(a) for module, (a, _, _) in factors(tmp_path / "mixed").items()}
        train(model, one.batch)
        for module, used in own.items():
            layer = model.base_model.model.get_submodule(module)
            assert not layer.lora_A["default"].weight[used:].any() and not layer.lora_B["default"].weight[:, used:].any()


def test_rank_stabilized_adapters_of_peft_are_padded(files, tmp_path):
    """Their layers have scales of their own, alpha / sqrt(rank), which go into the factors."""
    one = files("llama")
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, init_lora_weights=False, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 9},
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(1)
    model = get_peft_model(one.base(one.folder / "llama"), config).eval()
    model.save_pretrained(tmp_path / "stabilized")
    tool("convert", tmp_path / "stabilized", "--uniform-rank", "-o", tmp_path / "padded")
    config = json.loads((tmp_path / "padded" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["task_type"]) == (9, 9, False, "CAUSAL_LM")
    padded = load(one.base(one.folder / "llama"), tmp_path / "padded").eval()
    wanted = output(model, one.batch)
    assert ((output(padded, one.batch) - wanted).norm() / wanted.norm()).item() <= TOLERANCE


def loads(cls, folder):
    """Loads an adapter together with its base. A warning is an error."""
    with warnings_are_errors():
        return cls.from_pretrained(folder, is_trainable=True)


def test_auto_classes_of_peft_load_adapters(files, tmp_path):
    """By the task, by the class of the model, and with the head as the checkpoint has it."""
    llama = files("llama")
    tool("init", llama.folder / "llama", "--moments", llama.moments, "--rank", 4, "--task-type", "CAUSAL_LM", "-o", tmp_path / "causal")
    model = loads(AutoPeftModelForCausalLM, tmp_path / "causal")
    assert check_layers(model, tmp_path / "causal", llama.batch) == 14
    tool("init", llama.folder / "llama", "--moments", llama.moments, "--rank", 4, "-o", tmp_path / "class")
    model = loads(AutoPeftModel, tmp_path / "class")
    assert type(model.base_model.model).__name__ == "LlamaForCausalLM"

    head = files("bert_head")
    words = ["--moments", head.moments, "--rank", 4, "--target", "query,value"]
    base = head.base(head.folder / "bert_head")
    for name, options, cls in (
        ("task", ["--task-type", "SEQ_CLS"], AutoPeftModelForSequenceClassification),
        ("names", ["--modules-to-save", "classifier"], AutoPeftModel),
    ):
        tool("init", head.folder / "bert_head", *words, *options, "-o", tmp_path / name)
        model = loads(cls, tmp_path / name)
        saved = model.base_model.model.classifier
        assert torch.equal(saved.modules_to_save["default"].weight, base.classifier.weight)
        assert saved.modules_to_save["default"].weight.requires_grad
        assert check_layers(model, tmp_path / name, head.batch) == 4
        model = load(head.base(head.folder / "bert_head"), tmp_path / name, is_trainable=True)
        train(model, head.batch)

    tool("init", head.folder / "bert_head", *words, "--base-name", "org/model", "-o", tmp_path / "named")
    assert json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/model"


def test_two_components_convert_to_names_that_diffusers_reads(tmp_path):
    """A file of kohya's scripts has `_` for `.` in its names. The modules of the pipeline resolve them."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, _ = make("unet")
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12,
        bos_token_id=1, eos_token_id=2,
    ))
    unet.save_pretrained(tmp_path / "pipeline" / "unet")
    text.save_pretrained(tmp_path / "pipeline" / "text_encoder")
    tensors = {}
    for prefix, model, ends in (("lora_unet_", unet, (".to_q", ".to_out.0")), ("lora_te_", text, (".q_proj", ".fc1"))):
        for name, module in model.named_modules():
            if name.endswith(ends):
                name = name if prefix == "lora_unet_" or name.startswith("text_model.") else f"text_model.{name}"
                flat = prefix + name.replace(".", "_")
                tensors[f"{flat}.lora_down.weight"] = torch.randn(2, module.in_features)
                tensors[f"{flat}.lora_up.weight"] = torch.randn(module.out_features, 2)
                tensors[f"{flat}.alpha"] = torch.tensor(2.0)
    (tmp_path / "kohya").mkdir()
    save_file(tensors, tmp_path / "kohya" / "lora.safetensors")
    tool("convert", tmp_path / "kohya", "--format", "diffusers", "--base", tmp_path / "pipeline", "-o", tmp_path / "diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = UNet2DConditionModel.from_pretrained(tmp_path / "pipeline" / "unet")
        fresh_text = CLIPTextModel.from_pretrained(tmp_path / "pipeline" / "text_encoder")
        state, alphas = Loader.lora_state_dict(tmp_path / "diffusers", weight_name=SINGLE_FILES["diffusers"], unet_config=fresh.config)
        Loader.load_lora_into_unet(state, alphas, fresh, adapter_name="default")
        Loader.load_lora_into_text_encoder(state, alphas, fresh_text, prefix="text_encoder", adapter_name="default")
    seen = 0
    for prefix, model in (("lora_unet_", fresh), ("lora_te_", fresh_text)):
        for name, module in model.named_modules():
            if hasattr(module, "lora_A"):
                name = name if prefix == "lora_unet_" or name.startswith("text_model.") else f"text_model.{name}"
                flat = prefix + name.replace(".", "_")
                wanted = tensors[f"{flat}.lora_up.weight"] @ tensors[f"{flat}.lora_down.weight"]
                found = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
                assert torch.allclose(found, wanted, atol=1e-5), name
                seen += 1
    assert 3 * seen == len(tensors)


def test_the_table_of_methods_tells_which_peft_has():
    """The last column of the table in methods.md is "no" for exactly the methods that PEFT does not have."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `") and line.count("|") == 7]
    table = {row[0].strip(" `"): row[5].strip() for row in rows if "--" not in row[0]}
    assert table.keys() == set(METHODS)
    words = re.findall(r'"([a-z_]+)"', inspect.getsource(LoraConfig).split("init_lora_weights:")[1].split("= field")[0])
    of_peft = {"lora", *(method for method in METHODS if method.removesuffix("-ipm").removesuffix("-kpm") in words)}
    assert {method for method, cell in table.items() if not cell.startswith("no")} == of_peft
