"""Prompts as turns of a chat, in the tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hiso.errors import LoadError
from hiso.workloads.text.task import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOW = "strftime_now"
"""The function that templates call to write the date."""
_DAY = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024"}
"""The date that templates get: always the same, so that prompts do not change."""
_TEXTS = "The first prompt of hiso.", "Another one?"


def read_chat(tokenizer: PreTrainedTokenizerBase) -> Chat:
    """The text that a tokenizer's chat template writes around a user turn; see `Task.in_chat`.

    The text is made by `tokenizer.apply_chat_template(..., add_generation_prompt=True)`. Templates
    get the date 26 July 2024, and `enable_thinking=False`.

    Raises:
        LoadError: The tokenizer has no chat template, or an unsuitable one; the message says why.
    """
    remedy = "Set prompt_style = plain, or use a model that was trained on chats."
    if not tokenizer.chat_template:
        raise LoadError(
            f"prompt_style = chat: the model's tokenizer has no chat template. {remedy}"
        )
    try:
        first, second = (_render(tokenizer, text) for text in _TEXTS)
    except Exception as error:  # templates raise unrelated exception types
        raise LoadError(
            f"prompt_style = chat: the tokenizer's chat template does not take a single turn of "
            f"the user: {error}. {remedy}"
        ) from error
    before, _, after = first.partition(_TEXTS[0])
    if second != f"{before}{_TEXTS[1]}{after}":
        raise LoadError(
            "prompt_style = chat: the tokenizer's chat template does not write the user's turn as "
            f"it is. {remedy}"
        )
    return Chat(before, after)


def _render(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    template: Any = tokenizer.get_chat_template()
    if _NOW in template:
        filters = "".join(f" | replace('{sign}', '{value}')" for sign, value in _DAY.items())
        template = (
            f"{{% macro {_NOW}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{template}"
        )
    said: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=False,
    )
    return said
