"""Targets, masks, results and loaders of the recorder."""

import gc
import weakref

import pytest
import torch

import models
import oracle
from cntlora.errors import Error
from cntlora.recorder import Recorder, record
from recording import Shared, hooks, run, same, sums


# Targets


def test_a_missing_target_is_an_error_with_similar_names():
    model, _ = models.make("llama")
    with pytest.raises(Error) as found:
        Recorder(model, ["q_porj", "v_proj"])
    assert str(found.value).startswith('targets: no layer is named "q_porj"; similar names are "q_proj"')
    assert found.value.category == "usage"
    with pytest.raises(Error, match='no layer matches "layers.9.*"'):
        Recorder(model, "layers.9.*")
    with pytest.raises(Error, match="no name was given"):
        Recorder(model, [])


def test_targets_are_names_last_parts_or_an_expression():
    """As in PEFT, a text is a regular expression for whole names. All linear layers are the default."""
    model, _ = models.make("llama")
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert list(Recorder(model, ["q_proj"]).layers) == names
    assert list(Recorder(model, r".*\.q_proj").layers) == names
    assert list(Recorder(model, names[:1]).layers) == names[:1]
    assert list(Recorder(model, "all-linear").layers) == list(Recorder(model).layers)
    assert len(Recorder(model).layers) == 14
    assert list(Recorder(model, ["lm_head"]).layers) == ["lm_head"]


def test_a_model_without_layers_is_refused():
    with pytest.raises(Error, match="the model has no layer to record"):
        Recorder(torch.nn.Sequential(torch.nn.ReLU()))


# Masks


def test_packed_sequences_count_every_token(tmp_path):
    """Without a mask, all positions count. A mask of numbers of sequences leaves out position 0, which is padding."""
    model, batch = models.make("llama")
    packed = dict(input_ids=batch["input_ids"].reshape(1, -1), position_ids=torch.arange(9).repeat(12)[None])
    assert all(site["count"] == 108 for site in sums(run(model, packed), tmp_path).values())
    numbered = dict(input_ids=batch["input_ids"], attention_mask=(torch.arange(9) // 3 + torch.zeros(12, 1)).long())
    assert all(site["count"] == 72 for site in sums(run(model, numbered), tmp_path).values())


def test_a_mask_of_queries_and_keys_leaves_out_keys_that_nobody_reads(tmp_path):
    """Packed sequences may come with a mask of blocks, as booleans or as numbers that are added."""
    model, batch = models.make("llama")
    number = torch.tensor([1, 1, 1, 1, 2, 2, 2, 0, 0])
    blocks = (number[:, None] == number) & (number > 0) & torch.ones(9, 9).tril().bool()
    blocks = blocks[None, None].expand(12, 1, 9, 9)
    added = torch.zeros(12, 1, 9, 9).masked_fill(~blocks, torch.finfo(torch.float32).min)
    for mask in (blocks, added):
        found = sums(run(model, dict(input_ids=batch["input_ids"], attention_mask=mask)), tmp_path)
        assert all(site["count"] == 12 * 7 for site in found.values())
    with pytest.raises(Error, match="expected an attention mask of the shape"):
        run(model, dict(input_ids=batch["input_ids"], attention_mask=torch.ones(12)))


def test_tokens_of_a_cache_are_not_counted_again(tmp_path):
    """With a cache, the mask also has the earlier tokens. Each token counts once, and padding on the left does not."""
    model, batch = models.make("llama")
    mask = batch["attention_mask"].flip(1)
    whole = sums(run(model, dict(input_ids=batch["input_ids"], attention_mask=mask)), tmp_path)
    with Recorder(model) as recorder, torch.no_grad():
        first = model(input_ids=batch["input_ids"][:, :5], attention_mask=mask[:, :5], use_cache=True)
        for end in range(5, 9):
            model(input_ids=batch["input_ids"][:, end : end + 1], attention_mask=mask[:, : end + 1], past_key_values=first.past_key_values)
    found = sums(recorder, tmp_path)
    assert {site: one["count"] for site, one in found.items()} == {site: one["count"] for site, one in whole.items()}
    first_site = "model.layers.0.self_attn.q_proj"
    same({first_site: found[first_site]}, {first_site: whole[first_site]})


def test_a_label_mask_counts_only_positions_with_a_label(tmp_path):
    model, batch = models.make("llama")
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    found = sums(run(model, dict(**batch, labels=labels), label_mask=True), tmp_path)
    expected = int(((labels != -100) & (batch["attention_mask"] == 1)).sum())
    assert all(site["count"] == expected for site in found.values())
    assert all(site["count"] == 90 for site in sums(run(model, dict(**batch, labels=labels)), tmp_path).values())


def test_a_label_mask_needs_labels_of_the_tokens():
    model, batch = models.make("llama")
    with pytest.raises(Error, match="label_mask needs the labels of all tokens"):
        run(model, batch, label_mask=True)
    classifier, batch = models.make("bert_head")
    with pytest.raises(Error, match="label_mask needs the labels of all tokens"):
        run(classifier, batch, label_mask=True)
    with pytest.raises(Error, match=r"expected labels of the shape \[12, 9\], found \[12, 8\]"):
        Recorder(model, label_mask=True)._masks.enter(
            ["input_ids", "attention_mask", "labels"], (batch["input_ids"], batch["attention_mask"], batch["input_ids"][:, 1:]), {}
        )


def test_a_label_mask_is_for_the_decoder(tmp_path):
    """In a model with an encoder, the labels are those of the decoder. The encoder keeps its own mask."""
    model, batch = models.make("t5")
    mask = (torch.arange(7) < 6).long().repeat(12, 1)
    batch.update(decoder_attention_mask=mask)
    expected = int(((batch["labels"] != -100) & (mask == 1)).sum())
    for site, one in sums(run(model, batch, label_mask=True), tmp_path).items():
        of_encoder = site.startswith("encoder") or site.endswith("EncDecAttention.k")
        assert one["count"] == (90 if of_encoder else expected), site
    batch.update(decoder_input_ids=batch["input_ids"], decoder_attention_mask=None)
    with pytest.raises(Error, match=r"label_mask: expected labels of 9 tokens for each example of the decoder, found \[12, 7\]"):
        run(model, batch, label_mask=True)

    class WithoutDecoder(torch.nn.Module):
        config = type("Config", (), dict(is_encoder_decoder=True))

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, inputs_embeds, labels):
            return self.layer(inputs_embeds)

    with pytest.raises(Error, match="no part of it was called like a decoder"):
        run(WithoutDecoder(), dict(inputs_embeds=torch.randn(2, 3, 4), labels=torch.ones(2, 3).long()), label_mask=True)


def test_a_decoder_has_a_mask_of_its_own(tmp_path):
    """The mask of the decoder is used in the decoder, that of the encoder in the encoder and for what the decoder reads of it."""
    model, batch = models.make("t5")
    mask = (torch.arange(7) < 5).long().repeat(12, 1)
    decoder = dict(decoder_input_ids=batch["labels"].clamp(min=0), decoder_attention_mask=mask)
    batch = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **decoder)
    for site, one in sums(run(model, batch), tmp_path).items():
        of_encoder = site.startswith("encoder") or site.endswith("EncDecAttention.k")
        assert one["count"] == (90 if of_encoder else 60), site


def test_equal_lengths_of_encoder_and_decoder_do_not_confuse_their_masks(tmp_path):
    model, batch = models.make("t5")
    decoder = dict(decoder_input_ids=batch["input_ids"].flip(1), decoder_attention_mask=(torch.arange(9) < 4).long().repeat(12, 1))
    batch = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **decoder)
    for site, one in sums(run(model, batch), tmp_path).items():
        of_encoder = site.startswith("encoder") or site.endswith("EncDecAttention.k")
        assert one["count"] == (90 if of_encoder else 48), site


def test_positions_that_fit_no_mask_are_announced():
    """Padding that cannot be told from tokens counts, but not without a word."""

    class Doubled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, inputs_embeds, attention_mask):
            return self.layer(torch.cat([inputs_embeds, inputs_embeds], 1))

    model = Doubled()
    with pytest.warns(RuntimeWarning, match=r'padding counts in the input of "layer".*\[2, 6\], with a mask of the shape \[2, 3\]'):
        run(model, dict(inputs_embeds=torch.randn(2, 3, 4), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]])))


# Results


def test_states_of_the_recorder():
    model = Shared()
    recorder = Recorder(model)
    with pytest.raises(Error, match="no forward pass reached a layer"):
        recorder.statistics
    with recorder:
        with pytest.raises(Error, match="the recorder is still recording"):
            recorder.statistics
        with pytest.raises(Error, match="this recorder is recording already"):
            recorder.__enter__()
        model(torch.randn(4, 5))
    with recorder:
        model(torch.randn(4, 5))
    assert recorder.statistics.sites()["a"].rows == 8
    with pytest.raises(Error, match="this recorder is finished"):
        recorder.__enter__()


def test_numbers_that_are_not_finite_are_refused_or_skipped():
    model, x = Shared(), torch.randn(4, 5)
    x[1, 2] = torch.nan
    with pytest.raises(Error) as found:
        run(model, dict(x=x))
    assert found.value.category == "data"
    assert hooks(model) == 0
    site = run(model, dict(x=x), nonfinite="skip-rows").statistics.sites()["a"]
    assert (site.rows, site.skipped) == (3, 1)


def test_experts_with_few_rows_are_left_out():
    model, batch = models.make("mixtral")
    rows = {name: site.rows for name, site in run(model, batch, targets=["down_proj"], per_expert=True).statistics.sites().items()}
    least = sorted(rows.values())[2]
    recorder = run(model, batch, targets=["down_proj"], per_expert=True, min_expert_rows=least)
    assert set(recorder.statistics.sites()) == {name for name, count in rows.items() if count >= least}
    for name, count in rows.items():
        if count < least:
            assert recorder.left_out[name] == f"{count} rows reached it, fewer than {least}"
    with pytest.raises(Error, match="min_expert_rows: expected a number from 1"):
        Recorder(model, min_expert_rows=0)


# Memory


def test_a_limit_of_memory_divides_the_layers(tmp_path):
    """Layers with one input stay together, each group is recorded in a pass of its own, and the sums are the same."""
    model, batch = models.make("llama")
    batches = models.batches(batch)
    whole = sums(run(model, batch), tmp_path)
    sizes = [part.memory for part in Recorder(model, ["down_proj"], max_memory="1GB").passes]
    limit = sizes[0] * 3 // 2
    recorder = Recorder(model, max_memory=limit)
    with pytest.raises(Error, match=r"the statistics need \d+ passes over the data"):
        recorder.__enter__()
    with pytest.raises(Error, match="passes over the data are missing"):
        with recorder.passes[0], torch.no_grad():
            model(**batch)
        recorder.statistics
    statistics = record(model, batches, max_memory=limit)
    statistics.save(str(tmp_path / "y.moments.safetensors"), "test")
    found, sites, _ = oracle.saved(tmp_path / "y.moments.safetensors")
    same(found, whole)
    assert sorted(map(len, sites.values())) == [1, 1, 1, 1, 2, 2, 3, 3]


def test_passes_by_hand(tmp_path):
    model, batch = models.make("llama")
    expected = sums(run(model, batch), tmp_path)
    limit = max(part.memory for name in Recorder(model).layers for part in Recorder(model, [name], max_memory="1GB").passes)
    recorder = Recorder(model, max_memory=limit)
    assert all(part.memory <= limit for part in recorder.passes)
    assert sorted(name for part in recorder.passes for name in part.names) == sorted(recorder.layers)
    for part in recorder.passes:
        with part, torch.no_grad():
            model(**batch)
    with pytest.raises(Error, match="this pass over the data is done"):
        recorder.passes[0].__enter__()
    found = sums(recorder, tmp_path)
    # Without a first look at the data, it is not known which layers share an input of another pass.
    for site, one in expected.items():
        assert oracle.close(found[site]["gram"], one["gram"])
    assert hooks(model) == 0


def test_a_pass_whose_recorder_is_gone_is_refused():
    model, _ = models.make("llama")
    part = Recorder(model).passes[0]
    with pytest.raises(Error, match="the recorder of this pass is gone"):
        part.__enter__()


def test_nothing_stays_in_memory_after_the_last_use():
    """Without a run of Python's collector of cycles, which can be late: the sums of a large model have gigabytes."""
    model, batch = models.make("llama")
    gc.collect()
    gc.disable()
    try:
        recorder = run(model, batch)
        gone = [weakref.ref(recorder), weakref.ref(model)]
        del recorder, model
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def test_too_little_memory_is_refused():
    model, _ = models.make("llama")
    with pytest.raises(Error, match=r"max_memory: the statistics of .* need \d+ bytes, more than 1000"):
        Recorder(model, max_memory="1KB")
    for text in ("much", "0", "-3", -1, "5 XB"):
        with pytest.raises(Error, match="max_memory: expected a number of bytes such as 4GB"):
            Recorder(model, max_memory=text)


def test_a_loader_that_ends_is_refused_for_several_passes():
    model, batch = models.make("llama")
    limit = Recorder(model, ["down_proj"], max_memory="1GB").passes[0].memory
    with pytest.raises(Error, match="the loader can be read only once"):
        record(model, iter([batch]), max_memory=limit)
    assert hooks(model) == 0
    again = record(model, lambda: iter([batch]), max_memory=limit)
    assert again.sites().keys() == record(model, iter([batch])).sites().keys()


# The loader


def test_batches_are_dicts_tensors_or_tuples(tmp_path):
    model, x = Shared(), torch.randn(6, 5)
    for loader in ([x], [dict(x=x, other=1)], [(x, torch.zeros(6))], [[x]]):
        assert record(model, loader).sites()["a"].rows == 6
    with pytest.raises(Error, match="expected a batch that is a dict, a tensor or a tuple, found a str"):
        record(model, ["text"])
    with pytest.raises(Error, match="the model takes none of the arguments in the batch: y"):
        record(model, [dict(y=x)])
    with pytest.raises(Error, match="the loader has no batches"):
        record(model, [])
    llama, batch = models.make("llama")
    with pytest.raises(Error, match="expected a dict of arguments for LlamaForCausalLM, found a tuple"):
        record(llama, [(batch["input_ids"], batch["attention_mask"])])


def test_recording_ends_after_a_number_of_tokens():
    """The limit counts tokens without padding, and the batch that reaches it counts whole. Progress is told after each batch."""
    model, batch = models.make("llama")
    told = []
    left_out = {}
    statistics = record(model, models.batches(batch), ["q_proj"], tokens=31, progress=lambda *words: told.append(words), left_out=left_out)
    assert statistics.sites()["model.layers.0.self_attn.q_proj"].rows == 60
    assert told == [(1, 2, 30), (2, 2, 60)] and left_out == {}
    with pytest.raises(Error, match="tokens: expected a number from 1"):
        record(model, [batch], tokens=0)


def test_the_mode_of_every_module_is_restored():
    model, batch = models.make("bert")
    model.train()
    model.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    record(model, [batch])
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(Error):
        record(model, [])
    assert [module.training for module in model.modules()] == modes
