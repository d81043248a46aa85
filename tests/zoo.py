"""A small random model of every family that the toolkit says it reads."""

from functools import cache
from typing import Any

import torch
import transformers as hf

WINDOW = 24
SHAPE: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {}),
    "mistral": (hf.MistralConfig, {"sliding_window": WINDOW}),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 4}),
    "qwen2": (hf.Qwen2Config, {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3": (hf.Qwen3Config, HEADS),
    "qwen3-moe": (hf.Qwen3MoeConfig, {**HEADS, **EXPERTS, "num_experts": 4}),
    "gemma": (hf.GemmaConfig, HEADS),
    "gemma2": (hf.Gemma2Config, {**HEADS, "sliding_window": WINDOW}),
    "gemma3": (
        hf.Gemma3TextConfig,
        {
            **HEADS,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "final_logit_softcapping": 3.0,
        },
    ),
    "phi": (hf.PhiConfig, {}),
    "phi3": (hf.Phi3Config, {"sliding_window": WINDOW}),
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}),
    "gpt-neox": (hf.GPTNeoXConfig, {}),
    "gpt-neox-sequential": (hf.GPTNeoXConfig, {"use_parallel_residual": False}),
    "gpt-j": (hf.GPTJConfig, {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4, "n_positions": 512}),
    "olmo": (hf.OlmoConfig, {}),
    "olmo2": (hf.Olmo2Config, {}),
    "olmo3": (hf.Olmo3Config, {"sliding_window": WINDOW}),
    "deepseek-v3": (
        hf.DeepseekV3Config,
        {
            **EXPERTS,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "granite": (hf.GraniteConfig, {"residual_multiplier": 0.5, "logits_scaling": 8.0}),
    "cohere": (hf.CohereConfig, {}),
    "stablelm": (hf.StableLmConfig, {}),
    "starcoder2": (hf.Starcoder2Config, {}),
    "falcon": (hf.FalconConfig, {"alibi": False}),
    "falcon-alibi": (hf.FalconConfig, {"alibi": True}),
    "bloom": (hf.BloomConfig, {"n_head": 4, "n_layer": 4}),
    "mpt": (hf.MptConfig, {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512}),
    "opt": (hf.OPTConfig, {"word_embed_proj_dim": 32, "ffn_dim": 64}),
    "smollm3": (hf.SmolLM3Config, {}),
    "glm4": (hf.Glm4Config, HEADS),
    "gpt-oss": (
        hf.GptOssConfig,
        {**HEADS, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None},
    ),
    "mamba": (hf.MambaConfig, {}),
    "qwen3-next": (
        hf.Qwen3NextConfig,
        {
            **HEADS,
            **EXPERTS,
            "num_experts": 4,
            "initializer_range": 0.1,  # its recurrence enlarges rounding
            "shared_expert_intermediate_size": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}
PARALLEL = ("phi", "gpt-neox", "gpt-j", "cohere", "falcon", "falcon-alibi")
"""Attention and MLP are added at once."""
WITHOUT_MIDDLE = (*PARALLEL, "bloom", "mpt", "opt", "mamba")
"""Those, and the ones whose children do not show the stream itself."""
STATEFUL = ("mamba", "qwen3-next")
"""A running state stands for earlier tokens, so no prefix can be shared."""


@cache
def random_network(family: str) -> hf.PreTrainedModel:
    kind, changes = FAMILIES[family]
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(kind(**{**SHAPE, **changes})).eval().requires_grad_(False)
