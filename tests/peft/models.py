"""Writes small models with random weights, and inputs for them: python models.py DIR [NAME…]. The test tests/peft.rs runs it."""
import pathlib
import sys

import tokenizers
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig, BertModel, Dinov2Config, Dinov2Model, Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, GptOssConfig,
    GptOssForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM,
    PreTrainedTokenizerFast, RegNetConfig, RegNetModel, ResNetConfig, ResNetModel, T5Config, T5ForConditionalGeneration,
    VideoMAEConfig, VideoMAEModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model,
)

torch.manual_seed(0)
out = pathlib.Path(sys.argv[1])
tokens = dict(input_ids=torch.randint(3, 60, (12, 9)), attention_mask=torch.ones(12, 9, dtype=torch.long))
tokens["attention_mask"][::2, 6:] = 0
images = dict(pixel_values=torch.randn(12, 3, 16, 16))

small = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
models = dict(
    llama=lambda: (LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=2, pad_token_id=0)), tokens),
    # The embedding is also the output head.
    tied=lambda: (LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=True)), tokens),
    # This model has enough layers that PEFT shortens their names.
    deep=lambda: (LlamaForCausalLM(LlamaConfig(**{**small, "num_hidden_layers": 3}, num_key_value_heads=2, pad_token_id=0)), tokens),
    # This model multiplies its embedding.
    gemma3=lambda: (Gemma3ForCausalLM(Gemma3TextConfig(**small, num_key_value_heads=2, head_dim=8, pad_token_id=0)), tokens),
    opt=lambda: (OPTForCausalLM(OPTConfig(
        vocab_size=64, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        max_position_embeddings=16,
    )), tokens),
    t5=lambda: (T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0)), dict(
        **tokens, decoder_input_ids=tokens["input_ids"].flip(1), decoder_attention_mask=(torch.arange(9) < 8).long().repeat(12, 1),
    )),
    bert=lambda: (BertModel(BertConfig(**small)), tokens),
    gpt2=lambda: (GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2)), tokens),
    vit=lambda: (ViTModel(ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
    )), images),
    dinov2=lambda: (Dinov2Model(Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4, use_swiglu_ffn=True,
    )), images),
    mixtral=lambda: (MixtralForCausalLM(MixtralConfig(**small, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)), tokens),
    gptoss=lambda: (GptOssForCausalLM(GptOssConfig(
        **small, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
    )), tokens),
    regnet=lambda: (RegNetModel(RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, layer_type="x")), images),
    wav2vec2=lambda: (Wav2Vec2Model(Wav2Vec2Config(
        **small, conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(2, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )), dict(input_values=torch.randn(12, 64))),
    videomae=lambda: (VideoMAEModel(VideoMAEConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8, num_frames=4, tubelet_size=2,
    )), dict(pixel_values=torch.randn(12, 4, 3, 16, 16))),
    resnet=lambda: (ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")), images),
)
for name in sys.argv[2:] or models:
    model, inputs = models[name]()
    model.save_pretrained(out / name)
    save_file({key: value.contiguous() for key, value in inputs.items()}, out / f"{name}-inputs.safetensors")

# The tokenizer splits text into words, so that text can also be recorded.
words = [f"word{number}" for number in range(56)]
vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
).save_pretrained(out / "llama")
lines = [" ".join(words[(7 * line + 3 * place) % 56] for place in range(4 + line % 6)) for line in range(20)]
(out / "llama.txt").write_text("\n".join(lines) + "\n")
