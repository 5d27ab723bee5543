"""Writes names.json: for small models of each family, the layers at run time and the tensors that hold their weights. Layers are
linear ones, the Conv1D of GPT-2, and embeddings.

    python3 names.py > names.json

Needs torch and transformers (written with 5.24). Every weight is filled with a number of its own, so that the saved file tells
which tensor it became; null is for weights that no single tensor holds. The tests read the JSON; nothing but this script
needs Python.
"""
import json
import sys
import tempfile
import warnings

import torch
import transformers as t
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

warnings.simplefilter("ignore")
t.logging.set_verbosity_error()
t.logging.disable_progress_bar()

vision = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
text = dict(
    vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
mrope = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1]))


def models():
    yield "vit", lambda: t.ViTForImageClassification(t.ViTConfig(**vision))
    yield "deit", lambda: t.DeiTModel(t.DeiTConfig(**vision))
    yield "beit", lambda: t.BeitModel(t.BeitConfig(**vision, vocab_size=16))
    yield "dinov2", lambda: t.Dinov2Model(t.Dinov2Config(**vision))
    yield "dinov2-swiglu", lambda: t.Dinov2Model(t.Dinov2Config(**vision, use_swiglu_ffn=True))
    yield "clip-text", lambda: t.CLIPTextModel(t.CLIPTextConfig(**{**text, "projection_dim": 8}))
    yield "clip-vision", lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**vision, projection_dim=8))
    yield "clip", lambda: t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    yield "siglip-vision", lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**vision))
    yield "siglip-text", lambda: t.SiglipTextModel(t.SiglipTextConfig(**text, projection_size=8))
    yield "llava-clip", lambda: t.LlavaForConditionalGeneration(t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**vision), text_config=t.LlamaConfig(**text)))
    yield "llava-siglip", lambda: t.LlavaForConditionalGeneration(t.LlavaConfig(
        vision_config=t.SiglipVisionConfig(**vision), text_config=t.Qwen2Config(**text)))
    yield "paligemma", lambda: t.PaliGemmaForConditionalGeneration(t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**vision, projection_dim=8), text_config=t.GemmaConfig(**text, head_dim=4),
        projection_dim=8))
    yield "gemma3", lambda: t.Gemma3ForConditionalGeneration(t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**vision), text_config=t.Gemma3TextConfig(**text, head_dim=4),
        mm_tokens_per_image=4))
    yield "mistral3", lambda: t.Mistral3ForConditionalGeneration(t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**vision), text_config=t.MistralConfig(**text, head_dim=4)))
    yield "internvl", lambda: t.InternVLForConditionalGeneration(t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**{**vision, "image_size": [8, 8], "patch_size": [4, 4]}),
        text_config=t.Qwen2Config(**text)))
    yield "qwen2-vl", lambda: t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(
        vision_config=dict(depth=2, embed_dim=8, hidden_size=8, num_heads=2, mlp_ratio=2, patch_size=4),
        text_config={**text, **mrope}))
    yield "qwen2.5-vl", lambda: t.Qwen2_5_VLForConditionalGeneration(t.Qwen2_5_VLConfig(
        vision_config=dict(depth=2, hidden_size=8, out_hidden_size=8, intermediate_size=12, num_heads=2, patch_size=4,
                           fullatt_block_indexes=[1]),
        text_config={**text, **mrope}))
    yield "llama", lambda: t.LlamaForCausalLM(t.LlamaConfig(**text))
    yield "bert", lambda: t.BertForSequenceClassification(t.BertConfig(**{k: v for k, v in text.items() if k != "num_key_value_heads"}))
    yield "roberta", lambda: t.RobertaForMaskedLM(t.RobertaConfig(**{k: v for k, v in text.items() if k != "num_key_value_heads"}))
    yield "gpt2", lambda: t.GPT2LMHeadModel(t.GPT2Config(
        vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2))
    yield "qwen2", lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**text))
    yield "qwen3", lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**text, head_dim=4))
    yield "mistral", lambda: t.MistralForCausalLM(t.MistralConfig(**text, head_dim=4))
    yield "gemma2", lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**text, head_dim=4))
    yield "phi3", lambda: t.Phi3ForCausalLM(t.Phi3Config(**text))
    yield "opt", lambda: t.OPTForCausalLM(t.OPTConfig(
        vocab_size=16, hidden_size=8, word_embed_proj_dim=8, ffn_dim=12, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
        max_position_embeddings=16))
    yield "whisper", lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(
        vocab_size=16, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=12, decoder_ffn_dim=12, num_mel_bins=4, max_source_positions=8, max_target_positions=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1))
    yield "t5", lambda: t.T5ForConditionalGeneration(t.T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2))
    yield "nemotron-h", lambda: t.NemotronHForCausalLM(t.NemotronHConfig(**{
        **text, "num_hidden_layers": 3, "layers_block_type": ["mamba", "attention", "mlp"], "head_dim": 4, "mamba_num_heads": 2,
        "mamba_head_dim": 4, "n_groups": 1, "ssm_state_size": 4}))
    yield "gpt-neox", lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**{k: v for k, v in text.items() if k != "num_key_value_heads"}))
    yield "dinov3", lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**vision))
    yield "ast", lambda: t.ASTForAudioClassification(t.ASTConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_mel_bins=16, max_length=16))


def types(config):
    """The model types of a configuration and of those inside it, and the classes."""
    found = {key: config[key] for key in ["architectures", "model_type"] if config.get(key)}
    inner = {key: types(value) for key, value in config.items() if isinstance(value, dict)}
    return found | {key: value for key, value in inner.items() if value}


def is_first(name):
    """Whether a name is of no block but the first."""
    return not any(part in name for part in ["layers.1.", "layer.1.", "blocks.1.", "block.1.", "h.1."])


found = {}
for name, make in models():
    try:
        model = make()
    except Exception as error:
        print(f"{name}: {error}", file=sys.stderr)
        continue
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    # After the output head, which may share the weight of one.
    embeddings = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)]
    # Of those that share one weight the first.
    layers |= dict({id(m.weight): (n, m) for n, m in reversed(embeddings)}.values())
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    with torch.no_grad():
        for number, module in enumerate(layers.values(), start=1):
            module.weight.fill_(number)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(f"{folder}/model.safetensors")
        with open(f"{folder}/config.json") as file:
            config = types(json.load(file))
    by_number = {tensor.flatten()[0].item(): key for key, tensor in tensors.items()
                 if tensor.dim() == 2 and (tensor == tensor.flatten()[0]).all()}
    modules = {n: by_number.get(float(number)) for number, n in enumerate(layers, start=1)}
    # An output head that is tied to the embeddings has no weight of its own, and one block is like another.
    tied = {"embed_tokens.weight", "shared.weight"}
    modules = {n: tensor for n, tensor in modules.items() if is_first(n) and not (
        layers[n] is head and (tensor is None or any(tensor.endswith(name) for name in tied)))}
    others = [key for key in tensors if is_first(key) and key.endswith(".weight") and key not in modules.values()]
    found[name] = dict(modules=modules, others=sorted(others), config=config)
json.dump(found, sys.stdout, separators=(",", ":"), sort_keys=True)
print()
