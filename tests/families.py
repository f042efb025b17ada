"""Tiny random models of many architectures, with a small real tokenizer, saved as folders."""

from pathlib import Path

import torch

from .tiny import SIZE, make_tokenizer

WIDE = SIZE | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}

FAMILIES = {
    "llama-padded": ("Llama", WIDE | {"vocab_size": 448, "tie_word_embeddings": False}),
    "llama-tied": ("Llama", WIDE | {"tie_word_embeddings": True}),
    "gemma": ("Gemma", WIDE),
    "gemma2": ("Gemma2", WIDE | {"final_logit_softcapping": 3.0, "sliding_window": 8}),
    "gemma3": (
        "Gemma3Text",
        WIDE | {"final_logit_softcapping": 3.0, "sliding_window": 8}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma3-images": (
        "Gemma3",
        {
            "text_config": WIDE,
            "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
        }
        | {"image_token_index": 399, "boi_token_index": 398, "eoi_token_index": 397},
    ),
    "qwen2": ("Qwen2", WIDE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", WIDE | {"tie_word_embeddings": False}),
    "gpt-neox": ("GPTNeoX", SIZE | {"intermediate_size": 64, "tie_word_embeddings": False}),
    "opt": (
        "OPT",
        {key: value for key, value in SIZE.items() if key != "initializer_range"}
        | {"init_std": 0.2, "ffn_dim": 64, "word_embed_proj_dim": 16},
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        | {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "phi": ("Phi", {**WIDE, "num_key_value_heads": 4}),
    "bloom": (
        "Bloom",
        {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4}
        | {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    ),
    "cohere": ("Cohere", WIDE | {"logit_scale": 0.3}),
    "granite": ("Granite", WIDE | {"logits_scaling": 4.0}),
    "recurrent-gemma": (
        "RecurrentGemma",
        WIDE | {"logits_soft_cap": 3.0, "attention_window_size": 64, "num_hidden_layers": 3},
    ),
    "falcon-h1": (
        "FalconH1",
        WIDE | {"lm_head_multiplier": 0.37, "mamba_d_ssm": 32, "mamba_n_heads": 4}
        | {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16},
    ),
}  # fmt: skip
"""Name of the configuration's class, and its arguments."""

TIED = {"llama-tied", "gemma", "gemma2", "gemma3", "qwen2", "opt", "gpt2", "bloom", "cohere"} | {
    "recurrent-gemma",
    "gemma3-images",
}
CAPPED = {"gemma2", "gemma3", "recurrent-gemma"}


def make_model(kind: str, *, seed: int = 0, **more):
    """A random model in eval mode, with no parameter at the value it begins with, such as 0."""
    import transformers

    name, values = FAMILIES[kind]
    config = getattr(transformers, f"{name}Config")(**{**values, **more})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save_family(folder: Path, kind: str, *, begin: bool = False) -> Path:
    make_model(kind).save_pretrained(folder)
    make_tokenizer(begin=begin).save_pretrained(folder)
    return folder
