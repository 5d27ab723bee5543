"""Writes small models with random weights, and inputs for them: python models.py DIR. The test tests/peft.rs runs it."""
import pathlib
import sys

import tokenizers
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig, BertModel, Dinov2Config, Dinov2Model, GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM, LlamaConfig,
    LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast, RegNetConfig, RegNetModel, ResNetConfig, ResNetModel,
    VideoMAEConfig, VideoMAEModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model,
)

torch.manual_seed(0)
out = pathlib.Path(sys.argv[1])
tokens = dict(input_ids=torch.randint(3, 60, (12, 9)), attention_mask=torch.ones(12, 9, dtype=torch.long))
tokens["attention_mask"][::2, 6:] = 0
images = dict(pixel_values=torch.randn(12, 3, 16, 16))

small = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
models = dict(
    llama=(LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=2, pad_token_id=0)), tokens),
    bert=(BertModel(BertConfig(**small)), tokens),
    gpt2=(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2)), tokens),
    vit=(ViTModel(ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
    )), images),
    dinov2=(Dinov2Model(Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4, use_swiglu_ffn=True,
    )), images),
    mixtral=(MixtralForCausalLM(MixtralConfig(**small, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)), tokens),
    gptoss=(GptOssForCausalLM(GptOssConfig(
        **small, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
    )), tokens),
    regnet=(RegNetModel(RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, layer_type="x")), images),
    wav2vec2=(Wav2Vec2Model(Wav2Vec2Config(
        **small, conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(2, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )), dict(input_values=torch.randn(12, 64))),
    videomae=(VideoMAEModel(VideoMAEConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8, num_frames=4, tubelet_size=2,
    )), dict(pixel_values=torch.randn(12, 4, 3, 16, 16))),
    resnet=(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")), images),
)
for name, (model, inputs) in models.items():
    model.save_pretrained(out / name)
    save_file({key: value.contiguous() for key, value in inputs.items()}, out / f"{name}-inputs.safetensors")

# A tokenizer of words, so that text can be recorded too.
words = [f"word{number}" for number in range(56)]
vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
).save_pretrained(out / "llama")
lines = [" ".join(words[(7 * line + 3 * place) % 56] for place in range(4 + line % 6)) for line in range(20)]
(out / "llama.txt").write_text("\n".join(lines) + "\n")
