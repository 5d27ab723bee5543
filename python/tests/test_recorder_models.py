"""The recorded sums of each kind of model are those of the rows that its layers read, by an oracle that knows nothing of the recorder."""

import numpy as np
import pytest
import torch

import models
import oracle
from cntlora.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("error:padding counts")

LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def is_layer(module):
    return isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"


def record(model, batch, tmp_path, **options):
    """Records a model in two batches, and returns the file's sites."""
    path = tmp_path / "x.moments.safetensors"
    with Recorder(model, **options) as recorder, torch.no_grad():
        for part in models.batches(batch, 5):
            model(**part)
    recorder.save(path)
    return recorder, *oracle.saved(path)


def padding(batch):
    return batch["attention_mask"].numpy()


def no_mask(batch, name):
    return None


def of_tokens(batch, name):
    """The mask of tokens, but the pooler and the head of BERT read one row for each example."""
    return None if name.startswith(("pooler", "bert.pooler", "classifier")) else padding(batch)


def of_t5(batch, name):
    if name.startswith("encoder") or ".EncDecAttention.k" in name or ".EncDecAttention.v" in name:
        return padding(batch)
    return batch["labels"].numpy() != -100


def of_whisper(batch, name):
    if "decoder" in name and not name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj")):
        return batch["labels"].numpy() != -100
    return None


def of_clip(batch, name):
    # The projection of the text reads one row for each example.
    return padding(batch) if name.startswith("text_model") else None


def of_unet(batch, name):
    return batch["encoder_attention_mask"].numpy() if name.endswith(("attn2.to_k", "attn2.to_v")) else None


MASKS = dict(
    llama=of_tokens, tied=of_tokens, llama_bf16=of_tokens, qwen3=of_tokens, gemma3=of_tokens, phi3=of_tokens, gpt2=of_tokens,
    opt=of_tokens, bert=of_tokens, bert_head=of_tokens, t5=of_t5, vit=no_mask, clip=of_clip, whisper=of_whisper, resnet=no_mask,
    regnet=no_mask, videomae=no_mask, wav2vec2=no_mask, unet=of_unet, flux=no_mask,
)


@pytest.mark.parametrize("name", MASKS)
def test_sums_are_those_of_the_rows(name, tmp_path):
    """Every layer is recorded or left out; padding does not count; layers share a site if, and only if, their inputs are equal."""
    model, batch = models.make(name)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [path for path, module in model.named_modules() if is_layer(module) and module is not head]
    recorder, sites, modules, site_of = record(model, batch, tmp_path)
    assert set(site_of) | set(recorder.left_out) == set(names)
    assert not set(site_of) & set(recorder.left_out)

    parts = models.batches(batch, 5)

    def run():
        with torch.no_grad():
            for part in parts:
                model(**part)

    layers = dict(model.named_modules())
    sites_of_input = {}
    inputs, addresses = oracle.inputs(model, site_of, run)
    for layer, tensors in inputs.items():
        module = layers[layer]
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
            shape = module.kernel_size, module.stride, module.padding
            rows = oracle.patches(tensors, *shape)
        else:
            shape = None
            rows = oracle.rows(tensors, [MASKS[name](part, layer) for part in parts])
        oracle.check(sites[site_of[layer]], rows, layer)
        sites_of_input.setdefault((*addresses[layer], shape), set()).add(site_of[layer])
    assert all(len(several) == 1 for several in sites_of_input.values())
    assert len(sites_of_input) == len(sites)


@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
@pytest.mark.parametrize("per_expert", [False, True])
def test_experts(name, per_expert, tmp_path):
    """The rows of each expert are those that its matrices multiply: in one site for all experts, or in one site for each."""
    model, batch = models.make(name)
    model.set_experts_implementation("eager")
    # Rows of padding reach experts, too, but do not count.
    keep = batch["attention_mask"].bool()
    parameters = {path: weight for path, weight in model.named_parameters() if path.endswith(("experts.gate_up_proj", "experts.down_proj"))}
    recorder, sites, modules, site_of = record(model, batch, tmp_path, targets=["gate_up_proj", "down_proj"], per_expert=per_expert)
    unpadded = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    kept = expert_rows(model, unpadded, keep, parameters)
    if not per_expert:
        assert set(sites) == set(parameters)
        for path, experts in kept.items():
            oracle.check(sites[path], np.concatenate(list(experts.values())), path)
        return
    expected = {f"{path}.{expert}" for path, experts in kept.items() for expert in experts}
    assert set(sites) == expected
    assert set(recorder.left_out) == {f"{path}.{expert}" for path in parameters for expert in range(4)} - expected
    for path, experts in kept.items():
        for expert, rows in experts.items():
            oracle.check(sites[f"{path}.{expert}"], rows, f"{path}.{expert}")


def expert_rows(model, batch, keep, parameters):
    """Returns the rows of each expert, without padding: each example is run alone, cut to its tokens."""
    kept = {}
    with torch.no_grad(), oracle.ExpertInputs(parameters) as mode:
        for ids, mask in zip(batch["input_ids"], keep):
            model(input_ids=ids[mask][None])
    for path, experts in mode.kept.items():
        kept[path] = {expert: np.concatenate(parts) for expert, parts in experts.items()}
    return kept


@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
def test_all_implementations_of_experts_read_the_same_rows(name, tmp_path):
    """transformers computes experts in several ways. The recorded rows do not depend on it, up to rounding."""
    model, batch = models.make(name)
    found = []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(implementation)
        found.append(record(model, batch, tmp_path, targets=["gate_up_proj", "down_proj"])[1])
    for other in found[1:]:
        for site, sums in other.items():
            assert sums["count"] == found[0][site]["count"]
            assert np.allclose(sums["gram"], found[0][site]["gram"], rtol=1e-3, atol=1e-4 * np.abs(sums["gram"]).max())


def test_embeddings_are_counted_when_they_are_named(tmp_path):
    """The counts are those of the tokens without padding. Without its name, an embedding is not recorded."""
    model, batch = models.make("llama")
    _, sites, _, _ = record(model, batch, tmp_path, targets=["embed_tokens", "q_proj"])
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    assert np.array_equal(sites["model.embed_tokens"]["tokens"], np.bincount(ids.numpy(), minlength=64))
    assert "model.embed_tokens" not in record(model, batch, tmp_path)[1]


@pytest.mark.parametrize("name, left_out", [
    ("mamba", ["out_proj", "conv1d"]), ("mamba2", ["out_proj", "conv1d"]), ("falcon_h1", ["out_proj", "conv1d"]),
    ("whisper", ["conv1", "conv2"]),
])
def test_layers_that_cannot_be_adapted_are_left_out(name, left_out, tmp_path):
    """PEFT refuses these layers, or the model fails with the adapted ones. The reason tells which."""
    model, batch = models.make(name)
    recorder, _, _, site_of = record(model, batch, tmp_path)
    names = [path for path, module in model.named_modules() if is_layer(module) and path.rpartition(".")[2] in left_out]
    assert names
    for path in names:
        assert path not in site_of
        reason = recorder.left_out[path]
        assert "does not adapt" in reason if name != "whisper" else "reads its `stride`" in reason, reason
    with pytest.raises(Exception, match="no layer can be recorded"):
        Recorder(model, left_out)


@pytest.mark.parametrize("name, target", [("mamba", "out_proj"), ("whisper", "conv1"), ("whisper", "conv2")])
def test_peft_does_not_adapt_what_is_left_out(name, target):
    """The reasons are true: PEFT refuses the layer, or the adapted model does not run."""
    from peft import LoraConfig, get_peft_model

    model, batch = models.make(name)
    with pytest.raises((ValueError, AttributeError)):
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[target]))
        adapted(**batch)


@pytest.mark.minilm
def test_the_real_minilm(tmp_path):
    """All layers of MiniLM, on texts of different lengths."""
    from transformers import AutoModel, AutoTokenizer

    folder = f"{models.minilm()}/model"
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["A short text.", "Another text, which is a little longer than the first one.", "Third."]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
    _, sites, modules, site_of = record(model, batch, tmp_path)
    assert len(modules) == 4 * 6 + 1 and len(site_of) == 6 * 6 + 1

    inputs, _ = oracle.inputs(model, site_of, lambda: model(**batch))
    for layer, tensors in inputs.items():
        oracle.check(sites[site_of[layer]], oracle.rows(tensors, [of_tokens(batch, layer)]), layer)
