"""Tiny random models of many architectures, with what makes each special switched on and small."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.support.tiny import CONTEXT_TOKENS

# A window, and the context that LongRoPE and dynamic NTK first learned.
WINDOW, FIRST_CONTEXT = 16, 64

_CONTEXT = {"max_position_embeddings": CONTEXT_TOKENS}
_TOKENS: dict[str, Any] = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT2 = _TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT_TOKENS}
_LLAMA = _TOKENS | _SHAPE | _CONTEXT | {"intermediate_size": 64, "num_key_value_heads": 2}
_HEADS = _LLAMA | {"head_dim": 8}
_WINDOWED = _HEADS | {"sliding_window": WINDOW}
_MIXED = _WINDOWED | {"layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# By the library's name of the architecture; behind a colon what is special.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama:dynamic": _LLAMA
    | {"max_position_embeddings": FIRST_CONTEXT, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "qwen3": _HEADS,
    "starcoder2": _LLAMA | {"sliding_window": WINDOW},
    "gemma2": _MIXED | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
    "gemma3": {
        "text_config": _MIXED | {"query_pre_attn_scalar": 8},
        "vision_config": _SHAPE | {"intermediate_size": 64, "image_size": 16, "patch_size": 8},
        "image_token_index": 258,
        "mm_tokens_per_image": 1,
    },
    "phi3": _LLAMA
    | {"original_max_position_embeddings": FIRST_CONTEXT}
    | {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}},
    "granite": _LLAMA | {"logits_scaling": 2.0},
    "gpt_oss": _MIXED | _EXPERTS | {"rope_scaling": None},
    "mixtral": _HEADS | _EXPERTS,
    "llama4_text": _HEADS
    | _EXPERTS
    | {"intermediate_size_mlp": 64, "attention_chunk_size": WINDOW}
    | {"layer_types": ["chunked_attention", "full_attention"]},
    "gpt2": _GPT2,
    "gptj": _GPT2 | {"rotary_dim": 4},
    "gpt_neox": _LLAMA,
    "opt": _LLAMA | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "biogpt": _LLAMA,
    "xglm": _TOKENS
    | _CONTEXT
    | {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    "falcon": _LLAMA,
    "stablelm": _LLAMA,
    "nemotron": _LLAMA,
    "bloom": _LLAMA,
    # Keys and values of other widths, made of fewer numbers; experts in all layers but the first.
    "deepseek_v3": _LLAMA
    | _EXPERTS
    | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    | {"v_head_dim": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "recurrent_gemma": _HEADS | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW},
    "mamba": _TOKENS | _CONTEXT | {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
    "jamba": _LLAMA
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "lfm2": _LLAMA | {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": _HEADS
    | _EXPERTS
    | {"layer_types": ["linear_attention", "full_attention"], "decoder_sparse_step": 1}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"shared_expert_intermediate_size": 32, "partial_rotary_factor": 0.5},
}  # fmt: skip


# No causal language models.
OTHERS: dict[str, dict[str, Any]] = {
    "bert": _LLAMA,
    "roformer": _LLAMA,
    "bart": _TOKENS
    | _CONTEXT
    | {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    | {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
}
OTHERS["blenderbot"] = OTHERS["bart"]


def make_architecture(name: str, tokenizer: Path, folder: Path) -> Path:
    """Write a model of ``ARCHITECTURES`` or ``OTHERS`` with the tokenizer of a folder to another, and return that."""
    kind = name.partition(":")[0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(ARCHITECTURES | OTHERS)[name]))
    _randomise(model)
    model.save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(tokenizer / "chat_template.jinja", folder)
    return folder


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Weights so large that every part tells, also those that begin as zeros or ones."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if name.endswith("sinks"):
            parameter.copy_(2 * noise)
        elif parameter.dim() > 1 and not name.endswith("A_log"):
            parameter.copy_(0.15 * noise)
        else:
            parameter.add_(0.1 * noise)
