"""Examples as token ids, and the batches that clients draw from their shards of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hiso.core.keys import choose
from hiso.errors import LoadError, SettingsError
from hiso.language.data import Example
from hiso.language.task import Task
from hiso.language.verbalizer import all_tokens, check_labels, prefix, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One example as the model sees it.

    Attributes:
        ids: Token ids of the prompt (of the whole text, for free text), int32 [T].
        label: Number of the right label; None for free text.
    """

    ids: NDArray[np.int32]
    label: int | None


E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Batch(Generic[E]):
    """What one client measures its loss on in one local step."""

    client: int
    examples: tuple[E, ...]


class Shard(Generic[E]):
    """The examples of one client, as the model sees them. It refers to them and copies nothing.

    Attributes:
        client: Number of the client.
        encoded: Its examples.
        batch_size: Examples in a batch; a smaller shard is one batch as a whole.
    """

    def __init__(self, client: int, encoded: Sequence[E], batch_size: int, seed: int) -> None:
        """A shard that draws its batches from `seed`.

        Raises:
            SettingsError: `batch_size` is not positive, or there are no examples.
        """
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}: it must be 1 or more.")
        if not encoded:
            raise SettingsError(f"client {client} has no examples: use fewer clients.")
        self.client, self.encoded, self.batch_size = client, encoded, batch_size
        self._seed = seed

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.encoded)

    def batch(self, round: int, step: int) -> Batch[E]:
        """The batch of local step `step` in round `round`.

        It holds min(batch_size, examples) different examples and is a pure function of the seed,
        the client, the round and the step.
        """
        size = self.examples
        picked = choose(
            self._seed,
            "batch",
            self.client,
            round,
            step,
            size=size,
            count=min(self.batch_size, size),
        )
        return Batch(self.client, tuple(self.encoded[i] for i in picked))


def encode(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[Encoded]:
    """Token ids of every example, in the same order, at most `max_length` each.

    Prompts that are too long lose tokens at their start, so that the question at their end
    stays; free text loses its end. What the tokenizer puts in front of every text (a
    begin-of-text token, say) is kept in either case, and what it puts behind is left out. In
    mode "sequence" the label's tokens count towards `max_length`. Free text ends with the end
    token, if there is one.

    Raises:
        SettingsError: `max_length` is too short for the question.
        LoadError: Tokenisation leaves nothing of an example to learn from.
    """
    before = prefix(tokenizer)
    if task.is_text:
        return _encode_text(examples, tokenizer, before, max_length)
    room = max_length - len(before) - check_labels(task, tokenizer).longest
    fixed = len(tokens(tokenizer, task.template.rpartition("}")[2]))
    if room <= fixed:
        raise SettingsError(
            f"max_length {max_length} leaves no room for the text: the end of the prompt of task "
            f"'{task.name}' takes {max_length - room + fixed} tokens. Set max_length higher."
        )
    bodies = all_tokens(tokenizer, [example.prompt for example in examples])
    return [
        Encoded(np.asarray(before + body[-room:], np.int32), example.label)
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
