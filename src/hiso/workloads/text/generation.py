"""Generates answers with a model: greedy, in batches, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hiso.errors import SettingsError
from hiso.workloads.text.models import LanguageModel

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def stop_tokens(lm: LanguageModel) -> frozenset[int]:
    """The tokens that end an answer: the end tokens of tokenizer and model, and line breaks."""
    tokenizer, config = lm.tokenizer, lm.model.generation_config
    known: list[Any] = [tokenizer.eos_token_id, config.eos_token_id]  # pyright: ignore[reportOptionalMemberAccess]
    ends = [token for one in known if one is not None for token in np.atleast_1d(one).tolist()]
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset([*ends, *(token for token, text in enumerate(texts) if "\n" in text)])


@torch.inference_mode()
def write_answers(
    lm: LanguageModel, prompts: Sequence[NDArray[np.int32]], count: int, stops: frozenset[int]
) -> list[str]:
    """The model's greedy continuation of each prompt, computed in one batch.

    Everything, including the output head, runs in the model's own dtype. The model's generation
    configuration is ignored: no sampling, beams, penalties, forbidden or forced tokens.

    Args:
        lm: The model, in eval mode.
        prompts: Token ids of each prompt, int32 [T].
        count: Maximum number of tokens of an answer.
        stops: Tokens that end an answer and are not part of it; see `stop_tokens`.

    Returns:
        The answers as text, without special tokens and surrounding white space.

    Raises:
        SettingsError: A prompt and its answer are longer than the model's context.
    """
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    if lm.context is not None and longest + count > lm.context:
        raise SettingsError(
            f"a prompt of {longest} tokens and an answer of {count} are more than the "
            f"{lm.context} that {lm.name} reads. Set max_length to {lm.context} or less."
        )
    pad: Any = lm.tokenizer.pad_token_id
    ids = np.full((len(prompts), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, seen, prompt in zip(ids, mask, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
        seen[longest - len(prompt) :] = 1
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=count,
        eos_token_id=sorted(stops),
        pad_token_id=pad,
    )
    device = lm.model.device
    with _configured(lm.model, greedy):
        written: Any = lm.model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            generation_config=greedy,
        )
    answers = [
        list(takewhile(lambda token: token not in stops, row))
        for row in written[:, longest:].tolist()
    ]
    texts: list[str] = lm.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts]


@contextmanager
def _configured(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replaces the model's own generation configuration, which would otherwise fill in defaults."""
    own: Any = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
