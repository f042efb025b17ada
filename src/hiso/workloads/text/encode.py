"""Examples as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.examples import Example
from hiso.workloads.text.task import Task
from hiso.workloads.text.verbalizer import all_tokens, check_labels, frame, prefix, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_AT_ONCE = 1024
"""Number of examples tokenised at a time; lists of tokens take much more memory than arrays."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One example as input for the model.

    Attributes:
        ids: Token ids of the prompt (for free text, of the whole text), int32 [T]. In a task with
            answers, followed by the token ids of the answer to learn.
        label: Number of the right label; None for free text and for answers.
        start: Index in `ids` where the answer begins; 0 if there is no answer.
        answers: The right answers, as text.
    """

    ids: NDArray[np.int32]
    label: int | None
    start: int = 0
    answers: tuple[str, ...] = ()


def encode(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    classifier: bool = False,
) -> list[Encoded]:
    """Token ids of every example, in the same order, at most `max_length` each.

    Prompts that are too long are cut at the start, so that the question at their end is kept. In a
    task with answers they are cut at the end of the context, because the first sentences of a text
    often say most. Free text is cut at the end. In a chat, the template's text around the prompt
    is never cut. Tokens that the tokenizer adds before every text (such as a begin-of-text token)
    are always kept, and tokens that it adds after every text are left out. In mode "sequence" the
    label's tokens count towards `max_length`. In a task with answers, `answer_tokens` count towards
    `max_length`, for any length of the answer, so that the prompt does not depend on the answer.
    Free text and answers that are not cut end with the end token, if there is one.

    For a `classifier`, a model with a classification head, tokens that the tokenizer adds after
    every text (such as [SEP]) are also kept, and prompts are cut at the start; label words do not
    count.

    Raises:
        SettingsError: `max_length` is too short for the question.
        LoadError: After tokenisation an example has nothing to learn.
    """
    if classifier:
        return _encode_whole(examples, task, tokenizer, max_length)
    before = prefix(tokenizer, task)
    if task.is_text:
        return _encode_text(examples, tokenizer, before, max_length)
    if task.answers:
        return _encode_answers(examples, task, tokenizer, before, max_length)
    room = max_length - len(before) - check_labels(task, tokenizer).longest
    opening = _opening(task, tokenizer)
    _check_room(task, tokenizer, max_length, room - len(opening))
    bodies = all_tokens(tokenizer, [task.framed(example.prompt) for example in examples])
    cut = (_shorten(body, _common(body, opening), len(body), room) for body in bodies)
    return [
        Encoded(np.asarray(before + body, np.int32), example.label)
        for example, body in zip(examples, cut, strict=True)
    ]


def _encode_whole(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[Encoded]:
    before, after = frame(tokenizer)
    room = max_length - len(before) - len(after)
    _check_room(task, tokenizer, max_length, room)
    bodies = all_tokens(tokenizer, [example.prompt for example in examples])
    empty = [example for example, body in zip(examples, bodies, strict=True) if not body]
    if empty:
        raise LoadError(
            f"{len(empty)} example(s) have no tokens, the first of them {empty[0].prompt!r}. "
            "Remove them."
        )
    return [
        Encoded(np.asarray(before + body[-room:] + after, np.int32), example.label)
        for example, body in zip(examples, bodies, strict=True)
    ]


def _encode_text(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    before: list[int],
    max_length: int,
) -> list[Encoded]:
    if max_length < 2:
        raise SettingsError(f"max_length is {max_length}: free text needs 2 tokens or more.")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    bodies = all_tokens(tokenizer, [example.prompt for example in examples])
    encoded = [
        Encoded(np.asarray((before + body + end)[:max_length], np.int32), None) for body in bodies
    ]
    short = [example for example, e in zip(examples, encoded, strict=True) if len(e.ids) < 2]
    if short:
        raise LoadError(
            f"{len(short)} example(s) are shorter than the 2 tokens that a loss on free text "
            f"needs, the first of them {short[0].prompt!r}. Remove or join them."
        )
    return encoded


def _encode_answers(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    before: list[int],
    max_length: int,
) -> list[Encoded]:
    room = max_length - len(before) - task.answer_tokens
    opening = _opening(task, tokenizer)
    _check_room(task, tokenizer, max_length, room - len(opening))
    cue = tokens(tokenizer, task.cue)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    behind = "" if task.chat is None else task.chat.after
    encoded: list[Encoded] = []
    for low in range(0, len(examples), _AT_ONCE):
        part = examples[low : low + _AT_ONCE]
        bodies = all_tokens(tokenizer, [task.framed(example.prompt) for example in part])
        asked = [example.prompt[example.context :] + behind for example in part]
        questions = all_tokens(tokenizer, asked)
        said = [f"{task.gap}{example.answers[0]}" for example in part]
        learned = all_tokens(tokenizer, [task.cue + text for text in said])
        for example, body, question, text, answer in zip(
            part, bodies, questions, said, learned, strict=True
        ):
            # Tokenised after the prompt, like label words, unless the tokenizer merges both.
            joined = answer[: len(cue)] != cue
            own = tokens(tokenizer, text) if joined else answer[len(cue) :]
            kept = _common(body, opening)
            prompt = before + _shorten(body, kept, len(question), room)
            ids = np.asarray(prompt + (own + end)[: task.answer_tokens], np.int32)
            encoded.append(Encoded(ids, None, len(prompt), example.answers))
    return encoded


def _opening(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of the template's text before the prompt in a chat."""
    return [] if task.chat is None else tokens(tokenizer, task.chat.before)


def _common(body: list[int], opening: list[int]) -> int:
    """The number of tokens that `body` and `opening` have in common at the start.

    The last token of `opening` may differ if the tokenizer merges it with the following text.
    """
    pairs = enumerate(zip(body, opening, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(body), len(opening)))


def _shorten(body: list[int], first: int, last: int, room: int) -> list[int]:
    """At most `room` tokens: the `first` tokens, the `last` tokens, and as many others as fit.

    The others are taken from the beginning. If the last tokens do not fit, their beginning is cut.
    """
    if len(body) <= room:
        return body
    head = max(first, room - last)
    return body[:head] + body[len(body) - room + head :]


def _check_room(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, room: int) -> None:
    fixed = len(tokens(tokenizer, task.cue))
    if room <= fixed:
        what = "the end of the prompt" + (" and the chat template" if task.chat else "")
        raise SettingsError(
            f"max_length {max_length} leaves no room for the text: {what} of task "
            f"'{task.name}' takes {max_length - room + fixed} tokens. Set max_length higher."
        )
