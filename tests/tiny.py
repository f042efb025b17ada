"""Tiny random models with a small real tokenizer, saved as folders."""

from pathlib import Path

import torch

CORPUS = [
    "The film was very good and the acting was great. It was",
    "What a terrible plot, it was very bad and very long. It was",
    "Does this mean that the following is true? Answer: Yes No Maybe",
    "The quick brown fox jumps over the lazy dog. Question: Proposed answer:",
] * 20


def make_tokenizer(*, begin: bool = False):
    """Byte-level BPE; with `begin`, it puts <s> before and </s> behind every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token=None
    )


SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def tiny_config(kind: str):
    """The smallest configuration of an architecture, with weights large enough to matter."""
    import transformers as t

    wide = SIZE | {"intermediate_size": 64, "num_key_value_heads": 2}
    match kind:
        case "llama":
            return t.LlamaConfig(**wide)
        case "gemma2":
            return t.Gemma2Config(**wide, head_dim=8, final_logit_softcapping=3.0)
        case "gemma3-bidirectional":
            return t.Gemma3TextConfig(**wide, head_dim=8, use_bidirectional_attention=True)
        case "cohere":
            return t.CohereConfig(**wide, logit_scale=0.3)
        case "granite":
            return t.GraniteConfig(**wide, logits_scaling=4.0)
        case "opt":
            return t.OPTConfig(
                **{k: v for k, v in SIZE.items() if k != "initializer_range"},
                init_std=0.2,
                ffn_dim=64,
                word_embed_proj_dim=16,
            )
        case "gpt2":
            return t.GPT2Config(
                vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128,
                initializer_range=0.2, bos_token_id=0, eos_token_id=1,
            )  # fmt: skip
        case "bert":
            return t.BertConfig(
                vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=64, max_position_embeddings=128, initializer_range=0.2,
            )  # fmt: skip
    raise AssertionError(kind)


def save_model(folder: Path, kind: str, *, begin: bool = False, seed: int = 0) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(tiny_config(kind)).save_pretrained(folder)
    make_tokenizer(begin=begin).save_pretrained(folder)
    return folder


def make_framed_tokenizer():
    """Byte-level BPE with [CLS], [SEP] and [PAD], as encoders have them."""
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(
        {"cls_token": "<s>", "sep_token": "</s>", "pad_token": tokenizer.convert_ids_to_tokens(2)}
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def classifier_config(kind: str, classes: int):
    import transformers as t

    size = {
        "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.2,
        "pad_token_id": 2,
    }  # fmt: skip
    match kind:
        case "bert":
            config = t.BertConfig(**size)
        case "roberta":
            config = t.RobertaConfig(**size | {"max_position_embeddings": 131})
        case "distilbert":
            config = t.DistilBertConfig(
                vocab_size=400, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                max_position_embeddings=128, initializer_range=0.2, pad_token_id=2,
            )  # fmt: skip
        case _:
            config = tiny_config(kind)
    config.num_labels = classes
    return config


def save_classifier(folder: Path, kind: str, *, classes: int = 2, seed: int = 0) -> Path:
    """A random model with a classification head; encoders have a tokenizer with [CLS] and [SEP]."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = classifier_config(kind, classes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    framed = kind in ("bert", "roberta", "distilbert")
    (make_framed_tokenizer() if framed else make_tokenizer()).save_pretrained(folder)
    return folder
