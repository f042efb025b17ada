"""Token ids of texts, and the tokens that represent label words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hiso.errors import LoadError
from hiso.workloads.text.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Verbalizer:
    """How the scores of a task's label words are computed.

    Attributes:
        mode: "token": all label words have different first tokens, and the logits of these tokens
            at the last position of the prompt are compared. "sequence": some first tokens are
            equal, and the mean log-likelihoods of all tokens of the label words are compared.
        tokens: Token ids of each label word as it follows the prompt.
    """

    mode: Literal["token", "sequence"]
    tokens: tuple[tuple[int, ...], ...]

    @property
    def first(self) -> list[int]:
        """The first token id of each label word."""
        return [ids[0] for ids in self.tokens]

    @property
    def longest(self) -> int:
        """Number of tokens that a label adds to the prompt; 0 in mode "token"."""
        return max(map(len, self.tokens)) if self.mode == "sequence" else 0


def check_labels(task: Task, tokenizer: PreTrainedTokenizerBase) -> Verbalizer:
    """Tokenises the label words of `task`, and chooses the mode.

    The words are tokenised after a prompt; only if the tokenizer merges the end of the prompt with
    the label, they are tokenised separately.

    Raises:
        LoadError: The task has no label words, or a label word has no token.
    """
    if not task.labels:
        raise LoadError(f"task '{task.name}' has no label words: it is free text or answers.")
    prompt = task.framed(task.prompt(dict.fromkeys(task.columns, "1")))
    before = tokens(tokenizer, prompt)
    words: list[tuple[int, ...]] = []
    for word in task.labels:
        after = tokens(tokenizer, prompt + word)
        joined = after[: len(before)] != before
        words.append(tuple(tokens(tokenizer, word) if joined else after[len(before) :]))
    unknown = tokenizer.unk_token_id
    bad = [w for w, ids in zip(task.labels, words, strict=True) if not ids or unknown in ids]
    if bad:
        raise LoadError(
            f"the tokenizer has no tokens for the label word(s) {', '.join(map(repr, bad))} of "
            f"task '{task.name}'. Use another model, or a task whose label words it knows."
        )
    if len(set(words)) != len(words):
        raise LoadError(
            f"the tokenizer does not tell the label words {task.labels} of task '{task.name}' "
            "apart. Use another model, or a task whose label words have different tokens."
        )
    distinct = len({ids[0] for ids in words}) == len(words)
    return Verbalizer("token" if distinct else "sequence", tuple(words))


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone, without the tokens that the tokenizer adds to every text."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def all_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text alone."""
    return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []


def prefix(tokenizer: PreTrainedTokenizerBase, task: Task | None = None) -> list[int]:
    """The tokens that the tokenizer adds before every text, such as a begin-of-text token.

    Empty for a task in a chat, because the chat template already contains them.
    """
    return [] if task is not None and task.chat else frame(tokenizer)[0]


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer adds before and after every text, such as [CLS] and [SEP]."""
    bare, whole = tokens(tokenizer, "a"), list(tokenizer("a").input_ids)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
