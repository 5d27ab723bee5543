"""Small models with random weights, and a batch for each. All of them are made from configurations, without downloads."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from transformers import (
    BertConfig, BertForSequenceClassification, BertModel, CLIPConfig, CLIPModel, FalconH1Config, FalconH1ForCausalLM, Gemma3ForCausalLM,
    Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM, Mamba2Config,
    Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM, Phi3Config,
    Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM, RegNetConfig, RegNetModel, ResNetConfig, ResNetModel, T5Config,
    T5ForConditionalGeneration, VideoMAEConfig, VideoMAEModel, ViTConfig, ViTForImageClassification, Wav2Vec2Config, Wav2Vec2Model,
    WhisperConfig, WhisperForConditionalGeneration,
)

transformers.logging.set_verbosity_error()

SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
DECODER = dict(**SMALL, num_key_value_heads=2, pad_token_id=0)
MAMBA = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0)


def tokens(count=12, length=9, seed=0):
    """Returns token ids and an attention mask. Every second example has three tokens of padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, length, dtype=torch.long)
    mask[::2, -3:] = 0
    return dict(input_ids=torch.randint(3, 60, (count, length), generator=generator), attention_mask=mask)


def labels(count=12, length=7):
    """Returns labels of a decoder. Every third example has two positions of padding."""
    found = torch.randint(3, 60, (count, length))
    found[::3, -2:] = -100
    return found


def images(count=12):
    return dict(pixel_values=torch.randn(count, 3, 16, 16))


def _vision(config):
    return lambda: (ViTForImageClassification(config), images())


MODELS = dict(
    llama=lambda: (LlamaForCausalLM(LlamaConfig(**DECODER)), tokens()),
    # The embedding is also the output head.
    tied=lambda: (LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)), tokens()),
    llama_bf16=lambda: (LlamaForCausalLM(LlamaConfig(**DECODER)).bfloat16(), tokens()),
    qwen3=lambda: (Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8)), tokens()),
    # This model multiplies its embedding.
    gemma3=lambda: (Gemma3ForCausalLM(Gemma3TextConfig(**DECODER, head_dim=8)), tokens()),
    phi3=lambda: (Phi3ForCausalLM(Phi3Config(**DECODER, max_position_embeddings=16)), tokens()),
    gpt2=lambda: (GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2,
    )), tokens()),
    # This model puts the tokens of all examples in one row.
    opt=lambda: (OPTForCausalLM(OPTConfig(
        vocab_size=64, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        max_position_embeddings=16,
    )), tokens()),
    # The shape of MiniLM, with fewer layers and channels.
    bert=lambda: (BertModel(BertConfig(**SMALL)), tokens()),
    bert_head=lambda: (BertForSequenceClassification(BertConfig(**SMALL, num_labels=3)), dict(**tokens(), labels=torch.arange(12) % 3)),
    t5=lambda: (T5ForConditionalGeneration(T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, decoder_start_token_id=0,
    )), dict(**tokens(), labels=labels())),
    vit=_vision(ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4, num_labels=3,
    )),
    # The images have as many positions as the texts.
    clip=lambda: (CLIPModel(CLIPConfig(
        text_config=dict(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=20,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4),
        projection_dim=16,
    )), dict(**tokens(length=17), **images())),
    whisper=lambda: (WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=8, max_target_positions=16, num_mel_bins=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None,
    )), dict(input_features=torch.randn(6, 4, 16), labels=labels(6, 7))),
    mixtral=lambda: (MixtralForCausalLM(MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)), tokens(48)),
    gptoss=lambda: (GptOssForCausalLM(GptOssConfig(**DECODER, head_dim=8, num_local_experts=4, num_experts_per_tok=2)), tokens(48)),
    resnet=lambda: (ResNetModel(ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
    )), images()),
    # Its convolutions have groups.
    regnet=lambda: (RegNetModel(RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, layer_type="x",
    )), images()),
    videomae=lambda: (VideoMAEModel(VideoMAEConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8, num_frames=4, tubelet_size=2,
    )), dict(pixel_values=torch.randn(12, 4, 3, 16, 16))),
    wav2vec2=lambda: (Wav2Vec2Model(Wav2Vec2Config(
        **SMALL, conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(2, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )), dict(input_values=torch.randn(12, 64))),
    unet=lambda: (UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ), dict(
        sample=torch.randn(6, 4, 8, 8), timestep=torch.tensor(3), encoder_hidden_states=torch.randn(6, 5, 8),
        encoder_attention_mask=(torch.arange(5) < torch.tensor([[5], [3]] * 3)).long(),
    )),
    flux=lambda: (FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    ), dict(
        hidden_states=torch.randn(3, 6, 4), encoder_hidden_states=torch.randn(3, 5, 8), pooled_projections=torch.randn(3, 8),
        timestep=torch.rand(3), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
    )),
    mamba=lambda: (MambaForCausalLM(MambaConfig(**MAMBA, state_size=4)), tokens()),
    mamba2=lambda: (Mamba2ForCausalLM(Mamba2Config(**MAMBA, state_size=4, num_heads=8, head_dim=8, n_groups=1, chunk_size=4)), tokens()),
    falcon_h1=lambda: (FalconH1ForCausalLM(FalconH1Config(
        **DECODER, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=4, mamba_chunk_size=4,
    )), tokens()),
)


def make(name, seed=0):
    """Returns a model in evaluation mode, and one batch for it."""
    torch.manual_seed(seed)
    model, batch = MODELS[name]()
    return model.eval(), batch


def batches(batch, size=4):
    """Divides a batch into smaller ones. Numbers without an axis, and the positions of Flux, are in all of them."""
    whole = [name for name, tensor in batch.items() if tensor.dim() == 0 or name in ("img_ids", "txt_ids")]
    count = max(len(tensor) for name, tensor in batch.items() if name not in whole)
    return [
        {name: tensor if name in whole else tensor[first : first + size] for name, tensor in batch.items()}
        for first in range(0, count, size)
    ]


def minilm():
    """Returns the folder with the real MiniLM. A test that needs it fails if its place is not known."""
    folder = os.environ.get("CNTLORA_MINILM")
    if not folder:
        pytest.fail('set the environment variable CNTLORA_MINILM to the folder of MiniLM, or leave these tests out with -m "not minilm"')
    return folder
