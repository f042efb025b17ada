"""GGUF files of tiny models, with weights as llama.cpp's converter lays them out, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch

ARCHITECTURES = {
    "llama-padded": gguf.MODEL_ARCH.LLAMA,
    "llama-tied": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
}
"""By the kinds of `families`."""


def write_gguf(path: Path, kind: str, model, tokenizer) -> Path:
    architecture, config = ARCHITECTURES[kind], model.config
    head = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_vocab_size(config.vocab_size)
    if kind == "gemma2":
        writer.add_sliding_window(config.sliding_window)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        short = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(short, _laid_out(kind, short, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokenizer, size: int) -> None:
    """Byte-level BPE; the vocabulary is filled up with unused tokens."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([known.get(number, f"[PAD{number}]") for number in range(size)])
    types = [gguf.TokenType.NORMAL if n in known else gguf.TokenType.UNUSED for n in range(size)]
    for number in tokenizer.all_special_ids:
        types[number] = gguf.TokenType.CONTROL
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in made["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _laid_out(kind: str, name: str, tensor: torch.Tensor, config) -> np.ndarray:
    values = tensor.detach().numpy()
    if kind.startswith("llama") and ("attn_q" in name or "attn_k" in name):
        query = "attn_q" in name
        heads = config.num_attention_heads if query else config.num_key_value_heads
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    if kind == "gemma2" and name.endswith("norm.weight"):
        return values + 1
    return values
