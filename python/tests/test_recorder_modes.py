"""The recorder beside other programs: modes of torch, wrappers of models, and errors in forward passes."""

import warnings

import pytest
import torch

import models
import oracle
from cntlora.errors import Error
from cntlora.recorder import Recorder, record
from recording import Shared, hooks, run, same, sums


# Modes of torch


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_modes_of_gradients_do_not_matter(mode, tmp_path):
    model, batch = models.make("llama")
    expected = run(model, batch)
    with Recorder(model) as recorder, mode():
        model(**batch)
    assert len(recorder.statistics.sites()) == len(expected.statistics.sites()) == 8
    same(sums(recorder, tmp_path), sums(expected, tmp_path))


def test_autocast_does_not_change_what_a_layer_reads(tmp_path):
    """The input of a layer is recorded before it is rounded for the product."""
    model, batch = models.make("llama")
    with torch.autocast("cpu", torch.bfloat16):
        recorder = run(model, batch)
        inputs, _ = oracle.inputs(model, ["model.layers.1.mlp.down_proj"], lambda: model(**batch))
    found = sums(recorder, tmp_path)
    for name, tensors in inputs.items():
        oracle.check(found[name], oracle.rows(tensors, [batch["attention_mask"]]), name)
    assert len(recorder.statistics.sites()) == 8


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_counts_each_forward_pass_once(reentrant, tmp_path):
    """The backward pass runs the layers again, which does not count. Training goes on while the recorder listens."""
    model, batch = models.make("llama")
    expected = sums(run(model, batch), tmp_path)
    model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
    model.enable_input_require_grads()
    model.train()
    calls = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    with Recorder(model) as recorder:
        for _ in range(2):
            model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    # The layers did run again.
    assert len(calls) == 4
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None
    found = sums(recorder, tmp_path)
    for site, one in expected.items():
        assert found[site]["count"] == 2 * one["count"]
        assert oracle.close(found[site]["gram"], 2 * one["gram"])


def test_the_output_of_the_model_stays_the_same():
    model, batch = models.make("mixtral")
    with torch.no_grad():
        expected = model(**batch).logits
        with Recorder(model):
            assert torch.equal(model(**batch).logits, expected)


def test_accelerate_hooks_stay(tmp_path):
    """A model that is divided among devices, here between memory and disk, has hooks of its own."""
    from accelerate import dispatch_model

    model, batch = models.make("llama")
    expected = sums(run(model, batch), tmp_path)
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    model = dispatch_model(model, parts, main_device="cpu", offload_dir=str(tmp_path / "offload"), force_hooks=True)
    assert model.model.layers[1].mlp.down_proj.weight.device.type == "meta"
    same(sums(run(model, batch), tmp_path), expected)
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


# Wrappers


def test_adapted_models_have_the_names_of_the_base(tmp_path):
    """The adapted layers are the default. With the adapter switched off, the sums are those of the base model."""
    from peft import LoraConfig, get_peft_model

    model, batch = models.make("bert_head")
    expected = sums(run(model, batch, targets=["query", "value"]), tmp_path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.5, init_lora_weights=False))
    adapted.train()
    record(adapted, [batch]).save(str(tmp_path / "y.moments.safetensors"), "test")
    assert adapted.training
    same(oracle.saved(tmp_path / "y.moments.safetensors")[0], expected)
    assert hooks(adapted) == 0
    assert Recorder(adapted, ["classifier", "query"]).left_out == {"classifier": "PEFT trains it whole, as one of modules_to_save"}


def test_adapters_without_a_wrapper_around_the_model(tmp_path):
    """transformers and diffusers put adapters into a model in this way. They are switched off, and on again afterwards."""
    from peft import LoraConfig, inject_adapter_in_model

    model, batch = models.make("llama")
    expected = sums(run(model, batch, targets=["q_proj", "down_proj"]), tmp_path)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False), model)
    record(model, [batch]).save(str(tmp_path / "y.moments.safetensors"), "test")
    same(oracle.saved(tmp_path / "y.moments.safetensors")[0], expected)
    assert not model.model.layers[0].self_attn.q_proj.disable_adapters


def test_adapted_experts_and_embeddings_have_the_names_of_the_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    model, batch = models.make("mixtral")
    names = ["gate_up_proj", "down_proj", "embed_tokens"]
    expected = set(run(model, batch, targets=names).statistics.sites())
    config = LoraConfig(r=2, target_modules=["embed_tokens"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    statistics = record(get_peft_model(model, config), [batch])
    assert set(statistics.sites()) == expected


def test_distributed_data_parallel_has_the_names_of_the_model(tmp_path):
    """In a single process, without a group of processes."""
    model, batch = models.make("llama")

    class Wrapped(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            torch.nn.Module.__init__(self)
            self.module = module

        def forward(self, **kwargs):
            return self.module(**kwargs)

    same(sums(run(Wrapped(model), batch), tmp_path), sums(run(model, batch), tmp_path))


def test_compiled_models_are_refused_and_compiled_parts_left_out():
    """torch.compile would run without the hooks, and nothing would be recorded without a word."""
    model, batch = models.make("llama")
    with pytest.raises(Error, match="the model is compiled"):
        Recorder(torch.compile(model, backend="eager"))
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    recorder = Recorder(model)
    assert all("it is compiled" in reason for reason in recorder.left_out.values())
    assert {name.split(".")[2] for name in recorder.left_out} == {"0"}
    assert {name.split(".")[2] for name in recorder.layers} == {"1"}
    model.compile(backend="eager")
    with pytest.raises(Error, match="the model is compiled"):
        Recorder(model)


def test_data_parallel_is_refused():
    with pytest.raises(Error, match="DataParallel runs copies of the model"):
        Recorder(torch.nn.DataParallel(Shared()))


def test_sharded_layers_are_left_out():
    """ZeRO-3 leaves an empty weight in the layer, and marks it."""
    empty, marked, whole = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))
    empty.weight = torch.nn.Parameter(torch.empty(0))
    marked.weight.ds_id = 3
    model = torch.nn.ModuleDict(dict(empty=empty, marked=marked, whole=whole))
    recorder = Recorder(model)
    assert list(recorder.layers) == ["whole"]
    assert all("its weight is divided among processes" in recorder.left_out[name] for name in ("empty", "marked"))
    with pytest.raises(Error, match="no layer can be recorded"):
        Recorder(model, ["empty"])


def test_layers_that_are_never_called_are_left_out():
    """torch.nn.MultiheadAttention reads the weight of its last layer; scripts of torch.jit run no hooks; other experts are not known."""

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = torch.nn.Parameter(torch.randn(2, 3, 4))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    model = torch.nn.ModuleDict(dict(
        attention=torch.nn.MultiheadAttention(4, 2), script=script, experts=Experts(), layer=torch.nn.Linear(4, 4), lazy=torch.nn.LazyLinear(3),
    ))
    recorder = Recorder(model)
    assert list(recorder.layers) == ["layer"]
    assert recorder.left_out == {
        "attention.out_proj": "torch.nn.MultiheadAttention reads its weight without calling it",
        "script.0": "it is a script of torch.jit, which does not run hooks",
        "experts.down_proj": "the experts of the class Experts do not have the interface of fused experts of transformers",
        "lazy": "its shape is not known before the first forward pass",
    }


# Hooks


def test_hooks_are_removed_after_an_error(tmp_path):
    """An error in the forward pass, in the block, and while hooks are added. The sums of complete forward passes stay right."""
    model, x = Shared(), torch.randn(4, 5)

    def fails(model, x):
        model.a(x)
        raise ValueError("no")

    recorder = Recorder(model)
    with pytest.raises(ValueError), recorder, torch.no_grad():
        model(x)
        model.step = fails
        with pytest.warns(RuntimeWarning, match="a forward pass failed"):
            model(x)
    assert hooks(model) == 0
    oracle.check(sums(recorder, tmp_path)["a"], x.double().numpy(), "a")
    with pytest.raises(KeyError), Recorder(model):
        raise KeyError
    assert hooks(model) == 0


def test_hooks_are_removed_if_adding_one_fails(monkeypatch):
    model = Shared()
    monkeypatch.setattr(model.c, "register_forward_pre_hook", lambda *_, **__: 1 / 0)
    recorder = Recorder(model)
    with pytest.raises(ZeroDivisionError):
        recorder.__enter__()
    assert hooks(model) == 0
    monkeypatch.undo()
    with recorder:
        model(torch.randn(4, 5))
    assert len(recorder.statistics.sites()) == 2


def test_a_forward_pass_after_a_failed_one_counts(tmp_path):
    model, x = Shared(), torch.randn(4, 5)
    step = model.step

    def fails(model, x):
        model.a(x)
        raise ValueError("no")

    with Recorder(model) as recorder, torch.no_grad():
        model(x)
        model.step = fails
        with pytest.raises(ValueError), pytest.warns(RuntimeWarning):
            model(x)
        model.step = step
        model(x)
    found = sums(recorder, tmp_path)
    assert found["a"]["count"] == 8 and set(found) == {"a", "c"}


def test_an_interruption_leaves_complete_forward_passes(tmp_path):
    """Ctrl-C in a forward pass, after which the recorder is used again: layers of one site are not separated by it."""
    model, x = Shared(), torch.randn(4, 5)
    step = model.step

    def interrupted(model, x):
        model.a(x)
        raise KeyboardInterrupt

    recorder = Recorder(model)
    with pytest.raises(KeyboardInterrupt), recorder, torch.no_grad():
        model(x)
        model.step = interrupted
        model(x)
    assert hooks(model) == 0
    model.step = step
    with recorder, torch.no_grad():
        model(x)
    found = sums(recorder, tmp_path)
    assert set(found) == {"a", "c"} and found["a"]["count"] == found["c"]["count"] == 8


def test_parts_of_a_model_can_be_called(tmp_path):
    """A part of the model that is called alone is a forward pass, and so is a layer."""
    model, batch = models.make("llama")
    with Recorder(model) as recorder, torch.no_grad():
        model.model(**batch)
        model.model.layers[0].mlp.down_proj(torch.randn(3, 48))
    found = sums(recorder, tmp_path)
    assert found["model.layers.0.mlp.down_proj"]["count"] == 93
    assert found["model.layers.1.mlp.down_proj"]["count"] == 90
    assert len(found) == 8
