"""The loss of a language model on batches of a task, by forward passes only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hiso.core.measure.outcome import Outcome
from hiso.core.noise.point import Point
from hiso.data.batches import Batch
from hiso.errors import SettingsError
from hiso.workloads.text.classes import check_classes
from hiso.workloads.text.classifiers import class_scores, float32_head
from hiso.workloads.text.encode import Encoded
from hiso.workloads.text.grouping import group_by_length
from hiso.workloads.text.models import LanguageModel, hidden_states, output_head, shape_logits
from hiso.workloads.text.task import Task
from hiso.workloads.text.together import Together
from hiso.workloads.text.verbalizer import Verbalizer, check_labels

Rows = Callable[[nn.Parameter, Tensor], Tensor]

_POSITIONS = 1024
_VOCABULARY = 8192


class Objective:
    """Evaluates a language model on batches: `objective(batches)`.

    Everything after the last hidden state is float32, for any dtype of the model, and only the
    logits that the loss reads are computed.

    Attributes:
        verbalizer: How scores of label words are computed; None for free text and answers, and for
            a model with a classification head, which gives the scores itself.
        seconds: Wall time spent measuring so far.
        passes: Forward passes so far; each is split into groups of similar length.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        *,
        joint: bool = True,
        rows: Rows | None = None,
    ) -> None:
        """An objective for `task`.

        Args:
            lm: The model. Its weights and its device may change between calls.
            task: The task for which the examples were encoded.
            joint: Whether all batches share one forward pass. The losses of a batch then differ in
                rounding from those of separate passes.
            rows: Maps the output head's weight and token ids [C] to the float32 rows [C, D] of the
                head. By default they are cast from the weight itself.

        Raises:
            LoadError: The tokenizer has no tokens for the label words.
            SettingsError: The model has a classification head whose classes are not the labels.
        """
        check_classes(lm, task)
        self.lm, self.task, self.joint = lm, task, joint
        self.verbalizer: Verbalizer | None = (
            check_labels(task, lm.tokenizer) if task.labels and lm.classes is None else None
        )
        self.seconds = 0.0
        self.passes = 0
        self._rows = rows or _cast_rows
        self._together: Together | None = None

    def __call__(self, batches: Sequence[Batch[Encoded]]) -> list[Outcome]:
        """The outcome of each batch; see `measure`.

        Raises:
            SettingsError: An example is longer than the model's context.
        """
        groups = [batches] if self.joint and batches else [[batch] for batch in batches]
        outcomes: list[Outcome] = []
        for group in groups:
            together = self.measure([e for batch in group for e in batch.examples])
            outcomes += together.split([len(batch.examples) for batch in group])
        return outcomes

    def at_points(
        self,
        write: Callable[[Point], None],
        points: Sequence[Point],
        batches: Sequence[Batch[Encoded]],
    ) -> list[list[Outcome]]:
        """The outcome of each batch at each point, from one forward pass, for LoRA adapters.

        Equals the outcomes of one pass after another up to rounding. The model's weights are then
        those of the last point.

        Args:
            write: Writes the weights at a point into the model.
            points: The points.
            batches: The batches.

        Raises:
            SettingsError: An example is longer than the model's context.
        """
        examples = [e for batch in batches for e in batch.examples]
        self._together = Together(self.lm, write, points)
        try:
            with self._together.active():
                found = self.measure(examples * len(points))
        finally:
            self._together = None
        outcomes = iter(found.split([len(batch.examples) for batch in batches] * len(points)))
        return [[next(outcomes) for _ in batches] for _ in points]

    @torch.inference_mode()
    def measure(self, examples: Sequence[Encoded]) -> Outcome:
        """The outcome of examples, from one forward pass.

        The loss is the cross-entropy of the right label. For free text and answers it is the sum
        over tokens, the weight is the number of tokens, and there are no scores.

        Raises:
            SettingsError: An example is longer than the model's context.
        """
        started = time.perf_counter()
        if self.task.labels:
            outcome = Outcome.of_scores(self._scores(examples), [e.label for e in examples])
        else:
            outcome = self._text(examples)
        self.seconds += time.perf_counter() - started
        return outcome

    def loss(self, batch: Batch[Encoded]) -> Tensor:
        """The mean loss of one batch, a scalar with a gradient."""
        examples = batch.examples
        if not self.task.labels:
            losses, _ = self._text_losses(examples)
            return losses.mean()
        scores = self._scores(examples)
        return nn.functional.cross_entropy(scores, _labels(scores, examples))

    def _scores(self, examples: Sequence[Encoded]) -> Tensor:
        """The scores of the labels, float32 [B, C]."""
        if self.verbalizer is None:
            return self._class_scores(examples)
        if self.verbalizer.mode == "token":
            return self._label_tokens(examples, self.verbalizer)
        return self._label_sequences(examples, self.verbalizer)

    def _class_scores(self, examples: Sequence[Encoded]) -> Tensor:
        """The scores of the classification head."""
        lengths = [len(e.ids) for e in examples]
        found: dict[int, Tensor] = {}
        with float32_head(self.lm.classifier, self._rows):
            for group, ids in self._groups([e.ids for e in examples]):
                ends = torch.tensor([lengths[i] for i in group], device=ids.device)
                at = torch.arange(ids.shape[1], device=ids.device)
                scores = class_scores(self.lm.model, ids, (at < ends[:, None]).long())
                found |= dict(zip(group, scores.float(), strict=True))
        return torch.stack([found[i] for i in range(len(examples))])

    def _label_tokens(self, examples: Sequence[Encoded], verbalizer: Verbalizer) -> Tensor:
        at = self._states(
            [e.ids for e in examples], [len(e.ids) - 1 for e in examples], [1] * len(examples)
        )
        return self._logits(at, torch.tensor(verbalizer.first, device=at.device))

    def _label_sequences(self, examples: Sequence[Encoded], verbalizer: Verbalizer) -> Tensor:
        """The scores from sequences of each example followed by each label."""
        labels = [np.asarray(ids, np.int32) for ids in verbalizer.tokens]
        # The prediction after the last label token is not used.
        joined = [np.concatenate([e.ids, ids[:-1]]) for e in examples for ids in labels]
        starts = [len(e.ids) - 1 for e in examples for _ in labels]
        lengths = [len(ids) for _ in examples for ids in labels]
        at = self._states(joined, starts, lengths)
        targets = torch.tensor(np.concatenate(labels * len(examples)), device=at.device).long()
        means = [-part.mean() for part in self._token_losses(at, targets).split(lengths)]
        return torch.stack(means).view(len(examples), len(labels))

    def _text(self, examples: Sequence[Encoded]) -> Outcome:
        found, counts = self._text_losses(examples)
        losses = found.cpu().double()
        sums = [float(part.sum()) for part in losses.split(counts)]
        return Outcome(np.array(sums), np.array(counts, np.float64), tokens=losses.numpy())

    def _text_losses(self, examples: Sequence[Encoded]) -> tuple[Tensor, list[int]]:
        """The loss of every predicted token, float32 [Σ counts]; and the counts by example.

        For free text these are all tokens except the first; for an answer, all tokens.
        """
        starts = [max(1, e.start) for e in examples]
        predicted = [e.ids[start:] for e, start in zip(examples, starts, strict=True)]
        counts = [len(ids) for ids in predicted]
        at = self._states([e.ids for e in examples], [start - 1 for start in starts], counts)
        targets = torch.tensor(np.concatenate(predicted), device=at.device)
        return self._token_losses(at, targets.long()), counts

    def _states(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int], counts: Sequence[int]
    ) -> Tensor:
        """Last hidden states of counts[i] positions of sequence i, beginning at starts[i].

        Returns:
            float32 [Σ counts, D], in the order of the sequences.
        """
        found: dict[int, Tensor] = {}
        for group, ids in self._groups(sequences):
            hidden = hidden_states(self.lm.model, ids)
            for row, i in zip(hidden, group, strict=True):
                found[i] = row[starts[i] : starts[i] + counts[i]].float()
        return torch.cat([found[i] for i in range(len(sequences))])

    def _groups(self, sequences: Sequence[np.ndarray]) -> Iterator[tuple[list[int], Tensor]]:
        """Groups of sequences of similar length: their numbers, and their ids, int64 [B, T].

        The ids are padded on the right. Each group is one call of the model.
        """
        lengths = [len(sequence) for sequence in sequences]
        context = self.lm.context
        if context is not None and max(lengths) > context:
            raise SettingsError(
                f"an example has {max(lengths)} tokens, but {self.lm.name} reads no more than "
                f"{context}. Set max_length to {context} or less."
            )
        self.passes += 1
        for group in group_by_length(lengths):
            shape = len(group), max(lengths[i] for i in group)
            ids = np.full(shape, self.lm.padding, np.int64)
            for row, i in zip(ids, group, strict=True):
                row[: lengths[i]] = sequences[i]
            if self._together is not None:
                self._together.use(group, len(sequences))
            yield group, torch.from_numpy(ids).to(self.lm.model.device)

    def _logits(self, at: Tensor, ids: Tensor) -> Tensor:
        """Logits of the tokens `ids` [C] at float32 hidden states [N, D]: float32 [N, C]."""
        head = output_head(self.lm.model)
        bias = None if head.bias is None else self._rows(head.bias, ids)  # pyright: ignore[reportArgumentType]
        logits = nn.functional.linear(at, self._rows(head.weight, ids), bias)  # pyright: ignore[reportArgumentType]
        return shape_logits(self.lm.model, logits)

    def _token_losses(self, at: Tensor, targets: Tensor) -> Tensor:
        """−log p(target) over the whole vocabulary for hidden states [N, D]: float32 [N].

        Logits are computed for a part of the positions and of the vocabulary at a time.
        """
        size = output_head(self.lm.model).out_features
        parts = list(zip(at.split(_POSITIONS), targets.split(_POSITIONS), strict=True))
        normaliser = [part.new_full((len(part),), -math.inf) for part, _ in parts]
        right = [part.new_zeros(len(part)) for part, _ in parts]
        for low in range(0, size, _VOCABULARY):
            ids = torch.arange(low, min(low + _VOCABULARY, size), device=at.device)
            for i, (part, wanted) in enumerate(parts):
                logits = self._logits(part, ids)
                normaliser[i] = torch.logaddexp(normaliser[i], logits.logsumexp(-1))
                column = (wanted - low).clamp(0, len(ids) - 1)
                found = logits.gather(1, column[:, None])[:, 0]
                here = (wanted >= low) & (wanted < low + len(ids))
                right[i] = torch.where(here, found, right[i])
        return torch.cat(normaliser) - torch.cat(right)


def _cast_rows(weight: nn.Parameter, ids: Tensor) -> Tensor:
    return weight[ids].float()


def _labels(scores: Tensor, examples: Sequence[Encoded]) -> Tensor:
    return torch.tensor([e.label for e in examples], device=scores.device)
