"""Tiny random models whose tokenizer has a chat template."""

from pathlib import Path

from .tiny import make_tokenizer, save_model

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_chat_tokenizer(template: str | None = TEMPLATE):
    """The tokenizer of `tiny`, which puts <s> before every text, with the tokens of a chat."""
    tokenizer = make_tokenizer(begin=True)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]}
    )
    assert len(tokenizer) <= 400
    tokenizer.chat_template = template
    return tokenizer


def save_chat_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    save_model(folder, "llama")
    make_chat_tokenizer(template).save_pretrained(folder)
    return folder
